//! What is remembered of blobs that a retention policy has dropped: `dropped/<hex>`.
//!
//! A record is on disk before its blob goes, and means nothing while the blob is there; so it stays
//! when the blob comes back, until nobody wants the blob any more.

use std::fs;
use std::io;
use std::path::PathBuf;

use gantry_sdk::id::Digest;
use gantry_sdk::{Error, ErrorKind, Result};
use gantry_sys::path::{Durability, replace};
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::settings::Retention;

/// A dropped blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dropped {
    /// Its name.
    pub(crate) digest: Digest,
    /// Its bytes.
    pub(crate) size: u64,
    /// Where it came from.
    pub(crate) source: String,
    /// Why it was dropped.
    pub(crate) policy: Retention,
}

impl Dropped {
    /// What to say when it is needed and does not come back.
    pub(crate) fn missing(&self) -> Error {
        let Self { digest, source, policy, .. } = self;
        Error::new(
            ErrorKind::NotFound,
            format!(
                "blob {digest} was dropped by the retention policy {policy}; pull the image again \
                 ({source})"
            ),
        )
    }
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records(pub(crate) PathBuf);

impl Records {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.0.join(digest.hex())
    }

    /// Remembers a blob, durably. Blocking.
    pub(crate) fn put(&self, dropped: &Dropped) -> Result<()> {
        let path = self.path(&dropped.digest);
        let what = || format!("cannot remember blob {}", dropped.digest);
        let text = serde_json::to_vec(dropped).map_err(|e| Error::internal(what(), e))?;
        replace(&path, &text, Durability::Durable).map_err(|e| Error::internal(what(), e))
    }

    /// What is remembered of a blob. Blocking, briefly.
    pub(crate) fn get(&self, digest: &Digest) -> Result<Option<Dropped>> {
        let path = self.path(digest);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| Error::internal(format!("cannot read {}", path.display()), e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", path.display(), e)),
        }
    }

    /// Forgets a blob; one that is not known is no error. Blocking.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<()> {
        dirs::remove(&self.path(digest))
    }

    /// All records. Blocking.
    pub(crate) fn list(&self) -> Result<Vec<Dropped>> {
        let mut found = Vec::new();
        for entry in dirs::entries(&self.0)? {
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy()).parse();
            if let Ok(digest) = digest {
                found.extend(self.get(&digest)?);
            }
        }
        found.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(found)
    }
}
