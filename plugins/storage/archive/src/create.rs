//! Archiving a directory: deterministic, so that equal trees give equal digests.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, statat};
use rustix::io::Errno;

use crate::copy::{DEPTH, enter};
use crate::digest::HashWrite;
use crate::entry::{Entry, Kind};
use crate::name::{OPAQUE, WHITEOUT, join, split};
use crate::tree::{is_whiteout, mtime_of, open_beneath, read_link};
use crate::writer::Writer;
use crate::xattr::{self, Node};
use crate::{ArchiveError, Result, content};

/// What the directory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// A tree.
    #[default]
    Tree,
    /// The upper directory of an overlay: its marks become deletion markers.
    OverlayUpper,
}

/// Whether a name is wanted.
pub type Filter = dyn Fn(&[u8]) -> bool;

/// How to archive.
#[derive(Default)]
pub struct CreateOptions<'a> {
    /// What the directory is.
    pub source: Source,
    /// Put in front of every name, as a directory; the top itself then has this name.
    pub prefix: Vec<u8>,
    /// Whether the top directory gets a member of its own.
    pub root_entry: bool,
    /// Which names (without the prefix) are archived; a directory that is not is not entered.
    pub filter: Option<&'a Filter>,
}

impl std::fmt::Debug for CreateOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateOptions").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What was archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Digest of the archive.
    pub diff_id: String,
    /// Its size.
    pub bytes: u64,
    /// Members.
    pub entries: u64,
}

/// Archives the directory `root` into `out`, uncompressed, in the order of names.
///
/// Sockets are left out: an archive cannot hold them. Blocking.
///
/// # Errors
///
/// [`ArchiveError::Refused`] for what an archive of that kind cannot express: in a layer, a file
/// named like a deletion marker; anything too deep.
pub fn create<W: Write>(
    root: BorrowedFd<'_>,
    out: W,
    options: &CreateOptions<'_>,
) -> Result<Created> {
    let fail = |errno| ArchiveError::io("open", b"", errno);
    let dir = open_beneath(root, b"").map_err(fail)?;
    let mut archive = Archiver::new(out, options);
    if options.root_entry {
        let entry = archive.describe_dir(&dir, b"").map_err(fail)?;
        archive.writer.append(&entry, &mut std::io::empty())?;
    }
    archive.fill(&dir, b"", 0)?;
    archive.finish()
}

/// Archives one object, `name` in the directory `dir`, as `options.prefix`.
///
/// # Errors
///
/// Those of [`create`].
pub fn create_one<W: Write>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    out: W,
    options: &CreateOptions<'_>,
) -> Result<Created> {
    let fail = |errno| ArchiveError::io("open", name, errno);
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
    let dir = open_beneath(dir, b"").map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        use std::os::fd::AsFd;
        let root = enter(&dir, name).map_err(fail)?;
        return create(
            root.as_fd(),
            out,
            &CreateOptions { prefix: options.prefix.clone(), ..*options },
        );
    }
    let mut archive = Archiver::new(out, options);
    archive.object(&dir, name, b"", &stat)?;
    archive.finish()
}

/// Archives a chosen set of `paths` (clean, sorted) of the directory `root`, and deletion markers
/// for the `deleted` ones: a layer from a comparison.
pub(crate) fn create_chosen<W: Write>(
    root: BorrowedFd<'_>,
    out: W,
    paths: &[(Vec<u8>, bool)],
) -> Result<Created> {
    let options = CreateOptions { source: Source::OverlayUpper, ..CreateOptions::default() };
    let mut archive = Archiver::new(out, &options);
    for (path, is_deleted) in paths {
        let (parent, name) = split(path);
        let fail = |errno| ArchiveError::io("open", path, errno);
        let dir = open_beneath(root, parent).map_err(fail)?;
        if *is_deleted {
            archive.whiteout(parent, name)?;
        } else if name.is_empty() {
            let entry = archive.describe_dir(&dir, path).map_err(fail)?;
            archive.writer.append(&entry, &mut std::io::empty())?;
        } else {
            archive.refuse_marker(name, path)?;
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let child = enter(&dir, name).map_err(fail)?;
                let entry = archive.describe_dir(&child, path).map_err(fail)?;
                archive.writer.append(&entry, &mut std::io::empty())?;
            } else {
                archive.object(&dir, name, path, &stat)?;
            }
        }
    }
    archive.finish()
}

struct Archiver<'a, W> {
    writer: Writer<HashWrite<W>>,
    options: &'a CreateOptions<'a>,
    /// Names of files that have several, as archived.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a, W: Write> Archiver<'a, W> {
    fn new(out: W, options: &'a CreateOptions<'a>) -> Self {
        Self { writer: Writer::new(HashWrite::new(out)), options, links: HashMap::new() }
    }

    fn finish(self) -> Result<Created> {
        let entries = self.writer.entries();
        let (diff_id, bytes) = self.writer.finish()?.hasher.finish();
        Ok(Created { diff_id, bytes, entries })
    }

    fn is_layer(&self) -> bool {
        self.options.source == Source::OverlayUpper
    }

    /// The name in the archive.
    fn named(&self, path: &[u8]) -> Vec<u8> {
        match (self.options.prefix.as_slice(), path) {
            (b"", path) => path.to_vec(),
            (prefix, b"") => prefix.to_vec(),
            (prefix, path) => join(prefix, path),
        }
    }

    fn fill(&mut self, dir: &OwnedFd, path: &[u8], depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(ArchiveError::refused(path, "it is too deep"));
        }
        for name in content::names(dir).map_err(|e| ArchiveError::io("list", path, e))? {
            let child = join(path, &name);
            if self.options.filter.is_some_and(|wants| !wants(&child)) {
                continue;
            }
            let fail = |errno| ArchiveError::io("open", &child, errno);
            let stat = match statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue, // gone meanwhile
                answer => answer.map_err(fail)?,
            };
            if self.is_layer() {
                if is_whiteout(&stat) {
                    self.whiteout(path, &name)?;
                    continue;
                }
                self.refuse_marker(&name, &child)?;
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.object(dir, &name, &child, &stat)?;
                continue;
            }
            let fd = match enter(dir, &name) {
                Err(Errno::NOENT) => continue,
                answer => answer.map_err(fail)?,
            };
            let entry = self.describe_dir(&fd, &child).map_err(fail)?;
            self.writer.append(&entry, &mut std::io::empty())?;
            if self.is_layer() {
                self.marks_of(&fd, &child)?;
            }
            self.fill(&fd, &child, depth + 1)?;
        }
        Ok(())
    }

    fn refuse_marker(&self, name: &[u8], path: &[u8]) -> Result<()> {
        if name.starts_with(WHITEOUT) {
            return Err(ArchiveError::refused(path, "a layer cannot hold a file of that name"));
        }
        Ok(())
    }

    /// Overlayfs' marks on a directory: opaque is translated, what we cannot express is refused.
    fn marks_of(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<()> {
        let names = Node::Open(dir).names().map_err(|e| ArchiveError::io("read", path, e))?;
        if names.iter().any(|name| name == b"trusted.overlay.redirect") {
            return Err(ArchiveError::refused(path, "it was renamed without its content"));
        }
        if names.iter().any(|name| name == xattr::OPAQUE.as_bytes()) && xattr::is_opaque(dir) {
            let marker = Entry::new(Kind::File, join(&self.named(path), OPAQUE), 0o600);
            self.writer.append(&marker, &mut std::io::empty())?;
        }
        Ok(())
    }

    fn whiteout(&mut self, dir: &[u8], name: &[u8]) -> Result<()> {
        let marker = join(dir, &[WHITEOUT, name].concat());
        let entry = Entry::new(Kind::File, self.named(&marker), 0o600);
        self.writer.append(&entry, &mut std::io::empty())
    }

    fn describe_dir(&self, dir: &OwnedFd, path: &[u8]) -> Result<Entry, Errno> {
        let stat = rustix::fs::fstat(dir)?;
        let mut name = self.named(path);
        if name.is_empty() {
            name.push(b'.');
        }
        name.push(b'/');
        let mut entry = describe(Kind::Directory, name, &stat);
        entry.xattrs = Node::Open(dir).read()?;
        Ok(entry)
    }

    /// Anything but a directory.
    fn object(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8], stat: &Stat) -> Result<()> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            _ => return Ok(()),
        };
        let archived = self.named(path);
        let mut entry = describe(kind, archived.clone(), stat);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                (entry.kind, entry.link, entry.size) = (Kind::Hardlink, first.clone(), 0);
                return self.writer.append(&entry, &mut std::io::empty());
            }
            self.links.insert((stat.st_dev, stat.st_ino), archived);
        }
        let fail = |errno| ArchiveError::io("read", path, errno);
        if kind == Kind::File {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(fail)?;
            let names = Node::Open(&fd).names().map_err(fail)?;
            if self.is_layer() && names.iter().any(|name| name == b"trusted.overlay.metacopy") {
                return Err(ArchiveError::refused(path, "it was copied up without its content"));
            }
            entry.xattrs = Node::Open(&fd).read().map_err(fail)?;
            return self.writer.append(&entry, &mut File::from(fd));
        }
        if kind == Kind::Symlink {
            entry.link = read_link(dir, name).map_err(fail)?;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(fail)?;
        entry.xattrs = Node::Path(&node).read().map_err(fail)?;
        self.writer.append(&entry, &mut std::io::empty())
    }
}

fn describe(kind: Kind, name: Vec<u8>, stat: &Stat) -> Entry {
    let mut entry = Entry::new(kind, name, stat.st_mode & 0o7777);
    (entry.uid, entry.gid) = (stat.st_uid, stat.st_gid);
    entry.mtime = mtime_of(stat);
    if kind == Kind::File {
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
    }
    if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        entry.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    }
    entry
}
