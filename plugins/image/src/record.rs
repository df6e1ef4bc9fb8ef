//! What the metadata database holds about images.
//!
//! Fields that came later have defaults: a database of an older version is read as it is.

use gantry_api::image::OciDescriptor;
use gantry_sdk::Result;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Images by the digest of their configuration.
pub const IMAGES: &str = "image";
/// References in canonical form, each naming an image.
pub const REFERENCES: &str = "image-reference";
/// What references point at, by the digest of the index or manifest.
pub const TARGETS: &str = "image-target";
/// Where blobs are beside here, by digest.
pub const DISTRIBUTION: &str = "image-distribution";

/// Most repositories remembered for one blob.
pub const MAX_REPOSITORIES: usize = 16;

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Base first.
    pub layers: Vec<LayerRecord>,
    /// Bytes of the configuration blob.
    pub config_bytes: u64,
    /// The manifest it came with, kept so that a saved archive has the same digests. It names
    /// exactly the blobs of `layers`.
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
    /// Blobs that were layers once and are compressed now; containers that were made before know
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<Digest>,
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
    /// Bytes it takes unpacked; 0 while that is not known.
    pub unpacked: u64,
}

impl ImageRecord {
    /// The layers as the layer store knows them.
    pub fn chain(&self) -> Chain {
        chain(&self.layers)
    }

    /// Bytes of all layers, unpacked.
    pub fn size(&self) -> i64 {
        signed(self.layers.iter().map(|l| l.unpacked).sum())
    }

    /// The blobs it needs beside its configuration.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().map(|l| &l.blob).chain(&self.manifest).chain(&self.replaced)
    }
}

/// Layers as the layer store knows them.
pub fn chain(layers: &[LayerRecord]) -> Chain {
    let layer = |l: &LayerRecord| ChainLayer { diff_id: l.diff_id.clone(), blob: l.blob.clone() };
    Chain(layers.iter().map(layer).collect())
}

/// What a reference names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceRecord {
    /// Digest of the image's configuration; where there is a target, of its image at that time.
    pub image: Digest,
    /// What the reference points at; none for an image that came without a manifest.
    #[serde(default)]
    pub target: Option<Digest>,
}

/// What references point at: an index with the manifests in it, or one manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// Digest of `descriptor`.
    pub digest: Digest,
    /// As the registry or the archive had it.
    pub descriptor: OciDescriptor,
    /// Indexes in this index, at any depth, that are in the blob store.
    #[serde(default)]
    pub indexes: Vec<Digest>,
    /// All manifests, in their order, those of inner indexes in place; for a target that is no
    /// index, itself.
    pub manifests: Vec<ManifestRecord>,
}

impl TargetRecord {
    /// A target whose manifests are not known yet.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the descriptor's digest is none.
    pub fn new(descriptor: OciDescriptor) -> Result<Self> {
        let digest = descriptor.digest.parse()?;
        Ok(Self { digest, descriptor, indexes: Vec::new(), manifests: Vec::new() })
    }

    /// Whether it is an index.
    pub fn is_index(&self) -> bool {
        !matches!(self.manifests.as_slice(), [only] if only.digest == self.digest)
    }

    /// Every blob of it that is to stay, beside those of image records.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let here = self.manifests.iter().filter(|manifest| manifest.here);
        std::iter::once(&self.digest).chain(&self.indexes).chain(here.flat_map(|manifest| {
            std::iter::once(&manifest.digest).chain(manifest.blobs.iter().map(|b| &b.digest))
        }))
    }

    /// Takes over what `other`, another record of the same target, knows to be here.
    pub fn merge(&mut self, other: &Self) {
        let new = other.indexes.iter().filter(|index| !self.indexes.contains(index));
        let new: Vec<Digest> = new.cloned().collect();
        self.indexes.extend(new);
        if self.manifests.is_empty() {
            self.manifests.clone_from(&other.manifests);
        }
        for manifest in &mut self.manifests {
            let known = other.manifests.iter().find(|m| m.digest == manifest.digest);
            if let Some(known) = known.filter(|known| known.here && !manifest.here) {
                manifest.clone_from(known);
            }
        }
    }
}

/// What a manifest of an index is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestKind {
    /// An image.
    Image,
    /// Statements about an image of the same index.
    Attestation,
    /// Something else.
    Unknown,
}

/// A manifest of an index, and what of it is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRecord {
    /// Digest of `descriptor`.
    pub digest: Digest,
    /// As its index has it.
    pub descriptor: OciDescriptor,
    /// What it is for.
    pub kind: ManifestKind,
    /// For an attestation: the manifest it is about.
    #[serde(default)]
    pub about: Option<Digest>,
    /// The image, if its content is here.
    #[serde(default)]
    pub image: Option<Digest>,
    /// Whether it and all its blobs were brought here.
    #[serde(default)]
    pub here: bool,
    /// The configuration and the layers that it names, once it is here.
    #[serde(default)]
    pub blobs: Vec<BlobRecord>,
}

/// A blob that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRecord {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: u64,
}

/// Annotation that tells what a manifest in an index refers to: `attestation-manifest`.
pub const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Annotation with the digest of the manifest it refers to.
pub const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

impl ManifestRecord {
    /// A manifest of which nothing is here yet; annotations and platform tell its kind.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the descriptor's digest is none.
    pub fn new(descriptor: OciDescriptor) -> Result<Self> {
        let digest = descriptor.digest.parse()?;
        let attestation = descriptor.annotations.get(REFERENCE_TYPE).map(String::as_str)
            == Some("attestation-manifest");
        let about = descriptor.annotations.get(REFERENCE_DIGEST).and_then(|d| d.parse().ok());
        let artifact = descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown");
        let kind = match () {
            () if attestation => ManifestKind::Attestation,
            () if artifact || !is_manifest(&descriptor.media_type) => ManifestKind::Unknown,
            () => ManifestKind::Image,
        };
        let about = about.filter(|_| attestation);
        let (image, here, blobs) = (None, false, Vec::new());
        Ok(Self { digest, descriptor, kind, about, image, here, blobs })
    }

    /// Bytes of the manifest and of the blobs it names.
    pub fn content_bytes(&self) -> u64 {
        let own = u64::try_from(self.descriptor.size).unwrap_or_default();
        own + self.blobs.iter().map(|blob| blob.bytes).sum::<u64>()
    }

    /// Nothing of it is here any more.
    pub fn forget(&mut self) {
        (self.image, self.here, self.blobs) = (None, false, Vec::new());
    }
}

/// Whether a media type, which may be left out, is that of an image's manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// Whether a media type is that of an index.
pub fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// Where a blob is beside here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistributionRecord {
    /// Canonical names of repositories it was pulled from or pushed to, the last one last.
    pub repositories: Vec<String>,
}

/// A size as the API carries it.
pub fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_the_first_version_are_read() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let image = serde_json::json!({
            "layers": [], "config_bytes": 2, "loaded": "2026-01-01T00:00:00Z",
        });
        let image: ImageRecord = serde_json::from_value(image).unwrap();
        assert!(!image.retired && image.manifest.is_none());
        let reference = serde_json::json!({ "image": digest });
        let reference: ReferenceRecord = serde_json::from_value(reference).unwrap();
        assert_eq!(reference.target, None);
    }

    #[test]
    fn descriptors_tell_what_a_manifest_is_for() {
        let digest = format!("sha256:{}", "b".repeat(64));
        let of = |media_type: &str, os: &str, reference: &str| {
            let platform = gantry_api::image::OciPlatform { os: os.into(), ..Default::default() };
            let mut descriptor = OciDescriptor {
                media_type: media_type.to_owned(),
                digest: digest.clone(),
                platform: Some(platform),
                ..OciDescriptor::default()
            };
            if !reference.is_empty() {
                descriptor.annotations.insert(REFERENCE_TYPE.to_owned(), reference.to_owned());
                descriptor.annotations.insert(REFERENCE_DIGEST.to_owned(), digest.clone());
            }
            ManifestRecord::new(descriptor).unwrap()
        };
        let oci = "application/vnd.oci.image.manifest.v1+json";
        assert_eq!(of(oci, "linux", "").kind, ManifestKind::Image);
        assert_eq!(of("", "linux", "").kind, ManifestKind::Image);
        assert_eq!(of(oci, "unknown", "").kind, ManifestKind::Unknown);
        assert_eq!(of("text/plain", "linux", "").kind, ManifestKind::Unknown);
        let statement = of(oci, "unknown", "attestation-manifest");
        assert_eq!(statement.kind, ManifestKind::Attestation);
        assert_eq!(statement.about.unwrap().as_str(), digest);
    }
}
