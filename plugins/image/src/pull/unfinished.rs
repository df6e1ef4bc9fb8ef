//! What pulls that have not ended well have brought: kept for a while, so that the next attempt
//! goes on from there, also after the daemon was started again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{ContentOwner, Droppable};
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::{Ctx, Result};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Table of the metadata database: pulls by the digest of the manifest.
const TABLE: &str = "image-pull";
/// How long content waits for the next attempt.
const PATIENCE: SignedDuration = SignedDuration::from_hours(24);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    begun: Timestamp,
    blobs: Vec<Digest>,
}

impl Record {
    fn is_old(&self, now: Timestamp) -> bool {
        now.duration_since(self.begun) > PATIENCE
    }
}

/// Pulls that were begun and have not ended well.
pub struct Unfinished {
    metadata: Arc<dyn MetadataStore>,
    records: Mutex<BTreeMap<String, Record>>,
}

impl std::fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unfinished").field("pulls", &self.records().len()).finish_non_exhaustive()
    }
}

impl Unfinished {
    /// Reads what earlier daemons have left.
    ///
    /// # Errors
    ///
    /// Those of the metadata database.
    pub async fn open(cx: &Ctx, metadata: Arc<dyn MetadataStore>) -> Result<Self> {
        let mut records = BTreeMap::new();
        for (key, value) in metadata.scan(cx, TABLE, "").await? {
            match serde_json::from_slice(&value) {
                Ok(record) => drop(records.insert(key, record)),
                Err(error) => {
                    tracing::warn!(key, %error, "The record of a pull is not understood.")
                }
            }
        }
        Ok(Self { metadata, records: Mutex::new(records) })
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is about to be fetched, and forgets what has waited too long.
    ///
    /// # Errors
    ///
    /// Those of the metadata database.
    pub async fn begin(&self, cx: &Ctx, manifest: &Digest, blobs: Vec<Digest>) -> Result<()> {
        let now = Timestamp::now();
        let record = Record { begun: now, blobs };
        let mut changes = vec![Change::put_json(TABLE, manifest.as_str(), &record)?];
        {
            let mut records = self.records();
            let old: Vec<String> =
                records.iter().filter(|(_, r)| r.is_old(now)).map(|(key, _)| key.clone()).collect();
            for key in old {
                records.remove(&key);
                changes.push(Change::delete(TABLE, key));
            }
            records.insert(manifest.to_string(), record);
        }
        self.metadata.commit(cx, changes).await
    }

    /// The image is known now: its record keeps the content.
    ///
    /// # Errors
    ///
    /// Those of the metadata database.
    pub async fn end(&self, cx: &Ctx, manifest: &Digest) -> Result<()> {
        if self.records().remove(manifest.as_str()).is_none() {
            return Ok(());
        }
        self.metadata.commit(cx, vec![Change::delete(TABLE, manifest.as_str())]).await
    }
}

#[async_trait]
impl ContentOwner for Unfinished {
    async fn wanted(&self, _: &Ctx) -> Result<Vec<Digest>> {
        let now = Timestamp::now();
        let records = self.records();
        let young = records.values().filter(|record| !record.is_old(now));
        Ok(young.flat_map(|record| record.blobs.iter().cloned()).collect())
    }
    /// What is here is wanted by a pull that is not through with it.
    async fn droppable(&self, _: &Ctx) -> Result<Vec<Droppable>> {
        Ok(Vec::new())
    }
}
