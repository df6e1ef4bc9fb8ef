//! A network on disk and on the wire.

use std::collections::BTreeMap;
use std::net::IpAddr;

use gantry_sdk::api::network as api;
use gantry_sdk::id::NetworkId;
use gantry_sdk::kinds::network::NetworkSpec;
use gantry_sdk::kinds::networks::EndpointStatus;
use gantry_sdk::{Labels, api::EndpointResource};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One subnet of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnet {
    pub(crate) subnet: IpNet,
    /// The part that addresses are given from.
    pub(crate) range: Option<IpNet>,
    pub(crate) gateway: Option<IpAddr>,
}

impl Subnet {
    pub(crate) fn is_v6(&self) -> bool {
        self.subnet.addr().is_ipv6()
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: NetworkId,
    pub(crate) name: String,
    pub(crate) driver: String,
    /// RFC 3339.
    pub(crate) created: String,
    pub(crate) internal: bool,
    pub(crate) labels: Labels,
    pub(crate) options: Labels,
    pub(crate) subnets: Vec<Subnet>,
}

impl Record {
    /// Whether the engine made it: such a network cannot be removed.
    pub(crate) fn is_predefined(&self) -> bool {
        matches!(self.name.as_str(), "bridge" | "host" | "none")
    }

    /// The key of its address pool.
    pub(crate) fn pool(&self, v6: bool) -> String {
        format!("{}/{}", self.id, if v6 { "v6" } else { "v4" })
    }

    /// The network as its driver needs it.
    pub(crate) fn spec(&self) -> NetworkSpec {
        NetworkSpec {
            id: self.id.clone(),
            name: self.name.clone(),
            subnets: self.subnets.iter().map(|s| (s.subnet, s.gateway)).collect(),
            options: self.options.clone(),
            internal: self.internal,
        }
    }

    /// A line of the list, in the newest form.
    pub(crate) fn to_api(&self) -> api::Network {
        let has = |v6| self.subnets.iter().any(|s| s.is_v6() == v6);
        let text = |value: Option<String>| value.unwrap_or_default();
        let config = self.subnets.iter().map(|s| api::IpamConfig {
            subnet: s.subnet.to_string(),
            ip_range: text(s.range.map(|r| r.to_string())),
            gateway: text(s.gateway.map(|g| g.to_string())),
            aux_addresses: Labels::new(),
        });
        let config: Vec<_> = config.collect();
        api::Network {
            name: self.name.clone(),
            id: self.id.to_string(),
            created: self.created.clone(),
            scope: "local".into(),
            driver: self.driver.clone(),
            // The reference engine says so of networks without any address, too.
            enable_ipv4: has(false) || self.subnets.is_empty(),
            enable_ipv6: has(true),
            ipam: api::Ipam {
                driver: "default".into(),
                options: None,
                config: (!config.is_empty()).then_some(config),
            },
            internal: self.internal,
            options: self.options.clone(),
            labels: self.labels.clone(),
            ..api::Network::default()
        }
    }

    /// The whole network, with the containers in it: id, name and place of each.
    pub(crate) fn to_api_with(
        &self,
        containers: &[(String, String, EndpointStatus)],
    ) -> api::Network {
        let resource = |(id, name, status): &(String, String, EndpointStatus)| {
            let resource = EndpointResource {
                name: name.clone(),
                endpoint_id: status.endpoint_id.clone(),
                mac_address: status.mac.clone(),
                ipv4_address: with_prefix(&status.ip, status.prefix),
                ipv6_address: with_prefix(&status.ip6, status.prefix6),
            };
            (id.clone(), resource)
        };
        let containers: BTreeMap<_, _> = containers.iter().map(resource).collect();
        let status = self.subnets.iter().map(|s| (s.subnet.to_string(), usage(s, &containers)));
        api::Network {
            status: Some(api::NetworkStatus {
                ipam: api::IpamStatus { subnets: status.collect() },
            }),
            containers: Some(containers),
            ..self.to_api()
        }
    }
}

fn with_prefix(address: &str, prefix: u8) -> String {
    if address.is_empty() { String::new() } else { format!("{address}/{prefix}") }
}

/// How full a subnet is; counts beyond 64 bits are the most there is.
fn usage(subnet: &Subnet, containers: &BTreeMap<String, EndpointResource>) -> api::SubnetStatus {
    let v6 = subnet.is_v6();
    let address = |e: &EndpointResource| {
        let text = if v6 { &e.ipv6_address } else { &e.ipv4_address };
        text.parse::<IpNet>().ok().map(|net| net.addr())
    };
    let held: Vec<IpAddr> = containers.values().filter_map(address).chain(subnet.gateway).collect();
    let pool = subnet.range.unwrap_or(subnet.subnet);
    let size = |net: &IpNet| {
        1_u64.checked_shl(u32::from(net.max_prefix_len() - net.prefix_len())).unwrap_or(u64::MAX)
    };
    // What no host may have: the network's address and, for IPv4, the broadcast address.
    let whole = subnet.subnet;
    let reserved: Vec<IpAddr> =
        [Some(whole.network()), (!v6).then(|| whole.broadcast())].into_iter().flatten().collect();
    let within = |net: &IpNet, all: &[IpAddr]| all.iter().filter(|a| net.contains(*a)).count();
    let used = |net: &IpNet| (within(net, &held) + within(net, &reserved)) as u64;
    api::SubnetStatus {
        ips_in_use: used(&whole),
        dynamic_ips_available: size(&pool).saturating_sub(used(&pool)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_shows_who_is_in_it_and_how_full_it_is() {
        let record = Record {
            id: NetworkId::random(),
            name: "bridge".into(),
            driver: "bridge".into(),
            created: "2026-01-01T00:00:00Z".into(),
            internal: false,
            labels: Labels::new(),
            options: Labels::new(),
            subnets: vec![
                Subnet {
                    subnet: "172.17.0.0/16".parse().unwrap(),
                    range: Some("172.17.1.0/24".parse().unwrap()),
                    gateway: Some("172.17.0.1".parse().unwrap()),
                },
                Subnet { subnet: "fd00::/64".parse().unwrap(), range: None, gateway: None },
            ],
        };
        let status = EndpointStatus {
            endpoint_id: "e".into(),
            ip: "172.17.1.5".into(),
            prefix: 16,
            ..EndpointStatus::default()
        };
        let shown = record.to_api_with(&[("c".into(), "web".into(), status)]);
        let resource = &shown.containers.unwrap()["c"];
        assert_eq!(
            (resource.ipv4_address.as_str(), resource.name.as_str()),
            ("172.17.1.5/16", "web")
        );
        assert_eq!(resource.ipv6_address, "");
        let subnets = shown.status.unwrap().ipam.subnets;
        let v4 = subnets["172.17.0.0/16"];
        assert_eq!((v4.ips_in_use, v4.dynamic_ips_available), (4, 255));
        assert_eq!(subnets["fd00::/64"].dynamic_ips_available, u64::MAX - 1);
        assert!(shown.enable_ipv4 && shown.enable_ipv6);
    }
}
