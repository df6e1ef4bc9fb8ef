//! Executes the plans of directory-based drivers: directories, binds and overlays.
//!
//! A test needs no kernel for that. What is mounted is detached, so tests disturb nobody and leave
//! nothing, and no mount namespace of their own is needed.

use std::os::fd::OwnedFd;
use std::path::Path;

use async_trait::async_trait;
use gantry_sdk::mounts::{
    Grants, MAX_LOWERS, MAX_STEPS, MountExecutor, MountFd, MountPlan, PathRef, Place, Step,
};
use gantry_sdk::{Ctx, Error, Result};
use gantry_sys::mount::{MountAttr, MountAttrFlags, Overlay, clone_tree, set_attr};
use gantry_sys::path::{
    Links, Mode, NewDirectory, OFlags, mkdir_all_beneath, open_beneath, open_root,
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
        return Err(Error::invalid("a plan has 1 to 64 steps"));
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
        other => return Err(Error::unsupported(format!("the test kit cannot {}", other.name()))),
    })
}

fn execute(plan: &MountPlan, grants: &Grants) -> Result<MountFd> {
    let mut made: Vec<Option<OwnedFd>> = Vec::new();
    for step in &plan.steps {
        let mount = run(step, &made, grants)?;
        made.push(mount);
    }
    let root = made.into_iter().nth(usize::from(plan.root)).flatten();
    root.map(MountFd::new).ok_or_else(|| Error::invalid("the plan's root mounts nothing"))
}

fn run(step: &Step, made: &[Option<OwnedFd>], grants: &Grants) -> Result<Option<OwnedFd>> {
    let fail = |e| Error::internal(format!("cannot execute step {}", step.name()), e);
    match step {
        Step::Mkdir { at, uid, gid, mode } => {
            let new = NewDirectory { mode: (*mode).into(), owner: Some((*uid, *gid)) };
            let root = root_of(at, grants)?;
            mkdir_all_beneath(root, Path::new(&at.rel), new, Links::Refuse).map_err(fail)?;
            Ok(None)
        }
        Step::Bind { source, read_only, recursive } => {
            let mount = clone_tree(open(source, made, grants)?, *recursive).map_err(fail)?;
            if *read_only {
                let set = MountAttrFlags::MOUNT_ATTR_RDONLY;
                set_attr(&mount, &MountAttr { set, ..MountAttr::default() }).map_err(fail)?;
            }
            Ok(Some(mount))
        }
        Step::Overlay { lowers, upper, work, flags } => {
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
