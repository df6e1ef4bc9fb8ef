//! What a machine needs for tests on Btrfs.

use std::path::PathBuf;

/// The program that makes one.
pub(crate) fn mkfs() -> Option<PathBuf> {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin"];
    dirs.iter().map(|dir| PathBuf::from(dir).join("mkfs.btrfs")).find(|path| path.exists())
}

/// Whether this machine can make and mount Btrfs.
pub(crate) fn is_possible() -> bool {
    let kernel = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    is_root && mkfs().is_some() && kernel.lines().any(|line| line.trim() == "btrfs")
}
