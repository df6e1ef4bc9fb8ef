//! Small answers of container routes: wait, top, changes, prune, archive.

use serde::{Deserialize, Serialize};

use crate::common::is_default;

/// The answer to `POST /containers/{id}/wait`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerWaitResponse {
    /// Why the wait failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<WaitError>,
    /// Exit code.
    pub status_code: i64,
}

/// Why a wait failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WaitError {
    /// For a person to read.
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
}

/// The answer to `GET /containers/{id}/top`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerTopResponse {
    /// One row per process.
    pub processes: Vec<Vec<String>>,
    /// Column titles.
    pub titles: Vec<String>,
}

/// One line of `GET /containers/{id}/changes`; the answer is `null` when nothing changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilesystemChange {
    /// One of [`Self::MODIFIED`], [`Self::ADDED`], [`Self::DELETED`].
    pub kind: u8,
    /// Absolute path in the container.
    pub path: String,
}

impl FilesystemChange {
    /// The content or the attributes differ from the image.
    pub const MODIFIED: u8 = 0;
    /// Not in the image.
    pub const ADDED: u8 = 1;
    /// In the image only.
    pub const DELETED: u8 = 2;
}

/// The answer to `POST /containers/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainersPruneReport {
    /// Ids; `null` when there was nothing to remove.
    pub containers_deleted: Option<Vec<String>>,
    /// Bytes.
    pub space_reclaimed: u64,
}

/// What `X-Docker-Container-Path-Stat` holds, as base64 of this JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathStat {
    /// Last part of the path.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// Permission bits with Go's `os.FileMode` type bits (directory 1<<31, symbolic link 1<<27, …).
    pub mode: u32,
    /// When it was modified.
    pub mtime: String,
    /// Where a symbolic link leads, made absolute in the container.
    pub link_target: String,
}
