//! Descriptors known by number: inherited ones, and those a program is to find at 0, 1 and 2.

use super::{check, last_errno};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

/// Takes ownership of descriptor `number`, which the parent left open, and marks it close-on-exec.
///
/// Call it once per number, first thing in `main`: a second owner would close it under the first.
///
/// # Errors
///
/// `EBADF`: nothing is open under this number.
///
/// Source: fcntl(2).
pub fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes integers and touches none of our memory.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: the descriptor is open (the call above succeeded) and was handed to this program by
    // number, so by the contract above nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes `target` another name of `source`, open across exec, whatever it named before.
///
/// For the moments before an exec: an owner of `target` elsewhere in the program would be confused.
///
/// # Errors
///
/// `EBADF`, `EBUSY`: as dup2(2) has them.
pub fn dup_onto(source: impl AsFd, target: RawFd) -> Result<(), Errno> {
    let source = source.as_fd().as_raw_fd();
    if source == target {
        // SAFETY: the call takes integers and touches none of our memory.
        check(unsafe { libc::fcntl(source, libc::F_SETFD, 0) }.into())?;
        return Ok(());
    }
    // SAFETY: the call takes integers and touches none of our memory.
    check(unsafe { libc::dup2(source, target) }.into())?;
    Ok(())
}

/// Moves `fd` to a number of at least `floor`, so that it stays clear of numbers with a meaning.
///
/// # Errors
///
/// `EMFILE`: the limit of open descriptors is reached.
///
/// Source: fcntl(2), `F_DUPFD_CLOEXEC`.
pub fn raise_descriptor(fd: OwnedFd, floor: RawFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() >= floor {
        return Ok(fd);
    }
    // SAFETY: the call takes integers and touches none of our memory.
    let raised = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, floor) };
    if raised < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel just created `raised` for us, so it is open and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raised) })
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
///
/// `ENOSYS`, `EINVAL`: Linux before 5.11.
///
/// Source: close_range(2).
pub fn mark_cloexec_from(first: u32) -> Result<(), Errno> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on, except those in `keep`.
///
/// For a child process between clone and exec: owners of the closed numbers must not be used again.
///
/// # Errors
///
/// `ENOSYS`: Linux before 5.9.
///
/// Source: close_range(2).
pub fn close_from(first: u32, keep: &[RawFd]) -> Result<(), Errno> {
    let mut kept: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut next = first;
    for fd in kept {
        if fd > next {
            close_span(next, fd - 1, 0)?;
        }
        next = fd.saturating_add(1);
    }
    close_span(next, u32::MAX, 0)
}

fn close_range(first: u32, flags: libc::c_uint) -> Result<(), Errno> {
    close_span(first, u32::MAX, flags)
}

fn close_span(first: u32, last: u32, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the call takes integers; the callers' contracts speak about the owners.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })?;
    Ok(())
}
