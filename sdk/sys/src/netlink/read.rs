//! What can be read: links, addresses, routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Mac;
use super::request::{
    IFA_ADDRESS, IFA_LOCAL, IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO,
    IFLA_MASTER, IFLA_MTU, IFLA_OPERSTATE, OPERATIONAL, RTA_DST, RTA_GATEWAY, RTA_OIF,
};
use super::wire::{attributes, find, text, u32_at};

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its type where it has one: `bridge`, `veth`, …
    pub kind: Option<String>,
    /// Administrative state.
    pub up: bool,
    /// Whether the kernel has noticed that it carries packets: some time after both ends are up.
    /// Packets sent before are lost. False for links that do not tell, such as `lo`.
    pub running: bool,
    /// In bytes.
    pub mtu: u32,
    /// Hardware address, if of 48 bits.
    pub mac: Option<Mac>,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
}

impl Link {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let index = u32_at(payload, 4)?;
        let flags = u32_at(payload, 8)?;
        let mut link = Self {
            index,
            name: String::new(),
            kind: None,
            up: flags & IFF_UP != 0,
            running: false,
            mtu: 0,
            mac: None,
            master: None,
        };
        for (kind, value) in attributes(payload.get(16..)?) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                IFLA_OPERSTATE => link.running = value == [OPERATIONAL],
                IFLA_MASTER => link.master = u32_at(value, 0),
                IFLA_LINKINFO => link.kind = find(value, IFLA_INFO_KIND).map(text),
                _ => {}
            }
        }
        Some(link)
    }
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's index.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// 0 universe, 253 link, 254 host.
    pub scope: u8,
}

impl Address {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let [_, prefix, _, scope] = *payload.first_chunk::<4>()?;
        let index = u32_at(payload, 4)?;
        let rest = payload.get(8..)?;
        // On a point-to-point link IFA_ADDRESS is the far end; IFA_LOCAL, where present, is ours.
        let address = find(rest, IFA_LOCAL).or_else(|| find(rest, IFA_ADDRESS)).and_then(ip)?;
        Some(Self { index, address, prefix, scope })
    }
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// First address of the destination; unspecified for the default route.
    pub to: IpAddr,
    /// Prefix length of the destination.
    pub prefix: u8,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// Index of the link, if it leads to exactly one.
    pub index: Option<u32>,
    /// The routing table: 254 is main, 255 local.
    pub table: u8,
    /// 1 unicast, 2 local, 3 broadcast, …
    pub kind: u8,
}

impl RouteEntry {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let [family, prefix, _, _, table, _, _, kind] = *payload.first_chunk::<8>()?;
        let unspecified = match i32::from(family) {
            libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let rest = payload.get(12..)?;
        Some(Self {
            to: find(rest, RTA_DST).and_then(ip).unwrap_or(unspecified),
            prefix,
            gateway: find(rest, RTA_GATEWAY).and_then(ip),
            index: find(rest, RTA_OIF).and_then(|value| u32_at(value, 0)),
            table,
            kind,
        })
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}
