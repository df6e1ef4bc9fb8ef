//! Btrfs for tests: an image file, mounted nowhere.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use gantry_sdk::mounts::MountFd;
use gantry_sys::mount::{FsContext, LoopDevice, MountAttrFlags};

/// Large enough for whatever the kit makes; the image has holes.
const ENOUGH: u64 = 8 << 30;

fn mkfs() -> Option<PathBuf> {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin"];
    dirs.iter().map(|dir| PathBuf::from(dir).join("mkfs.btrfs")).find(|path| path.exists())
}

/// What it keeps for itself leaves nothing of less.
const SMALLEST: u64 = 40 << 20;

/// Whether this machine can make and mount Btrfs.
pub(crate) fn is_possible() -> bool {
    let kernel = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    is_root && mkfs().is_some() && kernel.lines().any(|line| line.trim() == "btrfs")
}

/// An empty file system. One with a limit of inodes there is not.
pub(crate) fn mount(bytes: u64, inodes: u64) -> Option<MountFd> {
    if inodes > 0 {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let size = if bytes == 0 { ENOUGH } else { bytes.max(SMALLEST) };
    File::create_new(&image).unwrap().set_len(size).unwrap();
    let mut make = Command::new(mkfs().unwrap());
    make.arg("--quiet").stdout(Stdio::null()).stderr(Stdio::null());
    if bytes > 0 {
        // Data and metadata from one pool: what there is can be used to the end.
        make.args(["--mixed", "--nodesize", "4096"]);
    }
    assert!(make.arg(&image).status().unwrap().success());
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let device = LoopDevice::attach(file, false).unwrap();
    let context = FsContext::open("btrfs").unwrap();
    context.set_string("source", device.path()).unwrap();
    // Removed subvolumes are taken apart after the next commit; by default that is half a minute.
    context.set_string("commit", "1").unwrap();
    context.create().unwrap();
    // The image has no name any more and goes with the mount.
    Some(MountFd::new(context.mount(MountAttrFlags::empty()).unwrap()))
}
