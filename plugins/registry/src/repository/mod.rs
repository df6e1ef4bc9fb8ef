//! A session with one repository.
//!
//! # Map
//!
//! - [`manifest`]: manifests, small blobs, whether something is there
//! - [`lists`]: tags and referrers
//! - [`download`], [`pump`]: large blobs, from there to a writer
//! - [`upload`]: large blobs, from a file to there
//!
//! # Invariants
//!
//! 1. Reading asks the mirrors in order and then the registry; whatever goes wrong with a mirror, the next is asked.
//!    What the registry says is what counts.
//! 2. Writing asks the registry only.
//! 3. A request that could be granted later is repeated, at growing distances, as often as configured.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use async_trait::async_trait;
use gantry_sdk::Result;
use gantry_sdk::api::OciDescriptor;
use gantry_sdk::context::Ctx;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::BlobWriter;
use gantry_sdk::kinds::registry::{Access, OpenBlob, RemoteManifest, Repository, TransferProgress};
use gantry_sdk::reference::Reference;

use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::shared::Shared;

mod download;
mod lists;
mod manifest;
mod pump;
mod upload;

/// A repository and those who have it.
pub(crate) struct Remote {
    shared: Arc<Shared>,
    name: Reference,
    /// What tokens must be good for.
    scopes: Vec<String>,
    /// Mirrors, then the registry.
    sources: Vec<Arc<Endpoint>>,
    /// The registry.
    origin: Arc<Endpoint>,
    /// Bytes of a piece, if blobs have to be uploaded in pieces; 0 if not.
    piece: AtomicU64,
}

impl Remote {
    /// A session with `sources`, the last of which is the registry of `name`; none if there is none.
    pub(crate) fn new(
        shared: Arc<Shared>,
        name: &Reference,
        access: Access,
        sources: Vec<Arc<Endpoint>>,
    ) -> Option<Self> {
        let origin = sources.last()?.clone();
        let rights = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let scopes = vec![format!("repository:{}:{rights}", name.path())];
        Some(Self { shared, name: name.clone(), scopes, sources, origin, piece: AtomicU64::new(0) })
    }

    /// The first success of all sources; the registry's answer if there is none.
    async fn first<T, F>(&self, ask: impl Fn(Arc<Endpoint>) -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        for mirror in self.sources.iter().filter(|source| source.is_mirror) {
            if mirror.is_down.load(Relaxed) {
                continue;
            }
            match ask(mirror.clone()).await {
                Ok(found) => return Ok(found),
                Err(error) => self.fell(mirror, &error),
            }
        }
        self.patiently(|| ask(self.origin.clone())).await
    }

    /// Remembers and tells that a mirror was of no use.
    fn fell(&self, mirror: &Endpoint, error: &RegistryError) {
        if error.is_connection() {
            mirror.is_down.store(true, Relaxed);
        }
        tracing::debug!(repository = %self.name, error = %error, "A mirror failed, asking the next.");
    }

    /// Asks again while the answer may change; a registry that cannot be reached at all is asked once.
    async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let attempts = self.attempts();
        let mut failures = 0;
        loop {
            let error = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failures += 1;
            if !error.is_transient() || error.is_connection() || failures >= attempts {
                return Err(error);
            }
            tokio::time::sleep(self.shared.pace.wait(failures, error.retry_after())).await;
        }
    }

    fn attempts(&self) -> u32 {
        self.shared.settings.load().limits.max_download_attempts
    }

    /// A path of the registry API in this repository.
    fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.name.path())
    }
}

#[async_trait]
impl Repository for Remote {
    async fn manifest(&self, _: &Ctx, reference: &str) -> Result<RemoteManifest> {
        Ok(self.first(|from| self.manifest_from(from, reference)).await?)
    }

    async fn probe_manifest(&self, _: &Ctx, reference: &str) -> Result<Option<OciDescriptor>> {
        absent(self.first(|from| self.probe_at(from, reference)).await)
    }

    async fn tags(&self, _: &Ctx) -> Result<Vec<String>> {
        Ok(self.first(|from| self.tags_of(from)).await?)
    }

    async fn small_blob(&self, _: &Ctx, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        Ok(self.first(|from| self.blob_from(from, digest, limit)).await?)
    }

    async fn fetch_blob(
        &self,
        _: &Ctx,
        digest: &Digest,
        size: u64,
        urls: &[String],
        writer: Box<dyn BlobWriter>,
        progress: TransferProgress,
    ) -> Result<Box<dyn BlobWriter>> {
        self.download(digest, size, urls, writer, progress).await
    }

    async fn has_blob(&self, _: &Ctx, digest: &Digest) -> Result<bool> {
        let found = self.first(|from| self.blob_at(from, digest)).await;
        Ok(absent(found.map(Some))?.is_some())
    }

    async fn mount_blob(&self, _: &Ctx, digest: &Digest, from: &str) -> Result<bool> {
        Ok(self.patiently(|| self.mount(digest, from)).await?)
    }

    async fn push_blob(
        &self,
        _: &Ctx,
        digest: &Digest,
        size: u64,
        open: OpenBlob<'_>,
        progress: TransferProgress,
    ) -> Result<()> {
        Ok(self.upload(digest, size, open, progress).await?)
    }

    async fn put_manifest(
        &self,
        _: &Ctx,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest> {
        Ok(self.patiently(|| self.put(reference, media_type, bytes)).await?)
    }

    async fn referrers(
        &self,
        _: &Ctx,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<OciDescriptor>> {
        let mut all = self.first(|from| self.referrers_of(from, digest, artifact_type)).await?;
        // Not every registry filters.
        all.retain(|one| artifact_type.is_none_or(|wanted| one.artifact_type == wanted));
        Ok(all)
    }
}

/// A thing that is not there is no error for those who ask whether it is.
fn absent<T>(found: Result<Option<T>, RegistryError>) -> Result<Option<T>> {
    match found {
        Err(error) if error.kind() == gantry_sdk::ErrorKind::NotFound => Ok(None),
        result => Ok(result?),
    }
}
