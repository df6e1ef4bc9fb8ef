//! Reading beneath a directory, and nothing but reading.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use gantry_sdk::{Error, Result};
use gantry_sys::path::{Links, Mode, OFlags, open_beneath, open_root, read_bounded};
use rustix::io::Errno;

/// Most names of one directory that are looked at.
const MAX_NAMES: usize = 1 << 18;

/// A directory whose content is read. Clones share the descriptor.
#[derive(Clone, Debug)]
pub struct Directory(Arc<OwnedFd>);

impl Directory {
    /// Opens the operator's directory.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let at = path.display();
        open_root(path).map(|fd| Self(Arc::new(fd))).map_err(|e| {
            Error::not_found(format!("there is no directory {at} to read from")).caused_by(e)
        })
    }

    /// A directory beneath; none if there is none.
    ///
    /// # Errors
    ///
    /// `Internal`.
    pub fn below(&self, path: &str) -> Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match open_beneath(&self.0, Path::new(path), flags, Mode::empty(), Links::Refuse) {
            Ok(fd) => Ok(Some(Self(Arc::new(fd)))),
            Err(e) if e.is(Errno::NOENT) || e.is(Errno::NOTDIR) => Ok(None),
            Err(e) => Err(Error::internal(format!("cannot open {path}"), e)),
        }
    }

    /// A regular file beneath, as `links` has it.
    ///
    /// # Errors
    ///
    /// Those of the system; a file of another type is `InvalidData`.
    pub fn file(&self, path: &Path, links: Links) -> std::io::Result<File> {
        // Opening a pipe must not wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = |flags| open_beneath(&self.0, path, flags, Mode::empty(), links);
        let opened = match open(flags | OFlags::NOATIME) {
            Err(e) if e.is(Errno::PERM) => open(flags),
            answer => answer,
        };
        // Who calls names the file.
        let plain = |e: gantry_sys::Error| match e.errno() {
            Some(errno) => std::io::Error::from_raw_os_error(errno),
            None => e.into(),
        };
        let file = File::from(opened.map_err(plain)?);
        if !file.metadata()?.is_file() {
            let words = format!("{} is no regular file", path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, words));
        }
        Ok(file)
    }

    /// A file beneath that is there; none if there is none.
    ///
    /// # Errors
    ///
    /// `Internal`.
    pub fn find(&self, path: &str) -> Result<Option<File>> {
        match self.file(Path::new(path), Links::Refuse) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", path, e)),
        }
    }

    /// The content of a file of at most `limit` bytes; none if there is none.
    ///
    /// # Errors
    ///
    /// `Internal`, also for a larger file.
    pub fn small(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.find(path)? else { return Ok(None) };
        read_bounded(file, limit).map(Some).map_err(|e| Error::io("read", path, e))
    }

    /// A file of one line.
    ///
    /// # Errors
    ///
    /// `Internal`; `InvalidArgument` if it is missing.
    pub fn line(&self, path: &str) -> Result<String> {
        let text = self.small(path, 4096)?;
        let text = text.ok_or_else(|| Error::invalid(format!("there is no file {path}")))?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// The names in a directory beneath, sorted; none if there is no such directory. Names that are
    /// no text are left out.
    ///
    /// # Errors
    ///
    /// `Internal`; `InvalidArgument` for too many names.
    pub fn names(&self, path: &str) -> Result<Vec<String>> {
        let failed = |e: std::io::Error| Error::io("read", path, e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = open_beneath(&self.0, Path::new(path), flags, Mode::empty(), Links::Refuse);
        let fd = match opened {
            Err(e) if e.is(Errno::NOENT) || e.is(Errno::NOTDIR) => return Ok(Vec::new()),
            answer => answer.map_err(|e| failed(e.into()))?,
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(fd).map_err(|e| failed(e.into()))? {
            let entry = entry.map_err(|e| failed(e.into()))?;
            let name = entry.file_name().to_str().ok().filter(|name| !matches!(*name, "." | ".."));
            names.extend(name.map(str::to_owned));
            if names.len() > MAX_NAMES {
                return Err(Error::invalid(format!("{path} has more than {MAX_NAMES} names")));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// How many directories a directory beneath holds.
    ///
    /// # Errors
    ///
    /// Those of [`names`](Self::names).
    pub fn count_below(&self, path: &str) -> Result<u64> {
        let mut count = 0;
        for name in self.names(path)? {
            count += u64::from(self.below(&format!("{path}/{name}"))?.is_some());
        }
        Ok(count)
    }
}
