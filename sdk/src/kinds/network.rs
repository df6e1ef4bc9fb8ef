//! Network drivers: how a container's network namespace is connected.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::NetworkId;
use crate::{Labels, kind};

/// A network as its driver needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Identity.
    pub id: NetworkId,
    /// Name.
    pub name: String,
    /// Subnets with their gateways.
    pub subnets: Vec<(IpNet, Option<IpAddr>)>,
    /// Driver options.
    pub options: Labels,
    /// No way out.
    pub internal: bool,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the container.
    pub container_port: u16,
    /// Address on the host; unspecified is all of its family.
    pub host_ip: IpAddr,
    /// Port on the host; 0 asks for a free one, a range is tried in order.
    pub host_port: u16,
    /// Last port of the range; equal to `host_port` for one port.
    pub host_port_end: u16,
}

/// What a container wants from one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Caller-chosen key, 64 hexadecimal digits.
    pub id: String,
    /// The container.
    pub container: String,
    /// Name of the interface inside, `eth0`.
    pub interface: String,
    /// Addresses with the length of their subnet.
    pub addresses: Vec<IpNet>,
    /// MAC address; none derives one from the address.
    pub mac: Option<[u8; 6]>,
    /// Ports to publish.
    pub ports: Vec<PortMapping>,
    /// Whether this network gives the default route.
    pub gateway: bool,
    /// Driver options of the endpoint.
    pub options: Labels,
}

/// A connected endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// MAC address inside.
    pub mac: Option<[u8; 6]>,
    /// Ports as they were published: no 0, no ranges.
    pub ports: Vec<PortMapping>,
    /// Name of the interface on the host, if there is one.
    pub host_interface: Option<String>,
}

/// A network namespace that the endpoint is made in.
pub type NetNsFd = Arc<OwnedFd>;

kind! {
    /// Connects network namespaces. Every call may be repeated and then ends in the same state.
    pub trait NetworkDriver: Network = "network" (1, 0), budget Some(Duration::from_secs(20)) => {
        /// Makes what the network needs on the host.
        async fn create(&self, cx: &Ctx, network: &NetworkSpec) -> Result<()>;

        /// Removes it again; a missing one is no error.
        async fn delete(&self, cx: &Ctx, network: &NetworkSpec) -> Result<()>;

        /// Connects `netns`.
        ///
        /// # Errors
        ///
        /// `Conflict` with the reference engine's text if a port is taken; then nothing is changed.
        async fn join(&self, cx: &Ctx, network: &NetworkSpec, endpoint: &EndpointSpec, netns: NetNsFd) -> Result<Joined>;

        /// Disconnects; the namespace may be gone already.
        async fn leave(&self, cx: &Ctx, network: &NetworkSpec, endpoint: &EndpointSpec, joined: &Joined) -> Result<()>;

        /// After a restart of the daemon: takes the live endpoints over and removes what is left of
        /// all others.
        async fn recover(&self, cx: &Ctx, network: &NetworkSpec, live: &[(EndpointSpec, Joined)]) -> Result<()>;
    }
}
