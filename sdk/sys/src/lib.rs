//! Every system call and all unsafe code: mounts, namespaces, cgroups, pidfds, netlink.

pub mod process;
