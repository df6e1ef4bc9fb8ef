//! Firewall elements, one atomic netlink batch at a time.
//!
//! The rules are loaded once, as text, by the `nft` program ([`load`]); after that a container is a
//! handful of elements in maps and sets, and those go over one persistent socket ([`Nft`]) without
//! any program. A batch of two elements takes some 20 µs whatever the number of containers; a run of
//! `nft` takes 3 to 5 ms, which is why it happens only when a table has to be made. The rules stay
//! text because a person must be able to review them; encoding them here would save those few
//! milliseconds once per boot and cost a second, unreadable copy.
//!
//! The socket is kept open: closing one right after a delete waits some 16 ms for the kernel's
//! deferred destruction.
//!
//! Source: Linux, `include/uapi/linux/netfilter/nf_tables.h`; nft(8).

mod batch;
mod load;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Element, Key, Nft, Refusal};
pub use load::{LoadError, load};

use crate::netlink;

/// A firewall change or query failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The kernel refused parts of a batch; nothing of it was applied.
    #[error("cannot change the firewall: {}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Refused(Vec<Refusal>),
}

impl Error {
    /// What was refused, if the kernel named parts of the batch.
    pub fn refusals(&self) -> &[Refusal] {
        match self {
            Self::Refused(refusals) => refusals,
            Self::Netlink(_) => &[],
        }
    }

    /// The operation that met an element with the same key and another value.
    pub fn conflict(&self) -> Option<usize> {
        self.refusals()
            .iter()
            .find(|r| r.errno == rustix::io::Errno::EXIST)
            .and_then(|r| r.operation)
    }

    /// Whether the table or set does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Netlink(error) => error.is_not_found(),
            Self::Refused(refusals) => refusals.iter().all(|r| r.errno == rustix::io::Errno::NOENT),
        }
    }
}
