//! Holes, and copies that the kernel makes.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Bytes asked of the kernel in one call; it may do fewer.
const CHUNK: usize = 1 << 30;

/// How [`copy_file`] got the content across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMethod {
    /// The blocks are shared until one side writes.
    Reflink,
    /// Copied, without the holes.
    Copied,
}

/// Turns a range of a file into a hole that reads as zeros and takes no space; the size stays.
pub fn punch_hole(file: impl AsFd, offset: u64, length: u64) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, offset, length)
        .map_err(|errno| Error::new("punch hole into", "file", errno))
}

/// Starts writing a range of a file to the disk and does not wait for it, so that a later sync has
/// less to do. Promises nothing about durability: only a sync does.
///
/// # Errors
///
/// `ESPIPE`: not a regular file. Source: sync_file_range(2).
pub fn start_write_back(file: impl AsFd, offset: u64, length: u64) -> Result<()> {
    let failed = |error: std::io::Error| Error::new("write back", "file content", error);
    let number = |n: u64| i64::try_from(n).map_err(|_| failed(Errno::OVERFLOW.into()));
    let (fd, offset, length) = (file.as_fd().as_raw_fd(), number(offset)?, number(length)?);
    // SAFETY: the call takes integers and touches none of our memory; `file` keeps `fd` open.
    match unsafe { libc::sync_file_range(fd, offset, length, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(failed(std::io::Error::last_os_error())),
    }
}

/// Makes `target` share the blocks of `source`.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EXDEV`, `EINVAL`, `ENOTTY`: these files cannot share; copy instead. Source:
/// ioctl_ficlone(2).
pub fn reflink(source: impl AsFd, target: impl AsFd) -> Result<()> {
    rustix::fs::ioctl_ficlone(target, source)
        .map_err(|errno| Error::new("share blocks of", "file", errno))
}

/// Copies `length` bytes from `source` at `from` to `target` at `to`, without passing through this
/// process where the kernel can.
///
/// # Errors
///
/// Of kind `UnexpectedEof` if `source` is shorter.
pub fn copy_range(
    source: &File,
    mut from: u64,
    target: &File,
    mut to: u64,
    mut length: u64,
) -> Result<()> {
    let failed = |error| Error::new("copy", "file content", error);
    while length > 0 {
        let chunk = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        let copied = match rustix::fs::copy_file_range(
            source,
            Some(&mut from),
            target,
            Some(&mut to),
            chunk,
        ) {
            Ok(0) => return Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => count as u64,
            Err(Errno::INTR) => 0,
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_by_hand(source, from, target, to, length).map_err(failed);
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        length = length.saturating_sub(copied);
    }
    Ok(())
}

/// For pairs of file systems between which the kernel does not copy.
fn copy_by_hand(
    source: &File,
    mut from: u64,
    target: &File,
    mut to: u64,
    mut length: u64,
) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 256 << 10];
    while length > 0 {
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        let count = source.read_at(part, from)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        target.write_all_at(part.get(..count).unwrap_or_default(), to)?;
        let count = count as u64;
        (from, to, length) = (from + count, to + count, length.saturating_sub(count));
    }
    Ok(())
}

/// Copies the whole content of `source` into the empty file `target`, by sharing blocks if possible,
/// and keeping holes if not.
pub fn copy_file(source: &File, target: &File) -> Result<CopyMethod> {
    if reflink(source, target).is_ok() {
        return Ok(CopyMethod::Reflink);
    }
    let failed = |error| Error::new("copy", "file content", error);
    let size = source.metadata().map_err(failed)?.len();
    for range in data_ranges(source, size) {
        let (start, end) = range?;
        copy_range(source, start, target, start, end - start)?;
    }
    target.set_len(size).map_err(failed)?;
    Ok(CopyMethod::Copied)
}

/// The ranges of a file of `size` bytes that hold data, as (start, end), in order.
///
/// A file system without holes answers with one range. Moves the file's position.
pub fn data_ranges<Fd: AsFd>(file: Fd, size: u64) -> DataRanges<Fd> {
    DataRanges { file, next: 0, size }
}

/// Iterator of [`data_ranges`].
#[derive(Debug)]
pub struct DataRanges<Fd> {
    file: Fd,
    next: u64,
    size: u64,
}

impl<Fd: AsFd> Iterator for DataRanges<Fd> {
    type Item = Result<(u64, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.size {
            return None;
        }
        let failed = |errno| Error::new("find holes of", "file", errno);
        let found = rustix::fs::seek(&self.file, SeekFrom::Data(self.next));
        let start = match found {
            // No data from here to the end.
            Err(Errno::NXIO) => {
                self.next = self.size;
                return None;
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let start = std::mem::replace(&mut self.next, self.size);
                return Some(Ok((start, self.size)));
            }
            Err(errno) => {
                self.next = self.size;
                return Some(Err(failed(errno)));
            }
            Ok(start) => start,
        };
        let end = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(self.size),
            Err(errno) => {
                self.next = self.size;
                return Some(Err(failed(errno)));
            }
        };
        self.next = end;
        (start < end).then_some(Ok((start, end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn open(dir: &Scratch, name: &str) -> File {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.open(dir.path().join(name)).unwrap()
    }

    #[test]
    fn holes_are_found_kept_and_made() {
        let dir = Scratch::on_tmpfs("holes");
        let source = open(&dir, "source");
        source.set_len(4 << 20).unwrap();
        source.write_all_at(&[1; 4096], 1 << 20).unwrap();
        source.write_all_at(&[2; 4096], 3 << 20).unwrap();
        let ranges: Vec<_> = data_ranges(&source, 4 << 20).map(|range| range.unwrap()).collect();
        assert_eq!(ranges, [(1 << 20, (1 << 20) + 4096), (3 << 20, (3 << 20) + 4096)]);

        let target = open(&dir, "target");
        copy_file(&source, &target).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 4 << 20);
        assert!(target.metadata().unwrap().blocks() <= 2 * 4096 / 512);
        let mut byte = [0; 1];
        target.read_exact_at(&mut byte, 3 << 20).unwrap();
        assert_eq!(byte, [2]);

        punch_hole(&target, 3 << 20, 4096).unwrap();
        target.read_exact_at(&mut byte, 3 << 20).unwrap();
        assert_eq!(byte, [0]);
        assert_eq!(data_ranges(&target, 4 << 20).count(), 1);
    }

    #[test]
    fn a_copy_across_file_systems_is_whole_and_a_short_source_is_an_error() {
        let (dir, other) = (Scratch::new("copy"), Scratch::on_tmpfs("copy"));
        let source = open(&dir, "source");
        source.write_all_at(&[7; 300_000], 0).unwrap();
        let target = open(&other, "target");
        copy_range(&source, 0, &target, 0, 300_000).unwrap();
        assert_eq!(std::fs::read(other.path().join("target")).unwrap(), vec![7; 300_000]);
        assert!(copy_range(&source, 0, &target, 0, 300_001).is_err());
    }

    #[test]
    fn what_is_written_back_early_stays_as_it_is() {
        let dir = Scratch::new("write-back");
        let file = open(&dir, "file");
        file.write_all_at(&[7; 300_000], 0).unwrap();
        start_write_back(&file, 0, 300_000).unwrap();
        start_write_back(&file, 1 << 40, 1).unwrap(); // beyond the end: nothing to do
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), vec![7; 300_000]);
        assert!(start_write_back(std::io::pipe().unwrap().1, 0, 1).is_err());
    }

    #[test]
    fn an_empty_file_has_no_ranges() {
        let dir = Scratch::new("empty");
        assert_eq!(data_ranges(open(&dir, "empty"), 0).count(), 0);
    }
}
