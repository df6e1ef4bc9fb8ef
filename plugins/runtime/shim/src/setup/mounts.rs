//! The root, what is mounted in it, and what of it is hidden.
//!
//! The root's detached mount is attached over the run directory in the new mount namespace, the
//! other mounts are attached beneath it in order, and then it becomes the root. Every path is
//! resolved beneath the root by the kernel (`openat2`), so no link of the image leads out.

use super::{cgroups, fd_at};
use crate::status::{Context, SysContext};
use gantry_shim_protocol::{
    Failure, Launch, LaunchHead, Mount, MountKind, MountSource, Namespaces, Propagation, Stage,
    TargetKind,
};
use gantry_sys::mount::{self, FsContext, MountAttr, MountAttrFlags};
use gantry_sys::path::{Links, NewDirectory, mkdir_all_beneath, open_beneath, split_relative};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Directories made on the way to a mount, as runc makes them.
const NEW_DIRECTORY: NewDirectory = NewDirectory { mode: 0o755, owner: None };

/// Of the null device where it hides a file. It must stay a device, so not `nodev`.
const MASK_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_MAGIC: u64 = 0x9fa0;

/// What may be mounted over inside `/proc`: files that lxcfs and its like replace. Anything else
/// there would let a container hide or fake what security depends on. The list is runc's.
const PROC_TARGETS: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// The container's file system while it is being put together.
pub(crate) struct Tree<'a> {
    root: BorrowedFd<'a>,
    namespaces: &'a Namespaces,
    /// The container's procfs, made here: writes go through it and never through a path.
    proc: Option<OwnedFd>,
}

impl<'a> Tree<'a> {
    /// Cuts the new mount namespace off from the host's and attaches the root in it.
    pub(crate) fn open(
        launch: &Launch,
        fds: &'a [OwnedFd],
        namespaces: &'a Namespaces,
    ) -> Result<Self, Failure> {
        let root = fd_at(fds, launch.rootfs.mount)?;
        // A container whose root receives or sends events needs them from the host to begin with.
        let host = match launch.rootfs.propagation {
            Propagation::Private
            | Propagation::PrivateRecursive
            | Propagation::Unbindable
            | Propagation::UnbindableRecursive => MountPropagationFlags::PRIVATE,
            _ => MountPropagationFlags::DOWNSTREAM,
        };
        rustix::mount::mount_change("/", host | MountPropagationFlags::REC)
            .during(Stage::Mount, || "cut the mount namespace off".to_owned())?;
        // The shim's working directory is its run directory; here it is the copy of it.
        mount::attach(root, CWD, Path::new(".")).at(Stage::Mount)?;
        Ok(Self { root, namespaces, proc: None })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'a> {
        self.root
    }

    /// The container's procfs, or one that nobody else sees.
    pub(crate) fn proc(&mut self) -> Result<BorrowedFd<'_>, Failure> {
        if self.proc.is_none() {
            self.proc = Some(private_proc()?);
        }
        let proc = self.proc.as_ref().map(AsFd::as_fd).ok_or(Errno::NOENT);
        proc.during(Stage::Mount, || "use procfs".to_owned())
    }

    /// Makes one mount and attaches it.
    pub(crate) fn mount(
        &mut self,
        mount: &Mount,
        fds: &[OwnedFd],
        head: &LaunchHead,
    ) -> Result<(), Failure> {
        let path = Path::new(&mount.target);
        match &mount.source {
            MountSource::Tree(index) => {
                let tree = fd_at(fds, *index)?;
                let target = self.target(mount, Links::InRoot)?;
                change_tree(tree, mount)?;
                mount::attach_onto(tree, target, path).at(Stage::Mount)
            }
            MountSource::New { kind, source, options } => {
                let context = FsContext::open(kind.name()).at(Stage::Mount)?;
                context.set_string("source", source).at(Stage::Mount)?;
                for (name, value) in options {
                    match value {
                        Some(value) => context.set_string(name, value),
                        None => context.set_flag(name),
                    }
                    .at(Stage::Mount)?;
                }
                context.create().at(Stage::Mount)?;
                let fresh = context.mount(attributes(mount.set)).at(Stage::Mount)?;
                // A link in the way of these two would fool everything that trusts their paths.
                let links = match kind {
                    MountKind::Proc | MountKind::Sysfs => Links::Refuse,
                    _ => Links::InRoot,
                };
                let target = self.target(mount, links)?;
                self.propagate(&fresh, mount)?;
                mount::attach_onto(&fresh, target, path).at(Stage::Mount)?;
                if *kind == MountKind::Proc && path == Path::new("/proc") {
                    self.proc = Some(fresh);
                }
                Ok(())
            }
            MountSource::Cgroups => {
                let target = self.target(mount, Links::Refuse)?;
                let read_only =
                    mount.set & u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()) != 0;
                let view = cgroups::view(
                    &head.group,
                    self.namespaces.get(gantry_shim_protocol::Namespace::Cgroup).is_some(),
                    attributes(mount.set),
                )?;
                view.attach(target.as_fd(), path, read_only)
            }
        }
    }

    fn propagate(&self, fresh: &OwnedFd, mount: &Mount) -> Result<(), Failure> {
        let Some(propagation) = mount.propagation else { return Ok(()) };
        let change = MountAttr {
            propagation: Some(sys_propagation(propagation)),
            recursive: propagation.is_recursive(),
            ..MountAttr::default()
        };
        mount::set_attr(fresh, &change).at(Stage::Mount)
    }

    /// Opens the place of a mount, making it when it is missing.
    fn target(&self, mount: &Mount, links: Links) -> Result<OwnedFd, Failure> {
        let path = Path::new(&mount.target);
        let relative = path.strip_prefix("/").unwrap_or(path);
        let open =
            |path: &Path, links| open_beneath(self.root, path, OFlags::PATH, Mode::empty(), links);
        let target = match open(relative, links) {
            Err(error) if error.is(Errno::NOENT) => {
                let real = match links {
                    Links::InRoot => without_links(self.root, relative)?,
                    _ => relative.to_owned(),
                };
                make_target(self.root, &real, mount.target_kind, Links::Refuse)?;
                open(&real, Links::Refuse)
            }
            answer => answer,
        }
        .at(Stage::Mount)?;
        let magic = rustix::fs::fstatfs(&target)
            .during(Stage::Mount, || format!("look at {}", mount.target))?
            .f_type;
        let inside_proc = u64::try_from(magic) == Ok(PROC_MAGIC);
        if inside_proc && !PROC_TARGETS.contains(&mount.target.as_str()) {
            return Err(Failure {
                stage: Stage::Mount,
                errno: Errno::PERM.raw_os_error(),
                message: format!("cannot mount to {}: it is inside /proc", mount.target),
            });
        }
        Ok(target)
    }

    /// Hides the masked paths and locks the read-only ones.
    pub(crate) fn protect(&self, launch: &Launch) -> Result<(), Failure> {
        for path in &launch.readonly {
            let Some(target) = self.existing(path)? else { continue };
            let copy = mount::clone_tree(&target, true).at(Stage::Mount)?;
            let change = MountAttr {
                set: MountAttrFlags::MOUNT_ATTR_RDONLY,
                recursive: true,
                ..MountAttr::default()
            };
            mount::set_attr(&copy, &change).at(Stage::Mount)?;
            mount::attach_onto(&copy, &target, Path::new(path)).at(Stage::Mount)?;
        }
        let null = host_null()?;
        let mut empty: Option<OwnedFd> = None;
        for path in &launch.masked {
            let Some(target) = self.existing(path)? else { continue };
            let stat = rustix::fs::fstat(&target)
                .during(Stage::Mount, || format!("look at masked path {path}"))?;
            let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                match &empty {
                    // Once attached it can be copied; a detached one cannot before Linux 6.15.
                    Some(attached) => mount::clone_tree(attached, false).at(Stage::Mount)?,
                    None => empty_directory()?,
                }
            } else {
                // Read-only: it is the host's inode, whose mode a container's root could change.
                let cover = mount::clone_tree(&null, false).at(Stage::Mount)?;
                let sealed = MountAttr { set: MASK_ATTRIBUTES, ..MountAttr::default() };
                mount::set_attr(&cover, &sealed).at(Stage::Mount)?;
                cover
            };
            mount::attach_onto(&cover, &target, Path::new(path)).at(Stage::Mount)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && empty.is_none() {
                empty = Some(cover);
            }
        }
        Ok(())
    }

    fn existing(&self, path: &str) -> Result<Option<OwnedFd>, Failure> {
        let relative = Path::new(path).strip_prefix("/").unwrap_or(Path::new(path));
        match open_beneath(self.root, relative, OFlags::PATH, Mode::empty(), Links::InRoot) {
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => Ok(None),
            answer => answer.map(Some).at(Stage::Mount),
        }
    }

    /// Makes the tree the root of this process, and the host's disappear.
    ///
    /// Returns a procfs when the program needs one for its labels.
    pub(crate) fn enter(mut self, launch: &Launch) -> Result<Option<OwnedFd>, Failure> {
        let labelled = launch.process.apparmor.is_some() || launch.process.selinux.is_some();
        let proc = match self.proc.take() {
            None if labelled => Some(private_proc()?),
            proc => proc.filter(|_| labelled),
        };
        let doing = || "make the container's root the root".to_owned();
        rustix::process::fchdir(self.root).during(Stage::Mount, doing)?;
        rustix::process::pivot_root(".", ".").during(Stage::Mount, doing)?;
        // The old root now lies over the new one; taking it away uncovers that.
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
            .during(Stage::Mount, || "leave the host's root".to_owned())?;
        rustix::process::chdir("/").during(Stage::Mount, doing)?;
        let change = MountAttr {
            set: if launch.rootfs.readonly {
                MountAttrFlags::MOUNT_ATTR_RDONLY
            } else {
                MountAttrFlags::empty()
            },
            ..MountAttr::default()
        };
        mount::set_attr(self.root, &change).at(Stage::Mount)?;
        let spread = launch.rootfs.propagation;
        // Recursively private is what everything here is already, and mounts that were asked to be
        // something else stay it.
        if !matches!(spread, Propagation::Private | Propagation::PrivateRecursive) {
            let change = MountAttr {
                propagation: Some(sys_propagation(spread)),
                recursive: spread.is_recursive(),
                ..MountAttr::default()
            };
            mount::set_attr(self.root, &change).at(Stage::Mount)?;
        }
        Ok(proc)
    }
}

/// Applies a mount's attributes to a tree that is still detached.
fn change_tree(tree: BorrowedFd<'_>, mount: &Mount) -> Result<(), Failure> {
    if mount.set_recursive != 0 {
        let change = MountAttr {
            set: attributes(mount.set_recursive),
            recursive: true,
            ..MountAttr::default()
        };
        mount::set_attr(tree, &change).at(Stage::Mount)?;
    }
    if mount.set != 0 || mount.clear != 0 {
        let change = MountAttr {
            set: attributes(mount.set),
            clear: attributes(mount.clear),
            ..MountAttr::default()
        };
        mount::set_attr(tree, &change).at(Stage::Mount)?;
    }
    // A clone of a shared mount is its peer, so without a word about it, it is cut off.
    let propagation = mount.propagation.unwrap_or(Propagation::PrivateRecursive);
    let change = MountAttr {
        propagation: Some(sys_propagation(propagation)),
        recursive: propagation.is_recursive(),
        ..MountAttr::default()
    };
    mount::set_attr(tree, &change).at(Stage::Mount)
}

/// Makes what is missing of a mount's target.
fn make_target(
    root: BorrowedFd<'_>,
    relative: &Path,
    kind: TargetKind,
    links: Links,
) -> Result<(), Failure> {
    if kind == TargetKind::Directory {
        mkdir_all_beneath(root, relative, NEW_DIRECTORY, links).at(Stage::Mount)?;
        return Ok(());
    }
    split_relative(relative).at(Stage::Mount)?;
    let (parent, name) = parent_and_name(relative)?;
    let dir = mkdir_all_beneath(root, parent, NEW_DIRECTORY, links).at(Stage::Mount)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o755))
        .during(Stage::Mount, || format!("make /{}", relative.display()))?;
    Ok(())
}

/// Most links on the way to a mount, as the kernel has it.
const LINKS_MAX: u32 = 40;

/// Where a path that does not exist yet leads, with every link on the way followed inside the root:
/// images have links whose targets are made when something is mounted there.
///
/// The answer is used without following links again, so a link that changes meanwhile is an error.
fn without_links(root: BorrowedFd<'_>, path: &Path) -> Result<PathBuf, Failure> {
    let doing = || format!("follow /{}", path.display());
    let mut here = PathBuf::new();
    let mut rest: Vec<OsString> = components(path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let fd = match open_beneath(root, &next, flags, Mode::empty(), Links::InRoot) {
            Err(error) if error.is(Errno::NOENT) => None,
            answer => Some(answer.at(Stage::Mount)?),
        };
        let kind = fd.as_ref().map(rustix::fs::fstat).transpose().during(Stage::Mount, doing)?;
        let is_link =
            |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        match fd.filter(|_| kind.is_some_and(is_link)) {
            None => here = next,
            Some(link) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(crate::status::fail(Stage::Mount, Errno::LOOP, doing()));
                }
                let content =
                    rustix::fs::readlinkat(&link, "", Vec::new()).during(Stage::Mount, doing)?;
                let content = PathBuf::from(OsString::from_vec(content.into_bytes()));
                if content.is_absolute() {
                    here.clear();
                }
                rest.extend(components(&content));
            }
        }
    }
    Ok(here)
}

/// The names of a path, last first, without what means nothing.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

/// Splits a path beneath the root for making its last component.
pub(crate) fn parent_and_name(relative: &Path) -> Result<(&Path, &std::ffi::OsStr), Failure> {
    let parts = relative.parent().zip(relative.file_name()).ok_or(Errno::INVAL);
    parts.during(Stage::Mount, || format!("make /{}", relative.display()))
}

/// The host's null device, which the image has no say about (CVE-2025-31133).
fn host_null() -> Result<OwnedFd, Failure> {
    let doing = || "open the null device".to_owned();
    let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .during(Stage::Mount, doing)?;
    let stat = rustix::fs::fstat(&null).during(Stage::Mount, doing)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if !is_null {
        return Err(crate::status::fail(Stage::Mount, Errno::NODEV, "use /dev/null as a mask"));
    }
    Ok(null)
}

fn empty_directory() -> Result<OwnedFd, Failure> {
    let context = FsContext::open("tmpfs").at(Stage::Mount)?;
    context.set_string("source", "tmpfs").at(Stage::Mount)?;
    context.set_string("nr_blocks", "1").at(Stage::Mount)?;
    context.set_string("nr_inodes", "1").at(Stage::Mount)?;
    context.create().at(Stage::Mount)?;
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY).at(Stage::Mount)
}

/// A procfs of this PID namespace that no path leads to, so nothing can stand in for it
/// (CVE-2025-52881).
pub(crate) fn private_proc() -> Result<OwnedFd, Failure> {
    let context = FsContext::open("proc").at(Stage::Mount)?;
    context.create().at(Stage::Mount)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    context.mount(attributes).at(Stage::Mount)
}

/// Sets kernel parameters of the container's namespaces.
pub(crate) fn write_sysctls(
    proc: BorrowedFd<'_>,
    sysctls: &[(String, String)],
) -> Result<(), Failure> {
    for (name, value) in sysctls {
        let path = sysctl_path(name);
        let file =
            open_beneath(proc, Path::new(&path), OFlags::WRONLY, Mode::empty(), Links::Refuse)
                .at(Stage::Sysctl)?;
        rustix::io::write(&file, value.as_bytes())
            .during(Stage::Sysctl, || format!("set {name} to {value}"))?;
    }
    Ok(())
}

/// Where a parameter is beneath procfs. As with sysctl(8), the first separator tells which of dot and
/// slash separates; the other one is then part of a name (`net.ipv4.conf.eth0/1.forwarding`).
fn sysctl_path(name: &str) -> String {
    let by_slash = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('/'));
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path = if by_slash { name.to_owned() } else { name.chars().map(swap).collect() };
    format!("sys/{path}")
}

/// Bits the kernel does not know are passed on, for it to refuse.
fn attributes(bits: u64) -> MountAttrFlags {
    MountAttrFlags::from_bits_retain(u32::try_from(bits).unwrap_or(u32::MAX))
}

fn sys_propagation(propagation: Propagation) -> mount::Propagation {
    match propagation {
        Propagation::Private | Propagation::PrivateRecursive => mount::Propagation::Private,
        Propagation::Shared | Propagation::SharedRecursive => mount::Propagation::Shared,
        Propagation::Slave | Propagation::SlaveRecursive => mount::Propagation::Downstream,
        Propagation::Unbindable | Propagation::UnbindableRecursive => {
            mount::Propagation::Unbindable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_two_spellings() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "sys/net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/forwarding", "sys/net/ipv4/conf/eth0.1/forwarding"),
            ("net.ipv4.conf.eth0/1.forwarding", "sys/net/ipv4/conf/eth0.1/forwarding"),
        ] {
            assert_eq!(sysctl_path(name), path);
        }
    }
}
