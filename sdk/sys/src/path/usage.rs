//! How much a tree takes on disk.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::descent::Descent;
use crate::error::{Error, Result};

/// What a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes: holes do not count, a hard-linked file counts once.
    pub bytes: u64,
    /// Bytes as `ls` shows them, of regular files and links, each once.
    pub apparent_bytes: u64,
    /// Number of inodes, the top directory included.
    pub inodes: u64,
}

/// Adds up the tree at `top`, a directory opened in any way.
///
/// Does not cross mounts and does not follow links. What vanishes during the walk does not count.
/// Blocking, and as long as the tree is large.
pub fn usage(top: impl AsFd) -> Result<Usage> {
    let failed = |errno| Error::new("read usage of", "directory", errno);
    let mut sum = Usage::default();
    walk(top, &mut sum).map_err(failed)?;
    Ok(sum)
}

/// Inodes with several links that were counted already.
type Seen = HashSet<(u32, u32, u64)>;

fn walk(top: impl AsFd, sum: &mut Usage) -> Result<(), Errno> {
    // Open anew: an `O_PATH` descriptor cannot be read from.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top: OwnedFd = rustix::fs::openat(top, c".", flags, Mode::empty())?;
    let mut seen = Seen::new();
    count(&top, c"", sum, &mut seen)?;
    let mut descent = Descent::start(top)?;
    list(&mut descent, sum, &mut seen)?;
    loop {
        if let Some(name) = descent.next_pending() {
            match descent.enter(name) {
                Ok(()) => list(&mut descent, sum, &mut seen)?,
                // Gone, exchanged, or a mount: not ours to count.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
                Err(errno) => return Err(errno),
            }
        } else if descent.depth() == 1 {
            return Ok(());
        } else {
            descent.leave()?;
        }
    }
}

/// Counts the entries of the current directory and remembers its subdirectories.
fn list(descent: &mut Descent, sum: &mut Usage, seen: &mut Seen) -> Result<(), Errno> {
    let mut directories: Vec<CString> = Vec::new();
    let here = descent.here()?;
    for entry in rustix::fs::Dir::read_from(here)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." && count(here, name, sum, seen)? {
            directories.push(name.to_owned());
        }
    }
    directories.into_iter().for_each(|name| descent.later(name));
    Ok(())
}

/// Counts one inode; says whether it is a directory to be walked.
fn count(
    dir: &OwnedFd,
    name: &std::ffi::CStr,
    sum: &mut Usage,
    seen: &mut Seen,
) -> Result<bool, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let stat = match rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) {
        Err(Errno::NOENT) => return Ok(false),
        answer => answer?,
    };
    // The root of another mount is somebody else's; `name` is empty for the top itself.
    let is_mount = stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT);
    if is_mount && !name.is_empty() {
        return Ok(false);
    }
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    if kind != FileType::Directory
        && stat.stx_nlink > 1
        && !seen.insert((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
    {
        return Ok(false);
    }
    sum.inodes += 1;
    // `stx_blocks` is in units of 512 bytes whatever the file system's block size.
    sum.bytes = sum.bytes.saturating_add(stat.stx_blocks.saturating_mul(512));
    if matches!(kind, FileType::RegularFile | FileType::Symlink) {
        sum.apparent_bytes = sum.apparent_bytes.saturating_add(stat.stx_size);
    }
    Ok(kind == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn hard_links_count_once_and_holes_not_at_all() {
        let dir = Scratch::on_tmpfs("usage");
        dir.write("tree/a/file", &[1; 8192]);
        dir.write("tree/sparse", b"");
        let sparse = std::fs::OpenOptions::new().write(true).open(dir.path().join("tree/sparse"));
        sparse.unwrap().set_len(1 << 30).unwrap();
        std::fs::hard_link(dir.path().join("tree/a/file"), dir.path().join("tree/again")).unwrap();
        let usage = usage(dir.open("tree")).unwrap();
        assert_eq!(usage.inodes, 4);
        assert_eq!(usage.apparent_bytes, 8192 + (1 << 30));
        assert!(usage.bytes >= 8192 && usage.bytes < 1 << 20, "{usage:?}");
    }

    #[test]
    fn mounts_inside_do_not_count() {
        let usage = usage(std::fs::File::open("/proc/self/fdinfo").unwrap());
        assert!(usage.is_ok());
    }
}
