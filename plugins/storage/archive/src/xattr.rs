//! Extended attributes: which ones travel in layers, and how they are read and written.
//!
//! | name | kept | why |
//! |---|---|---|
//! | `user.*` | yes | applications' own |
//! | `security.capability` | yes | file capabilities are part of a program |
//! | `system.posix_acl_*` | yes | permissions |
//! | `trusted.*` | yes | only root sees them, and only root unpacks |
//! | `trusted.overlay.*`, `user.overlay.*` | no | they steer overlayfs: an image could point a directory at another one |
//! | other `security.*` | no | labels and hashes belong to the host's policy |

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr, getxattr, listxattr, setxattr};
use rustix::io::Errno;

use crate::error::show;
use crate::limits::XATTR_BYTES;
use crate::{ArchiveError, Result};

/// A default ACL changes what is created in its directory, so it is set when all is in place.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Permissions beyond the mode.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// Source: Linux, `Documentation/filesystems/overlayfs.rst`.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Whether an attribute travels.
pub fn is_kept(name: &[u8]) -> bool {
    match name {
        b"security.capability" => true,
        _ if name == DEFAULT_ACL || name == ACCESS_ACL => true,
        _ => {
            let own = |space: &[u8], overlay: &[u8]| {
                name.len() > space.len() && name.starts_with(space) && !name.starts_with(overlay)
            };
            own(b"user.", b"user.overlay.") || own(b"trusted.", b"trusted.overlay.")
        }
    }
}

/// A file whose attributes can be reached: open for reading, or by `O_PATH`, which needs the way
/// through `/proc`.
#[derive(Debug)]
pub enum Node<'a> {
    /// Open for reading.
    Open(&'a OwnedFd),
    /// Opened by `O_PATH`.
    Path(&'a OwnedFd),
}

impl Node<'_> {
    /// Sets an attribute. `Ok(false)`: this file system has none of that kind.
    pub(crate) fn set(&self, entry: &[u8], name: &[u8], value: &[u8]) -> Result<bool> {
        let flags = XattrFlags::empty();
        let answer = match self {
            Self::Open(fd) => fsetxattr(fd, name, value, flags),
            Self::Path(fd) => setxattr(gantry_sys::path::proc_fd(fd), name, value, flags),
        };
        match answer {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP) => Ok(false),
            Err(Errno::PERM) if !name.starts_with(b"security.") => Ok(false),
            Err(source) => Err(ArchiveError::Io {
                doing: "set an extended attribute of",
                entry: format!("{} ({})", show(entry), name.escape_ascii()),
                source: source.into(),
            }),
        }
    }

    fn list(&self, buf: &mut Vec<u8>) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => flistxattr(fd, buf.as_mut_slice()),
            Self::Path(fd) => listxattr(gantry_sys::path::proc_fd(fd), buf.as_mut_slice()),
        }
    }

    fn get(&self, name: &[u8], buf: &mut Vec<u8>) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => fgetxattr(fd, name, buf.as_mut_slice()),
            Self::Path(fd) => getxattr(gantry_sys::path::proc_fd(fd), name, buf.as_mut_slice()),
        }
    }

    /// All names, also of attributes that do not travel.
    pub(crate) fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        // Most files have none: a first try with a small buffer costs no second call for them.
        let mut buf = vec![0; 256];
        loop {
            match self.list(&mut buf) {
                Ok(n) => {
                    let names = buf[..n].split(|byte| *byte == 0).filter(|name| !name.is_empty());
                    return Ok(names.map(<[u8]>::to_vec).collect());
                }
                Err(Errno::RANGE) if buf.len() < XATTR_BYTES => buf.resize(XATTR_BYTES, 0),
                Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The attributes that travel.
    ///
    /// # Errors
    ///
    /// What the file system reported; that it has no attributes is no error.
    pub fn read(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
        let mut xattrs = BTreeMap::new();
        for name in self.names()? {
            if !is_kept(&name) {
                continue;
            }
            let mut value = vec![0; XATTR_BYTES];
            match self.get(&name, &mut value) {
                Ok(n) => {
                    value.truncate(n);
                    value.shrink_to_fit();
                    xattrs.insert(name, value);
                }
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(xattrs)
    }
}

/// Whether the directory hides everything below it.
pub(crate) fn is_opaque(dir: impl AsFd) -> bool {
    let mut value = [0u8; 4];
    matches!(fgetxattr(dir, OPAQUE, &mut value[..]), Ok(1) if value[0] == b'y')
}

/// Makes the directory hide everything below it.
pub(crate) fn set_opaque(dir: impl AsFd) -> Result<(), Errno> {
    fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_steer_the_host_do_not_travel() {
        let cases = [
            ("user.note", true),
            ("security.capability", true),
            ("trusted.md5", true),
            ("system.posix_acl_access", true),
            ("trusted.overlay.redirect", false),
            ("user.overlay.opaque", false),
            ("security.selinux", false),
            ("security.ima", false),
            ("system.nfs4_acl", false),
            ("user.", false),
            ("other", false),
        ];
        for (name, kept) in cases {
            assert_eq!(is_kept(name.as_bytes()), kept, "{name}");
        }
    }
}
