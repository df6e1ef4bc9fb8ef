//! A driver on an empty directory, and what checks do with it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_sdk::kinds::storage::{LayerForm, StorageDriver, StorageInfo};
use gantry_sdk::mounts::{Grants, MountFd, MountPlan};
use gantry_sdk::{Ctx, Labels, Result};

use super::disks::{Disk, Wish, for_others, memory};
use super::subject::{Made, Subject};
use crate::archive::Tar;

/// A driver on an empty directory, and what is needed to try it.
pub struct Fixture {
    /// The driver.
    pub driver: Arc<dyn StorageDriver>,
    /// Where it keeps its layers.
    pub root: PathBuf,
    /// What its plans may use.
    pub grants: Grants,
    /// What is tried.
    pub subject: Subject,
    /// The directory that it was made on: `root`, or one above.
    pub(super) given: PathBuf,
    /// Keeps what comes with the driver.
    keep: Box<dyn std::any::Any + Send + Sync>,
    /// Keeps the directory (and a mount that it is on).
    place: Place,
    /// What the check has to say besides that it passed.
    said: Mutex<Said>,
}

/// What a check says.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) skipped: Option<String>,
    pub(super) notes: Vec<String>,
}

pub(super) enum Place {
    Directory(tempfile::TempDir),
    Mounted(MountFd),
    Disk(Disk),
    /// Somebody else keeps it.
    Lent,
}

impl std::fmt::Debug for Fixture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fixture").field("root", &self.root).finish_non_exhaustive()
    }
}

/// The context of the kit's calls.
pub(crate) fn cx() -> Ctx {
    Ctx::background()
}

impl Subject {
    /// The driver on an empty directory.
    ///
    /// # Errors
    ///
    /// Why there is none, in words.
    pub(super) async fn fixture(&self) -> std::result::Result<Fixture, String> {
        let place = match self.file_systems.first() {
            None => Place::Directory(
                tempfile::tempdir_in(&self.scratch).map_err(|e| format!("no scratch: {e}"))?,
            ),
            Some(kind) => Place::Disk(Disk::make(kind, &self.scratch, Wish::Room)?),
        };
        self.on(place.path().join("root"), place).await
    }

    /// The driver on `given`, which is on `place`.
    pub(super) async fn on(
        &self,
        given: PathBuf,
        place: Place,
    ) -> std::result::Result<Fixture, String> {
        let made = (self.make)(given.clone()).await.map_err(|e| e.chain())?;
        let Made { driver, grants, keep } = made;
        let root = grants.roots.values().next().cloned().unwrap_or_else(|| given.clone());
        let (subject, said) = (self.clone(), Mutex::default());
        Ok(Fixture { driver, root, grants, subject, given, keep, place, said })
    }
}

impl Place {
    fn path(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.path().to_owned(),
            Self::Mounted(mount) | Self::Disk(Disk { mount, .. }) => path_of(mount),
            Self::Lent => PathBuf::new(),
        }
    }
}

impl Fixture {
    /// The same driver on another directory, in a place that is kept by somebody else or by it.
    pub(super) async fn on(&self, given: PathBuf, place: Place) -> Self {
        let made = self.subject.on(given, place).await;
        made.unwrap_or_else(|e| panic!("the driver cannot be made: {e}"))
    }

    /// The same driver on a small file system of its own; none if that cannot be so small.
    pub(super) async fn on_small(&self, bytes: u64, inodes: u64) -> Option<Self> {
        let place = match self.subject.file_systems.first() {
            None => Place::Mounted(memory(bytes, inodes).ok()?),
            // Only file systems in memory are told how many inodes they have.
            Some(_) if inodes > 0 => return None,
            Some(kind) => {
                Place::Disk(Disk::make(kind, &self.subject.scratch, Wish::Bytes(bytes)).ok()?)
            }
        };
        Some(self.on(place.path().join("root"), place).await)
    }

    /// The same driver on `disk`.
    pub(super) async fn on_disk(&self, disk: Disk) -> Self {
        let place = Place::Disk(disk);
        self.on(place.path().join("root"), place).await
    }

    /// The file that holds the file system that it is on.
    pub(super) fn image(&self) -> Option<&std::fs::File> {
        match &self.place {
            Place::Disk(disk) => Some(&disk.image),
            _ => None,
        }
    }

    /// The kinds of file systems in files that the driver can be tried on.
    pub(super) fn kinds(&self) -> Vec<String> {
        if self.subject.file_systems.is_empty() {
            return vec!["ext4".to_owned(), "xfs".to_owned()];
        }
        self.subject.file_systems.clone()
    }

    /// The driver after a restart: made again on the same directory, and recovered.
    pub(super) async fn restart(&mut self) -> Vec<String> {
        // The one before has ended first, as its process would have.
        self.keep = Box::new(());
        let made = (self.subject.make)(self.given.clone()).await.expect("make the driver again");
        (self.driver, self.keep) = (made.driver, made.keep);
        self.driver.recover(&cx()).await.expect("recover")
    }

    pub(super) fn info(&self) -> StorageInfo {
        self.driver.describe()
    }

    /// Says why the check cannot be made here.
    pub(super) fn skip(&self, why: impl Into<String>) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).skipped = Some(why.into());
    }

    /// Says something that belongs into the report.
    pub(super) fn note(&self, what: impl Into<String>) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).notes.push(what.into());
    }

    pub(super) fn said(&self) -> Said {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where things can be put beside the driver's directory.
    pub(super) fn beside(&self) -> PathBuf {
        self.place.path()
    }

    /// Where the driver was made, by a path that other processes can use too.
    pub(super) fn given_for_others(&self) -> PathBuf {
        for_others(&self.given)
    }

    pub(super) async fn mount(&self, plan: &MountPlan) -> MountFd {
        let mounts = &self.subject.mounts;
        mounts.mount(&cx(), plan, &self.grants).await.expect("mount the plan")
    }

    /// Mounts the layer `key`.
    pub(super) async fn open(&self, key: &str) -> MountFd {
        let plan = self.driver.plan(&cx(), key).await.expect("plan");
        self.mount(&plan).await
    }

    pub(super) async fn prepare(&self, key: &str, parent: Option<&str>) -> Result<MountPlan> {
        self.driver.prepare(&cx(), key, parent, &Labels::new()).await
    }

    /// An active layer, mounted.
    pub(super) async fn writable(&self, key: &str, parent: Option<&str>) -> MountFd {
        let plan = self.prepare(key, parent).await.expect("prepare");
        self.mount(&plan).await
    }

    /// Unpacks `archive` into a new active layer `key`, which stays active if that succeeds.
    pub(super) async fn apply(
        &self,
        key: &str,
        parent: Option<&str>,
        archive: &[u8],
    ) -> std::result::Result<(), String> {
        self.prepare(key, parent).await.map_err(|e| e.chain())?;
        let outcome = self.unpack(key, parent, archive).await;
        if outcome.is_err() {
            self.driver.remove(&cx(), key).await.expect("remove what failed");
        }
        outcome
    }

    /// Unpacks `archive` into the active layer `key`.
    pub(super) async fn unpack(
        &self,
        key: &str,
        parent: Option<&str>,
        archive: &[u8],
    ) -> std::result::Result<(), String> {
        let plan = self.driver.unpack_plan(&cx(), key).await.map_err(|e| e.chain())?;
        let target = self.mount(&plan).await;
        let below = self.below(parent).await;
        let (mover, form) = (self.subject.mover.clone(), self.info().form);
        let archive = archive.to_vec();
        let work =
            move || mover.apply(&archive, target.as_fd(), below.as_ref().map(AsFd::as_fd), form);
        tokio::task::spawn_blocking(work).await.expect("the mover")
    }

    /// The layers below, for a layer that is unpacked alone.
    async fn below(&self, parent: Option<&str>) -> Option<MountFd> {
        match (parent, self.info().form) {
            (Some(parent), LayerForm::OverlayDirectory | LayerForm::ErofsImage) => {
                Some(self.open(parent).await)
            }
            _ => None,
        }
    }

    /// A committed layer `name` from `archive`.
    pub(super) async fn layer(&self, name: &str, parent: Option<&str>, archive: Tar) {
        self.layer_from(name, parent, &archive.end()).await;
    }

    pub(super) async fn layer_from(&self, name: &str, parent: Option<&str>, archive: &[u8]) {
        let key = format!("making {name}");
        self.apply(&key, parent, archive).await.unwrap_or_else(|e| panic!("layer {name}: {e}"));
        self.driver.commit(&cx(), &key, name).await.expect("commit");
    }

    /// The archive of what the active layer `key` changes over `parent`.
    pub(super) async fn diff(&self, key: &str, parent: Option<&str>) -> Vec<u8> {
        let info = self.info();
        let is_native = info.form != LayerForm::MergedTree && info.native_diff;
        let (layer, form) = if is_native {
            let plan = self.driver.unpack_plan(&cx(), key).await.expect("plan");
            (self.mount(&plan).await, info.form)
        } else {
            (self.open(key).await, LayerForm::MergedTree)
        };
        let below = match parent {
            Some(parent) => Some(self.open(parent).await),
            None => None,
        };
        let below = below.as_ref().map(AsFd::as_fd);
        self.subject.mover.diff(layer.as_fd(), below, form).expect("diff")
    }

    /// Everything in the layer `key` as a container sees it.
    pub(super) async fn snapshot(&self, key: &str) -> std::collections::BTreeMap<String, String> {
        let mount = self.open(key).await;
        crate::tree::snapshot(&path_of(&mount)).expect("read the tree")
    }

    /// Keys and states of all layers.
    pub(super) async fn states(&self) -> Vec<(String, gantry_sdk::kinds::storage::LayerState)> {
        let layers = self.driver.list(&cx(), None, 10_000).await.expect("list");
        layers.into_iter().map(|layer| (layer.key, layer.state)).collect()
    }

    /// Does at once what a task does in the daemon, for drivers that keep what was removed in `t`.
    pub(super) fn empty_trash(&self) {
        let _ = std::fs::read_dir(self.root.join("t")).map(|entries| {
            entries.flatten().for_each(|entry| drop(gantry_sys::path::remove_tree(&entry.path())))
        });
    }

    /// How many files and directories the driver has, without what it has removed.
    pub(super) fn entries(&self) -> usize {
        // Not by subtracting: a task may be deleting there.
        let top = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let kept = top.filter(|entry| entry.file_name() != "t").map(|entry| entry.path());
        kept.map(|path| 1 + if path.is_dir() { entries(&path) } else { 0 }).sum()
    }
}

fn entries(dir: &Path) -> usize {
    let entries_of = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    entries_of(dir)
        .map(|entry| {
            let path = entry.path();
            1 + if path.is_dir() && !path.is_symlink() { entries(&path) } else { 0 }
        })
        .sum()
}

/// A path to a detached mount, for functions that want one; as long as the mount is kept.
pub(crate) fn path_of(mount: &MountFd) -> PathBuf {
    // Without the dot it names the link in `/proc`, not what it leads to.
    gantry_sys::path::proc_fd(mount).join(".")
}

/// Whether there is anything of that name, also a dangling link.
pub(crate) fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}
