//! The image store, as other plugins use it.

use std::io::Read;

use gantry_api::image::ImageConfig;
use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::kind;
use crate::kinds::layers::{Chain, ContainerLayer, LayerProgress};
use crate::reference::Reference;

/// An image that a container can be made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the configuration blob.
    pub id: Digest,
    /// Repository references, `name:tag`.
    pub tags: Vec<String>,
    /// Operating system and architecture, `linux/amd64`.
    pub platform: String,
    /// The `config` object of the image configuration, as the Docker API shows it.
    pub config: gantry_api::image::ImageConfig,
    /// Its layers.
    pub chain: Chain,
}

/// An image to be made from a container.
#[derive(Clone, Debug)]
pub struct CommitImage {
    /// The image below the container.
    pub parent: Digest,
    /// Its layers.
    pub chain: Chain,
    /// What it runs on, `linux/amd64`; used if the image below is gone.
    pub platform: String,
    /// The container's writable layer.
    pub layer: ContainerLayer,
    /// What a container of the new image runs. `changes` are applied to it, then what it leaves
    /// open is taken from `container_config`.
    pub config: ImageConfig,
    /// Instructions as in a Dockerfile.
    pub changes: Vec<String>,
    /// Author.
    pub author: String,
    /// Comment.
    pub comment: String,
    /// Its name, if any.
    pub reference: Option<Reference>,
    /// The container's own configuration.
    pub container_config: ImageConfig,
}

/// An image that came with an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Digest of its configuration.
    pub id: Digest,
    /// The names that now mean it, `name:tag`.
    pub tags: Vec<String>,
    /// Names it took over, and the images that had them.
    pub renamed: Vec<(String, Digest)>,
}

/// Who uses an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUser {
    /// A container's id.
    pub container: String,
    /// Whether it runs.
    pub running: bool,
}

kind! {
    /// Images by reference, id or prefix of an id.
    pub trait ImageStore: Images = "images" (1, 2), budget None => {
        /// The image that `reference` means: a name with tag or digest, an id, or a unique prefix of
        /// one. `platform` restricts it (`os/arch[/variant]`).
        ///
        /// # Errors
        ///
        /// `NotFound` with the reference engine's text (`No such image: …`).
        async fn resolve(&self, cx: &Ctx, reference: &str, platform: Option<&str>) -> Result<Image>;

        /// All images, in id order.
        async fn list(&self, cx: &Ctx) -> Result<Vec<Image>>;

        /// Makes an image from what a container changed; returns its id. Nobody stops the container
        /// from writing meanwhile unless the caller does.
        ///
        /// # Errors
        ///
        /// `InvalidArgument` for a bad name or instruction; `NotFound` if the container's layer is
        /// gone; those of the stores.
        async fn commit(&self, cx: &Ctx, commit: CommitImage) -> Result<Digest>;

        /// Makes images of everything in an archive: one of `docker save` or an OCI image layout.
        /// Layers of images that are here may be missing from it. `source` is read on a blocking
        /// thread; `progress` hears of unpacking.
        ///
        /// # Errors
        ///
        /// `InvalidArgument` for an archive that is damaged, incomplete or not what it says; what
        /// `source` reports; those of the stores. The images before the one that fails stay.
        async fn load(&self, cx: &Ctx, source: Box<dyn Read + Send>, progress: Option<LayerProgress>) -> Result<Vec<Loaded>>;
    }
}

kind! {
    /// Provided by whatever uses images; the image store asks all of them before it removes one.
    pub trait ImageUserSource: ImageUsers = "image-users" (1, 0), budget Some(std::time::Duration::from_secs(10)) => {
        /// The users of image `id`.
        async fn users(&self, cx: &Ctx, id: &Digest) -> Result<Vec<ImageUser>>;
    }
}
