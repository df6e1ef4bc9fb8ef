//! The network store, as the container store uses it: a sandbox per container.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::kinds::network::{NetNsFd, PortMapping, Protocol};
use crate::{Labels, kind};

/// What a container asks of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Container id.
    pub container: String,
    /// Container name, for names inside.
    pub name: String,
    /// Network by name or id: `bridge` (also `default`), `host`, `none`.
    pub network: String,
    /// Host name inside.
    pub hostname: String,
    /// Domain name inside; may be empty.
    pub domainname: String,
    /// `name:address` lines for the hosts file; `host-gateway` is resolved.
    pub extra_hosts: Vec<String>,
    /// Name servers; empty for the daemon's.
    pub dns: Vec<String>,
    /// Search domains; empty for the daemon's.
    pub dns_search: Vec<String>,
    /// Resolver options; empty for the daemon's.
    pub dns_options: Vec<String>,
    /// Ports to publish.
    pub ports: Vec<PortMapping>,
    /// Ports the image or user exposes, for `publish_all`.
    pub exposed: Vec<(Protocol, u16)>,
    /// `-P`: publish all exposed ports on free host ports.
    pub publish_all: bool,
    /// Wanted MAC address, `02:42:ac:11:00:02`.
    pub mac: Option<String>,
    /// Wanted addresses.
    pub addresses: Vec<IpAddr>,
    /// Options of the endpoint.
    pub options: Labels,
    /// Directory for `hosts`, `hostname` and `resolv.conf`; created by the caller.
    pub files: PathBuf,
}

/// One connected network, as `docker inspect` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Network id.
    pub network_id: String,
    /// Endpoint id; empty while the container does not run.
    pub endpoint_id: String,
    /// IPv4 gateway; empty if none.
    pub gateway: String,
    /// IPv4 address; empty if none.
    pub ip: String,
    /// Length of the IPv4 subnet.
    pub prefix: u8,
    /// IPv6 gateway; empty if none.
    pub gateway6: String,
    /// IPv6 address; empty if none.
    pub ip6: String,
    /// Length of the IPv6 subnet.
    pub prefix6: u8,
    /// MAC address; empty if none.
    pub mac: String,
    /// Names by which others reach it.
    pub dns_names: Vec<String>,
    /// Driver options.
    pub options: Labels,
}

/// A container's network while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Sandbox id, 64 hexadecimal digits.
    pub sandbox_id: String,
    /// By network name.
    pub networks: BTreeMap<String, EndpointStatus>,
    /// Published ports.
    pub ports: Vec<PortMapping>,
}

/// The network namespace for a container's first process.
#[derive(Clone, Debug)]
pub enum SandboxNs {
    /// The host's.
    Host,
    /// Ready and connected; the runtime joins it.
    Ready(NetNsFd),
}

/// A sandbox that is ready for a container to start.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Namespace to join.
    pub netns: SandboxNs,
    /// For inspect and events.
    pub status: SandboxStatus,
}

kind! {
    /// Networks and the sandboxes of containers.
    pub trait NetworkStore: Networks = "networks" (1, 0), budget Some(std::time::Duration::from_secs(60)) => {
        /// Whether `network` can be used, and its id and name. Called when a container is created.
        ///
        /// # Errors
        ///
        /// `NotFound` with the reference engine's text (`network x not found`).
        async fn resolve(&self, cx: &Ctx, network: &str) -> Result<(String, String)>;

        /// Makes, connects and configures a container's sandbox, and writes its files. All or
        /// nothing.
        ///
        /// # Errors
        ///
        /// `Conflict` for a taken port or address; `NotFound` for the network.
        async fn open(&self, cx: &Ctx, spec: &SandboxSpec) -> Result<Sandbox>;

        /// Disconnects a container; an unknown one is no error. Never waits for links to vanish.
        async fn close(&self, cx: &Ctx, container: &str) -> Result<()>;

        /// After a restart of the daemon: the containers that still run, with what they had asked
        /// for and got. Everything else is cleaned up.
        async fn recover(&self, cx: &Ctx, live: &[(SandboxSpec, SandboxStatus)]) -> Result<()>;
    }
}
