//! Writing through a shared mapping, as databases do.

use std::os::fd::AsFd;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::error::{Error, Result};

/// Writes `bytes` to the beginning of `file` (open for reading and writing, and at least as long)
/// through a shared mapping, and brings them to the disk. The file is not made longer.
///
/// # Errors
///
/// What the kernel reported; `InvalidInput` if the file is shorter.
pub fn write_mapped(file: impl AsFd, bytes: &[u8]) -> Result<()> {
    let failed = |errno| Error::new("write", "a mapped file", errno);
    let size = rustix::fs::fstat(&file).map_err(failed)?.st_size;
    // A mapping beyond the end of the file ends the process when it is touched.
    if u64::try_from(size).unwrap_or_default() < bytes.len() as u64 || bytes.is_empty() {
        return Err(Error::refused("write", "a mapped file", "it is shorter than what is written"));
    }
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice; nothing else points into it.
    let start = unsafe {
        mmap(std::ptr::null_mut(), bytes.len(), protection, MapFlags::SHARED, file.as_fd(), 0)
    }
    .map_err(failed)?;
    // SAFETY: the mapping is `bytes.len()` long and writable, and is no part of `bytes`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast::<u8>(), bytes.len()) };
    // SAFETY: exactly what was mapped above.
    let synced = unsafe { msync(start, bytes.len(), MsyncFlags::SYNC) };
    // SAFETY: exactly what was mapped above; nothing refers to it any more.
    let unmapped = unsafe { munmap(start, bytes.len()) };
    synced.and(unmapped).map_err(failed)
}
