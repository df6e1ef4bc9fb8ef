//! Every system call and all unsafe code: mounts, namespaces, cgroups, pidfds, netlink.

pub mod netlink;
pub mod nft;
pub mod process;
pub mod cgroup;
pub mod error;
pub mod file;
pub mod memfd;
pub mod mount;
pub mod path;
pub mod socket;
#[cfg(test)]
mod testing;
pub use error::{Error, Result};
