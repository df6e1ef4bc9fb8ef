//! Executes the plans of directory-based drivers: directories, binds and overlays.
//!
//! A test needs no kernel for that. What is mounted is detached, so tests disturb nobody and leave
//! nothing, and no mount namespace of their own is needed.

use std::os::fd::OwnedFd;
use std::path::Path;

use async_trait::async_trait;
use gantry_sdk::mounts::{
    FsKind, Grants, IdMap, MAX_LOWERS, MAX_STEPS, MountExecutor, MountFd, MountPlan, PathRef,
    Place, Step,
};
use gantry_sdk::{Ctx, Error, Result};
use gantry_sys::error::Errno;
use gantry_sys::mount::{
    FsContext, FuseOverlay, FuseUpper, IdRange, LoopDevice, MountAttr, MountAttrFlags, Overlay,
    clone_tree, set_attr, user_namespace,
};
use gantry_sys::path::{
    Links, Mode, NewDirectory, OFlags, mkdir_all_beneath, open_beneath, open_root, proc_fd,
};
use std::os::fd::AsFd;

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mounter;

#[async_trait]
impl MountExecutor for Mounter {
    fn check(&self, plan: &MountPlan, grants: &Grants) -> Result<()> {
        check(plan, grants)
    }

    async fn mount(&self, _: &Ctx, plan: &MountPlan, grants: &Grants) -> Result<MountFd> {
        check(plan, grants)?;
        let (plan, grants) = (plan.clone(), grants.clone());
        tokio::task::spawn_blocking(move || execute(&plan, &grants)).await?
    }
}

fn check(plan: &MountPlan, grants: &Grants) -> Result<()> {
    if plan.steps.is_empty() || plan.steps.len() > MAX_STEPS {
        return Err(Error::invalid("a plan has 1 to 512 steps"));
    }
    for (at, step) in plan.steps.iter().enumerate() {
        if !grants.steps.contains(step.name()) {
            return Err(Error::forbidden(format!("step {at}: {} was not granted", step.name())));
        }
        for place in places(step)? {
            match place {
                Place::Step(earlier) if usize::from(earlier) < at => {}
                Place::Step(_) => return Err(Error::invalid(format!("step {at} refers forward"))),
                Place::Path(path) => check_path(at, &path, grants)?,
            }
        }
    }
    let is_mount = |step: &Step| !matches!(step, Step::Mkdir { .. });
    match plan.steps.get(usize::from(plan.root)) {
        Some(step) if is_mount(step) => Ok(()),
        _ => Err(Error::invalid("the plan's root mounts nothing")),
    }
}

fn check_path(at: usize, path: &PathRef, grants: &Grants) -> Result<()> {
    if !grants.roots.contains_key(&path.root) {
        return Err(Error::forbidden(format!("step {at}: no root {:?} was granted", path.root)));
    }
    let is_plain = |component| matches!(component, std::path::Component::Normal(_));
    if !Path::new(&path.rel).components().all(is_plain) {
        return Err(Error::invalid(format!("step {at}: {:?} is not relative and plain", path.rel)));
    }
    Ok(())
}

fn places(step: &Step) -> Result<Vec<Place>> {
    Ok(match step {
        Step::Mkdir { at, .. } => vec![Place::Path(at.clone())],
        Step::Bind { source, .. } => vec![source.clone()],
        Step::Overlay { lowers, upper, work, .. } => {
            if lowers.is_empty() || lowers.len() > MAX_LOWERS || upper.is_some() != work.is_some() {
                return Err(Error::invalid("an overlay with wrong layers"));
            }
            lowers.iter().chain(upper).chain(work).cloned().collect()
        }
        Step::FuseOverlay { lowers, upper, work } => {
            let upper = upper.iter().chain(work).cloned().map(Place::Path);
            lowers.iter().cloned().chain(upper).collect()
        }
        Step::Fs { device, .. } => vec![device.clone()],
        other => return Err(Error::unsupported(format!("the test kit cannot {}", other.name()))),
    })
}

fn execute(plan: &MountPlan, grants: &Grants) -> Result<MountFd> {
    let mut made: Vec<Option<OwnedFd>> = Vec::new();
    let ids = plan.ids.as_ref().map(Ids::new).transpose()?;
    for step in &plan.steps {
        let mount = run(step, &made, grants, ids.as_ref())?;
        made.push(mount);
    }
    let root = made.into_iter().nth(usize::from(plan.root)).flatten();
    root.map(MountFd::new).ok_or_else(|| Error::invalid("the plan's root mounts nothing"))
}

/// A plan's map of owners.
struct Ids {
    namespace: OwnedFd,
    /// As whom root is seen.
    root: (u32, u32),
}

impl Ids {
    fn new(map: &IdMap) -> Result<Self> {
        let ranges = |ranges: &[gantry_sdk::mounts::IdRange]| -> Vec<IdRange> {
            let convert = |r: &gantry_sdk::mounts::IdRange| IdRange {
                stored: r.stored,
                seen: r.seen,
                count: r.count,
            };
            ranges.iter().map(convert).collect()
        };
        let (users, groups) = (ranges(&map.users), ranges(&map.groups));
        let root = |ranges: &[IdRange]| ranges.iter().find(|r| r.stored == 0).map(|r| r.seen);
        let root = root(&users).zip(root(&groups));
        let root = root.ok_or_else(|| Error::invalid("a map of owners leaves out id 0"))?;
        let namespace = user_namespace(&users, &groups)
            .map_err(|e| Error::internal("cannot make a map of owners", e))?;
        Ok(Self { namespace, root })
    }
}

/// A detached mount of `path`, with owners seen through `ids`.
fn clone_of(path: &PathRef, grants: &Grants, ids: Option<&Ids>) -> Result<OwnedFd> {
    let fail = |e| Error::internal(format!("cannot clone {:?}", path.rel), e);
    let mount = clone_tree(open(&Place::Path(path.clone()), &[], grants)?, false).map_err(fail)?;
    if let Some(ids) = ids {
        let change = MountAttr { idmap: Some(ids.namespace.as_fd()), ..MountAttr::default() };
        set_attr(&mount, &change).map_err(|error| {
            if error.is(Errno::INVAL) {
                let why = "this file system maps no owners on this kernel";
                return Error::unsupported(why).caused_by(error);
            }
            fail(error)
        })?;
    }
    Ok(mount)
}

/// A detached mount of an EROFS image, with owners seen through `ids`.
fn image(path: &PathRef, grants: &Grants, ids: Option<&Ids>) -> Result<OwnedFd> {
    let fail = |e| Error::internal(format!("cannot mount image {:?}", path.rel), e);
    let file = open_beneath(
        root_of(path, grants)?,
        Path::new(&path.rel),
        OFlags::RDONLY,
        Mode::empty(),
        Links::Refuse,
    )
    .map_err(fail)?;
    let mount_from = |source: &Path| {
        let context = FsContext::open("erofs")?;
        context.set_string("source", source)?;
        context.set_flag("ro")?;
        context.create()?;
        context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
    };
    let mount = match mount_from(&proc_fd(&file)) {
        // As in the daemon: not every kernel and file system can do without a device.
        Err(error) if error.is(Errno::NOTBLK) => {
            LoopDevice::attach(&file, true).and_then(|device| mount_from(device.path()))
        }
        answer => answer,
    }
    .map_err(fail)?;
    if let Some(ids) = ids {
        let change = MountAttr { idmap: Some(ids.namespace.as_fd()), ..MountAttr::default() };
        set_attr(&mount, &change).map_err(|error| {
            if error.is(Errno::INVAL) {
                let why = "this file system maps no owners on this kernel";
                return Error::unsupported(why).caused_by(error);
            }
            fail(error)
        })?;
    }
    Ok(mount)
}

/// The directory above both, which is where drivers put them, and their names in it.
fn beside(upper: &PathRef, work: &PathRef) -> Result<(PathRef, String, String)> {
    match (upper.rel.rsplit_once('/'), work.rel.rsplit_once('/')) {
        (Some((above, upper_name)), Some((also, work_name))) if above == also => {
            Ok((PathRef::new(&upper.root, above), upper_name.to_owned(), work_name.to_owned()))
        }
        _ => Err(Error::invalid("upper and work directory are not side by side")),
    }
}

/// An overlay whose layers are mounts of their own.
fn mapped_overlay(
    lowers: &[Place],
    top: Option<(&Place, &Place)>,
    made: &[Option<OwnedFd>],
    grants: &Grants,
    ids: &Ids,
) -> Result<OwnedFd> {
    let path = |place: &Place| match place {
        Place::Path(path) => Ok(path.clone()),
        Place::Step(_) => Err(Error::unsupported("the test kit maps owners of paths only")),
    };
    let mut mounts = Vec::new();
    for lower in lowers {
        mounts.push(match lower {
            Place::Path(path) => clone_of(path, grants, Some(ids))?,
            // What an earlier step made is mapped already.
            Place::Step(_) => open(lower, made, grants)?,
        });
    }
    let fail = |e| Error::internal("cannot mount an overlay", e);
    let upper = match top {
        None => None,
        Some((upper, work)) => {
            let (above, upper, work) = beside(&path(upper)?, &path(work)?)?;
            let mount = clone_of(&above, grants, Some(ids))?;
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let open = |name: &str| {
                open_beneath(&mount, Path::new(name), flags, Mode::empty(), Links::Refuse)
            };
            let both = (open(&upper).map_err(fail)?, open(&work).map_err(fail)?);
            mounts.push(mount);
            Some(both)
        }
    };
    let fds: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
    let overlay = Overlay {
        lowers: fds.iter().take(lowers.len()).copied().collect(),
        upper: upper.as_ref().map(|(upper, work)| (upper.as_fd(), work.as_fd())),
        acting_as: Some(ids.root),
        ..Overlay::default()
    };
    overlay.mount_on(&fds).map_err(fail)
}

fn fuse_overlay(
    lowers: &[Place],
    top: Option<(&PathRef, &PathRef)>,
    grants: &Grants,
) -> Result<OwnedFd> {
    let mut mounts = Vec::new();
    for lower in lowers {
        match lower {
            Place::Path(path) => mounts.push(clone_of(path, grants, None)?),
            Place::Step(_) => return Err(Error::unsupported("the test kit serves paths only")),
        }
    }
    let top = match top {
        None => None,
        Some((upper, work)) => {
            let (above, upper, work) = beside(upper, work)?;
            Some((clone_of(&above, grants, None)?, upper, work))
        }
    };
    let overlay = FuseOverlay {
        program: Path::new("/usr/bin/fuse-overlayfs"),
        lowers: mounts.iter().map(AsFd::as_fd).collect(),
        upper: top.as_ref().map(|(mount, changes, work)| FuseUpper {
            mount: mount.as_fd(),
            changes: Path::new(changes),
            work: Path::new(work),
        }),
    };
    overlay.mount().map_err(|e| Error::internal("cannot serve an overlay", e))
}

fn run(
    step: &Step,
    made: &[Option<OwnedFd>],
    grants: &Grants,
    ids: Option<&Ids>,
) -> Result<Option<OwnedFd>> {
    let fail = |e| Error::internal(format!("cannot execute step {}", step.name()), e);
    match step {
        Step::Mkdir { at, uid, gid, mode } => {
            let new = NewDirectory { mode: (*mode).into(), owner: Some((*uid, *gid)) };
            let root = root_of(at, grants)?;
            mkdir_all_beneath(root, Path::new(&at.rel), new, Links::Refuse).map_err(fail)?;
            Ok(None)
        }
        Step::Bind { source, read_only, recursive } => {
            let mount = match source {
                Place::Path(path) if ids.is_some() => clone_of(path, grants, ids)?,
                _ => clone_tree(open(source, made, grants)?, *recursive).map_err(fail)?,
            };
            if *read_only {
                let set = MountAttrFlags::MOUNT_ATTR_RDONLY;
                set_attr(&mount, &MountAttr { set, ..MountAttr::default() }).map_err(fail)?;
            }
            Ok(Some(mount))
        }
        Step::Fs { kind: FsKind::Erofs, device: Place::Path(path), .. } => {
            image(path, grants, ids).map(Some)
        }
        Step::FuseOverlay { lowers, upper, work } => {
            fuse_overlay(lowers, upper.as_ref().zip(work.as_ref()), grants).map(Some)
        }
        Step::Overlay { lowers, upper, work, flags } => {
            if let Some(ids) = ids {
                let top = upper.as_ref().zip(work.as_ref());
                return mapped_overlay(lowers, top, made, grants, ids).map(Some);
            }
            let open = |place| open(place, made, grants);
            let lowers: Vec<OwnedFd> = lowers.iter().map(open).collect::<Result<_>>()?;
            let writable = match (upper, work) {
                (Some(upper), Some(work)) => Some((open(upper)?, open(work)?)),
                _ => None,
            };
            let overlay = Overlay {
                lowers: lowers.iter().map(AsFd::as_fd).collect(),
                upper: writable.as_ref().map(|(upper, work)| (upper.as_fd(), work.as_fd())),
                volatile: flags.volatile,
                userxattr: flags.userxattr,
                ..Overlay::default()
            };
            overlay.mount().map(Some).map_err(fail)
        }
        other => Err(Error::unsupported(format!("the test kit cannot {}", other.name()))),
    }
}

fn root_of(path: &PathRef, grants: &Grants) -> Result<OwnedFd> {
    let root = grants.roots.get(&path.root);
    let root = root.ok_or_else(|| Error::forbidden(format!("no root {:?}", path.root)))?;
    open_root(root).map_err(|e| Error::internal("cannot open a granted root", e))
}

fn open(place: &Place, made: &[Option<OwnedFd>], grants: &Grants) -> Result<OwnedFd> {
    match place {
        Place::Path(path) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let root = root_of(path, grants)?;
            open_beneath(root, Path::new(&path.rel), flags, Mode::empty(), Links::Refuse)
                .map_err(|e| Error::not_found(format!("cannot open {:?}", path.rel)).caused_by(e))
        }
        Place::Step(at) => {
            let fd = made.get(usize::from(*at)).and_then(Option::as_ref);
            let fd = fd.ok_or_else(|| Error::invalid("a step made nothing to refer to"))?;
            fd.try_clone().map_err(|e| Error::internal("cannot keep a mount", e))
        }
    }
}
