//! Unpacking an archive into a directory.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io::{BufRead, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, statat};
use rustix::io::Errno;

use crate::compress::{Passed, decompressed_with};
use crate::entry::{Entry, Kind};
use crate::limits::Limits;
use crate::name::{self, Marker, join, split};
use crate::place::{Attributes, Missing, dress, dress_node, mode_of, open_dir, undress};
use crate::reader::Reader;
use crate::standalone::Implied;
use crate::tree::{Dir, Tree, is_dir, is_whiteout, open_beneath};
use crate::{ArchiveError, Result, content, xattr};

/// What deletion markers (`.wh.*`) become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// Files like any other: the archive is no layer.
    #[default]
    Literal,
    /// A character device 0:0, and `trusted.overlay.opaque` on directories: a layer of its own,
    /// beneath which [`ExtractOptions::below`] shows the others.
    Overlay,
    /// The entry is removed: the directory holds a copy of the layers below.
    Remove,
}

/// How to unpack.
#[derive(Debug)]
pub struct ExtractOptions<'a> {
    /// Bounds.
    pub limits: Limits,
    /// What markers become.
    pub whiteouts: Whiteouts,
    /// The merged tree of the layers below: gives missing parents their attributes, resolves links
    /// that lead through it, and has the files that hard links may point to.
    pub below: Option<BorrowedFd<'a>>,
    /// There are layers below, and they are not there yet: unpack what means the same whatever they
    /// hold, and note the rest for [`settle_standalone`](crate::settle_standalone). Only with
    /// [`Whiteouts::Overlay`] and without [`below`](Self::below).
    pub standalone: bool,
    /// Owner of everything, instead of the archive's.
    pub owner: Option<(u32, u32)>,
    /// Leave the top directory's own attributes alone.
    pub keep_root: bool,
    /// Refuse to put a directory in place of something else, or the reverse.
    pub no_type_change: bool,
    /// Hash the stream as given. Off where the reader verifies it already; the digest of the
    /// uncompressed bytes is computed in any case.
    pub hash_raw: bool,
}

impl Default for ExtractOptions<'_> {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            whiteouts: Whiteouts::default(),
            below: None,
            standalone: false,
            owner: None,
            keep_root: false,
            no_type_change: false,
            hash_raw: true,
        }
    }
}

/// What was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Members, markers included.
    pub entries: u64,
    /// Apparent bytes of the regular files.
    pub file_bytes: u64,
    /// Attributes that do not travel or that the file system does not have.
    pub skipped_xattrs: u64,
    /// With [`ExtractOptions::standalone`]: directories that are used and not described, by their
    /// names without any link on the way, each before those in it.
    pub implied: Vec<Vec<u8>>,
    /// Whether the archive describes the top directory.
    pub top_given: bool,
    /// Digests and sizes of the stream.
    pub stream: Passed,
}

/// Unpacks the archive from `reader`, compressed or not, into the directory `root`.
///
/// Whatever the archive holds, nothing outside `root` is touched: names are cleaned, directories
/// are opened by the kernel beneath `root`, links on the way stay inside as after `chroot`.
/// Reading and decompressing run on a second thread. Blocking.
///
/// # Errors
///
/// See [`ArchiveError`]; what has been unpacked until then stays, for the caller to remove.
pub fn extract<R: Read + Send>(
    reader: R,
    root: BorrowedFd<'_>,
    options: &ExtractOptions<'_>,
) -> Result<Summary> {
    let (outcome, stream) =
        decompressed_with(reader, options.hash_raw, |chunks| place(chunks, root, options))?;
    Ok(outcome.with(stream))
}

/// [`extract`], but reads to the end also where the archive could not be placed, for callers who want
/// to know what has passed in any case.
///
/// # Errors
///
/// The outer one is about the stream, the inner one about placing what was in it.
pub fn extract_to_end<R: Read + Send>(
    reader: R,
    root: BorrowedFd<'_>,
    options: &ExtractOptions<'_>,
) -> Result<(Result<Summary>, Passed)> {
    let (outcome, stream) =
        decompressed_with(reader, options.hash_raw, |chunks| match place(chunks, root, options) {
            Err(error @ ArchiveError::Read(_)) => Err(error),
            outcome => Ok(outcome),
        })?;
    Ok((outcome.map(|outcome| outcome.with(stream.clone())), stream))
}

fn place<R: BufRead>(
    chunks: R,
    root: BorrowedFd<'_>,
    options: &ExtractOptions<'_>,
) -> Result<Outcome> {
    if options.standalone && (options.whiteouts != Whiteouts::Overlay || options.below.is_some()) {
        return Err(ArchiveError::refused(b"", "only an overlay's layer is unpacked on its own"));
    }
    let mut extractor = Extractor::new(chunks, root, options)?;
    extractor.run()?;
    Ok(extractor.finish())
}

/// A [`Summary`] but for the stream.
struct Outcome {
    entries: u64,
    file_bytes: u64,
    skipped_xattrs: u64,
    implied: Vec<Vec<u8>>,
    top_given: bool,
}

impl Outcome {
    fn with(self, stream: Passed) -> Summary {
        let Self { entries, file_bytes, skipped_xattrs, implied, top_given } = self;
        Summary { entries, file_bytes, skipped_xattrs, implied, top_given, stream }
    }
}

/// Bytes written between two looks at the free space.
const SPACE_CHECK: u64 = 64 << 20;

struct Extractor<'a, R> {
    reader: Reader<R>,
    tree: Tree<'a>,
    options: &'a ExtractOptions<'a>,
    root: BorrowedFd<'a>,
    /// Real names of what this archive placed, and their parents; kept only where a marker must
    /// tell them from what was there before.
    placed: Option<HashSet<Vec<u8>>>,
    /// Real names of files that are here only because a hard link points to them; to markers they
    /// are still files of the layers below.
    copied: BTreeSet<Vec<u8>>,
    file_bytes: u64,
    unchecked_bytes: u64,
    skipped_xattrs: u64,
    top_given: bool,
}

impl<'a, R: BufRead> Extractor<'a, R> {
    fn new(chunks: R, root: BorrowedFd<'a>, options: &'a ExtractOptions<'a>) -> Result<Self> {
        let is_overlay = options.whiteouts == Whiteouts::Overlay;
        let mut tree = Tree::new(root, options.below, is_overlay);
        if options.standalone {
            tree.expect_below();
        }
        let extractor = Self {
            reader: Reader::new(chunks, options.limits.clone()),
            tree,
            options,
            root,
            placed: (options.whiteouts == Whiteouts::Remove).then(HashSet::new),
            copied: BTreeSet::new(),
            file_bytes: 0,
            unchecked_bytes: 0,
            skipped_xattrs: 0,
            top_given: false,
        };
        extractor.check_space()?;
        Ok(extractor)
    }

    fn run(&mut self) -> Result<()> {
        if let (Some(below), Whiteouts::Overlay) = (self.options.below, self.options.whiteouts) {
            self.start_like(below).map_err(|e| ArchiveError::io("open", b"", e))??;
        }
        while let Some(mut entry) = self.reader.next_entry()? {
            let path = name::clean(&entry.name, self.options.limits.depth)?;
            if let Some((uid, gid)) = self.options.owner {
                (entry.uid, entry.gid) = (uid, gid);
            }
            self.member(&path, &entry).map_err(|error| match error {
                // A link below may make it good.
                ArchiveError::Refused { entry, .. } if self.has_implied() => {
                    ArchiveError::NeedsBelow { entry }
                }
                error => error,
            })?;
        }
        self.tree.settle()
    }

    fn has_implied(&self) -> bool {
        self.tree.implied.as_ref().is_some_and(|implied| !implied.is_empty())
    }

    fn finish(self) -> Outcome {
        Outcome {
            entries: self.reader.entries(),
            file_bytes: self.file_bytes,
            skipped_xattrs: self.skipped_xattrs,
            implied: self.tree.implied.map(Implied::into_names).unwrap_or_default(),
            top_given: self.top_given,
        }
    }

    /// The directory `path`, which from now on belongs to this layer too.
    fn parent(&mut self, path: &[u8], of: &[u8], entry: &Entry) -> Result<Rc<Dir>> {
        let dir = self.tree.dir(path, of, entry.mtime)?;
        self.note(dir.real.clone());
        Ok(dir)
    }

    /// Gives the top directory of a layer the attributes that the layers below give it; the archive
    /// may change them.
    fn start_like(&mut self, below: BorrowedFd<'_>) -> Result<Result<()>, Errno> {
        let wanted = Attributes::of_directory(&open_beneath(below, b"")?)?;
        let fd = self.tree.open_plain(b"")?;
        self.tree.times.insert(Vec::new(), wanted.mtime);
        if let Some(acl) = wanted.xattrs.get(xattr::DEFAULT_ACL) {
            self.tree.acls.insert(Vec::new(), acl.clone());
        }
        Ok(dress(&fd, b"", &wanted, &Missing::all(), false).map(drop))
    }

    fn member(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        if path.is_empty() {
            return self.top(entry);
        }
        let (parent, last) = split(path);
        if self.options.whiteouts != Whiteouts::Literal {
            let hidden = match name::marker(path)? {
                Marker::Ignored => return Ok(()),
                Marker::Opaque => {
                    let dir = self.parent(parent, path, entry)?;
                    self.tree.forget_links();
                    return self.hide_all(&dir, path);
                }
                Marker::Whiteout(hidden) => Some(hidden),
                // An upper directory of an overlay, archived as it is, holds its own marks.
                Marker::None if entry.kind == Kind::CharDevice && entry.device == (0, 0) => {
                    Some(last)
                }
                Marker::None => None,
            };
            if let Some(hidden) = hidden {
                let dir = self.parent(parent, path, entry)?;
                self.tree.changing(&dir, hidden);
                return self.hide(&dir, hidden, path);
            }
        }
        let dir = self.parent(parent, path, entry)?;
        self.note(join(&dir.real, last));
        self.tree.changing(&dir, last);
        match entry.kind {
            Kind::Directory => self.directory(&dir, last, path, entry),
            Kind::File => self.file(&dir, last, path, entry),
            Kind::Hardlink => self.hardlink(&dir, last, path, entry),
            Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                self.node(&dir, last, path, entry)
            }
        }
    }

    /// The top directory itself.
    fn top(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(ArchiveError::refused(&entry.name, "only a directory can be the top"));
        }
        let dir = self.tree.dir(b"", b"", entry.mtime)?;
        if self.options.keep_root {
            return Ok(());
        }
        self.top_given = true;
        self.redress(&dir.fd, b"", b"", entry)
    }

    fn directory(&mut self, dir: &Rc<Dir>, last: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let real = join(&dir.real, last);
        let wanted = Attributes::of_entry(entry);
        let mut hides = false;
        loop {
            match rustix::fs::mkdirat(&dir.fd, last, mode_of(wanted.mode & 0o777)) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(ArchiveError::io("make directory", path, errno)),
            }
            match self.occupant(dir, last, path)? {
                Some(Occupant::Directory) => {
                    if let Some(implied) = &self.tree.implied {
                        implied.refuse_change(&real, path)?;
                    }
                    let fd = open_dir(&dir.fd, last, path)?;
                    return self.redress(&fd, &real, path, entry);
                }
                Some(_) => {
                    // What was hidden, or replaced by something else, must not come back.
                    hides = self.options.whiteouts == Whiteouts::Overlay;
                    self.make_room(dir, last, path, entry.kind)?;
                }
                None => {}
            }
        }
        let missing = Missing::after_creation(dir, &wanted);
        if missing.owner || missing.mode || dir.inherits || hides || !wanted.xattrs.is_empty() {
            let fd = open_dir(&dir.fd, last, path)?;
            self.skipped_xattrs += dress(&fd, path, &wanted, &missing, dir.inherits)?;
            if hides {
                xattr::set_opaque(&fd).map_err(|e| ArchiveError::io("make opaque", path, e))?;
            }
        }
        self.date(real, entry);
        Ok(())
    }

    /// Gives an existing directory the entry's attributes and no others.
    fn redress(&mut self, fd: &OwnedFd, real: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let wanted = Attributes::of_entry(entry);
        undress(fd, path, &wanted)?;
        self.skipped_xattrs += dress(fd, path, &wanted, &Missing::all(), false)?;
        // What it hands on to what is put into it may be another thing from now on.
        self.tree.reopen(real);
        self.date(real.to_vec(), entry);
        Ok(())
    }

    fn date(&mut self, real: Vec<u8>, entry: &Entry) {
        match entry.xattrs.get(xattr::DEFAULT_ACL) {
            Some(acl) => self.tree.acls.insert(real.clone(), acl.clone()),
            None => self.tree.acls.remove(&real), // the one of the layers below
        };
        self.tree.times.insert(real, entry.mtime);
    }

    fn file(&mut self, dir: &Rc<Dir>, last: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = mode_of(entry.mode & 0o777);
        let fd = self.fresh(dir, last, path, entry.kind, "create", || {
            rustix::fs::openat(&dir.fd, last, flags, mode)
        })?;
        let fail = |errno| ArchiveError::io("write", path, errno);
        match &entry.sparse {
            None => self.data(&fd, 0, entry.size, fail)?,
            Some(sparse) => {
                for run in &sparse.runs {
                    self.data(&fd, run.offset, run.length, fail)?;
                }
                rustix::fs::ftruncate(&fd, sparse.size).map_err(fail)?;
            }
        }
        let wanted = Attributes::of_entry(entry);
        let missing = Missing::after_creation(dir, &wanted);
        self.skipped_xattrs += dress(&fd, path, &wanted, &missing, dir.inherits)?;
        rustix::fs::futimens(&fd, &entry.mtime.stamps())
            .map_err(|e| ArchiveError::io("set the time of", path, e))?;

        self.file_bytes = self.file_bytes.saturating_add(entry.file_size());
        Ok(())
    }

    /// Data of a file, with a look at the free space now and then.
    fn data(
        &mut self,
        fd: &OwnedFd,
        offset: u64,
        length: u64,
        fail: impl Fn(Errno) -> ArchiveError + Copy,
    ) -> Result<()> {
        let mut at = offset;
        let mut left = length;
        while left > 0 {
            let piece = left.min(SPACE_CHECK);
            content::write(&mut self.reader, fd, at, piece, fail)?;
            at += piece;
            left -= piece;
            self.unchecked_bytes += piece;
            if self.unchecked_bytes > SPACE_CHECK {
                self.unchecked_bytes = 0;
                self.check_space()?;
            }
        }
        Ok(())
    }

    fn hardlink(&mut self, dir: &Rc<Dir>, last: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let target = name::clean(&entry.link, self.options.limits.depth)?;
        let (parent, name) = split(&target);
        if name.is_empty() {
            return Err(ArchiveError::refused(path, "a hard link cannot point to the top"));
        }
        let from = self.parent(parent, path, entry)?;
        if from.real == dir.real && name == last {
            return Ok(()); // a link to itself is what it is
        }
        let exists = match statat(&from.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_dir(&stat) => {
                return Err(ArchiveError::refused(path, "a hard link cannot point to a directory"));
            }
            Ok(stat) => !(self.options.whiteouts == Whiteouts::Overlay && is_whiteout(&stat)),
            Err(Errno::NOENT) => false,
            Err(errno) => return Err(ArchiveError::io("look up the target of", path, errno)),
        };
        if !exists {
            self.copy_up(&from, name, path)?;
        }
        self.fresh(dir, last, path, entry.kind, "link", || {
            rustix::fs::linkat(&from.fd, name, &dir.fd, last, AtFlags::empty())
        })
    }

    /// Brings a file of the layers below into this one, because a hard link points to it.
    fn copy_up(&mut self, dir: &Rc<Dir>, name: &[u8], path: &[u8]) -> Result<()> {
        if self.options.standalone {
            return Err(ArchiveError::needs_below(path));
        }
        let below = self.tree.dir_below(&dir.real);
        let Some(below) = below.filter(|_| !xattr::is_opaque(&dir.fd)) else {
            return Err(ArchiveError::refused(path, "the target of the hard link is missing"));
        };
        match crate::copy::copy_entry(&below, dir, name, path) {
            Err(ArchiveError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Err(ArchiveError::refused(path, "the target of the hard link is missing"))
            }
            answer => {
                self.copied.insert(join(&dir.real, name));
                answer
            }
        }
    }

    /// Removes what was copied up into the directory `real`.
    fn uncopy(&mut self, real: &[u8]) -> Result<()> {
        let inside = join(real, b"");
        let gone: Vec<Vec<u8>> = self
            .copied
            .range(inside.clone()..)
            .take_while(|path| path.starts_with(&inside))
            .cloned()
            .collect();
        for path in gone {
            let (parent, last) = split(&path);
            self.tree
                .open_plain(parent)
                .and_then(|fd| rustix::fs::unlinkat(fd, last, AtFlags::empty()))
                .map_err(|e| ArchiveError::io("remove", &path, e))?;
            self.copied.remove(&path);
        }
        Ok(())
    }

    /// Symbolic links, devices and pipes.
    fn node(&mut self, dir: &Rc<Dir>, last: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        if entry.kind == Kind::Symlink && (entry.link.is_empty() || entry.link.contains(&0)) {
            return Err(ArchiveError::refused(path, "a symbolic link without a proper target"));
        }
        let (major, minor) = entry.device;
        let (kind, device) = match entry.kind {
            Kind::CharDevice => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            Kind::BlockDevice => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        self.fresh(dir, last, path, entry.kind, "create", || match entry.kind {
            Kind::Symlink => rustix::fs::symlinkat(&entry.link, &dir.fd, last),
            _ => rustix::fs::mknodat(&dir.fd, last, kind, mode_of(entry.mode & 0o777), device),
        })?;
        let wanted = Attributes::of_entry(entry);
        let is_link = entry.kind == Kind::Symlink;
        self.skipped_xattrs += dress_node(dir, last, path, &wanted, is_link)?;
        Ok(())
    }

    /// Creates something, after removing what is in its place.
    fn fresh<T>(
        &mut self,
        dir: &Rc<Dir>,
        last: &[u8],
        path: &[u8],
        kind: Kind,
        doing: &'static str,
        create: impl Fn() -> Result<T, Errno>,
    ) -> Result<T> {
        // Twice is enough where we are alone; somebody else may be at work in a running container.
        for _ in 0..16 {
            match create() {
                Err(Errno::EXIST) => self.make_room(dir, last, path, kind)?,
                Err(errno) => return Err(ArchiveError::io(doing, path, errno)),
                Ok(made) => return Ok(made),
            }
        }
        Err(ArchiveError::io(doing, path, Errno::EXIST))
    }

    fn occupant(&self, dir: &Dir, last: &[u8], path: &[u8]) -> Result<Option<Occupant>> {
        match statat(&dir.fd, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_dir(&stat) => Ok(Some(Occupant::Directory)),
            Ok(stat) if self.options.whiteouts == Whiteouts::Overlay && is_whiteout(&stat) => {
                Ok(Some(Occupant::Whiteout))
            }
            Ok(_) => Ok(Some(Occupant::Other)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(ArchiveError::io("look up", path, errno)),
        }
    }

    fn make_room(&mut self, dir: &Rc<Dir>, last: &[u8], path: &[u8], for_kind: Kind) -> Result<()> {
        let Some(occupant) = self.occupant(dir, last, path)? else { return Ok(()) };
        let is_dir = occupant == Occupant::Directory;
        if self.options.no_type_change && is_dir != (for_kind == Kind::Directory) {
            let what = "a directory cannot take the place of something else, or the reverse";
            return Err(ArchiveError::refused(path, what));
        }
        if is_dir {
            self.remove(dir, last, path)
        } else {
            self.copied.remove(&join(&dir.real, last));
            rustix::fs::unlinkat(&dir.fd, last, AtFlags::empty())
                .or_else(|e| if e == Errno::NOENT { Ok(()) } else { Err(e) })
                .map_err(|e| ArchiveError::io("replace", path, e))
        }
    }

    /// Removes a whole tree and forgets what we knew of it.
    fn remove(&mut self, dir: &Rc<Dir>, last: &[u8], path: &[u8]) -> Result<()> {
        let real = join(&dir.real, last);
        if let Some(implied) = &self.tree.implied {
            implied.refuse_removal(&real, path)?;
        }
        self.tree.forget(&real);
        let inside = join(&real, b"");
        self.copied.retain(|path| !path.starts_with(&inside));
        if let Some(placed) = &mut self.placed {
            placed.retain(|path| !path.starts_with(&inside));
        }
        gantry_sys::path::remove_tree_beneath(&dir.fd, Path::new(OsStr::from_bytes(last))).map_err(
            |error| ArchiveError::Io {
                doing: "remove",
                entry: crate::error::show(path),
                source: std::io::Error::other(error),
            },
        )
    }

    /// A whiteout: `hidden` of the layers below is gone. What this layer has of that name stays.
    fn hide(&mut self, dir: &Rc<Dir>, hidden: &[u8], path: &[u8]) -> Result<()> {
        let mut occupant = self.occupant(dir, hidden, path)?;
        let real = join(&dir.real, hidden);
        if self.copied.remove(&real) {
            rustix::fs::unlinkat(&dir.fd, hidden, AtFlags::empty())
                .map_err(|e| ArchiveError::io("remove", path, e))?;
            occupant = None;
        }
        match (self.options.whiteouts, occupant) {
            (Whiteouts::Overlay, None) => {
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(&dir.fd, hidden, kind, Mode::empty(), 0)
                    .map_err(|e| ArchiveError::io("mark as deleted", path, e))
            }
            (Whiteouts::Overlay, Some(Occupant::Directory)) => {
                self.uncopy(&real)?;
                let fd = open_dir(&dir.fd, hidden, path)?;
                xattr::set_opaque(&fd).map_err(|e| ArchiveError::io("make opaque", path, e))
            }
            (Whiteouts::Remove, Some(occupant)) => {
                if !self.is_placed(&real) {
                    self.remove(dir, hidden, path)
                } else if occupant == Occupant::Directory {
                    let child = self.tree.dir(&real, path, crate::Time::default())?;
                    self.remove_unplaced(&child, path)
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    /// An opaque marker: nothing of the layers below shines through this directory.
    fn hide_all(&mut self, dir: &Rc<Dir>, path: &[u8]) -> Result<()> {
        if self.options.whiteouts == Whiteouts::Remove {
            return self.remove_unplaced(dir, path);
        }
        if !dir.real.is_empty() {
            self.uncopy(&dir.real)?;
            return xattr::set_opaque(&dir.fd)
                .map_err(|e| ArchiveError::io("make opaque", path, e));
        }
        // Overlayfs does not look for the mark on the top directory: hide its entries one by one.
        if self.options.standalone {
            return Err(ArchiveError::needs_below(path));
        }
        let Some(below) = self.tree.dir_below(b"") else { return Ok(()) };
        for name in content::names(&below).map_err(|e| ArchiveError::io("list", path, e))? {
            self.hide(dir, &name, path)?;
        }
        Ok(())
    }

    /// Empties a directory of everything that this archive did not put there.
    fn remove_unplaced(&mut self, dir: &Rc<Dir>, path: &[u8]) -> Result<()> {
        for name in content::names(&dir.fd).map_err(|e| ArchiveError::io("list", path, e))? {
            let real = join(&dir.real, &name);
            if !self.is_placed(&real) {
                self.remove(dir, &name, path)?;
            } else if self.occupant(dir, &name, path)? == Some(Occupant::Directory) {
                let child = self.tree.dir(&real, path, crate::Time::default())?;
                self.remove_unplaced(&child, path)?;
            }
        }
        Ok(())
    }

    /// Remembers a name and its parents as this archive's.
    fn note(&mut self, mut real: Vec<u8>) {
        let Some(placed) = &mut self.placed else { return };
        while !real.is_empty() {
            let parent = split(&real).0.to_vec();
            if !placed.insert(real) {
                break;
            }
            real = parent;
        }
    }

    fn is_placed(&self, real: &[u8]) -> bool {
        self.placed.as_ref().is_some_and(|placed| placed.contains(real))
    }

    fn check_space(&self) -> Result<()> {
        let reserve = self.options.limits.reserve_bytes;
        let stat = rustix::fs::fstatvfs(self.root)
            .map_err(|e| ArchiveError::io("read the free space of", b"", e))?;
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        if available < reserve {
            return Err(ArchiveError::NoSpace { available, reserve });
        }
        Ok(())
    }
}

/// What is in the place of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupant {
    Directory,
    Whiteout,
    Other,
}
