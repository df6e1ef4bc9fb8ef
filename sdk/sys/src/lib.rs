//! Every system call and all unsafe code: mounts, namespaces, cgroups, pidfds, netlink.
//!
//! Other crates forbid `unsafe`; here each block is one call wide and says why it is sound. Functions
//! take and return owned or borrowed descriptors, so lifetimes are the compiler's business, and errors
//! ([`Error`]) name what was being done to what. Everything blocks: call it from a blocking task.
//!
//! | module | for |
//! |---|---|
//! | [`mount`] | detached mounts, overlay, attributes, mountinfo, loop devices |
//! | [`path`] | resolving beneath a root, removing trees, replacing files whole, disk usage |
//! | [`mod@file`] | what extractors need: attributes, special files, holes, copies |
//! | [`cgroup`] | v1, v2 and mixtures: limits as plans, freezing, killing, statistics |
//! | [`process`] | pidfds, namespaces, identity, starting processes |
//! | [`socket`] | seqpacket sockets that carry descriptors |
//! | [`memfd`] | sealed files in memory |
//! | [`netlink`], [`nft`] | links, addresses and routes; firewall batches |
//!
//! Not here: policy. What may be mounted, limited or reached is decided by the callers.

pub mod cgroup;
pub mod error;
pub mod file;
pub mod memfd;
pub mod mount;
pub mod netlink;
pub mod nft;
pub mod path;
pub mod process;
pub mod socket;
#[cfg(test)]
mod testing;

pub use error::{Error, Result};
