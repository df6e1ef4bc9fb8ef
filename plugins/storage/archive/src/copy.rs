//! Copying trees with everything that belongs to them; data are shared where the file system can.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, statat};
use rustix::io::Errno;

use crate::name::join;
use crate::place::{Attributes, Missing, dress, dress_node, make_directory, mode_of, open_dir};
use crate::tree::{Dir, OPEN_DIR, mtime_of, open_beneath, read_link};
use crate::xattr::{self, Node};
use crate::{ArchiveError, Result, content};

/// Deepest tree that is copied or archived: each level holds descriptors open.
pub(crate) const DEPTH: usize = 400;

/// Copies the content of the directory `from`, and its attributes, into the empty directory `to`.
///
/// Hard links within stay hard links. Holes stay holes. Blocking.
///
/// # Errors
///
/// [`ArchiveError::Io`]; what was copied until then stays.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let fail = |errno| ArchiveError::io("open", b"", errno);
    let source = open_beneath(from, b"").map_err(fail)?;
    let fd = open_beneath(to, b"").map_err(fail)?;
    let wanted = Attributes::of_directory(&source).map_err(fail)?;
    dress(&fd, b"", &wanted, &Missing::all(), false)?;
    let dir = Dir { fd, real: Vec::new(), inherits: wanted.mode & 0o2000 != 0 };
    Copier { to, links: HashMap::new() }.fill(&source, &dir, &wanted, 0)
}

/// Copies what the directory `from` holds into the directory `to`, which keeps its own attributes;
/// names that exist there are an error.
///
/// # Errors
///
/// [`ArchiveError::Io`]; what was copied until then stays.
pub fn copy_children(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let fail = |errno| ArchiveError::io("open", b"", errno);
    let source = open_beneath(from, b"").map_err(fail)?;
    let fd = open_beneath(to, b"").map_err(fail)?;
    let kept = Attributes::of_directory(&fd).map_err(fail)?;
    let dir = Dir { fd, real: Vec::new(), inherits: kept.mode & 0o2000 != 0 };
    Copier { to, links: HashMap::new() }.fill(&source, &dir, &kept, 0)
}

struct Copier<'a> {
    to: BorrowedFd<'a>,
    /// Where files with several names went first.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl Copier<'_> {
    fn fill(&mut self, from: &OwnedFd, dir: &Dir, wanted: &Attributes, depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(ArchiveError::refused(&dir.real, "it is too deep"));
        }
        for name in content::names(from).map_err(|e| ArchiveError::io("list", &dir.real, e))? {
            let path = join(&dir.real, &name);
            let stat = stat_of(from, &name, &path)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let source = open_dir(from, &name, &path)?;
                let wanted = Attributes::of_directory(&source)
                    .map_err(|e| ArchiveError::io("read", &path, e))?;
                let fd = make_directory(dir, &name, &path, &wanted)?;
                let child = Dir { fd, real: path, inherits: wanted.mode & 0o2000 != 0 };
                self.fill(&source, &child, &wanted, depth + 1)?;
                continue;
            }
            if stat.st_nlink > 1 {
                let id = (stat.st_dev, stat.st_ino);
                if let Some(first) = self.links.get(&id) {
                    rustix::fs::linkat(self.to, first, &dir.fd, &name, AtFlags::empty())
                        .map_err(|e| ArchiveError::io("link", &path, e))?;
                    continue;
                }
                self.links.insert(id, path.clone());
            }
            copy_found(from, dir, &name, &path, &stat)?;
        }
        if let Some(acl) = wanted.xattrs.get(xattr::DEFAULT_ACL) {
            Node::Open(&dir.fd).set(&dir.real, xattr::DEFAULT_ACL, acl)?;
        }
        rustix::fs::futimens(&dir.fd, &wanted.mtime.stamps())
            .map_err(|e| ArchiveError::io("set the time of", &dir.real, e))
    }
}

fn stat_of(dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Stat> {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| ArchiveError::io("read", path, e))
}

/// Copies one object that is not a directory. `path` is for messages.
pub(crate) fn copy_entry(from: &OwnedFd, dir: &Dir, name: &[u8], path: &[u8]) -> Result<()> {
    let stat = stat_of(from, name, path)?;
    copy_found(from, dir, name, path, &stat)
}

fn copy_found(from: &OwnedFd, dir: &Dir, name: &[u8], path: &[u8], stat: &Stat) -> Result<()> {
    let mut wanted = Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime_of(stat),
        ..Attributes::plain(0)
    };
    let fail = |doing| move |errno| ArchiveError::io(doing, path, errno);
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source =
                rustix::fs::openat(from, name, flags, Mode::empty()).map_err(fail("open"))?;
            wanted.xattrs = Node::Open(&source).read().map_err(fail("read the attributes of"))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = mode_of(wanted.mode & 0o777);
            let fd = rustix::fs::openat(&dir.fd, name, flags, mode).map_err(fail("create"))?;
            copy_data(&source, &fd, stat).map_err(fail("copy"))?;
            dress(&fd, path, &wanted, &Missing::after_creation(dir, &wanted), dir.inherits)?;
            return rustix::fs::futimens(&fd, &wanted.mtime.stamps())
                .map_err(fail("set the time of"));
        }
        FileType::Directory => return Err(ArchiveError::refused(path, "it is a directory")),
        FileType::Symlink => {
            let target = read_link(from, name).map_err(fail("read"))?;
            rustix::fs::symlinkat(&target, &dir.fd, name).map_err(fail("create"))?;
        }
        _ => {
            let mode = mode_of(wanted.mode & 0o777);
            rustix::fs::mknodat(&dir.fd, name, kind, mode, stat.st_rdev).map_err(fail("create"))?;
        }
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(from, name, flags, Mode::empty()).map_err(fail("open"))?;
    wanted.xattrs = Node::Path(&node).read().map_err(fail("read the attributes of"))?;
    dress_node(dir, name, path, &wanted, kind == FileType::Symlink).map(drop)
}

/// Copies data: shared blocks if possible, otherwise run by run, leaving out holes.
fn copy_data(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 {
        return Ok(());
    }
    // Small files are cheaper to copy than to ask about.
    if size > 64 << 10 && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let has_holes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
    if !has_holes {
        return copy_range(from, to, 0, size);
    }
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        if end <= start {
            break;
        }
        copy_range(from, to, start, end - start)?;
        at = end;
    }
    rustix::fs::ftruncate(to, size)
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, length: u64) -> Result<(), Errno> {
    let (mut source_at, mut target_at) = (start, start);
    let end = start + length;
    while source_at < end {
        let wanted = usize::try_from(end - source_at).unwrap_or(1 << 30).min(1 << 30);
        match rustix::fs::copy_file_range(
            from,
            Some(&mut source_at),
            to,
            Some(&mut target_at),
            wanted,
        ) {
            Ok(0) => return Ok(()), // it shrank meanwhile
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_by_hand(from, to, source_at, end);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_by_hand(from: impl AsFd, to: &OwnedFd, mut at: u64, end: u64) -> Result<(), Errno> {
    let mut buf = vec![0; 128 << 10];
    while at < end {
        let wanted = usize::try_from(end - at).map_or(buf.len(), |n| n.min(buf.len()));
        match rustix::io::pread(&from, &mut buf[..wanted], at) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                content::write_all(to, &buf[..n], at)?;
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Opens a directory below `dir` for a walk.
pub(crate) fn enter(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, OPEN_DIR, Mode::empty())
}
