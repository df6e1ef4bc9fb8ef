//! Mount plans: mounts as data.
//!
//! A storage or volume driver never mounts. It returns a [`MountPlan`], the kernel checks it
//! against what the driver was granted and executes it with the file-descriptor mount API. That is
//! what lets a sandboxed driver be a real one, and it leaves nothing in the host's mount namespace
//! when the daemon dies: the result is a detached mount, alive as long as its descriptor.
//!
//! # Rules
//!
//! 1. Every path is a [`PathRef`]: the name of a granted root and a path resolved beneath it.
//! 2. A step may refer to the result of an *earlier* step only.
//! 3. The plan's root is a step that mounts something.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::context::Ctx;
use crate::{Labels, Result};

/// The most steps a plan may have: an overlay, each of whose layers is mounted by a step of its own.
pub const MAX_STEPS: usize = 512;
/// The most lower directories of one overlay. Source: Linux, `fs/overlayfs`, `OVL_MAX_STACK`.
pub const MAX_LOWERS: usize = 500;

/// A path beneath a granted root. `rel` is relative, without `..`; empty means the root itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRef {
    /// The name of a root in [`Grants::roots`].
    pub root: String,
    /// Relative to that root.
    pub rel: String,
}

impl PathRef {
    /// `rel` beneath the root named `root`.
    pub fn new(root: impl Into<String>, rel: impl Into<String>) -> Self {
        Self { root: root.into(), rel: rel.into() }
    }
}

/// Where a step takes something from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A file or directory.
    Path(PathRef),
    /// The mount or device that an earlier step made, by its index.
    Step(u16),
}

/// A file system that [`Step::Fs`] can mount from a block device or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FsKind {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
    /// Btrfs
    Btrfs,
    /// EROFS, read-only
    Erofs,
    /// SquashFS, read-only
    Squashfs,
}

/// Switches of an overlay. Source: Linux, `Documentation/filesystems/overlayfs.rst`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OverlayFlags {
    /// `index=on`
    pub index: bool,
    /// `redirect_dir=on`
    pub redirect_dir: bool,
    /// `metacopy=on`
    pub metacopy: bool,
    /// `userxattr`
    pub userxattr: bool,
    /// `volatile`: no sync at all; the upper directory is lost after a crash.
    pub volatile: bool,
}

/// A run of user or group ids: those from `stored` on are seen as those from `seen` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IdRange {
    /// The first id as the file system has it.
    pub stored: u32,
    /// The first id as it is seen through the mount.
    pub seen: u32,
    /// How many.
    pub count: u32,
}

/// How the owners of files are seen through a mount; ids that no range has are seen as the overflow
/// id and cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IdMap {
    /// Users.
    pub users: Vec<IdRange>,
    /// Groups.
    pub groups: Vec<IdRange>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Makes a directory (and missing parents); keeps an existing one as it is.
    Mkdir {
        /// The directory.
        at: PathRef,
        /// Owner of a new directory.
        uid: u32,
        /// Group of a new directory.
        gid: u32,
        /// Permission bits of a new directory.
        mode: u16,
    },
    /// A bind mount of a file or directory.
    Bind {
        /// What is bound.
        source: Place,
        /// Read-only.
        read_only: bool,
        /// With the mounts below it.
        recursive: bool,
    },
    /// An overlay; `lowers` from the top of the stack down.
    Overlay {
        /// Read-only layers, topmost first.
        lowers: Vec<Place>,
        /// The writable layer; none makes the mount read-only.
        upper: Option<Place>,
        /// The work directory, on the file system of `upper`.
        work: Option<Place>,
        /// Switches.
        flags: OverlayFlags,
    },
    /// An overlay that the program `fuse-overlayfs` serves, for kernels and file systems on which
    /// [`Step::Overlay`] does not work. The server runs by itself and ends with the mount.
    FuseOverlay {
        /// Read-only layers, topmost first.
        lowers: Vec<Place>,
        /// The writable layer; none makes the mount read-only.
        upper: Option<PathRef>,
        /// The work directory, beside `upper` in the same directory.
        work: Option<PathRef>,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Size limit in bytes; 0 is half of the machine's memory.
        bytes: u64,
        /// Limit of inodes; 0 is the kernel's default.
        inodes: u64,
        /// Permission bits of its root.
        mode: u16,
        /// Owner of its root.
        uid: u32,
        /// Group of its root.
        gid: u32,
    },
    /// Attaches a file as a block device (released with the last mount of it).
    Loop {
        /// The image file.
        file: PathRef,
        /// Read-only.
        read_only: bool,
    },
    /// Mounts a block device, or an image file where the file system can (EROFS).
    Fs {
        /// Its type.
        kind: FsKind,
        /// The device: usually [`Place::Step`] of a [`Step::Loop`].
        device: Place,
        /// Read-only.
        read_only: bool,
        /// Options from the executor's allow-list.
        options: Labels,
    },
    /// A block device of the host, a network file system, or any other mount the *operator* spelled
    /// out: `type`, `device` and `o` of the local volume driver. Needs the grant of step `host`.
    Host {
        /// File system type (`nfs`, `cifs`, `ext4`, `tmpfs`, or `none` with a `bind` option).
        fs_type: String,
        /// What mount(8) would take as device.
        device: String,
        /// Comma-separated mount options as mount(8) takes them.
        options: String,
    },
    /// Limits the space beneath a directory by project quota. A directory that has no project of its
    /// own yet gets one, and must be empty then.
    Quota {
        /// The directory.
        at: Place,
        /// Bytes; 0 is no limit.
        bytes: u64,
        /// Inodes; 0 is no limit.
        inodes: u64,
    },
    /// Makes a Btrfs subvolume, or a snapshot of one.
    Subvol {
        /// What to snapshot; none makes an empty subvolume.
        source: Option<PathRef>,
        /// The new subvolume.
        target: PathRef,
        /// Read-only.
        read_only: bool,
    },
    /// A directory that a Docker socket plugin mounted itself. Needs the grant of step `premounted`.
    Premounted {
        /// Its path on the host.
        host_path: PathBuf,
    },
}

/// Mounts as data; `root` is the index of the step whose mount is the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// In the order of execution.
    pub steps: Vec<Step>,
    /// The step whose mount is the result.
    pub root: u16,
    /// How owners are seen through whatever the plan takes from paths and devices. Only where both
    /// the kernel and the file systems can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<IdMap>,
}

impl MountPlan {
    /// The same plan with owners seen through `ids`.
    #[must_use]
    pub fn with_ids(self, ids: IdMap) -> Self {
        Self { ids: Some(ids), ..self }
    }

    /// A plan whose last step is its result.
    pub fn of(steps: Vec<Step>) -> Self {
        let root = u16::try_from(steps.len().saturating_sub(1)).unwrap_or(u16::MAX);
        Self { steps, root, ids: None }
    }
}

/// What a driver may put into its plans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Directories by the name that [`PathRef::root`] uses.
    pub roots: BTreeMap<String, PathBuf>,
    /// Names of [`Step`] variants in kebab case; a step that is not listed is refused.
    pub steps: BTreeSet<&'static str>,
}

impl Grants {
    /// `steps` on one root directory called `root`.
    pub fn on_root(root: impl Into<PathBuf>, steps: &[&'static str]) -> Self {
        Self {
            roots: BTreeMap::from([("root".to_owned(), root.into())]),
            steps: steps.iter().copied().collect(),
        }
    }
}

impl Step {
    /// The variant's name in kebab case, as grants and errors write it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Mkdir { .. } => "mkdir",
            Self::Bind { .. } => "bind",
            Self::Overlay { .. } => "overlay",
            Self::FuseOverlay { .. } => "fuse-overlay",
            Self::Tmpfs { .. } => "tmpfs",
            Self::Loop { .. } => "loop",
            Self::Fs { .. } => "fs",
            Self::Host { .. } => "host",
            Self::Quota { .. } => "quota",
            Self::Subvol { .. } => "subvol",
            Self::Premounted { .. } => "premounted",
        }
    }
}

/// A detached mount: unmounted when the last clone is dropped, unless it was attached somewhere.
///
/// The descriptor works as a directory for `openat2(2)` and as the source of `move_mount(2)`.
#[derive(Clone, Debug)]
pub struct MountFd(Arc<OwnedFd>);

impl MountFd {
    /// Takes over a descriptor made by `fsmount(2)` or `open_tree(2)` with `OPEN_TREE_CLONE`.
    pub fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }
}

impl AsFd for MountFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Checks and executes plans. The kernel's; plugins get it from their context.
#[async_trait]
pub trait MountExecutor: Send + Sync {
    /// Whether `plan` is well-formed and within `grants`. Pure; needs no privilege.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a malformed plan, `Forbidden` for one that exceeds its grants; the
    /// message names the step.
    fn check(&self, plan: &MountPlan, grants: &Grants) -> Result<()>;

    /// Checks, then executes; on any error nothing stays mounted.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check); `NotFound` for a missing path; `Unsupported` where this
    /// kernel cannot; `Internal` with what the kernel said.
    async fn mount(&self, cx: &Ctx, plan: &MountPlan, grants: &Grants) -> Result<MountFd>;
}
