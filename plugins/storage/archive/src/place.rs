//! Putting one object into a directory: created, owned, moded, attributed, dated — in an order in
//! which no later step undoes an earlier one.
//!
//! Writing and changing the owner drop setuid bits and file capabilities, so: data, owner, mode,
//! attributes, time.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::entry::{Entry, Time};
use crate::tree::{Dir, OPEN_DIR, mtime_of};
use crate::xattr::{self, Node};
use crate::{ArchiveError, Result};

/// What an object gets besides its content.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Attributes {
    /// Owned by root, nothing special.
    pub(crate) fn plain(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() }
    }

    pub(crate) fn of_entry(entry: &Entry) -> Self {
        let Entry { mode, uid, gid, mtime, xattrs, .. } = entry;
        Self { mode: *mode, uid: *uid, gid: *gid, mtime: *mtime, xattrs: xattrs.clone() }
    }

    pub(crate) fn of_directory(dir: &OwnedFd) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(dir)?;
        Ok(Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: mtime_of(&stat),
            xattrs: Node::Open(dir).read()?,
        })
    }
}

/// The bits that a plain creation keeps, and the owner it gives.
struct Defaults {
    umask: u32,
    uid: u32,
    gid: u32,
}

/// This process's defaults. The umask cannot be read without setting it, except here; where that
/// fails, every mode is set explicitly.
fn defaults() -> &'static Defaults {
    static DEFAULTS: OnceLock<Defaults> = OnceLock::new();
    DEFAULTS.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        let umask = field.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
        Defaults {
            umask: umask.unwrap_or(0o777),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    })
}

/// Which explicit calls a fresh object needs to be as wanted.
pub(crate) struct Missing {
    pub(crate) owner: bool,
    pub(crate) mode: bool,
}

impl Missing {
    pub(crate) fn after_creation(in_dir: &Dir, wanted: &Attributes) -> Self {
        let defaults = defaults();
        let owner = in_dir.inherits || (wanted.uid, wanted.gid) != (defaults.uid, defaults.gid);
        let lost = wanted.mode & (0o7000 | defaults.umask);
        Self { owner, mode: in_dir.inherits || lost != 0 }
    }

    pub(crate) fn all() -> Self {
        Self { owner: true, mode: true }
    }
}

pub(crate) fn owner_of(wanted: &Attributes) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))
}

pub(crate) fn mode_of(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// Owner, mode and attributes of an open file or directory. Returns how many attributes the file
/// system does not have.
pub(crate) fn dress(
    fd: &OwnedFd,
    entry: &[u8],
    wanted: &Attributes,
    missing: &Missing,
    inherits: bool,
) -> Result<u64> {
    if missing.owner {
        let (uid, gid) = owner_of(wanted);
        rustix::fs::fchown(fd, uid, gid)
            .map_err(|e| ArchiveError::io("change the owner of", entry, e))?;
    }
    if inherits {
        for acl in [xattr::ACCESS_ACL, xattr::DEFAULT_ACL] {
            match rustix::fs::fremovexattr(fd, acl) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
                Err(e) => return Err(ArchiveError::io("remove the inherited ACL of", entry, e)),
            }
        }
    }
    if missing.mode {
        rustix::fs::fchmod(fd, mode_of(wanted.mode))
            .map_err(|e| ArchiveError::io("change the mode of", entry, e))?;
    }
    set_xattrs(&Node::Open(fd), entry, wanted)
}

/// Sets all attributes but a default ACL, which waits until the directory is full.
pub(crate) fn set_xattrs(node: &Node<'_>, entry: &[u8], wanted: &Attributes) -> Result<u64> {
    let mut skipped = 0;
    for (name, value) in &wanted.xattrs {
        let is_later = name == xattr::DEFAULT_ACL;
        if !is_later && (!xattr::is_kept(name) || !node.set(entry, name, value)?) {
            skipped += 1;
        }
    }
    Ok(skipped)
}

/// Removes the attributes an existing directory should not have any more.
pub(crate) fn undress(fd: &OwnedFd, entry: &[u8], wanted: &Attributes) -> Result<()> {
    let fail = |e| ArchiveError::io("remove an extended attribute of", entry, e);
    for name in Node::Open(fd).names().map_err(fail)? {
        if xattr::is_kept(&name) && !wanted.xattrs.contains_key(&name) {
            match rustix::fs::fremovexattr(fd, &name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
    }
    Ok(())
}

/// Makes a directory that does not exist yet, with everything but its time and default ACL, and
/// opens it.
pub(crate) fn make_directory(
    dir: &Dir,
    name: &[u8],
    entry: &[u8],
    wanted: &Attributes,
) -> Result<OwnedFd> {
    rustix::fs::mkdirat(&dir.fd, name, mode_of(wanted.mode & 0o777))
        .map_err(|e| ArchiveError::io("make directory", entry, e))?;
    let fd = open_dir(&dir.fd, name, entry)?;
    let missing = Missing::after_creation(dir, wanted);
    dress(&fd, entry, wanted, &missing, dir.inherits)?;
    Ok(fd)
}

pub(crate) fn open_dir(dir: impl AsFd, name: &[u8], entry: &[u8]) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, OPEN_DIR, Mode::empty())
        .map_err(|e| ArchiveError::io("open directory", entry, e))
}

/// Everything of a fresh symbolic link, device or pipe. `is_link`: links have no mode.
pub(crate) fn dress_node(
    dir: &Dir,
    name: &[u8],
    entry: &[u8],
    wanted: &Attributes,
    is_link: bool,
) -> Result<u64> {
    let missing = Missing::after_creation(dir, wanted);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    if missing.owner {
        let (uid, gid) = owner_of(wanted);
        rustix::fs::chownat(&dir.fd, name, uid, gid, nofollow)
            .map_err(|e| ArchiveError::io("change the owner of", entry, e))?;
    }
    let mut skipped = 0;
    let needs_mode = missing.mode && !is_link;
    if needs_mode || !wanted.xattrs.is_empty() {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, name, flags, Mode::empty())
            .map_err(|e| ArchiveError::io("open", entry, e))?;
        if needs_mode {
            change_mode(&fd, wanted.mode)
                .map_err(|e| ArchiveError::io("change the mode of", entry, e))?;
        }
        skipped = set_xattrs(&Node::Path(&fd), entry, wanted)?;
    }
    rustix::fs::utimensat(&dir.fd, name, &wanted.mtime.stamps(), nofollow)
        .map_err(|e| ArchiveError::io("set the time of", entry, e))?;
    Ok(skipped)
}

/// Changes the mode of what an `O_PATH` descriptor means. By name it would follow whatever somebody
/// may have put there meanwhile.
fn change_mode(fd: &OwnedFd, mode: u32) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    rustix::fs::chmod(gantry_sys::path::proc_fd(fd), mode_of(mode))
}
