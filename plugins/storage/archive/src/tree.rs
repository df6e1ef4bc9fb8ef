//! The directory that is being filled: its directories by name, found without following anything
//! that could lead out.
//!
//! A directory is opened by `openat2(2)` beneath the root with symbolic links refused, which is one
//! call and the normal case. Where that fails — something is missing, or a link is on the way — the
//! name is walked component by component, each step relative to a descriptor and never following,
//! with links expanded as after `chroot`. What is missing here but present *below* (in the layers
//! underneath) counts as present, so a layer means the same whether it is unpacked alone or over a
//! copy of its parents.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, statat};
use rustix::io::Errno;

use crate::entry::Time;
use crate::name::join;
use crate::place::{Attributes, make_directory};
use crate::standalone::Implied;
use crate::{ArchiveError, Result, xattr};

/// Open directories kept at hand.
const OPEN_DIRS: usize = 64;
/// Links expanded on one name. Source: Linux, `MAXSYMLINKS`.
const LINKS: usize = 40;

/// An open directory of the tree.
pub(crate) struct Dir {
    pub(crate) fd: OwnedFd,
    /// Its name without any link on the way.
    pub(crate) real: Vec<u8>,
    /// Whether what is created here starts with other than plain attributes: the directory is
    /// setgid, or has a default ACL.
    pub(crate) inherits: bool,
}

/// The tree; see the module's text.
pub(crate) struct Tree<'a> {
    root: BorrowedFd<'a>,
    below: Option<BorrowedFd<'a>>,
    /// Whether the tree may hold directories with default ACLs that we did not make.
    is_foreign: bool,
    /// Whether a character device 0:0 here is a deletion.
    has_whiteouts: bool,
    /// By the name that was asked for, which may lead over links.
    cache: HashMap<Vec<u8>, Rc<Dir>>,
    /// Whether a name in the cache does.
    has_links: bool,
    /// Modification times that directories get when all is in place, by real name.
    pub(crate) times: BTreeMap<Vec<u8>, Time>,
    /// Default ACLs that directories get then.
    pub(crate) acls: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Set where there are layers below and they are not in view: directories that may have to look
    /// like theirs.
    pub(crate) implied: Option<Implied>,
}

/// One step of a walk: the directory here, and its counterpart below.
struct Level {
    dir: Rc<Dir>,
    below: Below,
}

/// A directory's counterpart in the layers below.
enum Below {
    /// There is none, or it is hidden.
    Nothing,
    /// Not in view.
    Unknown,
    Directory(OwnedFd),
}

impl From<Option<OwnedFd>> for Below {
    fn from(fd: Option<OwnedFd>) -> Self {
        fd.map_or(Self::Nothing, Self::Directory)
    }
}

pub(crate) const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(crate) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether this is overlayfs' mark of a deletion.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn mtime_of(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

impl<'a> Tree<'a> {
    pub(crate) fn new(
        root: BorrowedFd<'a>,
        below: Option<BorrowedFd<'a>>,
        has_whiteouts: bool,
    ) -> Self {
        Self {
            root,
            below,
            is_foreign: !has_whiteouts,
            has_whiteouts,
            cache: HashMap::new(),
            has_links: false,
            times: BTreeMap::new(),
            acls: BTreeMap::new(),
            implied: None,
        }
    }

    /// From now on the layers below are missing, not absent.
    pub(crate) fn expect_below(&mut self) {
        self.implied = Some(Implied::default());
    }

    /// The directory `path` (clean), made with its parents if it is missing. `entry` is what it is
    /// needed for, and gives new directories their time.
    pub(crate) fn dir(&mut self, path: &[u8], entry: &[u8], time: Time) -> Result<Rc<Dir>> {
        if let Some(dir) = self.cache.get(path) {
            return Ok(dir.clone());
        }
        let dir = match self.open_plain(path) {
            Ok(fd) => self.adopt(fd, path.to_vec()).map_err(|errno| opening(entry, errno))?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.walk(path, entry, time)?.dir,
            Err(errno) => return Err(opening(entry, errno)),
        };
        if self.cache.len() >= OPEN_DIRS {
            self.cache.clear();
            self.has_links = false;
        }
        self.has_links |= dir.real != path;
        self.cache.insert(path.to_vec(), dir.clone());
        Ok(dir)
    }

    /// The directory below that corresponds to the directory `real`.
    pub(crate) fn dir_below(&self, real: &[u8]) -> Option<OwnedFd> {
        open_beneath(self.below?, real).ok()
    }

    /// Forgets the directory `real`, which is gone, and what was in it.
    pub(crate) fn forget(&mut self, real: &[u8]) {
        self.cache.clear();
        self.has_links = false;
        let inside = join(real, b"");
        self.times.retain(|path, _| path != real && !path.starts_with(&inside));
        self.acls.retain(|path, _| path != real && !path.starts_with(&inside));
    }

    /// Forgets what is known of the directory `real` itself, which has other attributes now.
    pub(crate) fn reopen(&mut self, real: &[u8]) {
        self.cache.retain(|_, dir| dir.real != real);
    }

    /// `last` in `dir` is about to become something else. If it is a link, here or below, no name
    /// leads over it any more.
    pub(crate) fn changing(&mut self, dir: &Dir, last: &[u8]) {
        let is_link_in = |fd: &OwnedFd| {
            statat(fd, last, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_link(&stat))
        };
        if self.has_links
            && (is_link_in(&dir.fd)
                || self.dir_below(&dir.real).is_some_and(|below| is_link_in(&below)))
        {
            self.forget_links();
        }
    }

    /// Forgets every name that leads over a link.
    pub(crate) fn forget_links(&mut self) {
        self.cache.retain(|path, dir| dir.real == *path);
        self.has_links = false;
    }

    /// Sets the directories' default ACLs, which would have changed what was put into them, and
    /// their times, which the work in them has disturbed.
    pub(crate) fn settle(&mut self) -> Result<()> {
        for (path, acl) in std::mem::take(&mut self.acls) {
            if let Ok(fd) = self.open_plain(&path) {
                xattr::Node::Open(&fd).set(&path, xattr::DEFAULT_ACL, &acl)?;
            }
        }
        for (path, time) in std::mem::take(&mut self.times) {
            let dir = match self.cache.get(&path).filter(|dir| dir.real == path) {
                Some(dir) => dir.fd.try_clone().map_err(|_| Errno::MFILE),
                None => self.open_plain(&path),
            };
            match dir.and_then(|fd| rustix::fs::futimens(fd, &time.stamps())) {
                Ok(()) => {}
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(ArchiveError::io("set the time of", &path, errno)),
            }
        }
        Ok(())
    }

    /// Opens a directory by its real name.
    pub(crate) fn open_plain(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        open_beneath(self.root, path)
    }

    /// Takes note of a directory's state before anything is put into it.
    fn adopt(&mut self, fd: OwnedFd, real: Vec<u8>) -> Result<Rc<Dir>, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        let mut inherits = stat.st_mode & 0o2000 != 0;
        if self.is_foreign && !inherits {
            // Too small for any ACL, so an ACL answers with ERANGE.
            let mut byte = [0u8; 1];
            let answer = rustix::fs::fgetxattr(&fd, xattr::DEFAULT_ACL, &mut byte[..]);
            inherits = matches!(answer, Ok(_) | Err(Errno::RANGE));
        }
        self.times.entry(real.clone()).or_insert_with(|| mtime_of(&stat));
        Ok(Rc::new(Dir { fd, real, inherits }))
    }

    fn walk(&mut self, path: &[u8], entry: &[u8], time: Time) -> Result<Level> {
        let fail = |errno| opening(entry, errno);
        let root = self.open_plain(b"").and_then(|fd| self.adopt(fd, Vec::new())).map_err(fail)?;
        let below = match self.below {
            Some(below) => Below::Directory(open_beneath(below, b"").map_err(fail)?),
            None if self.implied.is_some() => Below::Unknown,
            None => Below::Nothing,
        };
        let mut levels = vec![Level { dir: root, below }];
        let mut names: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = names.pop() {
            if name == b".." {
                if levels.len() > 1 {
                    levels.pop();
                }
                continue;
            }
            let Some(here) = levels.last() else { break };
            match self.step(here, &name, entry, time)? {
                Step::Into(level) => levels.push(level),
                Step::Link(target) => {
                    links += 1;
                    if links > LINKS {
                        return Err(ArchiveError::refused(entry, "too many links on the way"));
                    }
                    if target.starts_with(b"/") {
                        levels.truncate(1);
                    }
                    names.extend(components(&target));
                    if names.len() > 4096 {
                        return Err(ArchiveError::refused(entry, "it is too deep"));
                    }
                }
            }
        }
        levels.pop().ok_or_else(|| fail(Errno::NOENT))
    }

    /// One component, which exists here, exists below, or is made.
    fn step(&mut self, here: &Level, name: &[u8], entry: &[u8], time: Time) -> Result<Step> {
        let fail = |errno| opening(entry, errno);
        let real = join(&here.dir.real, name);
        let found = match statat(&here.dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(fail(errno)),
        };
        match found {
            Some(stat) if is_dir(&stat) => {
                let fd = rustix::fs::openat(&here.dir.fd, name, OPEN_DIR, Mode::empty())
                    .map_err(fail)?;
                let below = match &here.below {
                    Below::Nothing => Below::Nothing,
                    _ if xattr::is_opaque(&fd) => Below::Nothing,
                    Below::Unknown => Below::Unknown,
                    Below::Directory(below) => open_dir_at(below, name).into(),
                };
                Ok(Step::Into(Level { dir: self.adopt(fd, real).map_err(fail)?, below }))
            }
            Some(stat) if is_link(&stat) => {
                read_link(&here.dir.fd, name).map(Step::Link).map_err(fail)
            }
            Some(stat) if self.has_whiteouts && is_whiteout(&stat) => {
                rustix::fs::unlinkat(&here.dir.fd, name, AtFlags::empty()).map_err(fail)?;
                let dir = self.make(here, name, real, None, entry, time)?;
                xattr::set_opaque(&dir.fd).map_err(fail)?;
                Ok(Step::Into(Level { dir, below: Below::Nothing }))
            }
            Some(_) => Err(ArchiveError::refused(entry, "its parent is not a directory")),
            None => self.step_below(here, name, real, entry, time),
        }
    }

    /// One component that does not exist here.
    fn step_below(
        &mut self,
        here: &Level,
        name: &[u8],
        real: Vec<u8>,
        entry: &[u8],
        time: Time,
    ) -> Result<Step> {
        let below = match &here.below {
            Below::Nothing => Below::Nothing,
            Below::Unknown => {
                if let Some(implied) = &mut self.implied {
                    implied.note(&real, entry)?;
                }
                Below::Unknown
            }
            Below::Directory(below) => match statat(below, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_link(&stat) => {
                    let fail = |errno| opening(entry, errno);
                    return read_link(below, name).map(Step::Link).map_err(fail);
                }
                Ok(stat) if !is_dir(&stat) => {
                    return Err(ArchiveError::refused(entry, "its parent is not a directory"));
                }
                Ok(_) => open_dir_at(below, name).into(),
                Err(_) => Below::Nothing,
            },
        };
        let like = match &below {
            Below::Directory(fd) => Some(fd),
            Below::Nothing | Below::Unknown => None,
        };
        let dir = self.make(here, name, real, like, entry, time)?;
        Ok(Step::Into(Level { dir, below }))
    }

    /// Makes a parent that the archive did not mention: like its counterpart below, or plain.
    fn make(
        &mut self,
        here: &Level,
        name: &[u8],
        real: Vec<u8>,
        like: Option<&OwnedFd>,
        entry: &[u8],
        time: Time,
    ) -> Result<Rc<Dir>> {
        let fail = |errno| opening(entry, errno);
        let attributes = match like {
            Some(like) => Attributes::of_directory(like).map_err(fail)?,
            None => Attributes { mtime: time, ..Attributes::plain(0o755) },
        };
        let fd = make_directory(&here.dir, name, &real, &attributes)?;
        self.times.insert(real.clone(), attributes.mtime);
        if let Some(acl) = attributes.xattrs.get(xattr::DEFAULT_ACL) {
            self.acls.insert(real.clone(), acl.clone());
        }
        self.adopt(fd, real).map_err(fail)
    }
}

enum Step {
    Into(Level),
    Link(Vec<u8>),
}

/// Components in reverse: the next one is the last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.rev().map(<[u8]>::to_vec).collect()
}

fn opening(entry: &[u8], errno: Errno) -> ArchiveError {
    ArchiveError::io("open the directory of", entry, errno)
}

fn is_link(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
}

pub(crate) fn read_link(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    rustix::fs::readlinkat(dir, name, Vec::new()).map(std::ffi::CString::into_bytes)
}

fn open_dir_at(dir: impl AsFd, name: &[u8]) -> Option<OwnedFd> {
    rustix::fs::openat(dir, name, OPEN_DIR, Mode::empty()).ok()
}

/// Opens the directory `path` beneath `root`, following nothing. Storms of renames elsewhere make
/// the kernel give up with `EAGAIN`, so it is asked again, not for ever.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for _ in 0..128 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}
