//! Host ports: chosen, and held by bound sockets.
//!
//! The firewall redirects packets without asking whether anybody listens, so nothing in it would stop
//! a second owner of a port. A socket does: whatever is published is also bound, by us, for as long
//! as it is published, and every other program gets the error it expects.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_sdk::kinds::network::{PortMapping, Protocol};
use gantry_sdk::{Error, ErrorKind};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::sysctl;

/// Connections that may wait to be accepted by the proxy.
const BACKLOG: i32 = 512;

/// Source: Linux, `ip_local_port_range` (ip(7)); used when it cannot be read.
const EPHEMERAL: (u16, u16) = (32_768, 60_999);

/// How often, and after what pause, a taken port is tried again.
const FORK_TRIES: u32 = 4;
const FORK_PAUSE: Duration = Duration::from_millis(3);

/// Why a port is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error("Bind for {ip}:{port} failed: port is already allocated")]
    Allocated { ip: IpAddr, port: u16 },
    #[error("failed to bind host port {ip}:{port}/{protocol}")]
    Bind { ip: IpAddr, port: u16, protocol: &'static str, source: io::Error },
    #[error("Bind for {ip}:{first}-{last} failed: all ports are allocated")]
    AllAllocated { ip: IpAddr, first: u16, last: u16 },
    #[error("invalid port range: {first}-{last}")]
    Range { first: u16, last: u16 },
}

impl PortError {
    /// Whether another port may do better.
    fn is_taken(&self) -> bool {
        match self {
            Self::Allocated { .. } => true,
            Self::Bind { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            Self::AllAllocated { .. } | Self::Range { .. } => false,
        }
    }

    /// Whether the host lacks the address family, or the address.
    fn is_unavailable(&self) -> bool {
        let Self::Bind { source, .. } = self else { return false };
        matches!(Errno::from_io_error(source), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
    }
}

impl From<PortError> for Error {
    fn from(error: PortError) -> Self {
        let kind = match &error {
            PortError::Range { .. } => ErrorKind::InvalidArgument,
            _ if error.is_taken() => ErrorKind::Conflict,
            PortError::AllAllocated { .. } => ErrorKind::Conflict,
            PortError::Allocated { .. } | PortError::Bind { .. } => ErrorKind::Internal,
        };
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let made = Self::new(kind, error.to_string());
        match cause {
            Some(cause) => made.caused_by(cause),
            None => made,
        }
    }
}

/// How a transport is written.
pub(crate) const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

#[derive(Debug, Default)]
struct Held {
    addresses: BTreeMap<(Protocol, u16), Vec<IpAddr>>,
    /// Where the search for a free port goes on.
    next: u16,
}

/// The ports we hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ports(Arc<Mutex<Held>>);

/// One port, held until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) mapping: PortMapping,
    /// Bound, and listening if it was to; taken by the proxy.
    pub(crate) socket: Option<OwnedFd>,
    ports: Ports,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut held = self.ports.lock();
        let key = (self.mapping.protocol, self.mapping.host_port);
        if let Some(addresses) = held.addresses.get_mut(&key) {
            if let Some(at) = addresses.iter().position(|a| *a == self.mapping.host_ip) {
                addresses.swap_remove(at);
            }
            if addresses.is_empty() {
                held.addresses.remove(&key);
            }
        }
    }
}

impl Ports {
    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a host port for each of `wanted`, or none at all. `listen` lets the sockets accept.
    /// Blocking, for milliseconds if a port is taken.
    ///
    /// Mappings of one container port on all addresses of both families are one wish: they get the
    /// same host port, and on a host without IPv6 that half is left out.
    pub(crate) fn reserve(
        &self,
        wanted: &[PortMapping],
        listen: bool,
    ) -> Result<Vec<Reservation>, PortError> {
        let mut reserved = Vec::with_capacity(wanted.len());
        for group in groups(wanted) {
            reserved.extend(self.reserve_group(&group, listen)?);
        }
        Ok(reserved)
    }

    fn reserve_group(
        &self,
        group: &[PortMapping],
        listen: bool,
    ) -> Result<Vec<Reservation>, PortError> {
        let Some(head) = group.first() else { return Ok(Vec::new()) };
        let (first, last) = (head.host_port, head.host_port_end);
        if first == 0 {
            return self.reserve_free(group, listen);
        }
        if last < first {
            return Err(PortError::Range { first, last });
        }
        for port in first..=last {
            match self.reserve_at(group, port, listen) {
                Err(error) if error.is_taken() && first < last => {}
                Err(PortError::Bind { .. }) if first == last => {
                    return self.reserve_after_forks(group, port, listen);
                }
                result => return result,
            }
        }
        Err(PortError::AllAllocated { ip: head.host_ip, first, last })
    }

    /// Tries a port that the kernel says is taken once more, and again.
    ///
    /// A program we start has copies of all our sockets for an instant, until it executes; a port
    /// that we closed meanwhile is free only then.
    fn reserve_after_forks(
        &self,
        group: &[PortMapping],
        port: u16,
        listen: bool,
    ) -> Result<Vec<Reservation>, PortError> {
        let mut tries = FORK_TRIES;
        loop {
            std::thread::sleep(FORK_PAUSE);
            tries -= 1;
            match self.reserve_at(group, port, listen) {
                Err(error) if error.is_taken() && tries > 0 => {}
                result => return result,
            }
        }
    }

    /// Any port of the range that the kernel itself hands out.
    fn reserve_free(
        &self,
        group: &[PortMapping],
        listen: bool,
    ) -> Result<Vec<Reservation>, PortError> {
        let (first, last) = ephemeral_range();
        let spared = spared_ports();
        let start = self.lock().next.clamp(first, last);
        for port in (start..=last).chain(first..start) {
            if spared.iter().any(|(low, high)| (*low..=*high).contains(&port)) {
                continue;
            }
            match self.reserve_at(group, port, listen) {
                Err(error) if error.is_taken() => {}
                result => {
                    self.lock().next = if port == last { first } else { port + 1 };
                    return result;
                }
            }
        }
        let ip = group[0].host_ip;
        Err(PortError::AllAllocated { ip, first, last })
    }

    fn reserve_at(
        &self,
        group: &[PortMapping],
        port: u16,
        listen: bool,
    ) -> Result<Vec<Reservation>, PortError> {
        let mut reserved: Vec<Reservation> = Vec::with_capacity(group.len());
        for mapping in group {
            match self.reserve_one(mapping, port, listen) {
                Ok(one) => reserved.push(one),
                Err(error) if error.is_unavailable() && !reserved.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(reserved)
    }

    fn reserve_one(
        &self,
        mapping: &PortMapping,
        port: u16,
        listen: bool,
    ) -> Result<Reservation, PortError> {
        let ip = mapping.host_ip;
        {
            let mut held = self.lock();
            let addresses = held.addresses.entry((mapping.protocol, port)).or_default();
            if addresses.iter().any(|other| same_port_collides(*other, ip)) {
                return Err(PortError::Allocated { ip, port });
            }
            addresses.push(ip);
        }
        let mapping = PortMapping { host_port: port, host_port_end: port, ..mapping.clone() };
        // From here on dropping it undoes the entry.
        let mut reservation = Reservation { mapping, socket: None, ports: self.clone() };
        let protocol = reservation.mapping.protocol;
        let socket = bind(protocol, SocketAddr::new(ip, port), listen).map_err(|errno| {
            PortError::Bind { ip, port, protocol: protocol_name(protocol), source: errno.into() }
        })?;
        reservation.socket = Some(socket);
        Ok(reservation)
    }
}

fn same_port_collides(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// Wishes for all addresses of both families that are the same otherwise, together; others alone.
fn groups(wanted: &[PortMapping]) -> Vec<Vec<PortMapping>> {
    let mut groups: Vec<Vec<PortMapping>> = Vec::with_capacity(wanted.len());
    for mapping in wanted {
        let partner = mapping.host_ip.is_unspecified().then(|| {
            groups.iter().position(|group| {
                group.len() == 1
                    && group[0].host_ip.is_unspecified()
                    && group[0].host_ip != mapping.host_ip
                    && PortMapping { host_ip: mapping.host_ip, ..group[0].clone() } == *mapping
            })
        });
        match partner.flatten() {
            // The IPv4 half first: it is the one that must work.
            Some(at) if mapping.host_ip.is_ipv4() => groups[at].insert(0, mapping.clone()),
            Some(at) => groups[at].push(mapping.clone()),
            None => groups.push(vec![mapping.clone()]),
        }
    }
    groups
}

fn bind(protocol: Protocol, address: SocketAddr, listen: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, Some(protocol))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    let stream = kind == SocketType::STREAM;
    if stream && listen {
        // Old connections in TIME_WAIT do not count. Without listening this would let others in.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if stream && listen {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn ephemeral_range() -> (u16, u16) {
    let read = || {
        let text = sysctl::read("ipv4/ip_local_port_range")?;
        let (first, last) = text.split_once(char::is_whitespace)?;
        let range: (u16, u16) = (first.parse().ok()?, last.trim().parse().ok()?);
        (0 < range.0 && range.0 <= range.1).then_some(range)
    };
    read().unwrap_or(EPHEMERAL)
}

/// The ports that the operator keeps out of automatic choice.
fn spared_ports() -> Vec<(u16, u16)> {
    parse_ranges(&sysctl::read("ipv4/ip_local_reserved_ports").unwrap_or_default())
}

fn parse_ranges(text: &str) -> Vec<(u16, u16)> {
    text.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(ip: &str, port: u16, end: u16) -> PortMapping {
        PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_ip: ip.parse().unwrap(),
            host_port: port,
            host_port_end: end,
        }
    }

    #[test]
    fn a_port_has_one_owner() {
        let ports = Ports::default();
        let held = ports.reserve(&[mapping("127.0.0.1", 0, 0)], true).unwrap();
        let port = held[0].mapping.host_port;
        assert_ne!(port, 0);
        let again = |ip| ports.reserve(&[mapping(ip, port, port)], true);
        let error = Error::from(again("127.0.0.1").unwrap_err());
        assert_eq!(
            (error.kind(), error.to_string()),
            (
                ErrorKind::Conflict,
                format!("Bind for 127.0.0.1:{port} failed: port is already allocated")
            )
        );
        assert!(again("0.0.0.0").is_err(), "all addresses include this one");
        drop(held);
        assert!(again("127.0.0.1").is_ok());
    }

    #[test]
    fn another_program_s_port_is_refused_with_its_reason() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let error = Ports::default().reserve(&[mapping("127.0.0.1", port, port)], true);
        let error = Error::from(error.unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let text = error.chain().to_lowercase();
        assert!(text.starts_with(&format!("failed to bind host port 127.0.0.1:{port}/tcp: ")));
        assert!(text.contains("address already in use"), "{text}");
    }

    #[test]
    fn a_range_is_tried_in_order() {
        let ports = Ports::default();
        let first = ports.reserve(&[mapping("127.0.0.1", 0, 0)], true).unwrap();
        let port = first[0].mapping.host_port;
        let next = ports.reserve(&[mapping("127.0.0.1", port, port + 3)], true).unwrap();
        assert!(next[0].mapping.host_port > port);
        let error = ports.reserve(&[mapping("127.0.0.1", port + 3, port)], true).unwrap_err();
        assert!(matches!(error, PortError::Range { .. }));
    }

    #[test]
    fn both_families_are_one_wish() {
        let wanted = [mapping("::", 0, 0), mapping("127.0.0.1", 0, 0), mapping("0.0.0.0", 0, 0)];
        let grouped = groups(&wanted);
        assert_eq!(grouped.len(), 2);
        assert!(grouped[0][0].host_ip.is_ipv4(), "IPv4 goes first");
        let held = Ports::default().reserve(&grouped[0], true).unwrap();
        assert!(held.iter().all(|r| r.mapping.host_port == held[0].mapping.host_port));
    }

    #[test]
    fn all_or_nothing() {
        let ports = Ports::default();
        let held = ports.reserve(&[mapping("127.0.0.1", 0, 0)], true).unwrap();
        let taken = held[0].mapping.host_port;
        let free = ports.reserve(&[mapping("127.0.0.1", 0, 0)], true).unwrap()[0].mapping.host_port;
        let both = [mapping("127.0.0.1", free, free), mapping("127.0.0.1", taken, taken)];
        assert!(ports.reserve(&both, true).is_err());
        assert!(ports.reserve(&both[..1], true).is_ok(), "the first was given back");
    }

    #[test]
    fn reserved_ports_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_ranges("80,8000-8010\n"), [(80, 80), (8000, 8010)]);
        assert!(parse_ranges("").is_empty());
    }
}
