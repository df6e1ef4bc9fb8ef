//! Files named by their digest: `sha256/<64 hex digits>`.
//!
//! A blob is written to `ingest/` while its digest is computed, synced, then renamed into place.
//! What a dead process left there is removed when the store is opened, but for the beginnings of
//! blobs whose digest was known: those wait for the next try.
//!
//! A blob that is needed after a retention policy has dropped it is fetched by whoever knows how
//! ([`BlobSources`]), once for all who wait for it; if the first of them gives up, the next one
//! takes over.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, BlobSources, BlobStore, BlobWriter, Collected, Lease};
use gantry_sdk::registry::Registry;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};

use crate::collect;
use crate::dirs::{self, Shared};
use crate::dropped::Dropped;
use crate::follow::Follower;
use crate::ingest::Ingest;
use crate::plan::Item;
use crate::settings::Retention;

/// A directory of blobs.
#[derive(Debug)]
pub struct FileBlobs {
    shared: Arc<Shared>,
    /// Where the owners of content, and those who fetch it again, are found.
    registry: Arc<Registry>,
    retention: Retention,
    /// Held by whoever fetches a dropped blob.
    fetching: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
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
            retention: Retention::Keep,
            fetching: Mutex::default(),
            complete: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            last: tokio::sync::Mutex::default(),
        })
    }

    /// The same store, which drops blobs by `retention` when it collects.
    #[must_use]
    pub fn with_retention(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    /// From now on the registry knows every owner of content, and collections may run.
    pub fn owners_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    fn check_complete(&self) -> Result<()> {
        if self.complete.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::unavailable("content is not collected before every plugin has started"))
    }

    /// What a collection would do now, and why. `old` is for a full disk: partials older than that
    /// would go, wanted or not.
    ///
    /// # Errors
    ///
    /// As for [`BlobStore::collect`].
    pub async fn explain(&self, cx: &Ctx, old: Option<Duration>) -> Result<Vec<Item>> {
        self.check_complete()?;
        collect::plan(cx, &self.shared, &self.registry, self.retention, old).await
    }

    /// Lets one thing of [`explain`](Self::explain) go, unless somebody uses it by now; whether it
    /// did. Only for what nobody relies on, like old partials.
    pub(crate) async fn forgo(&self, item: Item) -> Result<bool> {
        let shared = self.shared.clone();
        let gone = blocking(move || collect::carry_out(&shared, &item)).await?;
        self.clear().await?;
        Ok(gone)
    }

    /// Frees the space of everything that was removed.
    pub(crate) async fn clear(&self) -> Result<()> {
        let shared = self.shared.clone();
        blocking(move || shared.dirs.empty_trash()).await
    }

    fn open_here(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.shared.dirs.blob(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("open", path.display(), e)),
        }
    }

    /// What to say about a blob that is not here.
    fn missing(&self, digest: &Digest) -> Error {
        match self.shared.dirs.dropped.get(digest) {
            Ok(Some(dropped)) => dropped.missing(),
            Ok(None) => Error::not_found(format!("no blob {digest}")),
            Err(error) => error,
        }
    }

    /// Fetches a dropped blob and opens it.
    async fn bring_back(&self, cx: &Ctx, dropped: &Dropped) -> Result<File> {
        let digest = &dropped.digest;
        let lease = self.shared.pins.lease(); // until it is open
        lease.pin(digest);
        let turn = self.turn(digest);
        let _mine = turn.lock().await;
        if let Some(file) = self.open_here(digest)? {
            return Ok(file); // somebody else's turn was enough
        }
        let mut failed = None;
        for (name, source) in self.registry.all::<BlobSources>() {
            match source.fetch(cx, digest).await {
                Ok(()) => {
                    if let Some(file) = self.open_here(digest)? {
                        return Ok(file);
                    }
                    let what = format!("{name} fetched blob {digest}, which is not here");
                    failed = Some(Error::new(ErrorKind::Internal, what));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(match failed {
            None => dropped.missing(),
            Some(error) => dropped.missing().with_kind(error.kind()).caused_by(error),
        })
    }

    /// The lock that whoever fetches a blob holds.
    fn turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.retain(|_, turn| turn.strong_count() > 0);
        let turn = fetching.get(digest).and_then(Weak::upgrade).unwrap_or_default();
        fetching.insert(digest.clone(), Arc::downgrade(&turn));
        turn
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

#[async_trait]
impl BlobStore for FileBlobs {
    async fn stat(&self, _: &Ctx, digest: &Digest) -> Result<BlobInfo> {
        let path = self.shared.dirs.blob(digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok(BlobInfo { digest: digest.clone(), size: meta.len() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(self.missing(digest)),
            Err(e) => Err(Error::io("stat", path.display(), e)),
        }
    }

    async fn open(&self, cx: &Ctx, digest: &Digest) -> Result<File> {
        if let Some(file) = self.open_here(digest)? {
            return Ok(file);
        }
        match self.shared.dirs.dropped.get(digest)? {
            Some(dropped) => self.bring_back(cx, &dropped).await,
            None => Err(self.missing(digest)),
        }
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
        blocking(move || Ok(shared.dirs.partials()?.into_iter().map(|(info, _)| info).collect()))
            .await
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
        self.check_complete()?;
        let seen = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.0 > seen {
            return Ok(last.1); // it began after this call
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let collected = collect::collect(cx, &self.shared, &self.registry, self.retention).await?;
        *last = (number, collected);
        Ok(collected)
    }
}

#[cfg(test)]
mod tests;
