//! Who stands on the layer store: asked before layers go, and told when one has been moved.

use std::time::{Duration, SystemTime};

use crate::kinds::layers::{Chain, ContainerLayer, Hold};
use crate::{Labels, kind};

/// A container and the layers below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerUse {
    /// The container's id.
    pub container: String,
    /// Its name without slash.
    pub name: String,
    /// The image as the user wrote it.
    pub image: String,
    /// The image's layers.
    pub chain: Chain,
    /// Its writable layer, which names the storage instance.
    pub layer: ContainerLayer,
    /// The storage options it was created with, without the choice of the instance.
    pub options: Labels,
    /// Whether it runs, or is about to run again.
    pub running: bool,
    /// When it was started last.
    pub started: Option<SystemTime>,
}

kind! {
    /// Provided by whatever has writable layers.
    pub trait LayerUserSource: LayerUsers = "layer-users" (1, 0), budget Some(Duration::from_secs(60)) => {
        /// Everything that stands on layers now, the oldest first.
        async fn users(&self, cx: &Ctx) -> Result<Vec<LayerUse>>;

        /// Keeps a container as it is — not started, not removed, its layer not moved by somebody
        /// else — until the result is dropped.
        ///
        /// # Errors
        ///
        /// `NotFound`: no such container. `Conflict`: it runs, or is held already.
        async fn hold(&self, cx: &Ctx, container: &str) -> Result<Hold>;

        /// From now on `layer` is the container's writable layer; on disk when this returns, in one
        /// transaction. Again: nothing.
        ///
        /// # Errors
        ///
        /// `NotFound`: no such container. `Conflict` unless it is held.
        async fn moved(&self, cx: &Ctx, container: &str, layer: &ContainerLayer) -> Result<()>;
    }
}
