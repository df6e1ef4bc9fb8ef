//! The daemon's keys about the default network and about names.

use std::net::IpAddr;
use std::path::PathBuf;

use gantry_sdk::{ConfigKey, ConfigView};
use ipnet::IpNet;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The keys of [`Config`].
pub(crate) const KEYS: &[ConfigKey] = &[
    ConfigKey::fixed("bip"),
    ConfigKey::fixed("bip6"),
    ConfigKey::fixed("bridge"),
    ConfigKey::fixed("dns"),
    ConfigKey::fixed("dns-opts"),
    ConfigKey::fixed("dns-search"),
    ConfigKey::fixed("fixed-cidr"),
    ConfigKey::fixed("fixed-cidr-v6"),
    ConfigKey::fixed("host-gateway-ips"),
    ConfigKey::fixed("icc"),
    ConfigKey::fixed("ip"),
    ConfigKey::fixed("ip-masq"),
    ConfigKey::fixed("ipv6"),
    ConfigKey::fixed("mtu"),
    ConfigKey::fixed("resolv-conf"),
];

/// The name of the default bridge's link.
pub(crate) const DEFAULT_LINK: &str = "docker0";

/// The MTU of Ethernet, shown as the default.
pub(crate) const DEFAULT_MTU: u32 = 1500;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Address and subnet of the default bridge.
    #[serde(deserialize_with = "empty_is_none")]
    pub(crate) bip: Option<IpNet>,
    #[serde(deserialize_with = "empty_is_none")]
    pub(crate) bip6: Option<IpNet>,
    /// A bridge of the operator's; `none` for no default bridge network.
    pub(crate) bridge: String,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) dns_opts: Vec<String>,
    pub(crate) dns_search: Vec<String>,
    /// Part of the subnet that addresses are given from.
    #[serde(deserialize_with = "empty_is_none")]
    pub(crate) fixed_cidr: Option<IpNet>,
    #[serde(deserialize_with = "empty_is_none")]
    pub(crate) fixed_cidr_v6: Option<IpNet>,
    /// What `host-gateway` means; the default bridge's addresses if empty.
    pub(crate) host_gateway_ips: Vec<IpAddr>,
    pub(crate) icc: bool,
    /// Where ports are published that name no address.
    #[serde(deserialize_with = "empty_is_none")]
    pub(crate) ip: Option<IpAddr>,
    pub(crate) ip_masq: bool,
    pub(crate) ipv6: bool,
    pub(crate) mtu: u32,
    /// The host's resolver configuration; found if absent.
    #[serde(deserialize_with = "empty_is_none")]
    pub(crate) resolv_conf: Option<PathBuf>,
}

/// Files written for the reference engine may hold `""` for "not set".
fn empty_is_none<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    input: D,
) -> Result<Option<T>, D::Error> {
    match Value::deserialize(input)? {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        value => serde_json::from_value(value).map(Some).map_err(D::Error::custom),
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bip: None,
            bip6: None,
            bridge: String::new(),
            dns: Vec::new(),
            dns_opts: Vec::new(),
            dns_search: Vec::new(),
            fixed_cidr: None,
            fixed_cidr_v6: None,
            host_gateway_ips: Vec::new(),
            icc: true,
            ip: None,
            ip_masq: true,
            ipv6: false,
            mtu: DEFAULT_MTU,
            resolv_conf: None,
        }
    }
}

impl Config {
    /// Every mistake in the daemon's keys.
    pub(crate) fn check(view: &ConfigView) -> Vec<String> {
        match view.parse::<Self>() {
            Ok(config) => config.mistakes(),
            Err(error) => vec![error.chain()],
        }
    }

    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if !self.bridge.is_empty() && (self.bip.is_some() || self.bip6.is_some()) {
            mistakes.push(
                "bridge and bip are mutually exclusive options, please specify only one".to_owned(),
            );
        }
        let nets = [
            ("bip", self.bip, false),
            ("bip6", self.bip6, true),
            ("fixed-cidr", self.fixed_cidr, false),
            ("fixed-cidr-v6", self.fixed_cidr_v6, true),
        ];
        for (key, net, v6) in nets {
            let Some(net) = net else { continue };
            if net.addr().is_ipv6() != v6 {
                mistakes.push(format!("{key}: {net} is of the wrong address family"));
            }
            if key.starts_with("bip") && net.addr() == net.network() {
                mistakes.push(format!("{key}: {net} is a subnet, not an address in it"));
            }
        }
        let within = [
            ("fixed-cidr", self.fixed_cidr, self.bip),
            ("fixed-cidr-v6", self.fixed_cidr_v6, self.bip6),
        ];
        for (key, range, bip) in within {
            if let (Some(range), Some(bip)) = (range, bip)
                && !bip.trunc().contains(&range)
            {
                mistakes.push(format!("{key}: {range} is not within {}", bip.trunc()));
            }
        }
        let families = self.host_gateway_ips.iter().filter(|ip| ip.is_ipv6()).count();
        if families > 1 || self.host_gateway_ips.len() - families > 1 {
            mistakes.push("host-gateway-ips: only one address of each family is allowed".into());
        }
        if self.mtu != 0 && !(68..=65_535).contains(&self.mtu) {
            mistakes.push(format!("mtu: {} is not from 68 to 65535", self.mtu));
        }
        mistakes
    }

    /// Whether there is a default bridge network at all.
    pub(crate) fn has_bridge(&self) -> bool {
        self.bridge != "none"
    }

    /// The link of the default bridge network.
    pub(crate) fn link(&self) -> &str {
        if self.bridge.is_empty() { DEFAULT_LINK } else { &self.bridge }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mistakes_are_found_together() {
        let cases = [
            (json!({}), 0),
            (json!({"bip": "192.168.5.1/24", "fixed-cidr": "192.168.5.128/25"}), 0),
            (json!({"bip": "192.168.5.1/24", "fixed-cidr": "10.0.0.0/25"}), 1),
            (json!({"bip": "192.168.5.0/24"}), 1),
            (json!({"bip": "fd00::1/64", "bip6": "10.0.0.1/8"}), 2),
            (json!({"bip": "10.0.0.1/8", "bridge": "br0"}), 1),
            (json!({"bip": "nonsense"}), 1),
            (json!({"bip": "", "ip": "", "fixed-cidr": "", "resolv-conf": ""}), 0),
            (json!({"mtu": 10}), 1),
            (json!({"host-gateway-ips": ["10.0.0.1", "10.0.0.2"]}), 1),
            (json!({"host-gateway-ips": ["10.0.0.1", "fd00::1"]}), 0),
            (json!({"dns": ["8.8.8.8", "no"]}), 1),
        ];
        for (value, expected) in cases {
            let view = ConfigView::new(value.as_object().unwrap().clone());
            assert_eq!(Config::check(&view).len(), expected, "{value}");
        }
    }
}
