//! Carrying out a checked plan. Blocking; whatever fails, what was mounted ends with its descriptors.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gantry_sdk::mounts::{FsKind, Grants, MountPlan, PathRef, Place, Step};
use gantry_sdk::{Error, ErrorKind, Labels, Result};
use gantry_sys::error::Errno;
use gantry_sys::mount::{
    FsContext, LoopDevice, MountAttr, MountAttrFlags, ProjectLimit, clone_tree, create_subvolume,
    limit_directory, set_attr, snapshot_subvolume,
};
use gantry_sys::path::{
    Links, Mode, NewDirectory, OFlags, mkdir_all_beneath, open_beneath, open_root, proc_fd,
};

use super::layers::{self, Ids};
use super::{host, options};

type SysResult<T> = gantry_sys::Result<T>;

/// What a step has made.
#[derive(Debug)]
pub(super) enum Made {
    Nothing,
    Mount(OwnedFd),
    /// Kept until the plan is done: a mount of it keeps the device from then on.
    Device(LoopDevice),
}

/// Executes a plan that was checked.
pub(super) fn execute(plan: &MountPlan, grants: &Grants) -> Result<OwnedFd> {
    let ids = plan.ids.as_ref().map(layers::map_of).transpose();
    let ids =
        ids.map_err(|failure| failure.in_place("mount plan: its map of owners".to_owned()))?;
    let made = Vec::with_capacity(plan.steps.len());
    let mut run = Run { grants, ids, roots: BTreeMap::new(), made };
    for (index, step) in plan.steps.iter().enumerate() {
        run.open_roots(step).map_err(|error| Failure::Sys(error).in_place(place(index, step)))?;
        let made = run.step(step).map_err(|failure| failure.in_place(place(index, step)))?;
        run.made.push(made);
    }
    match run.made.into_iter().nth(usize::from(plan.root)) {
        Some(Made::Mount(mount)) => Ok(mount),
        // The check has made sure of it.
        _ => Err(Error::new(ErrorKind::Internal, "the mount plan has no root mount")),
    }
}

fn place(index: usize, step: &Step) -> String {
    format!("mount plan step {index} ({})", step.name())
}

/// A failed step: a system call's error, or one of our own with its kind.
#[derive(Debug)]
pub(super) enum Failure {
    Sys(gantry_sys::Error),
    Own(Error),
}

impl From<gantry_sys::Error> for Failure {
    fn from(error: gantry_sys::Error) -> Self {
        Self::Sys(error)
    }
}

impl Failure {
    /// Adds where in the plan it was, and what a caller can do about it.
    fn in_place(self, place: String) -> Error {
        match self {
            Self::Sys(error) => Error::new(kind_of(&error), place).caused_by(error),
            Self::Own(error) => error.context(place),
        }
    }
}

fn kind_of(error: &gantry_sys::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    // A path that leads out of its grant, by a link or by `..`.
    if error.is(Errno::XDEV) || error.is(Errno::LOOP) {
        return ErrorKind::Forbidden;
    }
    if error.is(Errno::NODEV) || error.is(Errno::NOTTY) || error.is(Errno::NOTBLK) {
        return ErrorKind::Unsupported;
    }
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::AlreadyExists => ErrorKind::Exists,
        Io::ResourceBusy => ErrorKind::Busy,
        Io::NotADirectory | Io::IsADirectory => ErrorKind::InvalidArgument,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
        Io::DirectoryNotEmpty => ErrorKind::Conflict,
        Io::Unsupported => ErrorKind::Unsupported,
        Io::ConnectionRefused | Io::HostUnreachable | Io::NetworkUnreachable | Io::TimedOut => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Internal,
    }
}

/// A descriptor that was opened for a step, or that an earlier step holds.
enum Held<'a> {
    Own(OwnedFd),
    Step(BorrowedFd<'a>),
}

impl AsFd for Held<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            Self::Step(fd) => fd.as_fd(),
        }
    }
}

pub(super) struct Run<'a> {
    grants: &'a Grants,
    /// The plan's map of owners.
    pub(super) ids: Option<Ids>,
    /// Granted directories that were used so far.
    roots: BTreeMap<&'a str, OwnedFd>,
    made: Vec<Made>,
}

impl<'a> Run<'a> {
    /// Opens the granted directories that a step names.
    fn open_roots(&mut self, step: &Step) -> SysResult<()> {
        for path in paths(step) {
            let granted = self.grants.roots.get_key_value(path.root.as_str());
            if let Some((name, dir)) = granted
                && !self.roots.contains_key(name.as_str())
            {
                self.roots.insert(name, open_root(dir)?);
            }
        }
        Ok(())
    }

    /// The open granted directory of a path, and how links beneath it behave.
    fn root(&self, path: &PathRef) -> SysResult<(&OwnedFd, Links)> {
        let fd = self.roots.get(path.root.as_str()).ok_or_else(|| {
            gantry_sys::Error::refused("use", path.root.clone(), "it was not granted")
        })?;
        let is_whole = self.grants.roots.get(&path.root).is_some_and(|dir| dir == Path::new("/"));
        // With the whole machine granted there is no outside, and its own absolute links
        // (`/var/run`) mean what they say.
        Ok((fd, if is_whole { Links::InRoot } else { Links::Beneath }))
    }

    pub(super) fn open(&self, path: &PathRef, flags: OFlags) -> SysResult<OwnedFd> {
        let (root, links) = self.root(path)?;
        open_beneath(root, Path::new(&path.rel), flags, Mode::empty(), links)
    }

    fn step(&self, step: &Step) -> std::result::Result<Made, Failure> {
        match step {
            Step::Mkdir { at, uid, gid, mode } => self.mkdir(at, (*uid, *gid), *mode),
            Step::Bind { source, read_only, recursive } => {
                self.bind(source, *read_only, *recursive)
            }
            Step::Overlay { lowers, upper, work, flags } => {
                self.overlay(lowers, upper.as_ref().zip(work.as_ref()), *flags)
            }
            Step::FuseOverlay { lowers, upper, work } => {
                self.fuse_overlay(lowers, upper.as_ref().zip(work.as_ref()))
            }
            Step::Tmpfs { bytes, inodes, mode, uid, gid } => {
                tmpfs(*bytes, *inodes, *mode, (*uid, *gid))
            }
            Step::Loop { file, read_only } => self.loop_device(file, *read_only),
            Step::Fs { kind, device, read_only, options } => {
                self.file_system(*kind, device, *read_only, options)
            }
            Step::Host { fs_type, device, options } => {
                let mount = host::mount(fs_type, device, options)?;
                self.map_owners(&mount, false)?;
                Ok(Made::Mount(mount))
            }
            Step::Quota { at, bytes, inodes } => {
                self.quota(at, ProjectLimit { bytes: *bytes, inodes: *inodes })
            }
            Step::Subvol { source, target, read_only } => {
                self.subvolume(source.as_ref(), target, *read_only)
            }
            Step::Premounted { host_path } => {
                let mount = clone_tree(open_root(host_path)?, true)?;
                self.map_owners(&mount, true)?;
                Ok(Made::Mount(mount))
            }
        }
    }

    fn mkdir(
        &self,
        at: &PathRef,
        owner: (u32, u32),
        mode: u16,
    ) -> std::result::Result<Made, Failure> {
        let (root, links) = self.root(at)?;
        let new = NewDirectory { mode: mode.into(), owner: Some(owner) };
        mkdir_all_beneath(root, Path::new(&at.rel), new, links)?;
        Ok(Made::Nothing)
    }

    fn place(&self, place: &Place, flags: OFlags) -> SysResult<Held<'_>> {
        match place {
            Place::Path(path) => self.open(path, flags).map(Held::Own),
            Place::Step(index) => match self.made.get(usize::from(*index)) {
                Some(Made::Mount(mount)) => Ok(Held::Step(mount.as_fd())),
                Some(Made::Device(device)) => Ok(Held::Step(device.as_fd())),
                _ => Err(gantry_sys::Error::refused(
                    "use",
                    format!("step {index}"),
                    "it made nothing",
                )),
            },
        }
    }

    fn bind(
        &self,
        source: &Place,
        read_only: bool,
        recursive: bool,
    ) -> std::result::Result<Made, Failure> {
        let mount = clone_tree(self.place(source, OFlags::PATH)?, recursive)?;
        if read_only {
            let set = MountAttrFlags::MOUNT_ATTR_RDONLY;
            set_attr(&mount, &MountAttr { set, recursive, ..MountAttr::default() })?;
        }
        // What an earlier step made is mapped already.
        if matches!(source, Place::Path(_)) {
            self.map_owners(&mount, recursive)?;
        }
        Ok(Made::Mount(mount))
    }

    fn loop_device(&self, file: &PathRef, read_only: bool) -> std::result::Result<Made, Failure> {
        let file = self.regular_file(file, read_only)?;
        Ok(Made::Device(LoopDevice::attach(file, read_only)?))
    }

    /// Opens a file that must be a regular one: a device node in a driver's directory, perhaps made by
    /// a container, must not become a way to the machine's disks.
    fn regular_file(&self, path: &PathRef, read_only: bool) -> std::result::Result<File, Failure> {
        let name = || format!("{}/{}", path.root, path.rel);
        let failed = |doing| move |error| Failure::Own(Error::io(doing, name(), error));
        // Looked at before it is opened: opening a device can do things by itself.
        let found = File::from(self.open(path, OFlags::PATH)?);
        if !found.metadata().map_err(failed("examine"))?.is_file() {
            let why = format!("{} is not a regular file", name());
            return Err(Failure::Own(Error::invalid(why)));
        }
        let mut options = File::options();
        options.read(true).write(!read_only).open(proc_fd(&found)).map_err(failed("open"))
    }

    fn file_system(
        &self,
        kind: FsKind,
        device: &Place,
        read_only: bool,
        options: &Labels,
    ) -> std::result::Result<Made, Failure> {
        let mount = match device {
            Place::Step(index) => match self.made.get(usize::from(*index)) {
                // The device is open, so its name cannot come to mean another.
                Some(Made::Device(device)) => {
                    mount_file_system(kind, device.path(), read_only, options)?
                }
                _ => {
                    let why = "the device's step made none";
                    return Err(Failure::Own(Error::new(ErrorKind::Internal, why)));
                }
            },
            Place::Path(path) => {
                let file = self.regular_file(path, true)?;
                match mount_file_system(kind, &proc_fd(&file), read_only, options) {
                    // Linux before 6.12, or a file on a file system without pages to read, as tmpfs.
                    Err(error) if error.is(Errno::NOTBLK) => {
                        let device = LoopDevice::attach(&file, true)?;
                        mount_file_system(kind, device.path(), read_only, options)?
                    }
                    answer => answer?,
                }
            }
        };
        self.map_owners(&mount, false)?;
        Ok(Made::Mount(mount))
    }

    fn quota(&self, at: &Place, limit: ProjectLimit) -> std::result::Result<Made, Failure> {
        // To be asked and changed, a directory has to be open for reading.
        let directory = OFlags::RDONLY | OFlags::DIRECTORY;
        let place = self.place(at, OFlags::PATH | OFlags::DIRECTORY)?;
        let directory =
            open_beneath(place, Path::new(""), directory, Mode::empty(), Links::Refuse)?;
        let inode = File::from(directory.try_clone().map_err(own)?).metadata().map_err(own)?.ino();
        // Two directories have different numbers, and so look for a free id in different places.
        let hint = u32::try_from(inode & u64::from(u32::MAX)).unwrap_or_default();
        limit_directory(&directory, limit, hint)?;
        Ok(Made::Nothing)
    }

    /// The mount that an earlier step made.
    pub(super) fn made_mount(&self, index: u16) -> SysResult<BorrowedFd<'_>> {
        match self.made.get(usize::from(index)) {
            Some(Made::Mount(mount)) => Ok(mount.as_fd()),
            _ => {
                Err(gantry_sys::Error::refused("use", format!("step {index}"), "it made no mount"))
            }
        }
    }

    fn subvolume(
        &self,
        source: Option<&PathRef>,
        target: &PathRef,
        read_only: bool,
    ) -> std::result::Result<Made, Failure> {
        let directory = OFlags::RDONLY | OFlags::DIRECTORY;
        let path = Path::new(&target.rel);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Failure::Own(Error::invalid("the target is the granted root itself")));
        };
        let parent = PathRef::new(&target.root, parent.to_string_lossy());
        let parent = self.open(&parent, directory)?;
        match source {
            Some(source) => {
                snapshot_subvolume(&parent, name, self.open(source, directory)?, read_only)?;
            }
            None if read_only => {
                return Err(Failure::Own(Error::invalid("an empty subvolume is not read-only")));
            }
            None => create_subvolume(&parent, name)?,
        }
        Ok(Made::Nothing)
    }
}

fn own(error: std::io::Error) -> Failure {
    Failure::Own(Error::io("examine", "directory", error))
}

fn mount_file_system(
    kind: FsKind,
    source: &Path,
    read_only: bool,
    options: &Labels,
) -> SysResult<OwnedFd> {
    let context = FsContext::open(options::name(kind))?;
    context.set_string("source", source)?;
    if read_only {
        context.set_flag("ro")?;
    }
    for (name, value) in options {
        if value.is_empty() {
            context.set_flag(name)?;
        } else {
            context.set_string(name, value)?;
        }
    }
    context.create()?;
    let attributes =
        if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    context.mount(attributes)
}

fn tmpfs(
    bytes: u64,
    inodes: u64,
    mode: u16,
    owner: (u32, u32),
) -> std::result::Result<Made, Failure> {
    let context = FsContext::open("tmpfs")?;
    context.set_string("source", "tmpfs")?;
    if bytes > 0 {
        context.set_string("size", bytes.to_string())?;
    }
    if inodes > 0 {
        context.set_string("nr_inodes", inodes.to_string())?;
    }
    context.set_string("mode", format!("{mode:o}"))?;
    context.set_string("uid", owner.0.to_string())?;
    context.set_string("gid", owner.1.to_string())?;
    context.create()?;
    Ok(Made::Mount(context.mount(MountAttrFlags::empty())?))
}

/// Every path a step names.
fn paths(step: &Step) -> Vec<&PathRef> {
    fn of(place: &Place) -> Option<&PathRef> {
        match place {
            Place::Path(path) => Some(path),
            Place::Step(_) => None,
        }
    }
    match step {
        Step::Mkdir { at, .. } => vec![at],
        Step::Loop { file, .. } => vec![file],
        Step::Bind { source, .. } => of(source).into_iter().collect(),
        Step::Fs { device, .. } => of(device).into_iter().collect(),
        Step::Quota { at, .. } => of(at).into_iter().collect(),
        Step::Overlay { lowers, upper, work, .. } => {
            lowers.iter().chain(upper).chain(work).filter_map(of).collect()
        }
        Step::FuseOverlay { lowers, upper, work } => {
            lowers.iter().filter_map(of).chain(upper).chain(work).collect()
        }
        Step::Subvol { source, target, .. } => source.iter().chain([target]).collect(),
        Step::Tmpfs { .. } | Step::Host { .. } | Step::Premounted { .. } => Vec::new(),
    }
}
