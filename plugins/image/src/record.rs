//! What the metadata database holds about images.

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Images by the digest of their configuration.
pub const IMAGES: &str = "image";
/// References in canonical form, each naming an image.
pub const REFERENCES: &str = "image-reference";

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Base first.
    pub layers: Vec<LayerRecord>,
    /// Bytes of the configuration blob.
    pub config_bytes: u64,
    /// The manifest it came with, kept so that a saved archive has the same digests.
    #[serde(default)]
    pub manifest: Option<Digest>,
    /// The image it was built on, if an archive said so.
    #[serde(default)]
    pub parent: Option<Digest>,
    /// When it came here.
    pub loaded: Timestamp,
    /// When it was last tagged here.
    #[serde(default)]
    pub last_tagged: Option<Timestamp>,
    /// Removed by force while containers use it: nobody sees it, its layers stay until they are
    /// gone.
    #[serde(default)]
    pub retired: bool,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// The blob that holds it.
    pub blob: Digest,
    /// Media type of the blob.
    pub media_type: String,
    /// Bytes of the blob.
    pub bytes: u64,
    /// Bytes it takes unpacked.
    pub unpacked: u64,
}

impl ImageRecord {
    /// The layers as the layer store knows them.
    pub fn chain(&self) -> Chain {
        let layer =
            |l: &LayerRecord| ChainLayer { diff_id: l.diff_id.clone(), blob: l.blob.clone() };
        Chain(self.layers.iter().map(layer).collect())
    }

    /// Bytes of all layers, unpacked.
    pub fn size(&self) -> i64 {
        signed(self.layers.iter().map(|l| l.unpacked).sum())
    }

    /// The blobs it needs beside its configuration.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().map(|l| &l.blob).chain(&self.manifest)
    }
}

/// What a reference names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceRecord {
    /// Digest of the image's configuration.
    pub image: Digest,
}

/// A size as the API carries it.
pub fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
