//! Whether a plan is well-formed and within its grants. Pure: looks at no file.

use std::path::{Component, Path};

use gantry_sdk::mounts::{
    FsKind, Grants, IdMap, IdRange, MAX_LOWERS, MAX_STEPS, MountPlan, OverlayFlags, PathRef, Place,
    Step,
};
use gantry_sdk::{Error, ErrorKind, Labels, Result};

use super::options;

/// The kernel's own limit on a path, with the terminator.
const PATH_MAX: usize = 4096;

/// What a step leaves for later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Product {
    /// Nothing that can be referred to.
    Nothing,
    /// A mount.
    Mount,
    /// A block device.
    Device,
}

impl Product {
    fn of(step: &Step) -> Self {
        match step {
            Step::Mkdir { .. } | Step::Quota { .. } | Step::Subvol { .. } => Self::Nothing,
            Step::Loop { .. } => Self::Device,
            Step::Bind { .. }
            | Step::Overlay { .. }
            | Step::FuseOverlay { .. }
            | Step::Tmpfs { .. }
            | Step::Fs { .. }
            | Step::Host { .. }
            | Step::Premounted { .. } => Self::Mount,
        }
    }
}

/// Why a step is refused; the step's place is added by [`check`].
struct Refusal(ErrorKind, String);

type Check = std::result::Result<(), Refusal>;

fn invalid(why: impl Into<String>) -> Check {
    Err(Refusal(ErrorKind::InvalidArgument, why.into()))
}

fn forbidden(why: impl Into<String>) -> Check {
    Err(Refusal(ErrorKind::Forbidden, why.into()))
}

/// Checks a whole plan. See [`MountExecutor::check`](gantry_sdk::mounts::MountExecutor::check).
pub(super) fn check(plan: &MountPlan, grants: &Grants) -> Result<()> {
    if plan.steps.is_empty() || plan.steps.len() > MAX_STEPS {
        let count = plan.steps.len();
        return Err(Error::invalid(format!(
            "mount plan has {count} steps, 1 to {MAX_STEPS} allowed"
        )));
    }
    for (index, step) in plan.steps.iter().enumerate() {
        let earlier = plan.steps.get(..index).unwrap_or_default();
        let Err(Refusal(kind, why)) = (Checker { earlier, grants }).step(step) else { continue };
        return Err(Error::new(kind, format!("mount plan step {index} ({}): {why}", step.name())));
    }
    if let Some(ids) = &plan.ids {
        check_ids(plan, ids)?;
    }
    let root = plan.steps.get(usize::from(plan.root)).map(Product::of);
    if root != Some(Product::Mount) {
        let root = plan.root;
        return Err(Error::invalid(format!("mount plan: its root, step {root}, mounts nothing")));
    }
    Ok(())
}

/// The kernel's limit on ranges, `UID_GID_MAP_MAX_EXTENTS`.
const MAX_RANGES: usize = 340;

fn check_ids(plan: &MountPlan, ids: &IdMap) -> Result<()> {
    for ranges in [&ids.users, &ids.groups] {
        let fits = |range: &IdRange| {
            let last = range.count.checked_sub(1);
            let ends = |first: u32| last.and_then(|last| first.checked_add(last)).is_some();
            ends(range.stored) && ends(range.seen)
        };
        if ranges.len() > MAX_RANGES || !ranges.iter().all(fits) {
            let why = "at most 340 ranges of at least one id, within 32 bits";
            return Err(Error::invalid(format!("mount plan: a map of owners has {why}")));
        }
        if !ranges.iter().any(|range| range.stored == 0) {
            return Err(Error::invalid("mount plan: its map of owners leaves out id 0"));
        }
    }
    // The kernel leaves it to the server whether it can, and this one cannot.
    if plan.steps.iter().any(|step| matches!(step, Step::FuseOverlay { .. })) {
        return Err(Error::unsupported("mount plan: fuse-overlayfs cannot map owners"));
    }
    Ok(())
}

struct Checker<'a> {
    earlier: &'a [Step],
    grants: &'a Grants,
}

impl Checker<'_> {
    fn step(&self, step: &Step) -> Check {
        if !self.grants.steps.contains(step.name()) {
            return forbidden("this kind of step was not granted");
        }
        match step {
            Step::Mkdir { at, mode, .. } => {
                self.path(at)?;
                permissions(*mode)
            }
            Step::Bind { source, .. } => self.place(source, Product::Mount),
            Step::Overlay { lowers, upper, work, flags } => {
                self.overlay(lowers, upper.as_ref(), work.as_ref(), *flags)
            }
            Step::FuseOverlay { lowers, upper, work } => {
                let (upper, work) = (upper.clone().map(Place::Path), work.clone().map(Place::Path));
                let flags = OverlayFlags::default();
                self.overlay(lowers, upper.as_ref(), work.as_ref(), flags)
            }
            Step::Tmpfs { mode, .. } => permissions(*mode),
            Step::Loop { file, .. } => self.path(file),
            Step::Fs { kind, device, read_only, options } => {
                self.file_system(*kind, device, *read_only, options)
            }
            Step::Host { fs_type, device, options } => host(fs_type, device, options),
            Step::Quota { at, bytes, inodes } => {
                self.place(at, Product::Mount)?;
                if *bytes == 0 && *inodes == 0 { invalid("it limits nothing") } else { Ok(()) }
            }
            Step::Subvol { source, target, .. } => {
                if let Some(source) = source {
                    self.path(source)?;
                }
                self.path(target)?;
                if Path::new(&target.rel).file_name().is_none() {
                    return invalid("its target is the granted root itself");
                }
                Ok(())
            }
            Step::Premounted { host_path } => premounted(host_path),
        }
    }

    fn path(&self, path: &PathRef) -> Check {
        if !self.grants.roots.contains_key(&path.root) {
            return forbidden(format!("no root {:?} was granted", path.root));
        }
        if path.rel.len() >= PATH_MAX || path.rel.contains('\0') {
            return invalid("a path is too long or holds a zero byte");
        }
        let fine = |component| matches!(component, Component::Normal(_) | Component::CurDir);
        if Path::new(&path.rel).components().all(fine) {
            Ok(())
        } else {
            invalid(format!("{:?} is not a relative path without \"..\"", path.rel))
        }
    }

    fn place(&self, place: &Place, wanted: Product) -> Check {
        let index = match place {
            Place::Path(path) => return self.path(path),
            Place::Step(index) => *index,
        };
        match self.earlier.get(usize::from(index)).map(Product::of) {
            None => invalid(format!("it refers to step {index}, which is not an earlier one")),
            Some(found) if found == wanted => Ok(()),
            Some(_) => invalid(format!("it refers to step {index}, which makes something else")),
        }
    }

    fn overlay(
        &self,
        lowers: &[Place],
        upper: Option<&Place>,
        work: Option<&Place>,
        flags: OverlayFlags,
    ) -> Check {
        if lowers.is_empty() || lowers.len() > MAX_LOWERS {
            let count = lowers.len();
            return invalid(format!("it has {count} lower directories, 1 to {MAX_LOWERS} allowed"));
        }
        for place in lowers.iter().chain(upper).chain(work) {
            self.place(place, Product::Mount)?;
        }
        if upper.is_some() != work.is_some() {
            return invalid("upper and work directory come together");
        }
        if upper.is_some() && upper == work {
            return invalid("upper and work directory are the same");
        }
        if flags.volatile && upper.is_none() {
            return invalid("without an upper directory nothing can be volatile");
        }
        if flags.userxattr && (flags.redirect_dir || flags.metacopy) {
            return invalid("userxattr excludes redirect_dir and metacopy");
        }
        Ok(())
    }

    fn file_system(
        &self,
        kind: FsKind,
        device: &Place,
        read_only: bool,
        options: &Labels,
    ) -> Check {
        self.place(device, Product::Device)?;
        let by_nature = matches!(kind, FsKind::Erofs | FsKind::Squashfs);
        if by_nature && !read_only {
            return invalid("this file system is always read-only");
        }
        if matches!(device, Place::Path(_)) && kind != FsKind::Erofs {
            return invalid("it needs a block device: attach the file with a loop step");
        }
        if let Place::Step(index) = device
            && let Some(Step::Loop { read_only: true, .. }) = self.earlier.get(usize::from(*index))
            && !read_only
        {
            return invalid("its device is read-only");
        }
        options.iter().try_for_each(|(name, value)| match options::allowed(kind, name, value) {
            Ok(()) => Ok(()),
            Err(why) => invalid(why),
        })
    }
}

fn permissions(mode: u16) -> Check {
    if mode <= 0o7777 { Ok(()) } else { invalid(format!("mode {mode:o} is more than permissions")) }
}

fn premounted(path: &Path) -> Check {
    let plain = |component| matches!(component, Component::Normal(_) | Component::RootDir);
    if path.is_absolute() && path.components().all(plain) {
        Ok(())
    } else {
        invalid(format!("{} is not an absolute path without \"..\"", path.display()))
    }
}

fn host(fs_type: &str, device: &str, options: &str) -> Check {
    let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if fs_type.is_empty() || fs_type.len() > 64 || !fs_type.bytes().all(of_a_name) {
        return invalid(format!("{fs_type:?} is not the name of a file system"));
    }
    if device.len() >= PATH_MAX || device.contains('\0') {
        return invalid("its device is too long or holds a zero byte");
    }
    match options::parse_host(options) {
        Ok(parsed) if parsed.bind && !device.starts_with('/') => {
            invalid("the device of a bind mount is an absolute path")
        }
        Ok(parsed) if fs_type == "none" && !parsed.bind => {
            invalid("file system \"none\" goes with the option \"bind\"")
        }
        Ok(_) => Ok(()),
        Err(why) => invalid(why),
    }
}
