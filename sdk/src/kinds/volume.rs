//! Volume drivers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::mounts::MountPlan;
use crate::{Labels, kind};

/// Whether a driver's volumes belong to this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// This machine only.
    #[default]
    Local,
    /// The same volume is seen by several machines.
    Global,
}

/// A volume as its driver sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Name.
    pub name: String,
    /// RFC 3339; empty if the driver does not know.
    pub created: String,
    /// Path on the host as clients see it; empty if there is none.
    pub mountpoint: String,
    /// Free-form facts.
    pub status: Labels,
}

kind! {
    /// Keeps volumes.
    ///
    /// Every call may be repeated and then ends in the same state.
    pub trait VolumeDriver: Volume = "volume" (1, 0), budget Some(Duration::from_secs(120)) => {
        /// Makes a volume. Again with the same options does nothing.
        ///
        /// # Errors
        ///
        /// `InvalidArgument` naming an unknown or bad option; `Conflict`: it exists with others.
        async fn create(&self, cx: &Ctx, name: &str, options: &Labels) -> Result<()>;

        /// Removes a volume and its content; a missing one is no error.
        ///
        /// # Errors
        ///
        /// `Busy` while it is published; the message lists the users.
        async fn remove(&self, cx: &Ctx, name: &str) -> Result<()>;

        /// # Errors
        ///
        /// `NotFound`: no such volume.
        async fn get(&self, cx: &Ctx, name: &str) -> Result<VolumeInfo>;

        /// Up to `limit` volumes with names after `after`, in name order.
        async fn list(&self, cx: &Ctx, after: Option<&str>, limit: u32) -> Result<Vec<VolumeInfo>>;

        /// How to mount the volume for `user`; the same user gets the same plan.
        async fn publish(&self, cx: &Ctx, name: &str, user: &str) -> Result<MountPlan>;

        /// Ends a publication; an unknown one is no error.
        async fn unpublish(&self, cx: &Ctx, name: &str, user: &str) -> Result<()>;

        plain {
            /// Scope of all its volumes.
            fn scope(&self) -> Scope;
        }
    }
}
