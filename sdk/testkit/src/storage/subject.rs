//! What is tried: how to make the driver, on what, and who moves bytes for it.

use std::any::Any;
use std::ffi::OsString;
use std::future::Future;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;

use gantry_sdk::Result;
use gantry_sdk::guard::Guard;
use gantry_sdk::kinds::storage::{LayerForm, Storage, StorageDriver};
use gantry_sdk::mounts::{Grants, MountExecutor};
use gantry_sdk::registry::Kind as _;

use crate::mounts::Mounter;

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

/// A driver that was made, as after a start of the daemon.
pub struct Made {
    /// The driver, guarded as in the daemon.
    pub driver: Arc<dyn StorageDriver>,
    /// What its plans may use; the first of its roots is where it keeps its layers.
    pub grants: Grants,
    /// Whatever has to live as long as the driver.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").field("grants", &self.grants).finish_non_exhaustive()
    }
}

/// A driver in the making.
pub type Making = Pin<Box<dyn Future<Output = Result<Made>> + Send>>;

/// Makes a driver on a directory that may be missing.
pub type MakeDriver = Arc<dyn Fn(PathBuf) -> Making + Send + Sync>;

/// The driver that is tried.
#[derive(Clone)]
pub struct Subject {
    pub(super) make: MakeDriver,
    pub(super) mover: Arc<dyn Mover>,
    pub(super) mounts: Arc<dyn MountExecutor>,
    /// The only kinds of file systems that it works on; none is any.
    pub(super) file_systems: Vec<String>,
    /// Where directories and images are made.
    pub(super) scratch: PathBuf,
    /// The arguments with which this program does a child's part ([`super::child`]).
    pub(super) child: Vec<OsString>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("scratch", &self.scratch).finish_non_exhaustive()
    }
}

impl Subject {
    /// For a driver's own tests: `driver` makes it on a directory, and its plans use `steps`.
    pub fn new(
        driver: fn(&Path) -> Arc<dyn StorageDriver>,
        steps: &'static [&'static str],
        mover: Arc<dyn Mover>,
    ) -> Self {
        let make: MakeDriver = Arc::new(move |root| {
            Box::pin(async move {
                let guard = Guard::new("storage driver", Storage::BUDGET, false);
                let driver = Storage::guard(driver(&root), guard);
                Ok(Made { driver, grants: Grants::on_root(root, steps), keep: Box::new(()) })
            })
        });
        let child = ["--exact", "child_of_a_check", "--nocapture", "--test-threads=1"];
        Self::made_by(make, mover, Arc::new(Mounter)).with_child(child.map(OsString::from))
    }

    /// For drivers that are made in some other way. They may keep their layers in a directory of the
    /// one that they are given.
    pub fn made_by(
        make: MakeDriver,
        mover: Arc<dyn Mover>,
        mounts: Arc<dyn MountExecutor>,
    ) -> Self {
        let (file_systems, scratch, child) = (Vec::new(), std::env::temp_dir(), Vec::new());
        Self { make, mover, mounts, file_systems, scratch, child }
    }

    /// The same driver, which works on file systems of this kind only (`btrfs`, `ext4`, `xfs`).
    #[must_use]
    pub fn only_on(mut self, file_system: &str) -> Self {
        self.file_systems.push(file_system.to_owned());
        self
    }

    /// The same, with directories and images made in `directory`.
    #[must_use]
    pub fn in_directory(self, directory: impl Into<PathBuf>) -> Self {
        Self { scratch: directory.into(), ..self }
    }

    /// The same, with the arguments that make this program call [`super::child`].
    #[must_use]
    pub fn with_child(self, arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self { child: arguments.into_iter().collect(), ..self }
    }

    /// This program again, to do a child's part.
    pub(super) fn child_command(&self) -> Option<Command> {
        if self.child.is_empty() {
            return None;
        }
        // Not its path, where another build may lie by now.
        let mut command = Command::new("/proc/self/exe");
        command.args(&self.child);
        Some(command)
    }
}
