//! The layers below, as far as an archive's meaning depends on them.

use std::os::fd::{BorrowedFd, OwnedFd};

use gantry_archive::Time;
use gantry_archive::xattr::Node;
use gantry_archive::{ArchiveError, Result, Run};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, fstat};
use rustix::io::Errno;

use crate::attributes::Attributes;
use crate::tree::Kind;

/// The merged tree of the layers below.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Below<'a>(pub(crate) BorrowedFd<'a>);

/// Something below, opened by `O_PATH`.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) fd: OwnedFd,
    pub(crate) stat: Stat,
    pub(crate) kind: Kind,
}

impl Below<'_> {
    /// What lies at `path`, over which no link leads; None if nothing does.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Option<Found>, Errno> {
        let fd = match self.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let stat = fstat(&fd)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::File,
        };
        Ok(Some(Found { fd, stat, kind }))
    }

    /// Opens what lies at `path` for reading.
    pub(crate) fn open_data(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)
    }

    /// The names in the top directory, sorted.
    pub(crate) fn top_names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let top = self.open(b"", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(top)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Storms of renames elsewhere make the kernel give up with `EAGAIN`, so it is asked again, not
    /// for ever.
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::CLOEXEC;
        for _ in 0..128 {
            match rustix::fs::openat2(self.0, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                answer => return answer,
            }
        }
        Err(Errno::AGAIN)
    }
}

impl Found {
    /// The target of a symbolic link.
    pub(crate) fn link(&self) -> Result<Vec<u8>, Errno> {
        rustix::fs::readlinkat(&self.fd, c"", Vec::new()).map(std::ffi::CString::into_bytes)
    }

    /// What it has besides its data.
    pub(crate) fn attributes(&self, path: &[u8]) -> Result<Attributes> {
        let xattrs = Node::Path(&self.fd)
            .read()
            .map_err(|e| ArchiveError::io("read the attributes of", path, e))?;
        let mtime = Time {
            seconds: self.stat.st_mtime,
            nanos: u32::try_from(self.stat.st_mtime_nsec).unwrap_or(0),
        };
        let mode = (self.stat.st_mode & 0o7777) as u16;
        let (uid, gid) = (self.stat.st_uid, self.stat.st_gid);
        let mut attributes = Attributes { uid, gid, ..Attributes::plain(mode, mtime) };
        attributes.set_xattrs(&xattrs, self.kind, path)?;
        Ok(attributes)
    }

    /// Its size, and where its data are if it has holes worth keeping.
    pub(crate) fn runs(&self, file: &OwnedFd) -> Result<(u64, Option<Vec<Run>>), Errno> {
        let size = u64::try_from(self.stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(self.stat.st_blocks).unwrap_or(0).saturating_mul(512);
        if size < 1 << 20 || allocated >= size {
            return Ok((size, None));
        }
        let mut runs = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => return Ok((size, None)),
                Err(errno) => return Err(errno),
            };
            let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
            if end <= start || runs.len() >= 1 << 16 {
                return Ok((size, None));
            }
            runs.push(Run { offset: start, length: end - start });
            at = end;
        }
        Ok((size, Some(runs)))
    }
}
