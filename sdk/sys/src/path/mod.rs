//! Paths that cannot lead astray, and files that are never half written.
//!
//! Everything that comes from an image, an archive or a client is resolved by the kernel beneath a
//! directory descriptor, so no symbolic link, however timed, leads out of it.
//!
//! | file | holds |
//! |---|---|
//! | `beneath` | opening and making directories beneath a root |
//! | `descent` | walking a tree of any depth with few descriptors |
//! | `remove` | removing a tree |
//! | `replace` | a file is old or new, never half |
//! | `usage` | bytes and inodes of a tree |
//!
//! Source: openat2(2).

mod beneath;
mod descent;
mod remove;
mod replace;
mod usage;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

pub use beneath::{
    Links, NewDirectory, mkdir_all_beneath, open_beneath, open_root, split_relative,
};
pub use remove::{remove_tree, remove_tree_beneath};
pub use replace::{Durability, replace, replace_at};
/// Flags of [`open_beneath`], and the mode of files it creates.
pub use rustix::fs::{Mode, OFlags};
pub use usage::{Usage, usage};

use crate::error::{Error, Result};

/// The name of an open descriptor in `/proc`, for calls that take paths only.
///
/// It means the descriptor's object itself, even where that is a symbolic link opened with `O_PATH`.
pub fn proc_fd(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
///
/// A longer file is an error of kind `FileTooLarge`; nothing of it is returned.
pub fn read_file_bounded(path: &Path, max: usize) -> Result<Vec<u8>> {
    let failed = |error| Error::at("read", path, error);
    let file = std::fs::File::open(path).map_err(failed)?;
    read_bounded(file, max).map_err(failed)
}

/// As [`read_file_bounded`], from anything that reads.
pub fn read_bounded(source: impl Read, max: usize) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX);
    source.take(limit.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() > max {
        let words = format!("more than {max} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, words));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        assert_eq!(read_bounded(&b"four"[..], 4).unwrap(), b"four");
        let error = read_bounded(&b"four"[..], 3).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
        assert!(read_file_bounded(Path::new("/nonexistent"), 1).is_err());
    }
}
