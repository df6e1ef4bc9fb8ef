//! Maps of user and group ids for mounts. Source: mount_setattr(2), user_namespaces(7).

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use crate::error::{Error, Result};

/// The kernel's limit on ranges, `UID_GID_MAP_MAX_EXTENTS`.
const RANGES_MAX: usize = 340;

/// A run of ids: those from `stored` on are seen as those from `seen` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first id as the file system has it.
    pub stored: u32,
    /// The first id as it is seen through the mount.
    pub seen: u32,
    /// How many.
    pub count: u32,
}

/// A user namespace that exists for its maps only, for [`MountAttr::idmap`](super::MountAttr).
///
/// The kernel takes maps from a user namespace and makes one for a process only, so a process lives
/// for as long as that takes.
///
/// # Errors
///
/// `EINVAL`: ranges overlap, or are empty. `EPERM`: not privileged to map these ids. `ENOSPC`: too many
/// user namespaces.
pub fn user_namespace(users: &[IdRange], groups: &[IdRange]) -> Result<OwnedFd> {
    let failed = |errno: rustix::io::Errno| Error::new("make", "user namespace for a mount", errno);
    for ranges in [users, groups] {
        if ranges.is_empty() || ranges.len() > RANGES_MAX {
            let count = ranges.len();
            let why = "a map has 1 to 340 ranges";
            return Err(Error::refused("map ids by", format!("{count} ranges"), why));
        }
    }
    let (waiting, release) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let pid = hold_namespace(&waiting, &release).map_err(failed)?;
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let namespace = write_map(&process.join("uid_map"), users)
        .and_then(|()| write_map(&process.join("gid_map"), groups))
        .and_then(|()| {
            let path = process.join("ns/user");
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| Error::at("open", &path, errno))
        });
    // It ends when it can read no more.
    drop(release);
    reap(pid);
    namespace
}

fn write_map(path: &Path, ranges: &[IdRange]) -> Result<()> {
    let mut text = String::new();
    for IdRange { stored, seen, count } in ranges {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{stored} {seen} {count}");
    }
    let failed = |error| Error::at("write", path, error);
    let mut file = std::fs::File::options().write(true).open(path).map_err(failed)?;
    // One write: the kernel takes a map once.
    file.write_all(text.as_bytes()).map_err(failed)
}

/// A process in a new user namespace that waits until nobody can write to `release` any more.
fn hold_namespace(waiting: &OwnedFd, release: &OwnedFd) -> Result<Pid, rustix::io::Errno> {
    let (waiting, release) = (waiting.as_raw_fd(), release.as_raw_fd());
    let flags = libc::CLONE_NEWUSER;
    // SAFETY: without CLONE_VM the child has a copy of everything, as after fork(2). It calls close,
    // read and _exit only, which are safe there whatever locks other threads held, and never returns.
    // Without an exit signal nobody's SIGCHLD handling hears of it.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if pid == 0 {
            libc::close(release);
            let mut byte = 0u8;
            while libc::read(waiting, (&raw mut byte).cast(), 1) > 0 {}
            libc::_exit(0);
        }
        pid
    };
    let errno = || {
        let error = std::io::Error::last_os_error();
        rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
    };
    i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| pid > 0).ok_or_else(errno)
}

fn reap(pid: Pid) {
    // SAFETY: no pointers are given. A child without exit signal is waited for with `__WALL`.
    while unsafe { libc::waitpid(pid.as_raw_nonzero().get(), std::ptr::null_mut(), libc::__WALL) }
        < 0
        && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
    {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{MountAttr, clone_tree, set_attr};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn maps_without_ranges_are_refused() {
        assert!(user_namespace(&[], &[]).is_err());
    }

    /// Runs as root only.
    #[test]
    fn root_owners_are_seen_through_the_map_and_stored_without_it() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = crate::testing::Scratch::on_tmpfs("idmap");
        dir.write("file", b"");
        let range = |seen| [IdRange { stored: 0, seen, count: 65_536 }];
        let namespace = user_namespace(&range(100_000), &range(200_000)).unwrap();
        let mount = clone_tree(dir.fd(), false).unwrap();
        let change = MountAttr { idmap: Some(namespace.as_fd()), ..MountAttr::default() };
        if let Err(error) = set_attr(&mount, &change) {
            // Tmpfs can since Linux 6.3.
            assert!(error.is(rustix::io::Errno::INVAL), "{error}");
            eprintln!("skipped: tmpfs cannot be mapped by this kernel");
            return;
        }
        let at = crate::path::proc_fd(&mount);
        let found = std::fs::metadata(at.join("file")).unwrap();
        assert_eq!((found.uid(), found.gid()), (100_000, 200_000));
        std::os::unix::fs::chown(at.join("file"), Some(100_007), Some(200_008)).unwrap();
        let stored = std::fs::metadata(dir.path().join("file")).unwrap();
        assert_eq!((stored.uid(), stored.gid()), (7, 8));
        assert!(user_namespace(&range(u32::MAX), &range(0)).is_err());
    }
}
