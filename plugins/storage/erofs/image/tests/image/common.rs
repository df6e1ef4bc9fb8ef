//! Mounting images, and comparing trees.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_archive::Result;
use gantry_erofs::{ConvertOptions, convert};
use gantry_sys::mount::{FsContext, LoopDevice, MountAttrFlags};
use gantry_sys::path::proc_fd;
use rustix::fs::{Mode, OFlags};

pub(crate) fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Whether the tests can mount.
pub(crate) fn can_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let can = is_root && systems.contains("erofs");
    if !can {
        eprintln!("skipped: needs root and a kernel with EROFS");
    }
    can
}

/// A new file for an image.
pub(crate) fn create(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Mounts an image, detached: from the file, or from a loop device where the kernel wants that.
pub(crate) fn mount(image: &Path) -> OwnedFd {
    let file = File::open(image).unwrap();
    let attempt = |source: &Path| {
        let context = FsContext::open("erofs").unwrap();
        context.set_string("source", source).unwrap();
        context.set_flag("ro").unwrap();
        context.create()?;
        context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
    };
    match attempt(&proc_fd(&file)) {
        Err(error) if error.is(gantry_sys::error::Errno::NOTBLK) => {
            let device = LoopDevice::attach(&file, true).unwrap();
            attempt(device.path()).unwrap()
        }
        answer => answer.unwrap(),
    }
}

/// What another implementation says about the image.
pub(crate) fn check(image: &Path) {
    match Command::new("fsck.erofs").arg("--extract").arg(image).output() {
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "fsck.erofs: {said}");
        }
        Err(_) => eprintln!("not checked: fsck.erofs is not installed"),
    }
}

/// Everything in a tree, with overlayfs' marks; when something was marked as deleted does not matter.
pub(crate) fn with_marks(root: &Path) -> BTreeMap<String, String> {
    let mut nodes = gantry_testkit::tree::snapshot(root).unwrap();
    for (name, node) in &mut nodes {
        let path = root.join(name);
        // An odd name is escaped, and not found by that.
        let Ok(meta) = path.symlink_metadata() else { continue };
        let mut value = [0; 4];
        let mark = rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value[..]);
        node.push_str(if mark.is_ok() { " opaque" } else { "" });
        if !meta.is_dir() {
            use std::os::unix::fs::MetadataExt;
            node.push_str(&format!(" {} names", meta.nlink()));
        }
        if node.starts_with("device c 0 ") {
            "deleted".clone_into(node);
        }
    }
    nodes
}

/// A path through a descriptor.
pub(crate) fn path_of(fd: &OwnedFd) -> PathBuf {
    proc_fd(fd.as_fd()).join(".")
}

/// An image of one archive, and its mount.
pub(crate) struct Mounted {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) mount: OwnedFd,
}

impl Mounted {
    pub(crate) fn new(archive: &[u8]) -> Result<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        convert(archive, &create(&image), &ConvertOptions::default())?;
        check(&image);
        let mount = mount(&image);
        Ok(Self { dir, mount })
    }

    pub(crate) fn path(&self) -> PathBuf {
        path_of(&self.mount)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }
}
