//! Mounts as descriptors: clone, change, attach, detach.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    mount_change, move_mount, open_tree,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::{Error, Result};
use crate::path::Links;

/// How mount events travel between a mount and its copies. Source: mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither receives nor sends.
    Private,
    /// Receives and sends.
    Shared,
    /// Receives only (`slave`).
    Downstream,
    /// Private, and cannot be cloned.
    Unbindable,
}

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Shared => libc::MS_SHARED,
            Self::Downstream => libc::MS_SLAVE,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// A change to the attributes of a mount.
#[derive(Debug, Clone, Copy)]
pub struct MountAttr<'fd> {
    /// Attributes to switch on.
    pub set: MountAttrFlags,
    /// Attributes to switch off. To set one of the atime modes, clear `MOUNT_ATTR__ATIME` as well.
    pub clear: MountAttrFlags,
    /// The propagation to set, or `None` to leave it.
    pub propagation: Option<Propagation>,
    /// A user namespace whose id maps apply to the mount. Only on a mount that is still detached.
    pub idmap: Option<BorrowedFd<'fd>>,
    /// Whether every mount beneath changes too. All or none: the kernel checks before it changes.
    pub recursive: bool,
}

impl Default for MountAttr<'_> {
    fn default() -> Self {
        Self {
            set: MountAttrFlags::empty(),
            clear: MountAttrFlags::empty(),
            propagation: None,
            idmap: None,
            recursive: false,
        }
    }
}

/// `struct mount_attr` of `linux/mount.h`, version 0.
#[repr(C)]
#[derive(Debug)]
struct RawMountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the attributes of the mount `mount` refers to.
///
/// # Errors
///
/// `EPERM`: the attribute is locked, or no privilege. `EINVAL`: the file system cannot be id-mapped,
/// or the mount is attached already. `ENOSYS`: Linux before 5.12.
///
/// Source: mount_setattr(2).
pub fn set_attr(mount: impl AsFd, change: &MountAttr<'_>) -> Result<()> {
    let mut set = u64::from(change.set.bits());
    if change.idmap.is_some() {
        set |= u64::from(MountAttrFlags::MOUNT_ATTR_IDMAP.bits());
    }
    let attr = RawMountAttr {
        attr_set: set,
        attr_clr: u64::from(change.clear.bits()),
        propagation: change.propagation.map_or(0, Propagation::bits),
        userns_fd: change.idmap.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let flags = libc::AT_EMPTY_PATH | if change.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static C string and `attr` outlives the call, which reads exactly the
    // given number of bytes from it; the descriptors are borrowed for the duration of the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<RawMountAttr>(),
        )
    };
    match answer {
        0 => Ok(()),
        _ => Err(Error::new("change", "mount attributes", std::io::Error::last_os_error())),
    }
}

/// Clones the mount that `source` lies on, rooted at `source`: a detached bind mount.
///
/// With `recursive`, mounts beneath come along. Source: open_tree(2).
pub fn clone_tree(source: impl AsFd, recursive: bool) -> Result<OwnedFd> {
    clone_tree_at(source, Path::new(""), recursive)
}

/// As [`clone_tree`], for `path` beneath the directory `dir`. Follows symbolic links, and is not
/// confined to `dir`: for untrusted paths resolve first ([`crate::path::open_beneath`]), then clone.
pub fn clone_tree_at(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, path, flags).map_err(|errno| Error::at("clone mount", path, errno))
}

/// As [`clone_tree`], for the directory `path` of another mount namespace: a mount can be cloned from
/// within its own namespace only. No symbolic link is followed, for the namespace may be a stranger's.
///
/// Runs on a thread of its own and waits for it. Source: setns(2), open_tree(2).
///
/// # Errors
///
/// `ENOENT`: no such namespace or path. `EPERM`: no privilege over the namespace.
pub fn clone_from_namespace(namespace: &Path, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let target = rustix::fs::open(namespace, flags, Mode::empty())
        .map_err(|errno| Error::at("open namespace", namespace, errno))?;
    let clone = || {
        let failed = |errno: Errno| Error::at("enter namespace", namespace, errno);
        // SAFETY: what makes the call unsafe is unsharing descriptors; this unshares the working
        // directory and root of a thread that ends right after, which setns(2) asks for.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.map_err(failed)?;
        move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(failed)?;
        let root = crate::path::open_root(Path::new("/"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let relative = path.strip_prefix("/").unwrap_or(path);
        let found = crate::path::open_beneath(root, relative, flags, Mode::empty(), Links::Refuse)?;
        clone_tree(found, false)
    };
    std::thread::scope(|scope| {
        scope.spawn(clone).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Attaches a mount at `path` beneath `dir`; an absolute `path` ignores `dir`.
///
/// The last component is not followed if it is a symbolic link.
pub fn attach(mount: impl AsFd, dir: impl AsFd, path: &Path) -> Result<()> {
    move_mount(mount, c"", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| Error::at("attach mount at", path, errno))
}

/// Attaches a mount on the file or directory `target` refers to. `name` is for the message only.
pub fn attach_onto(mount: impl AsFd, target: impl AsFd, name: &Path) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
        .map_err(|errno| Error::at("attach mount at", name, errno))
}

/// Takes the mount at `path` out of the tree at once; it ends when nobody uses it any more.
///
/// # Errors
///
/// `EINVAL`: `path` is not a mount point. `ENOENT`: there is no such path.
pub fn detach(path: &Path) -> Result<()> {
    unmount_with(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Unmounts `path`, refusing with `EBUSY` while it is in use.
pub fn unmount(path: &Path) -> Result<()> {
    unmount_with(path, UnmountFlags::NOFOLLOW)
}

/// Moves the calling thread into a mount namespace of its own, from which nothing propagates back.
///
/// The thread's root, working directory and umask become its own too, so the thread should end
/// rather than be used for something else afterwards. Nothing changes for other threads.
pub fn enter_private_namespace() -> Result<()> {
    enter_namespace(Propagation::Private)
}

/// As [`enter_private_namespace`]; with [`Propagation::Downstream`], what is mounted and unmounted
/// outside from now on is in the new namespace too.
pub(super) fn enter_namespace(propagation: Propagation) -> Result<()> {
    let failed = |errno: Errno| Error::new("enter", "private mount namespace", errno);
    // SAFETY: unsharing the descriptor table is what makes this call unsafe (I/O safety across
    // threads); a mount namespace and the working directory do not touch descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.map_err(failed)?;
    let kind = match propagation {
        Propagation::Downstream => MountPropagationFlags::DOWNSTREAM,
        _ => MountPropagationFlags::PRIVATE,
    };
    mount_change("/", kind | MountPropagationFlags::REC).map_err(failed)
}

fn unmount_with(path: &Path, flags: UnmountFlags) -> Result<()> {
    rustix::mount::unmount(path, flags).map_err(|errno: Errno| Error::at("unmount", path, errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{FsContext, mount_of, read_mountinfo};

    /// Runs as root only.
    #[test]
    fn root_a_detached_mount_is_attached_changed_and_detached() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        // A thread of its own: the namespace ends with it.
        let worker = std::thread::spawn(|| {
            enter_private_namespace().unwrap();
            let tmpfs = FsContext::open("tmpfs").unwrap();
            tmpfs.set_string("size", "65536").unwrap();
            tmpfs.create().unwrap();
            let mount = tmpfs.mount(MountAttrFlags::MOUNT_ATTR_NODEV).unwrap();
            let target = std::fs::File::open("/mnt").unwrap();
            attach_onto(&mount, &target, Path::new("/mnt")).unwrap();
            std::fs::write("/mnt/a", "a").unwrap();

            let clone = clone_tree(&mount, true).unwrap();
            let change = MountAttr {
                set: MountAttrFlags::MOUNT_ATTR_RDONLY,
                clear: MountAttrFlags::MOUNT_ATTR_NODEV,
                propagation: Some(Propagation::Shared),
                recursive: true,
                ..MountAttr::default()
            };
            set_attr(&clone, &change).unwrap();
            std::fs::create_dir("/mnt/clone").unwrap();
            attach(&clone, rustix::fs::CWD, Path::new("/mnt/clone")).unwrap();
            assert!(std::fs::write("/mnt/clone/a", "b").is_err());

            let mounts = read_mountinfo().unwrap();
            let found = mount_of(&mounts, Path::new("/mnt/clone/a")).unwrap();
            assert_eq!(found.mount_point, Path::new("/mnt/clone"));
            assert!(found.options.starts_with("ro") && !found.options.contains("nodev"));
            assert!(found.shared.is_some());

            detach(Path::new("/mnt/clone")).unwrap();
            // Not `unmount`: another test that forks at this moment holds copies of the descriptors.
            detach(Path::new("/mnt")).unwrap();
            assert!(detach(Path::new("/mnt")).unwrap_err().is(Errno::INVAL));
            assert!(unmount(Path::new("/mnt")).unwrap_err().is(Errno::INVAL));
        });
        worker.join().unwrap();
    }

    /// Runs as root only.
    #[test]
    fn root_unknown_options_are_explained_by_the_kernel() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let tmpfs = FsContext::open("tmpfs").unwrap();
        let error = tmpfs.set_string("bogus", "1").unwrap_err();
        assert!(error.to_string().contains("Unknown parameter"), "{error}");
        assert!(FsContext::open("nosuchfs").unwrap_err().is(Errno::NODEV));
    }

    /// Runs as root only.
    #[test]
    fn root_an_id_mapped_clone_shows_other_owners() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        use std::os::unix::fs::MetadataExt;
        let dir = crate::testing::Scratch::on_tmpfs("idmap");
        dir.write("file", b"");
        let mut holder =
            std::process::Command::new("unshare").args(["--user", "sleep", "100"]).spawn().unwrap();
        let process = Path::new("/proc").join(holder.id().to_string());
        let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
        while std::fs::read_link(process.join("ns/user")).unwrap() == ours {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::fs::write(process.join("uid_map"), "0 100000 65536").unwrap();
        std::fs::write(process.join("gid_map"), "0 200000 65536").unwrap();
        let userns = std::fs::File::open(process.join("ns/user")).unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();

        let clone = clone_tree(dir.fd(), false).unwrap();
        let change = MountAttr { idmap: Some(userns.as_fd()), ..MountAttr::default() };
        set_attr(&clone, &change).unwrap();
        let found = std::fs::metadata(crate::path::proc_fd(&clone).join("file")).unwrap();
        assert_eq!((found.uid(), found.gid()), (100_000, 200_000));
    }
}
