//! Joining the container's groups, and showing it the tree.

use crate::status::{Context, SysContext};
use gantry_shim_protocol::{Failure, Stage};
use gantry_sys::cgroup::{Group, GroupDir, Version};
use gantry_sys::mount::{self, FsContext, MountAttr, MountAttrFlags};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;

/// Moves this process, which has one thread, into the v1 groups. Into that of v2 it was born:
/// writing to `cgroup.procs` there takes the kernel up to ten milliseconds.
pub(crate) fn join(group: &Group) -> Result<(), Failure> {
    for dir in group.dirs.iter().filter(|dir| dir.version == Version::V1) {
        let file = dir.dir.join("tasks");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::open(&file, flags, Mode::empty())
            .and_then(|fd| rustix::io::write(fd, b"0"))
            .during(Stage::Cgroup, || format!("join {}", file.display()))?;
    }
    Ok(())
}

/// The container's `/sys/fs/cgroup`, not attached yet.
pub(crate) struct View {
    top: OwnedFd,
    /// Hierarchies to attach beneath, and other names for them.
    beneath: Vec<(OwnedFd, String, Vec<String>)>,
}

/// Builds the view: one mount on a v2 machine, otherwise a directory with the v1 hierarchies.
///
/// In a cgroup namespace of its own (`own`) the container sees its group as the root of fresh
/// mounts; otherwise its group's directories are bound.
pub(crate) fn view(group: &Group, own: bool, attributes: MountAttrFlags) -> Result<View, Failure> {
    let v1: Vec<&GroupDir> = group.dirs.iter().filter(|dir| dir.version == Version::V1).collect();
    if v1.is_empty() {
        let context = FsContext::open("cgroup2").at(Stage::Mount)?;
        context.set_string("source", "cgroup").at(Stage::Mount)?;
        context.create().at(Stage::Mount)?;
        let top = context.mount(attributes).at(Stage::Mount)?;
        return Ok(View { top, beneath: Vec::new() });
    }
    let context = FsContext::open("tmpfs").at(Stage::Mount)?;
    context.set_string("source", "tmpfs").at(Stage::Mount)?;
    context.set_string("mode", "755").at(Stage::Mount)?;
    context.create().at(Stage::Mount)?;
    // The directory is locked once it is filled.
    let open = attributes.difference(MountAttrFlags::MOUNT_ATTR_RDONLY);
    let top = context.mount(open).at(Stage::Mount)?;
    let mut beneath = Vec::new();
    for dir in v1 {
        let name = hierarchy_name(dir);
        let doing = || format!("make cgroup directory {name}");
        rustix::fs::mkdirat(&top, &name, Mode::from_raw_mode(0o755)).during(Stage::Mount, doing)?;
        let tree = if own { fresh(dir, &name, attributes)? } else { bound(dir, attributes)? };
        let others = dir.controllers.iter().filter(|it| **it != name).cloned().collect();
        beneath.push((tree, name, others));
    }
    Ok(View { top, beneath })
}

fn hierarchy_name(dir: &GroupDir) -> String {
    let name = dir.mount.file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| dir.controllers.join(","))
}

fn fresh(dir: &GroupDir, name: &str, attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let context = FsContext::open("cgroup").at(Stage::Mount)?;
    context.set_string("source", "cgroup").at(Stage::Mount)?;
    if dir.controllers.is_empty() {
        context.set_flag("none").at(Stage::Mount)?;
        context.set_string("name", name).at(Stage::Mount)?;
    }
    for controller in &dir.controllers {
        context.set_flag(controller).at(Stage::Mount)?;
    }
    context.create().at(Stage::Mount)?;
    context.mount(attributes).at(Stage::Mount)
}

fn bound(dir: &GroupDir, attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let tree = mount::clone_tree_at(CWD, &dir.dir, false).at(Stage::Mount)?;
    let change = MountAttr { set: attributes, ..MountAttr::default() };
    mount::set_attr(&tree, &change).at(Stage::Mount)?;
    Ok(tree)
}

impl View {
    /// Attaches the view at `target`.
    pub(crate) fn attach(
        self,
        target: BorrowedFd<'_>,
        path: &Path,
        read_only: bool,
    ) -> Result<(), Failure> {
        mount::attach_onto(&self.top, target, path).at(Stage::Mount)?;
        if self.beneath.is_empty() {
            return Ok(());
        }
        for (tree, name, others) in &self.beneath {
            mount::attach(tree, &self.top, Path::new(name)).at(Stage::Mount)?;
            for other in others {
                match rustix::fs::symlinkat(name, &self.top, other) {
                    Err(Errno::EXIST) => {}
                    answer => {
                        answer.during(Stage::Mount, || format!("make cgroup link {other}"))?;
                    }
                }
            }
        }
        if read_only {
            let change =
                MountAttr { set: MountAttrFlags::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            mount::set_attr(&self.top, &change).at(Stage::Mount)?;
        }
        Ok(())
    }
}
