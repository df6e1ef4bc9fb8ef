//! A layer that is being made, and the directories in it.

use std::os::fd::{BorrowedFd, OwnedFd};

use gantry_sdk::{Error, Result};
use rustix::fs::{AtFlags, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::record::Record;

/// A layer that is being made.
#[derive(Debug)]
pub struct NewLayer<'a> {
    /// What it will be.
    pub record: &'a Record,
    /// The layer below, committed.
    pub parent: Option<&'a Record>,
    /// Its directory (not its content).
    pub dir: OwnedFd,
    /// The instance's root.
    pub root: BorrowedFd<'a>,
}

impl NewLayer<'_> {
    /// Makes the content directory with the attributes of the parent's, which it replaces in what
    /// a container sees.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    pub fn make_content(&self) -> Result<()> {
        let fail =
            |errno: Errno| Error::io("make", format!("layer {}", self.record.key), errno.into());
        let (mode, uid, gid) = match self.parent {
            Some(parent) => {
                let stat =
                    rustix::fs::statat(self.root, parent.content(), AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(fail)?;
                (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
            }
            None => (0o755, 0, 0),
        };
        rustix::fs::mkdirat(&self.dir, "fs", Mode::from_raw_mode(mode)).map_err(fail)?;
        if (uid, gid) != (0, 0) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(&self.dir, "fs", uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(fail)?;
        }
        // The usual mode survives any usual umask.
        if mode != 0o755 {
            rustix::fs::chmodat(&self.dir, "fs", Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(fail)?;
        }
        Ok(())
    }

    /// Makes the scratch directory of an overlay.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    pub fn make_work(&self) -> Result<()> {
        rustix::fs::mkdirat(&self.dir, "work", Mode::from_raw_mode(0o700))
            .map_err(|e| Error::io("make", format!("layer {}", self.record.key), e.into()))
    }
}
