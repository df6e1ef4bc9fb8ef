//! What a layer changes: from its overlay directory, or by comparing two trees.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use crate::copy::{DEPTH, enter};
use crate::create::{Created, create_chosen};
use crate::name::join;
use crate::tree::{is_dir, is_whiteout, open_beneath, read_link};
use crate::xattr::Node;
use crate::{ArchiveError, Result, content, xattr};

/// How an entry changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is there, and was there.
    Modified,
    /// It was not there.
    Added,
    /// It is not there any more; what was in it is not listed.
    Deleted,
}

/// Changes by path (clean, without a leading slash; empty is the top directory).
pub type Changes = BTreeMap<Vec<u8>, ChangeKind>;

/// What the overlay directory `upper` changes over `below`, the merged tree of its lower layers.
///
/// A directory counts as modified when its attributes differ or something in it changed.
///
/// # Errors
///
/// [`ArchiveError::Io`].
pub fn overlay_changes(upper: BorrowedFd<'_>, below: Option<BorrowedFd<'_>>) -> Result<Changes> {
    let mut changes = Changes::new();
    let pair = open_pair(upper, below)?;
    visit_upper(&pair.0, pair.1.as_ref(), b"", 0, &mut changes)?;
    Ok(changes)
}

/// What distinguishes the tree `new` from the tree `old`. Files with the same size, time and
/// attributes count as the same: that is how every engine compares.
///
/// # Errors
///
/// [`ArchiveError::Io`].
pub fn tree_changes(old: Option<BorrowedFd<'_>>, new: BorrowedFd<'_>) -> Result<Changes> {
    let mut changes = Changes::new();
    let pair = open_pair(new, old)?;
    compare(&pair.0, pair.1.as_ref(), b"", 0, &mut changes)?;
    Ok(changes)
}

/// Archives what distinguishes the tree `new` from the tree `old`, as a layer.
///
/// # Errors
///
/// Those of [`crate::create()`].
pub fn create_from_changes<W: Write>(
    old: Option<BorrowedFd<'_>>,
    new: BorrowedFd<'_>,
    out: W,
) -> Result<Created> {
    create_of_changes(&tree_changes(old, new)?, new, out)
}

/// Archives `changes` of the tree `new`, some or all that [`tree_changes`] found, as a layer.
///
/// # Errors
///
/// Those of [`crate::create()`].
pub fn create_of_changes<W: Write>(
    changes: &Changes,
    new: BorrowedFd<'_>,
    out: W,
) -> Result<Created> {
    let chosen: Vec<_> =
        changes.iter().map(|(path, kind)| (path.clone(), *kind == ChangeKind::Deleted)).collect();
    create_chosen(new, out, &chosen)
}

type Pair = (OwnedFd, Option<OwnedFd>);

fn open_pair(new: BorrowedFd<'_>, old: Option<BorrowedFd<'_>>) -> Result<Pair> {
    let open = |fd| open_beneath(fd, b"").map_err(|e| ArchiveError::io("open", b"", e));
    Ok((open(new)?, old.map(open).transpose()?))
}

fn check_depth(path: &[u8], depth: usize) -> Result<()> {
    if depth > DEPTH { Err(ArchiveError::refused(path, "it is too deep")) } else { Ok(()) }
}

fn list(dir: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    content::names(dir).map_err(|e| ArchiveError::io("list", path, e))
}

fn find(dir: Option<&OwnedFd>, name: &[u8], path: &[u8]) -> Result<Option<Stat>> {
    let Some(dir) = dir else { return Ok(None) };
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(ArchiveError::io("look up", path, errno)),
    }
}

fn down(dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
    enter(dir, name).map_err(|e| ArchiveError::io("open", path, e))
}

/// Returns whether anything in the directory changed.
fn visit_upper(
    upper: &OwnedFd,
    below: Option<&OwnedFd>,
    path: &[u8],
    depth: usize,
    changes: &mut Changes,
) -> Result<bool> {
    check_depth(path, depth)?;
    let before = changes.len();
    let names = list(upper, path)?;
    if let Some(below) = below.filter(|_| depth > 0 && xattr::is_opaque(upper)) {
        for name in list(below, path)? {
            if names.binary_search(&name).is_err() {
                changes.insert(join(path, &name), ChangeKind::Deleted);
            }
        }
    }
    for name in names {
        let child = join(path, &name);
        let Some(stat) = find(Some(upper), &name, &child)? else { continue };
        let old = find(below, &name, &child)?;
        if is_whiteout(&stat) {
            if old.is_some() {
                changes.insert(child, ChangeKind::Deleted);
            }
            continue;
        }
        if !is_dir(&stat) {
            let kind = if old.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
            changes.insert(child, kind);
            continue;
        }
        let fd = down(upper, &name, &child)?;
        let old_dir = match (&old, below) {
            (Some(old), Some(below)) if is_dir(old) => Some(down(below, &name, &child)?),
            _ => None,
        };
        let inside = visit_upper(&fd, old_dir.as_ref(), &child, depth + 1, changes)?;
        match old {
            None => drop(changes.insert(child, ChangeKind::Added)),
            Some(old) if inside || !is_same_directory(&old, &stat) => {
                changes.insert(child, ChangeKind::Modified);
            }
            Some(_) => {}
        }
    }
    Ok(changes.len() > before)
}

fn is_same_directory(old: &Stat, new: &Stat) -> bool {
    is_dir(old) && mode_and_owner(old) == mode_and_owner(new) && time(old) == time(new)
}

fn mode_and_owner(stat: &Stat) -> (u32, u32, u32) {
    (stat.st_mode, stat.st_uid, stat.st_gid)
}

fn time(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, stat.st_mtime_nsec.cast_signed())
}

fn compare(
    new: &OwnedFd,
    old: Option<&OwnedFd>,
    path: &[u8],
    depth: usize,
    changes: &mut Changes,
) -> Result<()> {
    check_depth(path, depth)?;
    if depth == 0 {
        let stat =
            |fd: &OwnedFd| rustix::fs::fstat(fd).map_err(|e| ArchiveError::io("read", path, e));
        if let Some(old) = old
            && mode_and_owner(&stat(old)?) != mode_and_owner(&stat(new)?)
        {
            changes.insert(Vec::new(), ChangeKind::Modified);
        }
    }
    let names = list(new, path)?;
    if let Some(old) = old {
        for name in list(old, path)? {
            if names.binary_search(&name).is_err() {
                changes.insert(join(path, &name), ChangeKind::Deleted);
            }
        }
    }
    for name in names {
        let child = join(path, &name);
        let Some(stat) = find(Some(new), &name, &child)? else { continue };
        let before = find(old, &name, &child)?;
        let is_same = match (&before, old) {
            (Some(before), Some(old)) => is_same(old, before, new, &stat, &name, &child)?,
            _ => false,
        };
        if !is_same {
            let kind = if before.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
            changes.insert(child.clone(), kind);
        }
        if is_dir(&stat) {
            let fd = down(new, &name, &child)?;
            let old_dir = match (&before, old) {
                (Some(before), Some(old)) if is_dir(before) => Some(down(old, &name, &child)?),
                _ => None,
            };
            compare(&fd, old_dir.as_ref(), &child, depth + 1, changes)?;
        }
    }
    Ok(())
}

/// Whether two entries of the same name are the same as far as a layer is concerned.
fn is_same(
    old_dir: &OwnedFd,
    old: &Stat,
    new_dir: &OwnedFd,
    new: &Stat,
    name: &[u8],
    path: &[u8],
) -> Result<bool> {
    if mode_and_owner(old) != mode_and_owner(new) || time(old) != time(new) {
        return Ok(false);
    }
    let fail = |errno| ArchiveError::io("compare", path, errno);
    match FileType::from_raw_mode(new.st_mode) {
        // Another number of names: without the file, a new hard link to it would become a copy.
        FileType::RegularFile if (old.st_size, old.st_nlink) != (new.st_size, new.st_nlink) => {
            return Ok(false);
        }
        FileType::Symlink
            if read_link(old_dir, name).map_err(fail)?
                != read_link(new_dir, name).map_err(fail)? =>
        {
            return Ok(false);
        }
        FileType::CharacterDevice | FileType::BlockDevice if old.st_rdev != new.st_rdev => {
            return Ok(false);
        }
        _ => {}
    }
    let attributes = |dir: &OwnedFd| {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        Node::Path(&node).read()
    };
    Ok(attributes(old_dir).map_err(fail)? == attributes(new_dir).map_err(fail)?)
}
