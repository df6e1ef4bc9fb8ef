//! What an archive extractor needs beside plain reads and writes: extended attributes, special files,
//! owners, times, holes and cheap copies, all relative to a directory descriptor and never through a
//! symbolic link.
//!
//! | file | holds |
//! |---|---|
//! | `entry` | making and changing one entry of a directory |
//! | `xattr` | extended attributes |
//! | `data` | holes, reflinks, copies in the kernel |
//! | `mapped` | writing through a shared mapping |
//!
//! `dir` in these functions is a directory's descriptor and `name` one plain name in it: anything
//! with a slash, `.`, `..` or a zero byte is refused, so a name from an archive cannot wander.

mod data;
mod entry;
mod mapped;
mod xattr;

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

pub use data::{
    CopyMethod, DataRanges, copy_file, copy_range, data_ranges, punch_hole, reflink,
    start_write_back,
};
pub use entry::{
    Special, Time, chmod_at, chown_at, hard_link_at, make_special_at, remove_at, set_times_at,
    symlink_at,
};
pub use mapped::write_mapped;
pub use xattr::{XATTR_VALUE_MAX, list_xattrs_at, remove_xattr_at, set_xattr_at, xattr_at};

use crate::error::{Error, Result};

/// Checks that `name` is one plain name.
pub(crate) fn plain_name(name: &OsStr) -> Result<CString> {
    let bytes = name.as_bytes();
    let refused =
        |why| Error::refused("use name", name.to_string_lossy().escape_debug().to_string(), why);
    if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
        return Err(refused("it is not a plain name"));
    }
    CString::new(bytes).map_err(|_| refused("a name cannot hold a zero byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for (name, ok) in [
            ("a", true),
            ("..a", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a\0b", false),
        ] {
            assert_eq!(plain_name(OsStr::new(name)).is_ok(), ok, "{name:?}");
        }
    }
}
