//! Images.

use serde::{Deserialize, Serialize};

use crate::common::{NameSet, StringMap, is_default};
use crate::container::{ContainerConfig, DriverData, HealthConfig};

/// A content descriptor (OCI image specification, *Content Descriptors*).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OciDescriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest, as `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: i64,
    /// More places to fetch it from.
    #[serde(skip_serializing_if = "is_default")]
    pub urls: Vec<String>,
    /// Free-form data.
    #[serde(skip_serializing_if = "is_default")]
    pub annotations: StringMap,
    /// The content itself, base64.
    #[serde(skip_serializing_if = "is_default")]
    pub data: String,
    /// Platform, for an image in an index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<OciPlatform>,
    /// Type of an artifact.
    #[serde(skip_serializing_if = "is_default")]
    pub artifact_type: String,
}

/// A platform (OCI image specification, *Image Index*).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OciPlatform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`, …
    pub os: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", skip_serializing_if = "is_default")]
    pub os_version: String,
    /// What the operating system must have.
    #[serde(rename = "os.features", skip_serializing_if = "is_default")]
    pub os_features: Vec<String>,
    /// `v7`, `v8`, …
    #[serde(skip_serializing_if = "is_default")]
    pub variant: String,
}

/// A line of `GET /images/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageSummary {
    /// Containers that use it (API 1.51; -1 before).
    pub containers: i64,
    /// When it was made, seconds since 1970; 0 if unknown.
    pub created: i64,
    /// Id.
    pub id: String,
    /// Labels; `null` for none.
    pub labels: Option<StringMap>,
    /// Id of the image it was built on; empty for none.
    pub parent_id: String,
    /// What the name points at (API 1.48).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<OciDescriptor>,
    /// What is in its index, if asked for (API 1.47).
    #[serde(skip_serializing_if = "is_default")]
    pub manifests: Vec<ManifestSummary>,
    /// `name@sha256:…`.
    pub repo_digests: Vec<String>,
    /// `name:tag`.
    pub repo_tags: Vec<String>,
    /// Bytes shared with other images; -1 if not asked for.
    pub shared_size: i64,
    /// Bytes.
    pub size: i64,
}

/// A manifest of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ManifestSummary {
    /// Digest.
    #[serde(rename = "ID")]
    pub id: String,
    /// The manifest.
    pub descriptor: OciDescriptor,
    /// Whether all of it is here.
    pub available: bool,
    /// Bytes.
    pub size: ManifestSize,
    /// `image`, `attestation` or `unknown`.
    pub kind: String,
    /// For `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_data: Option<ManifestImageData>,
    /// For `attestation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attestation_data: Option<ManifestAttestationData>,
}

/// Bytes of a manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ManifestSize {
    /// As stored.
    pub content: i64,
    /// As stored and unpacked.
    pub total: i64,
}

/// An image of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ManifestImageData {
    /// Platform.
    pub platform: OciPlatform,
    /// Bytes.
    pub size: ManifestUnpackedSize,
    /// Ids of the containers that use it.
    pub containers: Vec<String>,
    /// Where it is known from, if asked for (API 1.54).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<ImageIdentity>,
}

/// Where an image is known from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageIdentity {
    /// Repositories it was pulled from or pushed to.
    #[serde(skip_serializing_if = "is_default")]
    pub pull: Vec<PullIdentity>,
}

/// A repository an image was pulled from or pushed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PullIdentity {
    /// Its canonical name.
    #[serde(skip_serializing_if = "is_default")]
    pub repository: String,
}

/// An item of the answer to `GET /images/{name}/attestations` (API 1.55).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttestationStatement {
    /// The statement's blob.
    pub descriptor: OciDescriptor,
    /// What it states: a URI of the in-toto framework.
    pub predicate_type: String,
    /// The statement as it was written, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<Box<serde_json::value::RawValue>>,
}

/// Bytes of an unpacked image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ManifestUnpackedSize {
    /// As unpacked.
    pub unpacked: i64,
}

/// An attestation of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ManifestAttestationData {
    /// Digest of the manifest it is about.
    #[serde(rename = "For")]
    pub about: String,
}

/// The answer to `GET /images/{name}/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageInspect {
    /// Id.
    pub id: String,
    /// `name:tag`.
    pub repo_tags: Vec<String>,
    /// `name@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Id of the image it was built on, by the classic builder.
    #[serde(skip_serializing_if = "is_default")]
    pub parent: String,
    /// Comment.
    #[serde(skip_serializing_if = "is_default")]
    pub comment: String,
    /// When it was made; empty if unknown.
    #[serde(skip_serializing_if = "is_default")]
    pub created: String,
    /// Version of the classic builder.
    #[serde(skip_serializing_if = "is_default")]
    pub docker_version: String,
    /// Author.
    #[serde(skip_serializing_if = "is_default")]
    pub author: String,
    /// What a container of it runs.
    pub config: Option<ImageConfig>,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, `v8`, …
    #[serde(skip_serializing_if = "is_default")]
    pub variant: String,
    /// `linux`, …
    pub os: String,
    /// Version of the operating system.
    #[serde(skip_serializing_if = "is_default")]
    pub os_version: String,
    /// Bytes.
    pub size: i64,
    /// Where a layer driver keeps its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph_driver: Option<DriverData>,
    /// Its layers.
    #[serde(rename = "RootFS")]
    pub root_fs: RootFs,
    /// What only this host knows.
    pub metadata: ImageMetadata,
    /// What the name points at (API 1.48).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<OciDescriptor>,
    /// What is in its index, if asked for (API 1.48).
    #[serde(skip_serializing_if = "is_default")]
    pub manifests: Vec<ManifestSummary>,
    /// Where it is known from (API 1.53).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<ImageIdentity>,
}

/// What a container of an image runs: the image's own configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// As [`ContainerConfig::user`].
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
    /// As [`ContainerConfig::exposed_ports`].
    #[serde(skip_serializing_if = "is_default")]
    pub exposed_ports: NameSet,
    /// As [`ContainerConfig::env`].
    #[serde(skip_serializing_if = "is_default")]
    pub env: Vec<String>,
    /// As [`ContainerConfig::entrypoint`].
    #[serde(skip_serializing_if = "is_default")]
    pub entrypoint: Vec<String>,
    /// As [`ContainerConfig::cmd`].
    #[serde(skip_serializing_if = "is_default")]
    pub cmd: Vec<String>,
    /// As [`ContainerConfig::volumes`].
    #[serde(skip_serializing_if = "is_default")]
    pub volumes: NameSet,
    /// As [`ContainerConfig::working_dir`].
    #[serde(skip_serializing_if = "is_default")]
    pub working_dir: String,
    /// Labels.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: StringMap,
    /// As [`ContainerConfig::stop_signal`].
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: String,
    /// As [`ContainerConfig::args_escaped`].
    #[serde(skip_serializing_if = "is_default")]
    pub args_escaped: bool,
    /// As [`ContainerConfig::healthcheck`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    /// As [`ContainerConfig::on_build`].
    #[serde(skip_serializing_if = "is_default")]
    pub on_build: Vec<String>,
    /// As [`ContainerConfig::shell`].
    #[serde(skip_serializing_if = "is_default")]
    pub shell: Vec<String>,
}

impl From<&ContainerConfig> for ImageConfig {
    /// The part of a container's configuration that an image made from it keeps.
    fn from(config: &ContainerConfig) -> Self {
        Self {
            user: config.user.clone(),
            exposed_ports: config.exposed_ports.clone().unwrap_or_default(),
            env: config.env.clone().unwrap_or_default(),
            entrypoint: config.entrypoint.clone().unwrap_or_default(),
            cmd: config.cmd.clone().unwrap_or_default(),
            volumes: config.volumes.clone().unwrap_or_default(),
            working_dir: config.working_dir.clone(),
            labels: config.labels.clone().unwrap_or_default(),
            stop_signal: config.stop_signal.clone(),
            args_escaped: config.args_escaped,
            healthcheck: config.healthcheck.clone(),
            on_build: config.on_build.clone().unwrap_or_default(),
            shell: config.shell.clone().unwrap_or_default(),
        }
    }
}

/// Layers of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "Type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// Digests of the uncompressed layers, lowest first.
    #[serde(skip_serializing_if = "is_default")]
    pub layers: Vec<String>,
}

/// What only this host knows about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageMetadata {
    /// When it was last tagged here; [`crate::ZERO_TIME`] for never.
    pub last_tag_time: String,
}

impl Default for ImageMetadata {
    fn default() -> Self {
        Self { last_tag_time: crate::ZERO_TIME.to_owned() }
    }
}

/// A line of `GET /images/{name}/history`, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageHistoryItem {
    /// Comment.
    pub comment: String,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// What made it.
    pub created_by: String,
    /// Id of the image at this step; `<missing>` if there is none.
    pub id: String,
    /// Bytes.
    pub size: i64,
    /// Tags of that image; `null` for none.
    pub tags: Option<Vec<String>>,
}

/// A line of the answer to `DELETE /images/{name}`: one of the two is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageDeleteResponse {
    /// Id or layer removed.
    #[serde(skip_serializing_if = "is_default")]
    pub deleted: String,
    /// Reference removed.
    #[serde(skip_serializing_if = "is_default")]
    pub untagged: String,
}

/// The answer to `POST /images/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImagesPruneReport {
    /// What was removed; `null` for nothing.
    pub images_deleted: Option<Vec<ImageDeleteResponse>>,
    /// Bytes.
    pub space_reclaimed: u64,
}
