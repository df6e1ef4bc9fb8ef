//! Making and changing one entry of a directory.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::plain_name;
use crate::error::{Error, Result};

/// A file that is neither regular nor a directory nor a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A socket's name; nobody listens on it.
    Socket,
    /// A character device with these major and minor numbers. 0:0 is overlayfs's whiteout, which
    /// needs no privilege.
    CharDevice(u32, u32),
    /// A block device with these major and minor numbers.
    BlockDevice(u32, u32),
}

/// A point in time for [`set_times_at`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Leave it as it is.
    Keep,
    /// Seconds since 1970, may be negative, and nanoseconds below a thousand million.
    At(i64, u32),
}

fn failed(doing: &'static str, name: &OsStr) -> impl Fn(Errno) -> Error {
    move |errno| Error::new(doing, name.to_string_lossy(), errno)
}

/// Makes a special file with exactly this mode, whatever the umask.
///
/// # Errors
///
/// `EPERM`: a device without `CAP_MKNOD`, or inside a user namespace.
pub fn make_special_at(dir: impl AsFd, name: &OsStr, special: Special, mode: u32) -> Result<()> {
    let plain = plain_name(name)?;
    let (kind, device) = match special {
        Special::Fifo => (FileType::Fifo, 0),
        Special::Socket => (FileType::Socket, 0),
        Special::CharDevice(major, minor) => {
            (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
        }
        Special::BlockDevice(major, minor) => {
            (FileType::BlockDevice, rustix::fs::makedev(major, minor))
        }
    };
    let permissions = Mode::from_raw_mode(mode & 0o7777);
    rustix::fs::mknodat(&dir, &plain, kind, permissions, device)
        .map_err(failed("make special file", name))?;
    chmod_at(dir, name, mode)
}

/// Sets the permission bits of an entry.
///
/// # Errors
///
/// `EOPNOTSUPP`: it is a symbolic link; links have no permissions.
pub fn chmod_at(dir: impl AsFd, name: &OsStr, mode: u32) -> Result<()> {
    let plain = plain_name(name)?;
    let failed = failed("change mode of", name);
    // `fchmodat2` came with Linux 6.6; a path through the descriptor of the very inode works
    // everywhere, without opening a device or a pipe.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = rustix::fs::openat(dir, &plain, flags, Mode::empty()).map_err(&failed)?;
    let stat = rustix::fs::fstat(&entry).map_err(&failed)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(failed(Errno::OPNOTSUPP));
    }
    let mode = Mode::from_raw_mode(mode & 0o7777);
    rustix::fs::chmod(crate::path::proc_fd(&entry), mode).map_err(failed)
}

/// Sets the owner of an entry, of a link itself too. Clears set-user-id bits: change the mode after.
pub fn chown_at(dir: impl AsFd, name: &OsStr, user: u32, group: u32) -> Result<()> {
    let plain = plain_name(name)?;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    rustix::fs::chownat(dir, &plain, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("change owner of", name))
}

/// Sets the times of last access and of last change of the content, of a link itself too.
pub fn set_times_at(dir: impl AsFd, name: &OsStr, access: Time, change: Time) -> Result<()> {
    let plain = plain_name(name)?;
    let times = Timestamps { last_access: timespec(access), last_modification: timespec(change) };
    rustix::fs::utimensat(dir, &plain, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set times of", name))
}

fn timespec(time: Time) -> Timespec {
    match time {
        Time::Keep => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Time::At(seconds, nanoseconds) => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.min(999_999_999).into() }
        }
    }
}

/// Makes a symbolic link with this target, which is not looked at.
pub fn symlink_at(target: &OsStr, dir: impl AsFd, name: &OsStr) -> Result<()> {
    let plain = plain_name(name)?;
    rustix::fs::symlinkat(target, dir, &plain).map_err(failed("make link", name))
}

/// Makes `new` in `new_dir` another name of `old` in `old_dir`; a symbolic link is itself linked.
pub fn hard_link_at(
    old_dir: impl AsFd,
    old: &OsStr,
    new_dir: impl AsFd,
    new: &OsStr,
) -> Result<()> {
    let (from, to) = (plain_name(old)?, plain_name(new)?);
    rustix::fs::linkat(old_dir, &from, new_dir, &to, AtFlags::empty())
        .map_err(failed("make hard link", new))
}

/// Removes an entry that is not a directory; nothing there is success.
pub fn remove_at(dir: impl AsFd, name: &OsStr) -> Result<()> {
    let plain = plain_name(name)?;
    match rustix::fs::unlinkat(dir, &plain, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("remove", name)(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

    #[test]
    fn special_files_links_modes_and_times() {
        let dir = Scratch::new("entry");
        let name = OsStr::new;
        make_special_at(dir.fd(), name("pipe"), Special::Fifo, 0o666).unwrap();
        symlink_at(name("/etc/passwd"), dir.fd(), name("link")).unwrap();
        hard_link_at(dir.fd(), name("pipe"), dir.fd(), name("again")).unwrap();
        set_times_at(dir.fd(), name("pipe"), Time::Keep, Time::At(-5, 7)).unwrap();
        set_times_at(dir.fd(), name("link"), Time::At(9, 0), Time::At(8, 0)).unwrap();
        assert!(chmod_at(dir.fd(), name("link"), 0o777).unwrap_err().is(Errno::OPNOTSUPP));
        chmod_at(dir.fd(), name("again"), 0o4711).unwrap();

        let pipe = std::fs::symlink_metadata(dir.path().join("pipe")).unwrap();
        assert!(pipe.file_type().is_fifo());
        assert_eq!((pipe.mtime(), pipe.mtime_nsec(), pipe.nlink()), (-5, 7, 2));
        assert_eq!(pipe.permissions().mode() & 0o7777, 0o4711);
        let link = std::fs::symlink_metadata(dir.path().join("link")).unwrap();
        assert_eq!((link.atime(), link.mtime()), (9, 8));
        remove_at(dir.fd(), name("link")).unwrap();
        remove_at(dir.fd(), name("link")).unwrap();
        assert!(remove_at(dir.fd(), name("../x")).is_err());
    }

    /// Runs as root only.
    #[test]
    fn root_devices_and_owners() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = Scratch::new("device");
        let name = OsStr::new;
        make_special_at(dir.fd(), name("null"), Special::CharDevice(1, 3), 0o640).unwrap();
        symlink_at(name("x"), dir.fd(), name("link")).unwrap();
        for entry in ["null", "link"] {
            chown_at(dir.fd(), name(entry), 12, 34).unwrap();
            let found = std::fs::symlink_metadata(dir.path().join(entry)).unwrap();
            assert_eq!((found.uid(), found.gid()), (12, 34));
        }
        let null = std::fs::symlink_metadata(dir.path().join("null")).unwrap();
        assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    }
}
