//! What can be changed, and how it is written.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::wire::{ACK, CREATE, EXCL, Writer};
use super::{IfName, Mac};

pub(super) const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
pub(super) const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
pub(super) const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
pub(super) const GET_ADDRESS: u16 = 22;
pub(super) const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
pub(super) const GET_ROUTE: u16 = 26;

pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
pub(super) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_OPERSTATE: u16 = 16;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;

pub(super) const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;

pub(super) const IFA_ADDRESS: u16 = 1;
pub(super) const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 2;

pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;

pub(super) const IFF_UP: u32 = 1;
/// Source: RFC 2863, `ifOperStatus`; Linux, `IF_OPER_UP`.
pub(super) const OPERATIONAL: u8 = 6;

/// How a request names an existing link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkRef {
    /// By its number.
    Index(u32),
    /// By its name.
    Name(IfName),
}

impl From<&IfName> for LinkRef {
    fn from(name: &IfName) -> Self {
        Self::Name(name.clone())
    }
}

impl From<u32> for LinkRef {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl fmt::Display for LinkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "link {index}"),
            Self::Name(name) => write!(f, "link {name}"),
        }
    }
}

/// A veth pair: one end here, the other created directly in another namespace.
///
/// Creating the far end in place takes under a millisecond; moving it there afterwards takes 25.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    /// The near end; it is created up.
    pub name: IfName,
    /// The far end; it is created down, as the kernel allows nothing else.
    pub peer: IfName,
    /// Where the far end goes.
    pub peer_netns: BorrowedFd<'a>,
    /// Hardware address of the far end.
    pub peer_mac: Option<Mac>,
    /// For both ends, in bytes; the kernel's default (1500) if absent.
    pub mtu: Option<u32>,
    /// Index of the bridge the near end becomes a port of.
    pub master: Option<u32>,
}

/// Changes to one link. Absent fields stay as they are.
#[derive(Clone, Debug, Default)]
pub struct LinkChange {
    /// Administrative state.
    pub up: Option<bool>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Index of the bridge to join; 0 leaves it.
    pub master: Option<u32>,
    /// A new name; the link must be down.
    pub rename: Option<IfName>,
    /// Never form an IPv6 link-local address.
    pub no_link_local: bool,
}

/// One change. Several are sent together by [`Route::apply`](super::Route::apply).
#[derive(Clone, Debug)]
pub enum Request<'a> {
    /// Creates a bridge, down. Fails if the name exists.
    CreateBridge {
        /// Its name.
        name: IfName,
        /// A fixed hardware address; without one the bridge follows its ports.
        mac: Option<Mac>,
    },
    /// Creates a veth pair.
    CreateVeth(Veth<'a>),
    /// Changes a link.
    Change(LinkRef, LinkChange),
    /// Changes how a bridge treats one of its ports.
    ChangePort {
        /// The port.
        port: LinkRef,
        /// Whether a frame may leave by the port it came in.
        hairpin: bool,
        /// Whether frames from other isolated ports are kept from it.
        isolated: bool,
    },
    /// Deletes a link; a veth takes its other end along. Takes 20 to 30 ms for a veth.
    DeleteLink(LinkRef),
    /// Gives a link an address, usable at once (no duplicate address detection).
    AddAddress {
        /// The link's index.
        index: u32,
        /// The address.
        address: IpAddr,
        /// Length of the subnet's prefix.
        prefix: u8,
    },
    /// Takes an address from a link.
    DeleteAddress {
        /// The link's index.
        index: u32,
        /// The address.
        address: IpAddr,
        /// Length of the subnet's prefix.
        prefix: u8,
    },
    /// Adds a route to the main table.
    AddRoute(Destination),
    /// Removes a route from the main table.
    DeleteRoute(Destination),
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// First address of the destination; unspecified with prefix 0 for the default route.
    pub to: IpAddr,
    /// Prefix length of the destination.
    pub prefix: u8,
    /// The next hop; `None` for what is on the link itself.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub index: u32,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.to, self.prefix)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " on link {}", self.index)
    }
}

/// What follows "cannot" in an error.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateBridge { name, .. } => write!(f, "create bridge {name}"),
            Self::CreateVeth(veth) => write!(f, "create veth pair {} and {}", veth.name, veth.peer),
            Self::Change(link, _) => write!(f, "change {link}"),
            Self::ChangePort { port, .. } => write!(f, "change bridge port {port}"),
            Self::DeleteLink(link) => write!(f, "delete {link}"),
            Self::AddAddress { index, address, prefix } => {
                write!(f, "add address {address}/{prefix} to link {index}")
            }
            Self::DeleteAddress { index, address, prefix } => {
                write!(f, "delete address {address}/{prefix} from link {index}")
            }
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
        }
    }
}

impl Request<'_> {
    /// Writes the request as one message that asks for an acknowledgement.
    pub(super) fn write(&self, writer: &mut Writer, sequence: u32) {
        let (kind, flags) = match self {
            Self::CreateBridge { .. } | Self::CreateVeth(_) => (NEW_LINK, CREATE | EXCL),
            Self::Change(..) => (SET_LINK, 0),
            Self::ChangePort { .. } => (NEW_LINK, 0),
            Self::DeleteLink(_) => (DEL_LINK, 0),
            Self::AddAddress { .. } => (NEW_ADDRESS, CREATE | EXCL),
            Self::DeleteAddress { .. } => (DEL_ADDRESS, 0),
            Self::AddRoute(_) => (NEW_ROUTE, CREATE | EXCL),
            Self::DeleteRoute(_) => (DEL_ROUTE, 0),
        };
        writer.message(kind, flags | ACK, sequence, |w| self.write_body(w));
    }

    fn write_body(&self, w: &mut Writer) {
        match self {
            Self::CreateBridge { name, mac } => {
                link_header(w, 0, None);
                w.string(IFLA_IFNAME, name.as_str());
                if let Some(mac) = mac {
                    w.attribute(IFLA_ADDRESS, &mac.0);
                }
                w.nest(IFLA_LINKINFO, |w| w.string(IFLA_INFO_KIND, "bridge"));
            }
            Self::CreateVeth(veth) => write_veth(w, veth),
            Self::Change(link, change) => write_change(w, link, change),
            Self::ChangePort { port, hairpin, isolated } => {
                existing_link(w, port, None);
                w.nest(IFLA_LINKINFO, |w| {
                    w.string(IFLA_INFO_SLAVE_KIND, "bridge");
                    w.nest(IFLA_INFO_SLAVE_DATA, |w| {
                        w.attribute(IFLA_BRPORT_MODE, &[u8::from(*hairpin)]);
                        w.attribute(IFLA_BRPORT_ISOLATED, &[u8::from(*isolated)]);
                    });
                });
            }
            Self::DeleteLink(link) => existing_link(w, link, None),
            Self::AddAddress { index, address, prefix }
            | Self::DeleteAddress { index, address, prefix } => {
                write_address(w, *index, *address, *prefix);
            }
            Self::AddRoute(route) | Self::DeleteRoute(route) => write_route(w, route),
        }
    }
}

fn write_veth(w: &mut Writer, veth: &Veth<'_>) {
    link_header(w, 0, Some(true));
    w.string(IFLA_IFNAME, veth.name.as_str());
    if let Some(mtu) = veth.mtu {
        w.u32(IFLA_MTU, mtu);
    }
    if let Some(master) = veth.master {
        w.u32(IFLA_MASTER, master);
    }
    w.nest(IFLA_LINKINFO, |w| {
        w.string(IFLA_INFO_KIND, "veth");
        w.nest(IFLA_INFO_DATA, |w| {
            w.nest(VETH_INFO_PEER, |w| {
                link_header(w, 0, None);
                w.string(IFLA_IFNAME, veth.peer.as_str());
                w.u32(IFLA_NET_NS_FD, veth.peer_netns.as_raw_fd().cast_unsigned());
                if let Some(mac) = veth.peer_mac {
                    w.attribute(IFLA_ADDRESS, &mac.0);
                }
                if let Some(mtu) = veth.mtu {
                    w.u32(IFLA_MTU, mtu);
                }
            });
        });
    });
}

fn write_change(w: &mut Writer, link: &LinkRef, change: &LinkChange) {
    existing_link(w, link, change.up);
    if let Some(name) = &change.rename {
        w.string(IFLA_IFNAME, name.as_str());
    }
    if let Some(mtu) = change.mtu {
        w.u32(IFLA_MTU, mtu);
    }
    if let Some(mac) = change.mac {
        w.attribute(IFLA_ADDRESS, &mac.0);
    }
    if let Some(master) = change.master {
        w.u32(IFLA_MASTER, master);
    }
    if change.no_link_local {
        w.nest(IFLA_AF_SPEC, |w| {
            w.nest(libc::AF_INET6 as u16, |w| w.attribute(IFLA_INET6_ADDR_GEN_MODE, &[1]));
        });
    }
}

fn write_address(w: &mut Writer, index: u32, address: IpAddr, prefix: u8) {
    let (family, flags) = match address {
        IpAddr::V4(_) => (libc::AF_INET, 0),
        IpAddr::V6(_) => (libc::AF_INET6, IFA_F_NODAD),
    };
    w.raw(&[family as u8, prefix, flags, RT_SCOPE_UNIVERSE]);
    w.raw(&index.to_ne_bytes());
    let bytes = octets(address);
    w.attribute(IFA_LOCAL, &bytes);
    w.attribute(IFA_ADDRESS, &bytes);
    if let (IpAddr::V4(v4), 1..=30) = (address, prefix) {
        let broadcast = v4.to_bits() | (u32::MAX >> prefix);
        w.attribute(IFA_BROADCAST, &broadcast.to_be_bytes());
    }
}

fn write_route(w: &mut Writer, route: &Destination) {
    let family = match route.to {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    let scope = match (route.gateway, route.to) {
        (None, IpAddr::V4(_)) => RT_SCOPE_LINK,
        _ => RT_SCOPE_UNIVERSE,
    };
    w.raw(&[family as u8, route.prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST]);
    w.raw(&0_u32.to_ne_bytes());
    if route.prefix > 0 {
        w.attribute(RTA_DST, &octets(route.to));
    }
    if let Some(gateway) = route.gateway {
        w.attribute(RTA_GATEWAY, &octets(gateway));
    }
    w.u32(RTA_OIF, route.index);
}

fn existing_link(w: &mut Writer, link: &LinkRef, up: Option<bool>) {
    match link {
        LinkRef::Index(index) => link_header(w, *index, up),
        LinkRef::Name(name) => {
            link_header(w, 0, up);
            w.string(IFLA_IFNAME, name.as_str());
        }
    }
}

/// `struct ifinfomsg`.
pub(super) fn link_header(w: &mut Writer, index: u32, up: Option<bool>) {
    let flags = if up == Some(true) { IFF_UP } else { 0 };
    let changed = if up.is_some() { IFF_UP } else { 0 };
    w.raw(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
    w.raw(&index.to_ne_bytes());
    w.raw(&flags.to_ne_bytes());
    w.raw(&changed.to_ne_bytes());
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
