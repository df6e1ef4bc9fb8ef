//! Networks and endpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{StringMap, is_default};

/// A container's place in one network: wished in requests, as it is in answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSettings {
    /// Addresses asked for.
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<EndpointIpamConfig>,
    /// Legacy links in this network.
    pub links: Option<Vec<String>>,
    /// More names for the embedded DNS.
    pub aliases: Option<Vec<String>>,
    /// Options for the network driver.
    pub driver_opts: Option<StringMap>,
    /// The network with the highest gives the default gateway (API 1.48).
    pub gw_priority: i64,
    /// Id of the network.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// Id of the endpoint; empty while not running.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// IPv4 gateway.
    pub gateway: String,
    /// IPv4 address.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// Hardware address: wished (API 1.44) or in use.
    pub mac_address: String,
    /// IPv4 prefix length.
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: i64,
    /// IPv6 gateway.
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    /// IPv6 address.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    /// IPv6 prefix length.
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: i64,
    /// Every name the embedded DNS knows it by.
    #[serde(rename = "DNSNames")]
    pub dns_names: Option<Vec<String>>,
}

/// Addresses asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointIpamConfig {
    /// IPv4 address.
    #[serde(rename = "IPv4Address", skip_serializing_if = "is_default")]
    pub ipv4_address: String,
    /// IPv6 address.
    #[serde(rename = "IPv6Address", skip_serializing_if = "is_default")]
    pub ipv6_address: String,
    /// Link-local addresses.
    #[serde(rename = "LinkLocalIPs", skip_serializing_if = "is_default")]
    pub link_local_ips: Vec<String>,
}

/// How a new container joins networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkingConfig {
    /// One entry per network, by name or id. The value may be `null`.
    pub endpoints_config: BTreeMap<String, Option<EndpointSettings>>,
}

/// A network: a line of `GET /networks`, and, with `containers`, `GET /networks/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// When it was made.
    pub created: String,
    /// `local`, `swarm` or `global`.
    pub scope: String,
    /// Driver.
    pub driver: String,
    /// Whether it has IPv4 (API 1.48).
    #[serde(rename = "EnableIPv4")]
    pub enable_ipv4: bool,
    /// Whether it has IPv6.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Addresses.
    #[serde(rename = "IPAM")]
    pub ipam: Ipam,
    /// Whether it has no way out.
    pub internal: bool,
    /// Whether containers may join a cluster network by hand.
    pub attachable: bool,
    /// Whether it is the cluster's routing mesh.
    pub ingress: bool,
    /// The network whose configuration it uses.
    pub config_from: ConfigReference,
    /// Whether it is only a configuration for others.
    pub config_only: bool,
    /// In an inspection: containers by id. None in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containers: Option<BTreeMap<String, EndpointResource>>,
    /// Options of the driver.
    pub options: StringMap,
    /// Labels.
    pub labels: StringMap,
    /// Other hosts of an overlay network.
    #[serde(skip_serializing_if = "is_default")]
    pub peers: Vec<PeerInfo>,
    /// In an inspection: addresses in use (API 1.52).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<NetworkStatus>,
}

/// A network by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConfigReference {
    /// Name; empty for none.
    pub network: String,
}

/// Another host of an overlay network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerInfo {
    /// Name.
    pub name: String,
    /// Address.
    #[serde(rename = "IP")]
    pub ip: String,
}

/// A container in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointResource {
    /// Name of the container, without a slash.
    pub name: String,
    /// Id of the endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// Hardware address.
    pub mac_address: String,
    /// Address with prefix length, or empty.
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    /// Address with prefix length, or empty.
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

/// Address management of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// Driver; `default` for the built-in one.
    pub driver: String,
    /// Options of the driver.
    pub options: Option<StringMap>,
    /// Subnets.
    pub config: Option<Vec<IpamConfig>>,
}

/// One subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamConfig {
    /// The subnet, with prefix length.
    #[serde(rename = "Subnet", skip_serializing_if = "is_default")]
    pub subnet: String,
    /// The part addresses are given from.
    #[serde(rename = "IPRange", skip_serializing_if = "is_default")]
    pub ip_range: String,
    /// The gateway.
    #[serde(rename = "Gateway", skip_serializing_if = "is_default")]
    pub gateway: String,
    /// Addresses in use by others, by name.
    #[serde(rename = "AuxiliaryAddresses", skip_serializing_if = "is_default")]
    pub aux_addresses: StringMap,
}

/// What is measured of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkStatus {
    /// Addresses.
    #[serde(rename = "IPAM")]
    pub ipam: IpamStatus,
}

/// Addresses in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamStatus {
    /// By subnet.
    #[serde(skip_serializing_if = "is_default")]
    pub subnets: BTreeMap<String, SubnetStatus>,
}

/// Addresses of one subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubnetStatus {
    /// In use, with those that can never be given.
    #[serde(rename = "IPsInUse")]
    pub ips_in_use: u64,
    /// Left to give.
    #[serde(rename = "DynamicIPsAvailable")]
    pub dynamic_ips_available: u64,
}

/// The body of `POST /networks/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkCreateRequest {
    /// Name.
    pub name: String,
    /// Driver; empty for the default.
    pub driver: String,
    /// Scope; empty for the driver's.
    pub scope: String,
    /// IPv4; none for yes (API 1.48).
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    pub enable_ipv4: Option<bool>,
    /// IPv6; none for the daemon's default.
    #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
    pub enable_ipv6: Option<bool>,
    /// Addresses.
    #[serde(rename = "IPAM")]
    pub ipam: Option<Ipam>,
    /// Whether it has no way out.
    pub internal: bool,
    /// Whether containers may join a cluster network by hand.
    pub attachable: bool,
    /// Whether it is the cluster's routing mesh.
    pub ingress: bool,
    /// Whether it is only a configuration for others.
    pub config_only: bool,
    /// The network whose configuration it uses.
    pub config_from: Option<ConfigReference>,
    /// Options of the driver.
    pub options: Option<StringMap>,
    /// Labels.
    pub labels: Option<StringMap>,
}

/// The answer to `POST /networks/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkCreateResponse {
    /// Id.
    pub id: String,
    /// What was accepted but may surprise; empty for nothing.
    pub warning: String,
}

/// The body of `POST /networks/{id}/connect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkConnectRequest {
    /// Container by id or name.
    pub container: String,
    /// Its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_config: Option<EndpointSettings>,
}

/// The body of `POST /networks/{id}/disconnect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkDisconnectRequest {
    /// Container by id or name.
    pub container: String,
    /// Whether the container may be gone already.
    pub force: bool,
}

/// The answer to `POST /networks/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworksPruneReport {
    /// Names; `null` when there was nothing to remove.
    pub networks_deleted: Option<Vec<String>>,
}
