//! Btrfs for tests: an image file, mounted nowhere.

use std::fs::File;
use std::process::{Command, Stdio};

use gantry_sdk::mounts::MountFd;
use gantry_sys::mount::{FsContext, LoopDevice, MountAttrFlags};

/// Large enough for whatever a test makes; the image has holes.
const ENOUGH: u64 = 8 << 30;

/// An empty file system.
pub(crate) fn mount() -> MountFd {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    File::create_new(&image).unwrap().set_len(ENOUGH).unwrap();
    let mut make = Command::new(crate::common::mkfs().unwrap());
    make.arg("--quiet").stdout(Stdio::null()).stderr(Stdio::null());
    assert!(make.arg(&image).status().unwrap().success());
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let device = LoopDevice::attach(file, false).unwrap();
    let context = FsContext::open("btrfs").unwrap();
    context.set_string("source", device.path()).unwrap();
    // Removed subvolumes are taken apart after the next commit; by default that is half a minute.
    context.set_string("commit", "1").unwrap();
    context.create().unwrap();
    // The image has no name any more and goes with the mount.
    MountFd::new(context.mount(MountAttrFlags::empty()).unwrap())
}
