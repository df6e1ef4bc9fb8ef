//! Volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::common::{StringMap, is_default};

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Volume {
    /// When it was made.
    #[serde(skip_serializing_if = "is_default")]
    pub created_at: String,
    /// Driver.
    pub driver: String,
    /// Labels; `null` when it was made without any.
    pub labels: Option<StringMap>,
    /// Path on the host, if the driver knows one now.
    pub mountpoint: String,
    /// Name.
    pub name: String,
    /// Options of the driver; `null` when it was made without any.
    pub options: Option<StringMap>,
    /// `local` or `global`.
    pub scope: String,
    /// What the driver says about it.
    #[serde(skip_serializing_if = "is_default")]
    pub status: BTreeMap<String, Value>,
    /// Use, in `df` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_data: Option<VolumeUsage>,
}

/// Use of a volume; -1 where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeUsage {
    /// Containers that refer to it.
    pub ref_count: i64,
    /// Bytes.
    pub size: i64,
}

/// The body of `POST /volumes/create`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeCreateRequest {
    /// For cluster volumes; only to tell that one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_volume_spec: Option<Value>,
    /// Driver; empty for `local`.
    #[serde(skip_serializing_if = "is_default")]
    pub driver: String,
    /// Options of the driver.
    #[serde(skip_serializing_if = "no_entries")]
    pub driver_opts: Option<StringMap>,
    /// Labels.
    #[serde(skip_serializing_if = "no_entries")]
    pub labels: Option<StringMap>,
    /// Name; empty for a generated one.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
}

fn no_entries(map: &Option<StringMap>) -> bool {
    map.as_ref().is_none_or(StringMap::is_empty)
}

/// The answer to `GET /volumes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeListResponse {
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// Drivers that did not answer; `null` for none.
    pub warnings: Option<Vec<String>>,
}

/// The answer to `POST /volumes/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumesPruneReport {
    /// Names.
    pub volumes_deleted: Vec<String>,
    /// Bytes.
    pub space_reclaimed: u64,
}
