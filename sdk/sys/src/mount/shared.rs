//! Copies of a mount that is attached nowhere.
//!
//! Since Linux 6.15 open_tree(2) clones a detached mount. Older kernels clone a mount only for a
//! caller in its own mount namespace. There the mount is attached in a namespace that has nothing
//! else in it and no process either: one descriptor keeps it, and whoever wants a copy enters it for
//! that moment, on a thread of its own.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::tree::{attach_onto, clone_from_namespace, clone_tree, enter_private_namespace};
use crate::error::{Error, Result};
use crate::path::{Links, open_beneath, open_root};

/// A mount from which detached copies are made, on any kernel. Dropping it ends the original; copies
/// stay.
#[derive(Debug)]
pub struct SharedMount(Kept);

#[derive(Debug)]
enum Kept {
    Detached(OwnedFd),
    /// The mount is the root of this mount namespace.
    Namespace(OwnedFd),
}

impl SharedMount {
    /// Takes over the detached mount `mount`, which must be used no more.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `mount` is attached somewhere. `EPERM` without privilege.
    pub fn new(mount: impl AsFd) -> Result<Self> {
        match clone_tree(&mount, true) {
            Ok(copy) => Ok(Self(Kept::Detached(copy))),
            Err(error) if error.is(Errno::INVAL) => {
                let mount = mount.as_fd();
                in_private_namespace(|| make_root(mount)).map(|it| Self(Kept::Namespace(it)))
            }
            Err(error) => Err(error),
        }
    }

    /// A detached copy, together with what is mounted beneath.
    ///
    /// # Errors
    ///
    /// As [`clone_tree`] and [`clone_from_namespace`].
    pub fn copy(&self) -> Result<OwnedFd> {
        match &self.0 {
            Kept::Detached(mount) => clone_tree(mount, true),
            Kept::Namespace(namespace) => {
                let name = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
                clone_from_namespace(&name, Path::new("/"))
            }
        }
    }
}

/// The part of the detached mount `mount` that begins at `path`: a detached mount of its own. No link
/// and no `..` leads out. `mount` must be used no more afterwards.
///
/// # Errors
///
/// `ENOENT`: there is no such path. `EXDEV`: it leads out of the mount.
pub fn clone_beneath(mount: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let part = open_beneath(&mount, path, OFlags::PATH, Mode::empty(), Links::Beneath)?;
    match clone_tree(&part, true) {
        Err(error) if error.is(Errno::INVAL) => {
            let (mount, part) = (mount.as_fd(), part.as_fd());
            in_private_namespace(|| {
                attach_onto(mount, open_root(Path::new("/proc"))?, Path::new("/proc"))?;
                clone_tree(part, true)
            })
        }
        answer => answer,
    }
}

/// Runs `work` on a thread with a mount namespace of its own, which ends with it unless kept.
fn in_private_namespace<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter_private_namespace()?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes `mount` the root of the calling thread's mount namespace, and all there is in it: copies of
/// the machine's mounts must not keep file systems busy. Returns the namespace.
fn make_root(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let failed = |errno: Errno| Error::new("keep", "shared mount", errno);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace =
        rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty()).map_err(failed)?;
    // Any directory will do for a place: nobody else sees this namespace.
    attach_onto(mount, open_root(Path::new("/proc"))?, Path::new("/proc"))?;
    rustix::process::fchdir(mount).map_err(failed)?;
    // The old root comes to lie on top of the new one. Source: pivot_root(2), "pivot_root(".", ".")".
    rustix::process::pivot_root(".", ".").map_err(failed)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed)?;
    Ok(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{FsContext, MountAttrFlags, read_mountinfo};

    fn tmpfs() -> OwnedFd {
        let context = FsContext::open("tmpfs").unwrap();
        context.set_string("size", "65536").unwrap();
        context.create().unwrap();
        context.mount(MountAttrFlags::empty()).unwrap()
    }

    fn text(mount: &OwnedFd, name: &str) -> String {
        std::fs::read_to_string(crate::path::proc_fd(mount).join(name)).unwrap()
    }

    /// Runs as root only.
    #[test]
    fn root_copies_show_the_same_files_both_ways() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let before = read_mountinfo().unwrap();
        let (new, old) = (tmpfs(), tmpfs());
        for mount in [&new, &old] {
            std::fs::write(crate::path::proc_fd(mount).join("a"), "a").unwrap();
        }
        let new = SharedMount::new(new).unwrap();
        let old =
            SharedMount(Kept::Namespace(in_private_namespace(|| make_root(old.as_fd())).unwrap()));
        for shared in [new, old] {
            let (one, two) = (shared.copy().unwrap(), shared.copy().unwrap());
            std::fs::write(crate::path::proc_fd(&one).join("b"), "b").unwrap();
            assert_eq!(text(&two, "a") + &text(&two, "b"), "ab");
            drop(shared);
            assert_eq!(text(&two, "b"), "b");
        }
        assert_eq!(read_mountinfo().unwrap(), before);
    }

    /// Runs as root only.
    #[test]
    fn root_a_part_is_a_mount_of_its_own_and_nothing_leads_out() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let whole = tmpfs();
        let at = crate::path::proc_fd(&whole);
        std::fs::create_dir_all(at.join("sub/deep")).unwrap();
        std::fs::write(at.join("sub/deep/a"), "a").unwrap();
        std::os::unix::fs::symlink("/etc", at.join("out")).unwrap();
        for wrong in ["none", "out", "../etc"] {
            assert!(clone_beneath(&whole, Path::new(wrong)).is_err(), "{wrong}");
        }
        let part = clone_beneath(&whole, Path::new("sub/deep")).unwrap();
        drop(whole);
        assert_eq!(text(&part, "a"), "a");
    }
}
