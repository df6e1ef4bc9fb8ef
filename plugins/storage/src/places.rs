//! The places that are made in a container's layer for what is mounted into every container.
//!
//! An image need not have them, and then they lie in the container's own layer, where mounts hide
//! them from everybody. They are no change that a user made: neither a comparison nor an image of
//! the container has them.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use gantry_archive::{ChangeKind, Changes};
use rustix::fs::{AtFlags, FileType, statat};

/// Files and directories, parents last.
const PLACES: [&str; 12] = [
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "dev/console",
    "dev/mqueue",
    "dev/pts",
    "dev/shm",
    "dev",
    "proc",
    "sys",
    ".dockerenv",
    "etc",
];

/// Those of `changes`, found in the tree or layer `new` over `below`, that are nothing but places.
pub(crate) fn among(
    changes: &Changes,
    new: BorrowedFd<'_>,
    below: BorrowedFd<'_>,
) -> BTreeSet<Vec<u8>> {
    let mut places: BTreeSet<Vec<u8>> = BTreeSet::new();
    for path in PLACES {
        let Some(kind) = changes.get(path.as_bytes()) else { continue };
        let Ok(stat) = statat(new, path, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let is_place = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => *kind == ChangeKind::Added && stat.st_size == 0,
            FileType::Directory => {
                let inside = format!("{path}/").into_bytes();
                let mut children = changes.keys().filter(|child| child.starts_with(&inside));
                let owner = (stat.st_mode, stat.st_uid, stat.st_gid);
                let same = |old: rustix::fs::Stat| (old.st_mode, old.st_uid, old.st_gid) == owner;
                let before = statat(below, path, AtFlags::SYMLINK_NOFOLLOW);
                children.all(|child| places.contains(child))
                    && (*kind == ChangeKind::Added || before.is_ok_and(same))
            }
            _ => false,
        };
        if is_place {
            places.insert(path.as_bytes().to_vec());
        }
    }
    places
}
