//! What the daemon and a network's options say.

use std::net::IpAddr;

use gantry_sdk::kinds::network::NetworkSpec;
use gantry_sdk::{ConfigView, Error, Result};
use gantry_sys::netlink::IfName;
use ipnet::IpNet;
use serde::Deserialize;

/// The daemon's keys that concern this driver.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Firewall rules for IPv4. Without them published ports go through the proxy only and nothing
    /// is masqueraded.
    pub(crate) iptables: bool,
    /// The same for IPv6.
    pub(crate) ip6tables: bool,
    /// Whether to turn forwarding on.
    pub(crate) ip_forward: bool,
    /// Whether to leave the host a router for others after turning forwarding on.
    pub(crate) ip_forward_no_drop: bool,
    /// Whether to accept connections that the rules cannot redirect: to 127.0.0.1, to ::1, and over
    /// IPv6 for containers that have none.
    pub(crate) userland_proxy: bool,
    /// Empty or `nftables`.
    pub(crate) firewall_backend: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            iptables: true,
            ip6tables: true,
            ip_forward: true,
            ip_forward_no_drop: false,
            userland_proxy: true,
            firewall_backend: String::new(),
        }
    }
}

impl Config {
    /// Every mistake in the daemon's keys.
    pub(crate) fn check(view: &ConfigView) -> Vec<String> {
        match view.parse::<Self>() {
            Ok(config) if matches!(config.firewall_backend.as_str(), "" | "nftables") => Vec::new(),
            Ok(config) => vec![format!(
                "firewall-backend: {:?} is not supported, only nftables is",
                config.firewall_backend
            )],
            Err(error) => vec![error.chain()],
        }
    }
}

/// The largest MTU of a bridge. Source: Linux, `ETH_MAX_MTU`.
const MAX_MTU: u32 = 65_535;
/// The smallest that carries IPv4. Source: RFC 791.
const MIN_MTU: u32 = 68;

/// A network's options, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) bridge: IfName,
    /// The link belongs to the operator: never deleted.
    pub(crate) foreign: bool,
    pub(crate) icc: bool,
    pub(crate) masquerade: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) internal: bool,
    /// Addresses of the bridge: a gateway with the length of its subnet.
    pub(crate) gateways: Vec<IpNet>,
    pub(crate) subnets: Vec<IpNet>,
}

impl Settings {
    /// Reads `network`'s options.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for an option that is unknown or has no sensible value.
    pub(crate) fn of(network: &NetworkSpec) -> Result<Self> {
        let mut settings = Self {
            bridge: name(&format!("br-{}", network.id.short()))?,
            foreign: false,
            icc: true,
            masquerade: true,
            mtu: None,
            internal: network.internal,
            gateways: gateways(network)?,
            subnets: network.subnets.iter().map(|(net, _)| *net).collect(),
        };
        let mut is_default = false;
        for (option, value) in &network.options {
            let invalid =
                || Error::invalid(format!("invalid value {value:.80?} of option {option}"));
            let boolean = || value.parse::<bool>().map_err(|_| invalid());
            match option.as_str() {
                "com.docker.network.bridge.name" => settings.bridge = name(value)?,
                "com.docker.network.bridge.default_bridge" => is_default = boolean()?,
                "com.docker.network.bridge.enable_icc" => settings.icc = boolean()?,
                "com.docker.network.bridge.enable_ip_masquerade" => {
                    settings.masquerade = boolean()?
                }
                // Applied by the network store, where a port's address is chosen.
                "com.docker.network.bridge.host_binding_ipv4" => {
                    value.parse::<IpAddr>().map_err(|_| invalid())?;
                }
                "com.docker.network.driver.mtu" => settings.mtu = mtu(value).ok_or_else(invalid)?,
                _ => {
                    let text = format!("the bridge driver has no option {option:.80}");
                    return Err(Error::invalid(text));
                }
            }
        }
        settings.foreign = is_default && settings.bridge.as_str() != "docker0";
        Ok(settings)
    }
}

fn name(text: &str) -> Result<IfName> {
    IfName::new(text).map_err(|e| Error::invalid("invalid bridge name").caused_by(e))
}

/// 0 is the kernel's default; `None` is invalid.
fn mtu(text: &str) -> Option<Option<u32>> {
    match text.parse().ok()? {
        0 => Some(None),
        mtu @ MIN_MTU..=MAX_MTU => Some(Some(mtu)),
        _ => None,
    }
}

fn gateways(network: &NetworkSpec) -> Result<Vec<IpNet>> {
    let mut gateways = Vec::new();
    for (subnet, gateway) in &network.subnets {
        let Some(gateway) = gateway else { continue };
        if !subnet.contains(gateway) {
            return Err(Error::invalid(format!("gateway {gateway} is not within {subnet}")));
        }
        gateways.extend(IpNet::new(*gateway, subnet.prefix_len()).ok());
    }
    Ok(gateways)
}

#[cfg(test)]
mod tests {
    use gantry_sdk::id::NetworkId;

    use super::*;

    fn spec(option: &str, value: &str) -> NetworkSpec {
        NetworkSpec {
            id: NetworkId::random(),
            name: "n".into(),
            subnets: vec![("10.0.0.0/24".parse().unwrap(), Some("10.0.0.1".parse().unwrap()))],
            options: [(option.to_owned(), value.to_owned())].into(),
            internal: false,
        }
    }

    #[test]
    fn options_are_honoured_or_refused() {
        let cases = [
            ("com.docker.network.bridge.name", "br9", true),
            ("com.docker.network.bridge.name", "a-name-that-is-too-long", false),
            ("com.docker.network.bridge.enable_icc", "false", true),
            ("com.docker.network.bridge.enable_icc", "maybe", false),
            ("com.docker.network.driver.mtu", "1400", true),
            ("com.docker.network.driver.mtu", "0", true),
            ("com.docker.network.driver.mtu", "12", false),
            ("com.docker.network.driver.mtu", "70000", false),
            ("com.docker.network.bridge.host_binding_ipv4", "127.0.0.1", true),
            ("com.docker.network.bridge.host_binding_ipv4", "here", false),
            ("something.else", "1", false),
        ];
        for (option, value, good) in cases {
            assert_eq!(Settings::of(&spec(option, value)).is_ok(), good, "{option}={value}");
        }
        let mut outside = spec("com.docker.network.driver.mtu", "1400");
        outside.subnets[0].1 = Some("10.0.1.1".parse().unwrap());
        assert!(Settings::of(&outside).is_err());
    }

    #[test]
    fn only_one_firewall_is_supported() {
        let view = |value: &str| {
            let mut map = serde_json::Map::new();
            map.insert("firewall-backend".into(), value.into());
            Config::check(&ConfigView::new(map)).len()
        };
        assert_eq!((view("nftables"), view(""), view("iptables")), (0, 0, 1));
    }
}
