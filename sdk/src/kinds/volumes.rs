//! The volume store, as the container store uses it.

use serde::{Deserialize, Serialize};

use crate::mounts::MountFd;
use crate::{Labels, kind};

/// What a volume should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Name; none for an anonymous volume, which gets 64 hexadecimal digits.
    pub name: Option<String>,
    /// Driver instance; none for `local`.
    pub driver: Option<String>,
    /// Driver options.
    pub options: Labels,
    /// Labels.
    pub labels: Labels,
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Name.
    pub name: String,
    /// Driver instance.
    pub driver: String,
    /// Path on the host as clients see it.
    pub mountpoint: String,
    /// Whether nobody gave it a name.
    pub anonymous: bool,
}

kind! {
    /// Volumes by name and who uses them. A volume in use is never removed.
    pub trait VolumeStore: Volumes = "volumes" (1, 0), budget None => {
        /// Makes a volume, or returns the existing one of that name.
        ///
        /// # Errors
        ///
        /// `InvalidArgument` for a bad name, driver option or label; `Conflict` if the name exists
        /// with another driver; `NotFound` for an unknown driver.
        async fn create(&self, cx: &Ctx, volume: NewVolume) -> Result<VolumeRecord>;

        /// # Errors
        ///
        /// `NotFound`: no such volume.
        async fn get(&self, cx: &Ctx, name: &str) -> Result<VolumeRecord>;

        /// Records that container `user` refers to the volume. Known to this process only: the
        /// container store says it again after a restart.
        ///
        /// # Errors
        ///
        /// `NotFound`: no such volume.
        async fn hold(&self, cx: &Ctx, name: &str, user: &str) -> Result<()>;

        /// Ends a hold; an unknown one is no error.
        async fn release(&self, cx: &Ctx, name: &str, user: &str) -> Result<()>;

        /// Mounts the volume for `user`, detached.
        async fn publish(&self, cx: &Ctx, name: &str, user: &str) -> Result<MountFd>;

        /// Ends a publication; an unknown one is no error.
        async fn unpublish(&self, cx: &Ctx, name: &str, user: &str) -> Result<()>;

        /// Removes a volume.
        ///
        /// # Errors
        ///
        /// `Conflict` while it is held (`volume is in use - [ids]`); `NotFound`.
        async fn remove(&self, cx: &Ctx, name: &str) -> Result<()>;
    }
}
