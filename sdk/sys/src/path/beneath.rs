//! Opening beneath a root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A rename elsewhere in the tree makes the kernel give up with `EAGAIN`; a storm of renames ends here.
const RETRIES: u32 = 128;

/// What symbolic links on the way may do. None leads out of the root, and `/proc`-style magic links
/// are refused in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// No symbolic link anywhere on the way (`ELOOP`).
    Refuse,
    /// Followed while they stay beneath; an absolute one, or one that climbs out, is `EXDEV`.
    Beneath,
    /// Followed as after `chroot`: absolute ones start at the root, `..` stops there.
    InRoot,
}

impl Links {
    fn resolve(self) -> ResolveFlags {
        let how = match self {
            Self::Refuse => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            Self::Beneath => ResolveFlags::BENEATH,
            Self::InRoot => ResolveFlags::IN_ROOT,
        };
        how | ResolveFlags::NO_MAGICLINKS
    }
}

/// Opens a directory as a root for the functions of this module.
///
/// Links in `path` are followed: it is the operator's, not a client's.
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| Error::at("open", path, errno))
}

/// Opens `path` beneath `root`. `O_CLOEXEC` is added; an empty path or `.` is the root itself.
///
/// `mode` matters with `O_CREAT` and `O_TMPFILE` only, and must be empty otherwise.
///
/// # Errors
///
/// `EXDEV`, `ELOOP`: the path leads out, or a link is refused. `ENOSYS`: Linux before 5.6.
pub fn open_beneath(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    links: Links,
) -> Result<OwnedFd> {
    open_with(root, path, flags, mode, links.resolve())
        .map_err(|errno| Error::at("open beneath its root:", path, errno))
}

pub(super) fn open_with(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 0..RETRIES {
        match rustix::fs::openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

/// Owner and mode of the directories that [`mkdir_all_beneath`] makes.
#[derive(Debug, Clone, Copy)]
pub struct NewDirectory {
    /// Permission bits, set whatever the umask.
    pub mode: u32,
    /// User and group, or `None` for the caller's.
    pub owner: Option<(u32, u32)>,
}

/// Makes sure that the directory `path` exists beneath `root`, and opens it for reading.
///
/// Directories that exist are left as they are. `path` holds no `..`; a leading `/` means the root.
///
/// # Errors
///
/// `ENOTDIR`: something on the way is not a directory. `EEXIST`: it is a dangling link.
pub fn mkdir_all_beneath(
    root: impl AsFd,
    path: &Path,
    new: NewDirectory,
    links: Links,
) -> Result<OwnedFd> {
    let names = split_relative(path)?;
    let failed = |errno| Error::at("make directory", path, errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let open =
        |relative: &Path| open_with(root.as_fd(), relative, flags, Mode::empty(), links.resolve());
    let whole: std::path::PathBuf = names.iter().collect();
    match open(&whole) {
        Err(Errno::NOENT) => {}
        answer => return answer.map_err(failed),
    }
    let mut so_far = std::path::PathBuf::new();
    let mut here = open(&so_far).map_err(failed)?;
    for name in names {
        so_far.push(name);
        here = match open(&so_far) {
            Err(Errno::NOENT) => {
                let made = make(&here, name, new).map_err(failed)?;
                match (made, open(&so_far)) {
                    (true, Ok(fd)) => {
                        finish(&fd, new).map_err(failed)?;
                        fd
                    }
                    (false, Ok(fd)) => fd,
                    // It existed and yet does not open: a link that points nowhere.
                    (false, Err(Errno::NOENT)) => return Err(failed(Errno::EXIST)),
                    (_, Err(errno)) => return Err(failed(errno)),
                }
            }
            answer => answer.map_err(failed)?,
        };
    }
    Ok(here)
}

/// Makes one directory; `false` if somebody else was first.
fn make(parent: &OwnedFd, name: &OsStr, new: NewDirectory) -> Result<bool, Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(new.mode & 0o7777)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn finish(dir: &OwnedFd, new: NewDirectory) -> Result<(), Errno> {
    if let Some((user, group)) = new.owner {
        rustix::fs::fchown(dir, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    rustix::fs::fchmod(dir, Mode::from_raw_mode(new.mode & 0o7777))
}

/// The names in a relative path. Leading slashes and `.` are dropped.
///
/// # Errors
///
/// `..` and zero bytes are refused.
pub fn split_relative(path: &Path) -> Result<Vec<&OsStr>> {
    use std::os::unix::ffi::OsStrExt;
    if path.as_os_str().as_bytes().contains(&0) {
        let name = path.as_os_str().to_string_lossy().escape_default().to_string();
        return Err(Error::refused("use path", name, "a path cannot hold a zero byte"));
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::refused(
                    "use path",
                    path.display().to_string(),
                    "`..` is not allowed here",
                ));
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const NEW: NewDirectory = NewDirectory { mode: 0o751, owner: None };

    fn open(dir: &Scratch, path: &str, links: Links) -> Result<OwnedFd> {
        open_beneath(dir.fd(), Path::new(path), OFlags::RDONLY, Mode::empty(), links)
    }

    #[test]
    fn no_link_leads_out() {
        let dir = Scratch::new("beneath");
        dir.write("etc/passwd", b"inside");
        symlink("/etc", dir.path().join("absolute")).unwrap();
        symlink("../../../../etc", dir.path().join("climbing")).unwrap();
        symlink("etc", dir.path().join("harmless")).unwrap();
        symlink("/proc/self/root", dir.path().join("magic")).unwrap();

        let cases = [
            ("etc/passwd", [true, true, true]),
            ("harmless/passwd", [false, true, true]),
            ("absolute/passwd", [false, false, true]),
            ("climbing/passwd", [false, false, true]),
            ("magic/etc/passwd", [false, false, false]),
            ("../etc/passwd", [false, false, true]),
            ("/etc/passwd", [false, false, true]),
        ];
        for (path, expected) in cases {
            for (links, ok) in
                [Links::Refuse, Links::Beneath, Links::InRoot].into_iter().zip(expected)
            {
                let answer = open(&dir, path, links);
                assert_eq!(answer.is_ok(), ok, "{path} {links:?}: {answer:?}");
                if let Ok(fd) = answer {
                    let content = super::super::read_bounded(std::fs::File::from(fd), 100).unwrap();
                    assert_eq!(content, b"inside", "{path} {links:?}");
                }
            }
        }
    }

    #[test]
    fn directories_are_made_with_their_mode_and_kept_when_there() {
        let dir = Scratch::new("mkdir");
        dir.make("a");
        let before = std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        mkdir_all_beneath(dir.fd(), Path::new("/a/./b/c"), NEW, Links::Refuse).unwrap();
        mkdir_all_beneath(dir.fd(), Path::new("a/b/c"), NEW, Links::Refuse).unwrap();
        mkdir_all_beneath(dir.fd(), Path::new(""), NEW, Links::Refuse).unwrap();
        let mode =
            |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode();
        assert_eq!(mode("a"), before);
        assert_eq!((mode("a/b") & 0o7777, mode("a/b/c") & 0o7777), (0o751, 0o751));
    }

    #[test]
    fn directories_are_not_made_through_links_or_files() {
        let dir = Scratch::new("mkdir-links");
        dir.make("inside");
        dir.write("file", b"");
        symlink("inside", dir.path().join("link")).unwrap();
        symlink("/nowhere", dir.path().join("dangling")).unwrap();
        let make = |path: &str, links| mkdir_all_beneath(dir.fd(), Path::new(path), NEW, links);
        assert!(make("link/x", Links::Refuse).unwrap_err().is(Errno::LOOP));
        assert!(make("link/x", Links::InRoot).is_ok());
        assert!(dir.path().join("inside/x").is_dir());
        assert!(make("dangling/x", Links::InRoot).unwrap_err().is(Errno::EXIST));
        assert!(make("file/x", Links::InRoot).unwrap_err().is(Errno::NOTDIR));
        assert!(make("../x", Links::InRoot).is_err());
    }
}
