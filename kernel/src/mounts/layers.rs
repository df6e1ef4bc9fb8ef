//! Overlays, and owners that are seen through a map.
//!
//! A map is a property of a mount, and an overlay shows the owners that its layers' mounts show. So
//! with a map each layer becomes a mapped mount of its own; the overlay itself is not mapped.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_sdk::mounts::{IdMap, IdRange, OverlayFlags, PathRef, Place};
use gantry_sdk::{Error, ErrorKind};
use gantry_sys::error::Errno;
use gantry_sys::mount::{
    FuseOverlay, FuseUpper, MountAttr, Overlay, clone_tree, set_attr, user_namespace,
};
use gantry_sys::path::{Links, Mode, OFlags, open_beneath};

use super::execute::{Failure, Made, Run};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Where the server of overlays is looked for.
const PROGRAM_DIRS: &[&str] =
    &["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"];

type Outcome<T> = Result<T, Failure>;

/// A plan's map of owners.
pub(super) struct Ids {
    namespace: OwnedFd,
    /// The ids as which the stored ids 0 are seen: the only ones as which the kernel can keep house in
    /// a mapped layer on root's behalf.
    root: (u32, u32),
}

/// Makes the map of a plan.
pub(super) fn map_of(ids: &IdMap) -> Outcome<Ids> {
    let ranges = |ranges: &[IdRange]| -> Vec<gantry_sys::mount::IdRange> {
        let convert = |range: &IdRange| gantry_sys::mount::IdRange {
            stored: range.stored,
            seen: range.seen,
            count: range.count,
        };
        ranges.iter().map(convert).collect()
    };
    let root =
        |ranges: &[IdRange]| ranges.iter().find(|range| range.stored == 0).map(|range| range.seen);
    let (Some(user), Some(group)) = (root(&ids.users), root(&ids.groups)) else {
        return Err(Failure::Own(Error::invalid("a map of owners leaves out id 0")));
    };
    let namespace = user_namespace(&ranges(&ids.users), &ranges(&ids.groups))?;
    Ok(Ids { namespace, root: (user, group) })
}

/// The layers of an overlay while it is being mounted.
#[derive(Default)]
struct Layers<'a> {
    /// Detached mounts that layers lie on.
    mounts: Vec<Held<'a>>,
    /// Directories on the machine's own mounts, or within `mounts`.
    directories: Vec<OwnedFd>,
}

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

/// Where a layer is in [`Layers`].
enum At {
    Mount(usize),
    Directory(usize),
}

impl<'a> Layers<'a> {
    fn mount(&mut self, mount: Held<'a>) -> At {
        self.mounts.push(mount);
        At::Mount(self.mounts.len() - 1)
    }

    fn directory(&mut self, directory: OwnedFd) -> At {
        self.directories.push(directory);
        At::Directory(self.directories.len() - 1)
    }

    fn get(&self, at: &At) -> Option<BorrowedFd<'_>> {
        match at {
            At::Mount(index) => self.mounts.get(*index).map(AsFd::as_fd),
            At::Directory(index) => self.directories.get(*index).map(AsFd::as_fd),
        }
    }
}

impl Run<'_> {
    /// Applies the plan's map to a detached mount.
    pub(super) fn map_owners(&self, mount: &OwnedFd, recursive: bool) -> Outcome<()> {
        let Some(ids) = &self.ids else { return Ok(()) };
        let change =
            MountAttr { idmap: Some(ids.namespace.as_fd()), recursive, ..MountAttr::default() };
        match set_attr(mount, &change) {
            Err(error) if error.is(Errno::INVAL) || error.is(Errno::NOSYS) => {
                let why = "its file system cannot show files with other owners on this kernel";
                Err(Failure::Own(Error::unsupported(why).caused_by(error)))
            }
            answer => Ok(answer?),
        }
    }

    fn mapped_clone(&self, path: &PathRef) -> Outcome<OwnedFd> {
        let mount = clone_tree(self.open(path, DIRECTORY)?, false)?;
        self.map_owners(&mount, false)?;
        Ok(mount)
    }

    fn layer<'s>(&'s self, place: &Place, layers: &mut Layers<'s>) -> Outcome<At> {
        match place {
            Place::Step(index) => Ok(layers.mount(Held::Step(self.made_mount(*index)?))),
            Place::Path(path) if self.ids.is_some() => {
                Ok(layers.mount(Held::Own(self.mapped_clone(path)?)))
            }
            Place::Path(path) => Ok(layers.directory(self.open(path, DIRECTORY)?)),
        }
    }

    pub(super) fn overlay(
        &self,
        lowers: &[Place],
        upper: Option<(&Place, &Place)>,
        flags: OverlayFlags,
    ) -> Outcome<Made> {
        let mut layers = Layers::default();
        let lowers = lowers
            .iter()
            .map(|place| self.layer(place, &mut layers))
            .collect::<Outcome<Vec<_>>>()?;
        let upper = match upper {
            None => None,
            // Both have to be on the same mount, so it is one mapped mount above both.
            Some((Place::Path(upper), Place::Path(work))) if self.ids.is_some() => {
                let (above, upper, work) = above_both(upper, work)?;
                let mount = self.mapped_clone(&above)?;
                let open = |path: &Path| {
                    open_beneath(&mount, path, DIRECTORY, Mode::empty(), Links::Refuse)
                };
                let (upper, work) = (open(&upper)?, open(&work)?);
                layers.mount(Held::Own(mount));
                Some((layers.directory(upper), layers.directory(work)))
            }
            Some((upper, work)) => {
                Some((self.layer(upper, &mut layers)?, self.layer(work, &mut layers)?))
            }
        };
        // Said in so many words, for the kernel's defaults are a matter of its configuration. With
        // `userxattr` it takes no word about the last two, and leaves them off.
        let unless_user = |on: bool| (!flags.userxattr).then_some(on);
        let overlay = Overlay {
            lowers: lowers.iter().filter_map(|at| layers.get(at)).collect(),
            upper: upper.as_ref().and_then(|(upper, work)| layers.get(upper).zip(layers.get(work))),
            volatile: flags.volatile,
            userxattr: flags.userxattr,
            index: Some(flags.index),
            metacopy: unless_user(flags.metacopy),
            redirect_dir: unless_user(flags.redirect_dir),
            attributes: None,
            acting_as: self.ids.as_ref().map(|ids| ids.root),
        };
        let mounts: Vec<BorrowedFd<'_>> = layers.mounts.iter().map(AsFd::as_fd).collect();
        Ok(Made::Mount(overlay.mount_on(&mounts)?))
    }

    pub(super) fn fuse_overlay(
        &self,
        lowers: &[Place],
        upper: Option<(&PathRef, &PathRef)>,
    ) -> Outcome<Made> {
        let program = program("fuse-overlayfs").ok_or_else(|| {
            let why = "there is no program fuse-overlayfs on this machine";
            Failure::Own(Error::new(ErrorKind::Unsupported, why))
        })?;
        let mut mounts = Vec::with_capacity(lowers.len());
        for place in lowers {
            mounts.push(match place {
                Place::Step(index) => Held::Step(self.made_mount(*index)?),
                Place::Path(path) => Held::Own(clone_tree(self.open(path, DIRECTORY)?, false)?),
            });
        }
        let top = match upper {
            None => None,
            Some((upper, work)) => {
                let (above, upper, work) = above_both(upper, work)?;
                Some((clone_tree(self.open(&above, DIRECTORY)?, false)?, upper, work))
            }
        };
        let overlay = FuseOverlay {
            program: &program,
            lowers: mounts.iter().map(AsFd::as_fd).collect(),
            upper: top.as_ref().map(|(mount, changes, work)| FuseUpper {
                mount: mount.as_fd(),
                changes,
                work,
            }),
        };
        Ok(Made::Mount(overlay.mount()?))
    }
}

fn program(name: &str) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// The nearest directory above both paths, and the two relative to it.
fn above_both(a: &PathRef, b: &PathRef) -> Outcome<(PathRef, PathBuf, PathBuf)> {
    let (left, right) = (Path::new(&a.rel), Path::new(&b.rel));
    let shared: PathBuf = left
        .components()
        .zip(right.components())
        .take_while(|(left, right)| left == right)
        .map(|(both, _)| both)
        .collect();
    match (left.strip_prefix(&shared), right.strip_prefix(&shared)) {
        (Ok(left), Ok(right)) if a.root == b.root => {
            let above = PathRef::new(&a.root, shared.to_string_lossy());
            Ok((above, left.to_owned(), right.to_owned()))
        }
        _ => {
            let why = "upper and work directory are not beneath the same root";
            Err(Failure::Own(Error::invalid(why)))
        }
    }
}
