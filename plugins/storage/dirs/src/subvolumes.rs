//! Layers whose content is a Btrfs subvolume.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gantry_sdk::{Error, Result};
use gantry_sys::mount::{
    create_subvolume, forget_subvolume_limit, is_btrfs, is_subvolume, limit_subvolume,
    remove_subvolume, set_subvolume_read_only, snapshot_subvolume, subvolume_id,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::layers::Layers;
use crate::making::NewLayer;
use crate::record::Record;

/// The name of a layer's content in its directory.
const CONTENT: &str = "fs";

impl Layers {
    /// Whether the instance lies on Btrfs.
    pub fn is_on_btrfs(&self) -> bool {
        is_btrfs(&self.root_fd).unwrap_or(false)
    }

    /// Makes a layer's subvolume read-only.
    ///
    /// # Errors
    ///
    /// What the file system reported; `Internal` if the content is no subvolume.
    pub fn freeze_subvolume(&self, record: &Record) -> Result<()> {
        set_subvolume_read_only(self.open_content(record)?, true)
            .map_err(|e| Error::internal(format!("cannot freeze layer {}", record.key), e))
    }
}

impl NewLayer<'_> {
    /// Makes the content a snapshot of the parent's, or an empty subvolume without one, and limits
    /// the bytes that it refers to, the parent's included.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    pub fn make_subvolume(&self, parent: Option<OwnedFd>, limit: Option<u64>) -> Result<()> {
        let fail = |e| Error::internal(format!("cannot make layer {}", self.record.key), e);
        let name = OsStr::new(CONTENT);
        match parent {
            Some(parent) => snapshot_subvolume(&self.dir, name, parent, false),
            None => create_subvolume(&self.dir, name),
        }
        .map_err(fail)?;
        match limit {
            Some(bytes) => match open(self.dir.as_fd()) {
                Ok(content) => limit_subvolume(content, bytes).map_err(fail),
                Err(errno) => {
                    Err(Error::io("open", format!("layer {}", self.record.key), errno.into()))
                }
            },
            None => Ok(()),
        }
    }
}

fn open(dir: BorrowedFd<'_>) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, CONTENT, flags, Mode::empty())
}

/// Removes a layer's subvolume from its directory, and what its quota group remembers; nothing there, or
/// content of another kind, is left to others. Says whether there was one.
pub(crate) fn remove_content(dir: BorrowedFd<'_>) -> gantry_sys::Result<bool> {
    let Ok(content) = open(dir) else { return Ok(false) };
    if !is_subvolume(&content)? {
        return Ok(false);
    }
    let id = subvolume_id(&content);
    drop(content);
    remove_subvolume(dir, OsStr::new(CONTENT))?;
    // While the file system still takes the subvolume apart the group cannot go; newer kernels remove
    // it by themselves afterwards, and an empty one costs nothing.
    let _ = id.and_then(|id| forget_subvolume_limit(dir, id));
    Ok(true)
}
