//! Storage drivers: where layers are placed and how they are stacked. Drivers never mount and never
//! see layer bytes: they return mount plans, and the layer store moves the bytes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::mounts::MountPlan;
use crate::{Labels, kind};

/// What a layer is while it is being unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerForm {
    /// A directory of its own, without its parents in sight. A deletion is a character device 0:0,
    /// a replaced directory has `trusted.overlay.opaque`.
    OverlayDirectory,
    /// A copy of its parents, over which it is unpacked. A deletion removes the entry.
    MergedTree,
    /// One EROFS image, the file [`EROFS_LAYER`] in the directory that
    /// [`StorageDriver::unpack_plan`] mounts. Deletions inside are those of an overlay.
    ErofsImage,
}

/// The name of the image of a layer of [`LayerForm::ErofsImage`].
pub const EROFS_LAYER: &str = "layer.erofs";

/// What a driver can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageInfo {
    /// What a layer is while it is unpacked.
    pub form: LayerForm,
    /// The most committed layers beneath a writable one.
    pub max_depth: u32,
    /// Whether a layer can be unpacked before its parent is there, and be given it afterwards by
    /// [`StorageDriver::rebase`].
    pub parallel_unpack: bool,
    /// Whether the directory of [`StorageDriver::unpack_plan`] says, as an overlay's upper one, what was
    /// changed in an active layer that was mounted by its plan. Otherwise its tree has to be compared
    /// with its parent's.
    pub native_diff: bool,
    /// Whether plans can be given [`MountPlan::ids`].
    pub id_maps: bool,
    /// Option names that [`StorageDriver::prepare`] honours, such as `size`.
    pub options: Vec<String>,
    /// Options for the layers of containers for which the user gave no other value, from the
    /// driver's configuration.
    pub defaults: Labels,
    /// Rows for `docker info`, such as the backing file system.
    pub status: Vec<(String, String)>,
}

/// The state of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// Writable.
    Active,
    /// Read-only, may be a parent.
    Committed,
}

/// A layer as its driver sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Caller-chosen key.
    pub key: String,
    /// Key of the committed layer below.
    pub parent: Option<String>,
    /// State.
    pub state: LayerState,
}

kind! {
    /// Keeps layers as stacked directories, volumes or images.
    ///
    /// # Terms
    ///
    /// - *key*: chosen by the caller, 1 to 256 printable ASCII characters without `/`
    /// - *active* layer: writable, made by `prepare`
    /// - *committed* layer: read-only, made by `commit` from an active one
    ///
    /// # Rules for every implementation
    ///
    /// - Every call may be repeated, also after a crash, and then ends in the same state.
    /// - Nothing outside the instance's own root is touched.
    /// - Calls for different keys may run at the same time.
    ///
    /// The rules are tested by `gantry_testkit::storage_driver_contract!`.
    pub trait StorageDriver: Storage = "storage" (1, 1), budget Some(Duration::from_secs(60)) => {
        /// Makes a writable layer `key` on the committed layer `parent` and returns how to mount it.
        /// Again with the same parent: the same plan.
        ///
        /// # Errors
        ///
        /// `NotFound`: no committed layer `parent`. `Conflict`: `key` exists with another parent or
        /// is committed, or `parent` is active. `InvalidArgument`: a bad key, an unknown option, a
        /// depth above [`StorageInfo::max_depth`].
        async fn prepare(&self, cx: &Ctx, key: &str, parent: Option<&str>, options: &Labels) -> Result<MountPlan>;

        /// How to mount the directory into which the layer store unpacks the active layer `key`: for
        /// [`LayerForm::OverlayDirectory`] the layer alone, for [`LayerForm::MergedTree`] the whole
        /// tree, for [`LayerForm::ErofsImage`] where its image is to be.
        async fn unpack_plan(&self, cx: &Ctx, key: &str) -> Result<MountPlan>;

        /// Gives the active layer `key`, prepared without a parent, the committed layer `parent`
        /// below it. Again with the same parent: nothing.
        ///
        /// # Errors
        ///
        /// `NotFound`: no active layer `key`, no layer `parent`. `Conflict`: `key` has another parent,
        /// or `parent` is active. `InvalidArgument`: a depth above [`StorageInfo::max_depth`].
        /// `Unsupported` unless [`StorageInfo::parallel_unpack`].
        async fn rebase(&self, cx: &Ctx, key: &str, parent: Option<&str>) -> Result<()>;

        /// How to mount layer `key`: an active one writable, a committed one read-only.
        ///
        /// # Errors
        ///
        /// `NotFound`: no such layer.
        async fn plan(&self, cx: &Ctx, key: &str) -> Result<MountPlan>;

        /// Turns the active layer `key` into the committed layer `name`.
        ///
        /// # Errors
        ///
        /// `NotFound`: no active layer `key`. `Exists`: `name` is taken; `key` stays as it is.
        async fn commit(&self, cx: &Ctx, key: &str, name: &str) -> Result<Layer>;

        /// Removes a layer; a missing one is no error.
        ///
        /// # Errors
        ///
        /// `Busy`: other layers stand on it; the message lists them.
        async fn remove(&self, cx: &Ctx, key: &str) -> Result<()>;

        /// # Errors
        ///
        /// `NotFound`: no such layer.
        async fn stat(&self, cx: &Ctx, key: &str) -> Result<Layer>;

        /// Up to `limit` layers with keys after `after`, in key order.
        async fn list(&self, cx: &Ctx, after: Option<&str>, limit: u32) -> Result<Vec<Layer>>;

        /// Bytes and inodes that layer `key` adds to its parent: the lengths of files and links, each
        /// inode once. Directories count as inodes only, so that an empty layer has no bytes.
        async fn usage(&self, cx: &Ctx, key: &str) -> Result<(u64, u64)>;

        /// Bytes of removed layers that are still on disk, because removing goes on in the background;
        /// counted as [`StorageDriver::usage`] counts.
        async fn removing(&self, cx: &Ctx) -> Result<u64>;

        /// Makes a committed layer durable before it is relied upon.
        async fn sync(&self, cx: &Ctx, key: &str) -> Result<()>;

        /// After a crash: finishes or undoes what was half done; returns the keys that were dropped.
        async fn recover(&self, cx: &Ctx) -> Result<Vec<String>>;

        /// What `docker inspect` shows as `GraphDriver.Data` of layer `key`.
        async fn details(&self, cx: &Ctx, key: &str) -> Result<Labels>;

        plain {
            /// Abilities; the same for the life of the instance.
            fn describe(&self) -> StorageInfo;
        }
    }
}
