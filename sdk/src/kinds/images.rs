//! The image store, as other plugins use it.

use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::kind;
use crate::kinds::layers::Chain;

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
    pub trait ImageStore: Images = "images" (1, 0), budget None => {
        /// The image that `reference` means: a name with tag or digest, an id, or a unique prefix of
        /// one. `platform` restricts it (`os/arch[/variant]`).
        ///
        /// # Errors
        ///
        /// `NotFound` with the reference engine's text (`No such image: …`).
        async fn resolve(&self, cx: &Ctx, reference: &str, platform: Option<&str>) -> Result<Image>;

        /// All images, in id order.
        async fn list(&self, cx: &Ctx) -> Result<Vec<Image>>;
    }
}

kind! {
    /// Provided by whatever uses images; the image store asks all of them before it removes one.
    pub trait ImageUserSource: ImageUsers = "image-users" (1, 0), budget Some(std::time::Duration::from_secs(10)) => {
        /// The users of image `id`.
        async fn users(&self, cx: &Ctx, id: &Digest) -> Result<Vec<ImageUser>>;
    }
}
