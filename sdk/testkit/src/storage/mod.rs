//! The contract of storage drivers: what every one of them must do, as checks that run on any.
//!
//! [`storage_driver_contract!`](crate::storage_driver_contract) makes one test of each check. The
//! kit mounts plans itself ([`crate::mounts`]); who unpacks and archives layers is given by the test,
//! as in the daemon: a [`Mover`].
//!
//! Needs root and overlayfs for the drivers that use it; without root the tests say that they skip.
//! What is not checked, and why, is in [`SKIPPED`].

#![expect(clippy::unwrap_used, reason = "checks are tests, and end by panicking")]

mod concurrency;
mod content;
mod contract;
mod files;
mod hygiene;
mod limits;
mod metadata;
mod trips;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_sdk::kinds::storage::{LayerForm, StorageDriver, StorageInfo};
use gantry_sdk::mounts::{Grants, MountExecutor, MountFd, MountPlan};
use gantry_sdk::{Ctx, Labels, Result};

use crate::archive::Tar;
use crate::mounts::Mounter;

pub use concurrency::*;
pub use content::*;
pub use contract::*;
pub use files::*;
pub use hygiene::*;
pub use limits::*;
pub use metadata::*;
pub use trips::*;

/// Checks of the design's list that this kit does not hold yet, by number, with the reason.
pub const SKIPPED: &[(u32, &str)] = &[
    (12, "deadlines are kept by the guard around every driver, and tested there"),
    (35, "shared mappings need unsafe code, which the kit has none of"),
    (51, "killing at named points needs drivers that name them; half made states are made by hand"),
    (
        52,
        "replaying a block log needs a device-mapper target; the boot id is tested by the drivers",
    ),
    (53, "plans are mounted detached: nothing can be left over"),
    (58, "needs a kernel with SELinux"),
];

/// Who moves bytes between archives and directories: in the daemon, the layer store.
pub trait Mover: Send + Sync {
    /// Unpacks a layer's archive into `target`; see `LayerStore` for `below`.
    ///
    /// # Errors
    ///
    /// What went wrong, in words.
    fn apply(
        &self,
        archive: &[u8],
        target: BorrowedFd<'_>,
        below: Option<BorrowedFd<'_>>,
        form: LayerForm,
    ) -> std::result::Result<(), String>;

    /// Archives what the directory of an active layer changes over `below`.
    ///
    /// # Errors
    ///
    /// What went wrong, in words.
    fn diff(
        &self,
        layer: BorrowedFd<'_>,
        below: Option<BorrowedFd<'_>>,
        form: LayerForm,
    ) -> std::result::Result<Vec<u8>, String>;
}

/// Makes a driver on a directory, as after a start of the daemon.
pub type MakeDriver = fn(&Path) -> Arc<dyn StorageDriver>;

/// Makes an empty file system that the driver works on, mounted and detached, of about so many bytes (0:
/// enough) and inodes (0: enough); none if it cannot have such a limit.
pub type MakeFileSystem = fn(u64, u64) -> Option<MountFd>;

/// A driver on an empty directory, and what is needed to try it.
pub struct Fixture {
    /// The driver.
    pub driver: Arc<dyn StorageDriver>,
    /// Its directory.
    pub root: PathBuf,
    /// What its plans may use.
    pub grants: Grants,
    /// Who moves bytes.
    pub mover: Arc<dyn Mover>,
    make: MakeDriver,
    mount: MakeFileSystem,
    /// Keeps the directory (and a mount that it is on).
    place: Place,
}

enum Place {
    Directory(tempfile::TempDir),
    Mounted(#[expect(dead_code, reason = "kept for its drop")] MountFd),
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

impl Fixture {
    /// A driver made by `make` whose plans use `steps`.
    ///
    /// # Panics
    ///
    /// If there is no temporary directory.
    pub fn new(make: MakeDriver, steps: &[&'static str], mover: Arc<dyn Mover>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().join("root");
        let grants = Grants::on_root(&root, steps);
        let (driver, place) = (make(&root), Place::Directory(dir));
        Self { driver, root, grants, mover, make, mount: tmpfs, place }
    }

    /// As [`new`](Self::new), for a driver that works on some file system only, which `mount` makes.
    ///
    /// # Panics
    ///
    /// If `mount` makes none.
    pub fn mounted(
        make: MakeDriver,
        steps: &[&'static str],
        mover: Arc<dyn Mover>,
        mount: MakeFileSystem,
    ) -> Self {
        let place = mount(0, 0).expect("a file system");
        let root = path_of(&place).join("root");
        let grants = Grants::on_root(&root, steps);
        let (driver, place) = (make(&root), Place::Mounted(place));
        Self { driver, root, grants, mover, make, mount, place }
    }

    /// The same driver on another directory.
    fn on(&self, root: PathBuf, place: Place) -> Self {
        let mut grants = self.grants.clone();
        grants.roots.insert("root".to_owned(), root.clone());
        let driver = (self.make)(&root);
        let (mover, make, mount) = (self.mover.clone(), self.make, self.mount);
        Self { driver, root, grants, mover, make, mount, place }
    }

    /// The same driver on a file system of its own; none if that cannot be so small.
    fn on_small(&self, bytes: u64, inodes: u64) -> Option<Self> {
        let mount = (self.mount)(bytes, inodes)?;
        Some(self.on(path_of(&mount).join("root"), Place::Mounted(mount)))
    }

    /// The driver after a restart: made again on the same directory, and recovered.
    async fn restart(&mut self) -> Vec<String> {
        self.driver = (self.make)(&self.root);
        self.driver.recover(&cx()).await.expect("recover")
    }

    fn info(&self) -> StorageInfo {
        self.driver.describe()
    }

    /// Where things can be put beside the driver's directory.
    fn beside(&self) -> &Path {
        match &self.place {
            Place::Directory(dir) => dir.path(),
            Place::Mounted(_) => self.root.parent().unwrap_or(&self.root),
        }
    }

    async fn mount(&self, plan: &MountPlan) -> MountFd {
        Mounter.mount(&cx(), plan, &self.grants).await.expect("mount the plan")
    }

    /// Mounts the layer `key`.
    async fn open(&self, key: &str) -> MountFd {
        let plan = self.driver.plan(&cx(), key).await.expect("plan");
        self.mount(&plan).await
    }

    async fn prepare(&self, key: &str, parent: Option<&str>) -> Result<MountPlan> {
        self.driver.prepare(&cx(), key, parent, &Labels::new()).await
    }

    /// An active layer, mounted.
    async fn writable(&self, key: &str, parent: Option<&str>) -> MountFd {
        let plan = self.prepare(key, parent).await.expect("prepare");
        self.mount(&plan).await
    }

    /// Unpacks `archive` into a new active layer `key`, which stays active if that succeeds.
    async fn apply(
        &self,
        key: &str,
        parent: Option<&str>,
        archive: &[u8],
    ) -> std::result::Result<(), String> {
        self.prepare(key, parent).await.map_err(|e| e.chain())?;
        let plan = self.driver.unpack_plan(&cx(), key).await.map_err(|e| e.chain())?;
        let target = self.mount(&plan).await;
        let below = self.below(parent).await;
        let (mover, form) = (self.mover.clone(), self.info().form);
        let archive = archive.to_vec();
        let work =
            move || mover.apply(&archive, target.as_fd(), below.as_ref().map(AsFd::as_fd), form);
        let outcome = tokio::task::spawn_blocking(work).await.expect("the mover");
        if outcome.is_err() {
            self.driver.remove(&cx(), key).await.expect("remove what failed");
        }
        outcome
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
    async fn layer(&self, name: &str, parent: Option<&str>, archive: Tar) {
        self.layer_from(name, parent, &archive.end()).await;
    }

    async fn layer_from(&self, name: &str, parent: Option<&str>, archive: &[u8]) {
        let key = format!("making {name}");
        self.apply(&key, parent, archive).await.unwrap_or_else(|e| panic!("layer {name}: {e}"));
        self.driver.commit(&cx(), &key, name).await.expect("commit");
    }

    /// The archive of what the active layer `key` changes over `parent`.
    async fn diff(&self, key: &str, parent: Option<&str>) -> Vec<u8> {
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
        self.mover.diff(layer.as_fd(), below, form).expect("diff")
    }

    /// Everything in the layer `key` as a container sees it.
    async fn snapshot(&self, key: &str) -> std::collections::BTreeMap<String, String> {
        let mount = self.open(key).await;
        crate::tree::snapshot(&path_of(&mount)).expect("read the tree")
    }
}

fn tmpfs(bytes: u64, inodes: u64) -> Option<MountFd> {
    let context = gantry_sys::mount::FsContext::open("tmpfs").expect("tmpfs");
    context.set_string("size", bytes.to_string()).expect("size");
    if inodes > 0 {
        context.set_string("nr_inodes", inodes.to_string()).expect("inodes");
    }
    context.create().expect("tmpfs");
    let mount = context.mount(gantry_sys::mount::MountAttrFlags::empty()).expect("tmpfs");
    Some(MountFd::new(mount))
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

/// A check: panics if the driver breaks the contract.
pub type Check = for<'a> fn(&'a mut Fixture) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs one check on a fresh fixture; used by the macro.
///
/// # Panics
///
/// If the check fails.
pub fn run(name: &str, make: fn() -> Fixture, check: Check) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("{name}: skipped: needs root");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut fixture = make();
    runtime.block_on(async {
        fixture.driver.recover(&cx()).await.expect("recover");
        check(&mut fixture).await;
    });
    let mounts = gantry_sys::mount::read_mountinfo().expect("mounts");
    let left = mounts.iter().find(|mount| mount.mount_point.starts_with(&fixture.root));
    assert!(left.is_none(), "{name} left a mount: {left:?}");
}

/// Defines the tests that every storage driver must pass; `$make` is a `fn() -> Fixture`, and `$possible`
/// says whether the machine has what the driver needs.
#[macro_export]
macro_rules! storage_driver_contract {
    ($make:path) => {
        $crate::storage_driver_contract!($make, if true);
    };
    ($make:path, if $possible:expr) => {
        $crate::storage_driver_contract!(@each $make, $possible =>
            describe_is_stable_across_calls_and_restart,
            preparing_twice_gives_the_same_plan,
            preparing_on_another_parent_is_a_conflict,
            unknown_layers_are_not_found_and_nothing_is_made,
            an_active_layer_cannot_be_a_parent,
            committing_to_a_taken_name_changes_nothing,
            a_layer_with_children_is_busy_and_goes_after_them,
            a_committed_layer_is_read_only,
            listing_is_complete_under_concurrent_inserts,
            keys_may_be_long_and_odd_and_differ_in_case_only,
            plans_stay_within_their_grants,
            unknown_options_are_refused,
            files_are_added_changed_truncated_and_deleted,
            a_whiteout_hides_any_type_of_entry,
            an_opaque_directory_shows_nothing_from_below,
            opaque_markers_and_whiteouts_work_side_by_side,
            a_whiteout_of_nothing_is_harmless,
            names_like_markers_are_never_misread,
            renames_over_lower_entries_work,
            a_merged_directory_is_renamed_or_refused,
            a_hard_link_within_a_layer_is_one_file,
            a_hard_link_to_a_lower_file_has_the_right_content,
            symbolic_links_are_kept_as_they_are,
            a_parent_that_is_a_link_below_stays_inside,
            owners_of_every_size_are_kept,
            modes_survive_with_their_special_bits,
            times_are_kept_to_the_nanosecond,
            extended_attributes_are_kept,
            access_lists_are_kept,
            devices_and_pipes_are_kept,
            the_top_directory_keeps_its_attributes,
            a_sparse_file_stays_small,
            odd_names_and_sizes_are_kept,
            many_files_and_deep_paths_work,
            special_ways_of_writing_work,
            a_hundred_and_twenty_eight_layers_can_be_read,
            one_layer_more_than_the_limit_is_refused,
            concurrent_prepares_work_and_one_commit_wins,
            containers_on_one_layer_do_not_see_each_other,
            removing_a_parent_races_cleanly_with_a_child,
            siblings_can_be_unpacked_at_the_same_time,
            what_was_archived_unpacks_to_the_same_tree,
            archiving_twice_gives_the_same_bytes,
            an_untouched_layer_has_nothing_to_archive,
            layers_mean_what_a_plain_directory_shows,
            usage_is_what_an_independent_walk_finds,
            a_size_is_kept_or_refused,
            running_out_of_space_is_clean,
            running_out_of_inodes_is_clean,
            owners_are_seen_through_a_map,
            recovering_twice_is_recovering_once,
            a_restart_between_prepare_and_commit_is_no_obstacle,
            a_thousand_cycles_leave_nothing,
            hostile_archives_stay_inside,
            the_root_may_have_any_name,
            speed_is_reported,
            skipped_checks_are_listed,
        );
    };
    (@each $make:path, $possible:expr => $($case:ident),+ $(,)?) => {$(
        #[test]
        fn $case() {
            if !$possible {
                eprintln!("skipped: this machine has not what the driver needs");
                return;
            }
            $crate::storage::run(stringify!($case), $make, |f| {
                Box::pin($crate::storage::$case(f))
            });
        }
    )+};
}
