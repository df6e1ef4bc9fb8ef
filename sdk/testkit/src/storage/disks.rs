//! File systems in files, for what has to be tried on one of its own: limits, lack of space, power cuts.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gantry_sdk::mounts::MountFd;
use gantry_sys::mount::{FsContext, LoopDevice, MountAttrFlags};

/// Large enough for whatever a check makes; the image has holes.
const ENOUGH: u64 = 8 << 30;
/// What the kinds keep for themselves leaves nothing of less.
const SMALLEST: [(&str, u64); 2] = [("btrfs", 40 << 20), ("xfs", 304 << 20)];

/// What a file system is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// To have room.
    Room,
    /// To have no more room than so many bytes.
    Bytes(u64),
    /// To keep limits of directories, with about so much room.
    Limits(u64),
}

/// A file system that is mounted and detached, in a file without a name.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) mount: MountFd,
    pub(super) image: File,
}

fn program(name: &str) -> Option<PathBuf> {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];
    dirs.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

fn is_known(kind: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.trim() == kind)
}

/// Options of the maker, and of the mount.
fn options(kind: &str, wish: Wish) -> (Vec<&'static str>, Vec<(&'static str, &'static str)>) {
    match (kind, wish) {
        ("ext4", Wish::Limits(_)) => {
            let make = vec!["-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"];
            (make, vec![("prjquota", "")])
        }
        ("ext4", _) => (vec!["-q", "-F"], vec![]),
        ("xfs", Wish::Limits(_)) => (vec!["-q"], vec![("pquota", "")]),
        // A copy of one that is still mounted may be mounted too.
        ("xfs", _) => (vec!["-q"], vec![("nouuid", "")]),
        // Data and metadata from one pool: what there is can be used to the end.
        ("btrfs", Wish::Bytes(_)) => {
            (vec!["--quiet", "--mixed", "--nodesize", "4096"], vec![("commit", "1")])
        }
        // Removed subvolumes are taken apart after the next commit; by default that is half a minute.
        _ => (vec!["--quiet"], vec![("commit", "1")]),
    }
}

impl Disk {
    /// An empty file system of `kind` in a file in `directory`.
    ///
    /// # Errors
    ///
    /// Why there is none, in words: what this machine lacks.
    pub(super) fn make(kind: &str, directory: &Path, wish: Wish) -> Result<Self, String> {
        let name = format!("mkfs.{kind}");
        let maker = program(&name).ok_or_else(|| format!("there is no {name} here"))?;
        let image = tempfile::NamedTempFile::new_in(directory).map_err(|e| e.to_string())?;
        let least = SMALLEST.iter().find(|(k, _)| *k == kind).map_or(0, |(_, least)| *least);
        let bytes = match wish {
            Wish::Room => ENOUGH,
            Wish::Bytes(bytes) | Wish::Limits(bytes) => bytes.max(least),
        };
        image.as_file().set_len(bytes).map_err(|e| e.to_string())?;
        let made = Command::new(maker)
            .args(options(kind, wish).0)
            .arg(for_others(image.path()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return Err(format!("{name} fails here"));
        }
        let image = image.reopen().map_err(|e| e.to_string())?;
        Self::of(kind, image, wish)
    }

    /// The file system of `kind` that is in `image` already.
    pub(super) fn of(kind: &str, image: File, wish: Wish) -> Result<Self, String> {
        let mount = || -> gantry_sys::Result<_> {
            let device = LoopDevice::attach(image.as_fd(), false)?;
            let context = FsContext::open(kind)?;
            context.set_string("source", device.path())?;
            for (key, value) in options(kind, wish).1 {
                match value {
                    "" => context.set_flag(key)?,
                    value => context.set_string(key, value)?,
                }
            }
            context.create()?;
            context.mount(MountAttrFlags::empty())
        };
        let mount = mount().map_err(|e| {
            let known = if is_known(kind) { "" } else { ", which this kernel does not know" };
            let why = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            let limits = if matches!(wish, Wish::Limits(_)) { " that keeps limits" } else { "" };
            format!("no {kind}{limits} can be mounted here{known}: {e}: {why}")
        })?;
        Ok(Self { mount: MountFd::new(mount), image })
    }
}

/// A path through one of our own descriptors, as other processes can use it.
pub(super) fn for_others(path: &Path) -> PathBuf {
    match path.strip_prefix("/proc/self") {
        Ok(rest) => Path::new("/proc").join(std::process::id().to_string()).join(rest),
        Err(_) => path.to_owned(),
    }
}

/// An empty file system in memory of so many bytes and inodes (0: enough).
pub(super) fn memory(bytes: u64, inodes: u64) -> Result<MountFd, String> {
    let make = || -> gantry_sys::Result<_> {
        let context = FsContext::open("tmpfs")?;
        context.set_string("size", bytes.to_string())?;
        if inodes > 0 {
            context.set_string("nr_inodes", inodes.to_string())?;
        }
        context.create()?;
        context.mount(MountAttrFlags::empty())
    };
    make().map(MountFd::new).map_err(|e| e.to_string())
}
