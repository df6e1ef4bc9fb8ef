//! Mounts, as asked for and as they are.

use serde::{Deserialize, Serialize};

use crate::common::{Empty, StringMap, is_default};

/// A mount asked for in `HostConfig.Mounts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs`, `image` (API 1.48), `npipe` or `cluster`.
    #[serde(rename = "Type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// Path, volume or image; nothing for `tmpfs`.
    #[serde(skip_serializing_if = "is_default")]
    pub source: String,
    /// Path in the container.
    #[serde(skip_serializing_if = "is_default")]
    pub target: String,
    /// Whether it is read-only, with everything mounted below it where the kernel can.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Consistency between host and container (macOS); accepted, no meaning on Linux.
    #[serde(skip_serializing_if = "is_default")]
    pub consistency: String,
    /// For `bind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    /// For `volume`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    /// For `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_options: Option<ImageOptions>,
    /// For `tmpfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
    /// For `cluster`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_options: Option<Empty>,
}

/// Options of a bind mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    /// `private`, `rprivate`, `shared`, `rshared`, `slave` or `rslave`; empty for `rprivate`.
    #[serde(skip_serializing_if = "is_default")]
    pub propagation: String,
    /// Whether mounts below the source are left out (API 1.40).
    #[serde(skip_serializing_if = "is_default")]
    pub non_recursive: bool,
    /// Whether a missing source is made as a directory (API 1.42).
    #[serde(skip_serializing_if = "is_default")]
    pub create_mountpoint: bool,
    /// Whether read-only stops at the mount itself (API 1.44).
    #[serde(skip_serializing_if = "is_default")]
    pub read_only_non_recursive: bool,
    /// Whether it is an error if read-only cannot reach all mounts below (API 1.44).
    #[serde(skip_serializing_if = "is_default")]
    pub read_only_force_recursive: bool,
}

/// Options of a volume mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    /// Whether an empty volume stays empty instead of getting the image's content.
    #[serde(skip_serializing_if = "is_default")]
    pub no_copy: bool,
    /// Labels of a new volume.
    #[serde(skip_serializing_if = "no_entries")]
    pub labels: Option<StringMap>,
    /// Path in the volume, relative (API 1.45).
    #[serde(skip_serializing_if = "is_default")]
    pub subpath: String,
    /// Driver of a new volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_config: Option<MountDriver>,
}

fn no_entries(map: &Option<StringMap>) -> bool {
    map.as_ref().is_none_or(StringMap::is_empty)
}

/// A volume driver and its options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountDriver {
    /// Name of the driver.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Its options.
    #[serde(skip_serializing_if = "no_entries")]
    pub options: Option<StringMap>,
}

/// Options of an image mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageOptions {
    /// Path in the image, relative.
    #[serde(skip_serializing_if = "is_default")]
    pub subpath: String,
}

/// Options of a temporary file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    /// Size in bytes; 0 for no limit of its own.
    #[serde(skip_serializing_if = "is_default")]
    pub size_bytes: i64,
    /// Permission bits; 0 for the default.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: u32,
    /// Mount options: `[["noexec"], ["uid", "1000"]]` (API 1.46).
    #[serde(skip_serializing_if = "is_default")]
    pub options: Vec<Vec<String>>,
}

/// A mount a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountPoint {
    /// As [`Mount::kind`].
    #[serde(rename = "Type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// Volume name.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub destination: String,
    /// Volume driver.
    #[serde(skip_serializing_if = "is_default")]
    pub driver: String,
    /// Options of the `Binds` form, as `z` or `ro`.
    pub mode: String,
    /// Whether it is writable.
    #[serde(rename = "RW")]
    pub rw: bool,
    /// Propagation; empty for volumes.
    pub propagation: String,
}
