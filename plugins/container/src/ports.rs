//! Ports: from `80/tcp` and bindings to mappings, and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gantry_sdk::api::container::{PortBinding, PortMap};
use gantry_sdk::api::{ContainerConfig, HostConfig, PortSummary};
use gantry_sdk::kinds::network::{PortMapping, Protocol};
use gantry_sdk::{Error, Result};

/// Reads `80/tcp`, `80`, `53/udp`.
///
/// # Errors
///
/// `InvalidArgument` naming the port.
pub fn parse(port: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let invalid = || Error::invalid(format!("invalid port specification: {port:.80?}"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(invalid()),
    };
    let number = number.parse().ok().filter(|n| *n != 0).ok_or_else(invalid)?;
    Ok((number, protocol))
}

/// `tcp`, `udp`, `sctp`.
pub const fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// What a container asks to publish; a binding without address means every address of both families.
///
/// # Errors
///
/// `InvalidArgument` naming the binding.
pub fn mappings(host: &HostConfig) -> Result<Vec<PortMapping>> {
    let mut mappings = Vec::new();
    for (port, bindings) in host.port_bindings.iter().flatten() {
        let (container_port, protocol) = parse(port)?;
        let unbound = [PortBinding::default()];
        let bindings = match bindings.as_deref() {
            None | Some([]) => &unbound[..],
            Some(bindings) => bindings,
        };
        for binding in bindings {
            let (host_port, host_port_end) = host_ports(&binding.host_port)?;
            for host_ip in host_addresses(&binding.host_ip)? {
                mappings.push(PortMapping {
                    protocol,
                    container_port,
                    host_ip,
                    host_port,
                    host_port_end,
                });
            }
        }
    }
    Ok(mappings)
}

fn host_ports(text: &str) -> Result<(u16, u16)> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let invalid = || Error::invalid(format!("invalid port specification: {text:.80?}"));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse::<u16>(), last.parse::<u16>());
    match (first, last) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(invalid()),
    }
}

fn host_addresses(text: &str) -> Result<Vec<IpAddr>> {
    match text {
        "" => Ok(vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]),
        _ => text
            .parse()
            .map(|address| vec![address])
            .map_err(|_| Error::invalid(format!("invalid host IP address: {text:.80}"))),
    }
}

/// Ports that image and user expose.
///
/// # Errors
///
/// `InvalidArgument` naming the port.
pub fn exposed(config: &ContainerConfig) -> Result<Vec<(Protocol, u16)>> {
    let mut ports = Vec::new();
    for text in config.exposed_ports.iter().flatten().map(|(port, _)| port) {
        let (port, protocol) = parse(text)?;
        ports.push((protocol, port));
    }
    Ok(ports)
}

/// `NetworkSettings.Ports`: exposed ports without, published ones with their bindings.
pub fn port_map(config: &ContainerConfig, published: &[PortMapping]) -> PortMap {
    let mut map: PortMap =
        config.exposed_ports.iter().flatten().map(|(port, _)| (port.clone(), None)).collect();
    for mapping in published {
        let key = format!("{}/{}", mapping.container_port, protocol_word(mapping.protocol));
        let bindings = map.entry(key).or_default().get_or_insert_default();
        bindings.push(PortBinding {
            host_ip: mapping.host_ip.to_string(),
            host_port: mapping.host_port.to_string(),
        });
    }
    map
}

/// The ports of `docker ps`.
pub fn summaries(config: &ContainerConfig, published: &[PortMapping]) -> Vec<PortSummary> {
    let mut ports: Vec<PortSummary> = published
        .iter()
        .map(|m| PortSummary {
            ip: m.host_ip.to_string(),
            private_port: m.container_port,
            public_port: m.host_port,
            kind: protocol_word(m.protocol).into(),
        })
        .collect();
    for (protocol, port) in exposed(config).unwrap_or_default() {
        let kind = protocol_word(protocol);
        if !ports.iter().any(|p| p.private_port == port && p.kind == kind) {
            ports.push(PortSummary { private_port: port, kind: kind.into(), ..Default::default() });
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_strictly() {
        assert_eq!(parse("80").unwrap(), (80, Protocol::Tcp));
        assert_eq!(parse("53/udp").unwrap(), (53, Protocol::Udp));
        for bad in ["", "0", "x", "80/icmp", "70000"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_binding_without_address_is_for_both_families() {
        let bindings = PortMap::from([(
            "80/tcp".into(),
            Some(vec![PortBinding { host_ip: String::new(), host_port: "8000-8010".into() }]),
        )]);
        let host = HostConfig { port_bindings: Some(bindings), ..HostConfig::default() };
        let mappings = mappings(&host).unwrap();
        assert_eq!(mappings.len(), 2);
        assert_eq!((mappings[0].host_port, mappings[0].host_port_end), (8000, 8010));
    }
}
