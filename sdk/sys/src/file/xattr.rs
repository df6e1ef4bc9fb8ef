//! Extended attributes of an entry, of a symbolic link itself too. Source: xattr(7).

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::plain_name;
use crate::error::{Error, Result};

/// The longest value the kernel keeps (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 65536;

/// The longest list of names (`XATTR_LIST_MAX`).
const LIST_MAX: usize = 65536;

/// Attributes may change between asking for the size and for the value.
const TRIES: u32 = 8;

/// The path of the entry through its directory's descriptor: the calls are path-based before Linux
/// 6.13, and the `l` variants do not follow the last component.
fn path_of(dir: impl AsFd, name: &CStr) -> PathBuf {
    crate::path::proc_fd(dir).join(OsStr::from_bytes(name.to_bytes()))
}

fn failed(doing: &'static str, key: &CStr, name: &OsStr) -> impl Fn(Errno) -> Error {
    let object = format!("{} of {}", key.to_string_lossy(), name.to_string_lossy());
    move |errno| Error::new(doing, object.clone(), errno)
}

/// Reads an attribute; `None` if the entry does not have it, or the file system has none at all.
pub fn xattr_at(dir: impl AsFd, name: &OsStr, key: &CStr) -> Result<Option<Vec<u8>>> {
    let path = path_of(dir, &plain_name(name)?);
    let failed = failed("read attribute", key, name);
    for _ in 0..TRIES {
        let size = match rustix::fs::lgetxattr_query(&path, key) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            answer => answer.map_err(&failed)?,
        };
        let mut value = vec![0; size.min(XATTR_VALUE_MAX)];
        match rustix::fs::lgetxattr(&path, key, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(failed(Errno::RANGE))
}

/// Sets an attribute, replacing what was there.
///
/// # Errors
///
/// `EOPNOTSUPP`: the file system, or this kind of file, has no such attributes. `EPERM`: `user.` on
/// something that is neither file nor directory; `trusted.` without `CAP_SYS_ADMIN`.
pub fn set_xattr_at(dir: impl AsFd, name: &OsStr, key: &CStr, value: &[u8]) -> Result<()> {
    let path = path_of(dir, &plain_name(name)?);
    rustix::fs::lsetxattr(path, key, value, XattrFlags::empty()).map_err(failed(
        "set attribute",
        key,
        name,
    ))
}

/// Removes an attribute; not having it is success.
pub fn remove_xattr_at(dir: impl AsFd, name: &OsStr, key: &CStr) -> Result<()> {
    let path = path_of(dir, &plain_name(name)?);
    match rustix::fs::lremovexattr(path, key) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(errno) => Err(failed("remove attribute", key, name)(errno)),
    }
}

/// The names of all attributes that the caller may see, sorted; none if the file system has none.
pub fn list_xattrs_at(dir: impl AsFd, name: &OsStr) -> Result<Vec<CString>> {
    let path = path_of(dir, &plain_name(name)?);
    let failed = failed("list attributes", c"", name);
    for _ in 0..TRIES {
        let size = match rustix::fs::llistxattr_query(&path) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            answer => answer.map_err(&failed)?,
        };
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut list = vec![0; size.min(LIST_MAX)];
        match rustix::fs::llistxattr(&path, list.as_mut_slice()) {
            Ok(length) => {
                list.truncate(length);
                return Ok(names(&list));
            }
            Err(Errno::RANGE) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(failed(Errno::RANGE))
}

fn names(list: &[u8]) -> Vec<CString> {
    let parts = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<CString> = parts.filter_map(|name| CString::new(name).ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn lists_of_names_are_taken_apart() {
        assert_eq!(names(b"user.b\0user.a\0"), [c"user.a".to_owned(), c"user.b".to_owned()]);
        assert_eq!(names(b""), Vec::<CString>::new());
    }

    /// Runs as root only.
    #[test]
    fn root_attributes_of_files_and_of_links_themselves() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = Scratch::on_tmpfs("xattr");
        dir.write("file", b"");
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let key = c"trusted.gantry";
        for (name, value) in [("file", &b"\0binary\xff"[..]), ("link", b"")] {
            let name = OsStr::new(name);
            assert_eq!(xattr_at(dir.fd(), name, key).unwrap(), None);
            set_xattr_at(dir.fd(), name, key, value).unwrap();
            assert_eq!(xattr_at(dir.fd(), name, key).unwrap().as_deref(), Some(value));
            assert!(list_xattrs_at(dir.fd(), name).unwrap().contains(&key.to_owned()));
            remove_xattr_at(dir.fd(), name, key).unwrap();
            remove_xattr_at(dir.fd(), name, key).unwrap();
            assert_eq!(list_xattrs_at(dir.fd(), name).unwrap(), Vec::<CString>::new());
        }
    }
}
