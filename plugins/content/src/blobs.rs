//! Files named by their digest: `sha256/<64 hex digits>`.
//!
//! A blob is written to `ingest/` while its digest is computed, synced, then renamed into place.
//! What a dead process left there is removed when the store is opened, but for the beginnings of
//! blobs whose digest was known: those wait for the next try.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, BlobStore, BlobWriter, Collected, Lease};
use gantry_sdk::registry::Registry;
use gantry_sdk::{Ctx, Error, Result};

use crate::collect;
use crate::dirs::{self, Shared};
use crate::follow::Follower;
use crate::ingest::Ingest;

/// A directory of blobs.
#[derive(Debug)]
pub struct FileBlobs {
    shared: Arc<Shared>,
    /// Where the owners of content are found.
    registry: Arc<Registry>,
    /// Whether all of them are there.
    complete: AtomicBool,
    /// Collections begun.
    begun: AtomicU64,
    /// The last collection that succeeded: its number, and what it removed.
    last: tokio::sync::Mutex<(u64, Collected)>,
}

impl FileBlobs {
    /// Opens the store below `root` and drops what only a dead process could have used. Blocking.
    ///
    /// # Errors
    ///
    /// `Internal` or `NoSpace` with the path.
    pub fn open(root: &Path, registry: Arc<Registry>) -> Result<Self> {
        Ok(Self {
            shared: Shared::open(root)?,
            registry,
            complete: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            last: tokio::sync::Mutex::default(),
        })
    }

    /// From now on the registry knows every owner of content, and collections may run.
    pub fn owners_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

fn missing(digest: &Digest, doing: &str, path: &Path, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        Error::not_found(format!("no blob {digest}"))
    } else {
        Error::io(doing, path.display(), error)
    }
}

#[async_trait]
impl BlobStore for FileBlobs {
    async fn stat(&self, _: &Ctx, digest: &Digest) -> Result<BlobInfo> {
        let path = self.shared.dirs.blob(digest);
        let meta = fs::metadata(&path).map_err(|e| missing(digest, "stat", &path, e))?;
        Ok(BlobInfo { digest: digest.clone(), size: meta.len() })
    }

    async fn open(&self, _: &Ctx, digest: &Digest) -> Result<File> {
        let path = self.shared.dirs.blob(digest);
        File::open(&path).map_err(|e| missing(digest, "open", &path, e))
    }

    async fn read(&self, cx: &Ctx, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let file = self.open(cx, digest).await?;
        let digest = digest.clone();
        blocking(move || {
            let mut content = Vec::new();
            file.take(limit + 1)
                .read_to_end(&mut content)
                .map_err(|e| Error::io("read", format!("blob {digest}"), e))?;
            if content.len() as u64 > limit {
                return Err(Error::invalid(format!("blob {digest} is larger than {limit} bytes")));
            }
            Ok(content)
        })
        .await
    }

    async fn lease(&self, _: &Ctx) -> Result<Lease> {
        Ok(self.shared.pins.lease())
    }

    async fn writer(&self, _: &Ctx, lease: &Lease) -> Result<Box<dyn BlobWriter>> {
        let (shared, lease) = (self.shared.clone(), lease.clone());
        blocking(move || Ok(Box::new(Ingest::begin(&shared, &lease)?) as Box<dyn BlobWriter>)).await
    }

    async fn resume(&self, _: &Ctx, digest: &Digest, lease: &Lease) -> Result<Box<dyn BlobWriter>> {
        let (shared, lease, digest) = (self.shared.clone(), lease.clone(), digest.clone());
        blocking(move || {
            Ok(Box::new(Ingest::resume(&shared, &lease, &digest)?) as Box<dyn BlobWriter>)
        })
        .await
    }

    async fn follow(&self, cx: &Ctx, digest: &Digest) -> Result<Box<dyn Read + Send>> {
        let progress = self.shared.writing().get(digest).cloned();
        match progress {
            Some(progress) => Ok(Box::new(Follower::new(digest.clone(), progress))),
            // A writer names its blob before it leaves the table, so this order misses none.
            None => Ok(Box::new(self.open(cx, digest).await?)),
        }
    }

    async fn partials(&self, _: &Ctx) -> Result<Vec<BlobInfo>> {
        let shared = self.shared.clone();
        blocking(move || shared.dirs.partials()).await
    }

    async fn discard_partial(&self, _: &Ctx, digest: &Digest) -> Result<()> {
        let (shared, digest) = (self.shared.clone(), digest.clone());
        blocking(move || {
            shared.discard_partial(&digest)?;
            shared.dirs.empty_trash()
        })
        .await
    }

    async fn remove(&self, _: &Ctx, digest: &Digest) -> Result<()> {
        let path = self.shared.dirs.blob(digest);
        blocking(move || dirs::remove(&path)).await
    }

    async fn list(&self, _: &Ctx) -> Result<Vec<BlobInfo>> {
        let shared = self.shared.clone();
        blocking(move || shared.dirs.list()).await
    }

    async fn collect(&self, cx: &Ctx) -> Result<Collected> {
        if !self.complete.load(Ordering::Acquire) {
            return Err(Error::unavailable(
                "content is not collected before every plugin has started",
            ));
        }
        let seen = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.0 > seen {
            return Ok(last.1); // it began after this call
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let collected = collect::collect(cx, &self.shared, &self.registry).await?;
        *last = (number, collected);
        Ok(collected)
    }
}

#[cfg(test)]
mod tests;
