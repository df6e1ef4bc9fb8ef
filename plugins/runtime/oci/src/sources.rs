//! The descriptors a launch takes along: root, trees, namespaces, clients. Everything here may block.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use crate::compile::{DESCRIPTORS_MAX, Tree, is_bind};
use gantry_sdk::kinds::networks::SandboxNs;
use gantry_sdk::kinds::runtime::{Attach, Launch};
use gantry_sdk::{Error, Result};
use gantry_shim_protocol::{FdIndex, Namespace, Streams, TargetKind};
use gantry_sys::mount::clone_tree_at;
use oci_spec::runtime::{self as oci, LinuxNamespaceType};
use rustix::fs::{CWD, FileType, Mode, OFlags};

/// Descriptors and what they are.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) trees: BTreeMap<usize, Tree>,
    pub(crate) joined: Vec<(Namespace, FdIndex)>,
    pub(crate) attach: Vec<(Streams, FdIndex)>,
}

impl Sources {
    /// Gathers what `launch` refers to; the root comes first.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a source that is not there, or too many of them.
    pub(crate) fn gather(launch: &Launch, attach: Vec<Attach>) -> Result<Self> {
        let mut sources = Self::default();
        sources.borrow(&launch.root, "the root file system")?;
        for (at, mount) in launch.spec.mounts().iter().flatten().enumerate() {
            let index = match launch.mounts.get(&at) {
                Some(tree) => sources.borrow(tree, "a mount")?,
                None if is_bind(mount) => sources.push(open_bind(mount)?)?,
                None => continue,
            };
            let kind = sources.kind_of(index, mount)?;
            sources.trees.insert(at, Tree { index, kind });
        }
        sources.namespaces(launch)?;
        for client in attach {
            let wanted =
                Streams { stdin: client.stdin, stdout: client.stdout, stderr: client.stderr };
            let index = sources.push(client.stream.into())?;
            sources.attach.push((wanted, index));
        }
        Ok(sources)
    }

    fn namespaces(&mut self, launch: &Launch) -> Result<()> {
        if let SandboxNs::Ready(netns) = &launch.netns {
            let index = self.borrow(netns, "the network namespace")?;
            self.joined.push((Namespace::Network, index));
        }
        let linux = launch.spec.linux().as_ref();
        for namespace in linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten() {
            let Some(path) = namespace.path() else { continue };
            let kind = match namespace.typ() {
                LinuxNamespaceType::User => Namespace::User,
                LinuxNamespaceType::Uts => Namespace::Uts,
                LinuxNamespaceType::Ipc => Namespace::Ipc,
                LinuxNamespaceType::Pid => Namespace::Pid,
                LinuxNamespaceType::Network => Namespace::Network,
                LinuxNamespaceType::Cgroup => Namespace::Cgroup,
                // Refused when the specification is compiled.
                LinuxNamespaceType::Mount | LinuxNamespaceType::Time => continue,
            };
            if self.joined.iter().any(|(have, _)| *have == kind) {
                continue;
            }
            let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| {
                    Error::invalid(format!("cannot join namespace {}", path.display()))
                        .caused_by(std::io::Error::from(errno))
                })?;
            let index = self.push(fd)?;
            self.joined.push((kind, index));
        }
        Ok(())
    }

    fn borrow(&mut self, fd: &impl AsFd, what: &str) -> Result<FdIndex> {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, 3)
            .map_err(|errno| Error::io("pass on", what, errno.into()))?;
        self.push(copy)
    }

    fn push(&mut self, fd: OwnedFd) -> Result<FdIndex> {
        let index = self.fds.len();
        if index >= DESCRIPTORS_MAX {
            return Err(Error::invalid(format!(
                "a container may have at most {DESCRIPTORS_MAX} mounts, namespaces and clients"
            )));
        }
        self.fds.push(fd);
        FdIndex::try_from(index).map_err(|_| Error::invalid("too many descriptors"))
    }

    fn kind_of(&self, index: FdIndex, mount: &oci::Mount) -> Result<TargetKind> {
        let fd = self.fds.get(usize::from(index));
        let stat = fd.map(rustix::fs::fstat).transpose().map_err(|errno| {
            Error::io("look at the source of mount", mount.destination().display(), errno.into())
        })?;
        let is_dir =
            |stat: &rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Ok(match stat.as_ref().is_some_and(is_dir) {
            true => TargetKind::Directory,
            false => TargetKind::File,
        })
    }
}

/// Opens the source of a bind mount that came as a path.
fn open_bind(mount: &oci::Mount) -> Result<OwnedFd> {
    let refuse =
        |why: &str| Error::invalid(format!("mount {}: {why}", mount.destination().display()));
    let source = mount.source().as_ref().filter(|source| source.is_absolute());
    let source = source.ok_or_else(|| refuse("its source is not an absolute path"))?;
    let recursive = mount.options().iter().flatten().any(|option| option == "rbind");
    clone_tree_at(CWD, source, recursive)
        .map_err(|error| refuse("its source cannot be used").caused_by(error))
}
