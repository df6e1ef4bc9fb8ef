//! Which ports a container publishes: what it names, and with `-P` what it exposes.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gantry_sdk::kinds::network::{PortMapping, Protocol};
use gantry_sdk::kinds::networks::SandboxSpec;

const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The mappings of `spec`. A port that names no address comes as two mappings, for all addresses of
/// both families; `default_ip` is where those go if the operator said so.
pub(crate) fn wanted(spec: &SandboxSpec, default_ip: Option<IpAddr>) -> Vec<PortMapping> {
    let mut ports = spec.ports.clone();
    if spec.publish_all {
        let named = |(protocol, port): &(Protocol, u16)| {
            spec.ports.iter().any(|p| p.protocol == *protocol && p.container_port == *port)
        };
        for (protocol, container_port) in spec.exposed.iter().filter(|e| !named(e)) {
            ports.extend([ANY4, ANY6].map(|host_ip| PortMapping {
                protocol: *protocol,
                container_port: *container_port,
                host_ip,
                host_port: 0,
                host_port_end: 0,
            }));
        }
    }
    match default_ip.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => narrowed(ports, ip),
        None => ports,
    }
}

/// Replaces each pair of "everywhere, both families" by one mapping on `ip`.
fn narrowed(ports: Vec<PortMapping>, ip: IpAddr) -> Vec<PortMapping> {
    let mut kept = Vec::with_capacity(ports.len());
    let mut ports = VecDeque::from(ports);
    while let Some(mapping) = ports.pop_front() {
        let other = if mapping.host_ip == ANY4 { ANY6 } else { ANY4 };
        let partner = PortMapping { host_ip: other, ..mapping.clone() };
        match ports.iter().position(|p| mapping.host_ip.is_unspecified() && *p == partner) {
            Some(at) => {
                ports.remove(at);
                kept.push(PortMapping { host_ip: ip, ..mapping });
            }
            None => kept.push(mapping),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(ip: &str, host_port: u16) -> PortMapping {
        PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_ip: ip.parse().unwrap(),
            host_port,
            host_port_end: host_port,
        }
    }

    #[test]
    fn exposed_ports_are_published_unless_named() {
        let spec = SandboxSpec {
            ports: vec![mapping("0.0.0.0", 8080)],
            exposed: vec![(Protocol::Tcp, 80), (Protocol::Udp, 53)],
            publish_all: true,
            ..SandboxSpec::default()
        };
        let all = wanted(&spec, None);
        assert_eq!(all.len(), 3);
        assert!(all[1..].iter().all(|p| p.container_port == 53 && p.host_port == 0));
        assert_eq!(wanted(&SandboxSpec { publish_all: false, ..spec }, None).len(), 1);
    }

    #[test]
    fn the_operator_s_address_is_for_ports_that_name_none() {
        let spec = SandboxSpec {
            ports: vec![
                mapping("0.0.0.0", 1),
                mapping("::", 1),
                mapping("0.0.0.0", 2),
                mapping("10.0.0.1", 3),
            ],
            ..SandboxSpec::default()
        };
        let narrowed = wanted(&spec, Some("127.0.0.1".parse().unwrap()));
        let expected = [mapping("127.0.0.1", 1), mapping("0.0.0.0", 2), mapping("10.0.0.1", 3)];
        assert_eq!(narrowed, expected);
        assert_eq!(wanted(&spec, Some(ANY4)), spec.ports);
    }
}
