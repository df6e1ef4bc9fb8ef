//! A walk through a directory tree of any depth, with few descriptors open.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::beneath::open_with;

/// Descriptors held open at most; deeper levels close those further up and come back through `..`.
const OPEN_MAX: usize = 128;

/// A position in a tree, together with the way back.
///
/// Never follows a symbolic link, never crosses a mount. Whoever moves directories about meanwhile
/// gets an error (`ESTALE`), not a walk somewhere else: a directory reached through `..` must be the
/// one that was left.
#[derive(Debug)]
pub(super) struct Descent {
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    /// `None` while far below.
    fd: Option<OwnedFd>,
    id: (u64, u64),
    /// The name in the level above.
    name: CString,
    /// Directories still to be visited.
    pending: Vec<CString>,
}

impl Descent {
    /// Starts at `top`, which must be open for reading.
    pub(super) fn start(top: OwnedFd) -> Result<Self, Errno> {
        let id = identity(&top)?;
        let level = Level { fd: Some(top), id, name: CString::default(), pending: Vec::new() };
        Ok(Self { levels: vec![level] })
    }

    /// The directory of the current position.
    pub(super) fn here(&self) -> Result<&OwnedFd, Errno> {
        self.levels.last().and_then(|level| level.fd.as_ref()).ok_or(Errno::BADF)
    }

    pub(super) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Remembers a directory of the current level for later.
    pub(super) fn later(&mut self, name: CString) {
        if let Some(level) = self.levels.last_mut() {
            level.pending.push(name);
        }
    }

    /// Takes the next remembered directory of the current level.
    pub(super) fn next_pending(&mut self) -> Option<CString> {
        self.levels.last_mut()?.pending.pop()
    }

    /// Goes down into the directory `name`.
    pub(super) fn enter(&mut self, name: CString) -> Result<(), Errno> {
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_XDEV
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let fd = open_with(self.here()?, path, flags, Mode::empty(), resolve)?;
        let id = identity(&fd)?;
        self.levels.push(Level { fd: Some(fd), id, name, pending: Vec::new() });
        if let Some(index) = self.levels.len().checked_sub(OPEN_MAX) {
            // Never the top itself: it has no way back.
            if let Some(level) = self.levels.get_mut(index).filter(|_| index > 0) {
                level.fd = None;
            }
        }
        Ok(())
    }

    /// Goes up again; gives the name of the directory that was left, or `None` at the top.
    pub(super) fn leave(&mut self) -> Result<Option<CString>, Errno> {
        let Some(left) = self.levels.pop() else { return Ok(None) };
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if level.fd.is_none() {
            let below = left.fd.as_ref().ok_or(Errno::BADF)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(below, c"..", flags, Mode::empty())?;
            if identity(&fd)? != level.id {
                return Err(Errno::STALE);
            }
            level.fd = Some(fd);
        }
        Ok(Some(left.name))
    }
}

use std::os::unix::ffi::OsStrExt;

fn identity(fd: impl AsFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// At most `max` entries of a directory, without `.` and `..`, from its beginning.
pub(super) fn entries(dir: impl AsFd, max: usize) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            found.push((name.to_owned(), entry.file_type()));
            if found.len() >= max {
                break;
            }
        }
    }
    Ok(found)
}
