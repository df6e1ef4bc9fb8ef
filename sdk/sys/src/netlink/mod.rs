//! Links, addresses, routes and network namespaces, over rtnetlink.
//!
//! A small synchronous client: every call is one or a few system calls and returns when the kernel
//! has done the work. Several changes go in one send ([`Route::apply`]), which is what keeps a
//! container's link set-up at a few hundred microseconds.
//!
//! # Map
//!
//! - [`Route`]: the client
//! - [`Request`], [`Veth`], [`LinkChange`]: what can be changed
//! - [`Link`], [`Address`], [`RouteEntry`]: what can be read
//! - [`NetNs`]: namespaces without a name in the file system
//! - [`Conntrack`]: forgetting connections
//!
//! # Not here
//!
//! The firewall: [`crate::nft`].
//!
//! Source: rtnetlink(7), network_namespaces(7).

mod conntrack;
mod name;
mod netns;
mod read;
mod request;
mod route;
mod socket;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

pub use conntrack::Conntrack;
pub use name::{IfName, Mac};
pub use netns::{NetNs, NetNsId, in_netns};
pub use read::{Address, Link, RouteEntry};
pub use request::{Destination, LinkChange, LinkRef, Request, Veth};
pub use route::Route;
pub(crate) use socket::Socket;

use rustix::io::Errno;

/// A failure of a netlink or namespace call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {doing}: {}{}", std::io::Error::from(*.errno), explained(.detail.as_ref()))]
    Os {
        /// The action and its object, to follow "cannot".
        doing: String,
        /// The reason.
        errno: Errno,
        /// The kernel's own explanation, where it gives one.
        detail: Option<String>,
    },
    /// More than one message or send can hold.
    #[error("netlink message of {bytes} bytes is too large")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not usable as an interface name.
    #[error(
        "invalid interface name {0:?}: 1 to 15 bytes without '/', ':' or white space are allowed"
    )]
    Name(String),
    /// The table changed during every attempt to read it.
    #[error("cannot {doing}: it keeps changing")]
    Unstable {
        /// The action and its object.
        doing: String,
    },
}

fn explained(detail: Option<&String>) -> String {
    detail.map(|text| format!(" ({text})")).unwrap_or_default()
}

impl Error {
    pub(crate) fn os(doing: impl Into<String>, errno: Errno, detail: Option<String>) -> Self {
        Self::Os { doing: doing.into(), errno, detail }
    }

    pub(crate) fn from_code(doing: impl Into<String>, code: i32, detail: Option<String>) -> Self {
        Self::os(doing, Errno::from_raw_os_error(code), detail)
    }

    /// The kernel's reason, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Os { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the object named does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(Errno::NODEV | Errno::NOENT | Errno::SRCH))
    }

    /// Whether the object to be created exists.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }
}
