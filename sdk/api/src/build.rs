//! Build cache.

use serde::{Deserialize, Serialize};

use crate::common::is_default;

/// A record of the build cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BuildCacheRecord {
    /// Id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Ids of what it was made from. The space in its name is the reference's.
    #[serde(rename = " Parents", skip_serializing_if = "is_default")]
    pub parents: Vec<String>,
    /// `regular`, `source.local`, …
    #[serde(rename = "Type")]
    pub kind: String,
    /// The step that made it.
    pub description: String,
    /// Whether a build uses it now.
    pub in_use: bool,
    /// Whether an image uses it too.
    pub shared: bool,
    /// Bytes.
    pub size: i64,
    /// When it was made.
    pub created_at: String,
    /// When it was last used.
    pub last_used_at: Option<String>,
    /// How often it was used.
    pub usage_count: i64,
}

/// The answer to `POST /build/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BuildCachePruneReport {
    /// Ids; `null` for none.
    pub caches_deleted: Option<Vec<String>>,
    /// Bytes.
    pub space_reclaimed: u64,
}
