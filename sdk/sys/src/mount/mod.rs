//! Mounts through descriptors: build one detached, set its properties, then attach it.
//!
//! A detached mount is visible in no mount namespace; when its last descriptor closes it is gone. So
//! whatever happens to the process in between, nothing is left on the host.
//!
//! | file | holds |
//! |---|---|
//! | `context` | a file system being configured: `fsopen`, `fsconfig`, `fsmount` |
//! | `tree` | mounts as descriptors: clone, attributes, attach, detach |
//! | `overlay` | overlayfs from descriptors, with the way around for kernels before 6.8 |
//! | `info` | `/proc/self/mountinfo` |
//! | `shared` | copies of mounts that are attached nowhere, with the way around for kernels before 6.15 |
//! | `loopdev` | files as block devices |
//! | `subvolume` | Btrfs subvolumes |
//! | `quota` | project quotas |
//! | `idmap` | maps of ids for mounts |
//! | `fuse` | overlays served by fuse-overlayfs |
//!
//! Source: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2).

mod context;
mod fuse;
mod idmap;
mod info;
mod loopdev;
mod overlay;
mod quota;
mod shared;
mod subvolume;
mod tree;

pub use context::FsContext;
pub use fuse::{FuseOverlay, FuseUpper};
pub use idmap::{IdRange, user_namespace};
pub use info::{MountInfo, mount_of, parse_mountinfo, read_mountinfo, read_mountinfo_of};
pub use loopdev::LoopDevice;
pub use overlay::{Overlay, supports_lowerdir_plus};
pub use quota::{
    Project, ProjectLimit, ProjectUsage, enforces_project_limits, limit_directory, own_project,
    project_of, project_usage, set_project, set_project_limit,
};
pub use rustix::mount::MountAttrFlags;
pub use shared::{SharedMount, clone_beneath};
pub use subvolume::{
    create_subvolume, forget_subvolume_limit, hurry_removed_subvolumes, is_btrfs, is_subvolume,
    limit_subvolume, remove_subvolume, set_subvolume_read_only, snapshot_subvolume, subvolume_id,
};
pub use tree::{
    MountAttr, Propagation, attach, attach_onto, clone_from_namespace, clone_tree, clone_tree_at,
    detach, enter_private_namespace, set_attr, unmount,
};
