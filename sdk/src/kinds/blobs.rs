//! The blob store: content by digest, the truth that no driver owns.
//!
//! # Terms
//!
//! - *blob*: bytes under their SHA-256; it is there whole and verified, or not at all
//! - *partial*: the beginning of a blob whose download was cut; kept over restarts for the next try
//! - *lease*: keeps blobs from being collected before anything refers to them
//! - *owner*: a plugin whose records refer to blobs
//! - *dropped blob*: one that its owners still want and that a retention policy has removed,
//!   because it can be fetched again

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::id::Digest;
use crate::{Result, kind};

/// A blob being written. Blocking: use it on a blocking thread.
///
/// Dropping it discards what was written, unless it was opened by [`BlobStore::resume`]: then what
/// is here is kept for the next `resume`.
pub trait BlobWriter: Write + Send {
    /// Bytes that are here: more than 0 at the start of one that was resumed.
    fn offset(&self) -> u64;

    /// Throws away what is here and starts at 0, for a server that cannot resume.
    ///
    /// # Errors
    ///
    /// `Internal`.
    fn restart(&mut self) -> Result<()>;

    /// Makes the content visible under its digest, durably; `expected` must match. Content that is
    /// already there is kept as it is. The digest is pinned in the writer's lease before that. A
    /// resumed writer whose content has another digest is thrown away, and its partial with it.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the digest is another one; `NoSpace`; `Internal`.
    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<BlobInfo>;
}

/// Keeps blobs from being collected while it lives; in memory only.
pub trait BlobLease: Send + Sync + std::fmt::Debug {
    /// Keeps `digest`, there or not yet. Whoever pins and then finds the blob can rely on it.
    fn pin(&self, digest: &Digest);
}

/// A lease, shared by whatever works for one purpose.
pub type Lease = Arc<dyn BlobLease>;

/// Identity and size of a blob, or of the part of it that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// What a collection has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs and partials.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A layer's blob that its owner wants, and could have again from where it came from.
///
/// Only layers that came from (or went to) a registry may be listed; never manifests and
/// configurations, and never what was built or loaded here and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Droppable {
    /// The blob.
    pub digest: Digest,
    /// Where it came from, as an operator would say it: `docker.io/library/nginx@sha256:…`.
    pub source: String,
    /// Whether every layer made from it is unpacked.
    pub unpacked: bool,
    /// Whether a registry is known to have it: it was pulled or pushed there by digest.
    pub remote: bool,
}

kind! {
    /// Blobs by digest.
    ///
    /// [`open`](Self::open), [`read`](Self::read) and [`follow`](Self::follow) bring a dropped blob
    /// back, which takes as long as a download; calls that must not wait have a deadline.
    pub trait BlobStore: Blobs = "blobs" (1, 1), budget None => {
        /// # Errors
        ///
        /// `NotFound` if there is no such blob.
        async fn stat(&self, cx: &Ctx, digest: &Digest) -> Result<BlobInfo>;

        /// The content, open for reading.
        ///
        /// # Errors
        ///
        /// `NotFound` if there is no such blob.
        async fn open(&self, cx: &Ctx, digest: &Digest) -> Result<File>;

        /// A small blob (a manifest or configuration) whole, at most `limit` bytes.
        ///
        /// # Errors
        ///
        /// `NotFound`; `InvalidArgument` if it is larger.
        async fn read(&self, cx: &Ctx, digest: &Digest, limit: u64) -> Result<Vec<u8>>;

        /// A lease that pins nothing yet.
        async fn lease(&self, cx: &Ctx) -> Result<Lease>;

        /// Begins a blob whose digest is not known yet.
        async fn writer(&self, cx: &Ctx, lease: &Lease) -> Result<Box<dyn BlobWriter>>;

        /// Begins or goes on with the blob `digest`, which is pinned in `lease` at once. What a
        /// partial holds is hashed before the first byte is added to it.
        ///
        /// # Errors
        ///
        /// `Exists` if the blob is here, `Busy` while somebody else writes it.
        async fn resume(&self, cx: &Ctx, digest: &Digest, lease: &Lease) -> Result<Box<dyn BlobWriter>>;

        /// A reader of a blob that is here or is being written by a [`resume`](Self::resume) writer
        /// right now: it then waits for more bytes, and fails when the writer is dropped without
        /// commit. A clean end is given only after the commit; until then nothing is verified. For
        /// blocking threads.
        ///
        /// # Errors
        ///
        /// `NotFound` if the blob is neither here nor on its way.
        async fn follow(&self, cx: &Ctx, digest: &Digest) -> Result<Box<dyn Read + Send>>;

        /// Unfinished blobs in digest order, with the bytes that are here.
        async fn partials(&self, cx: &Ctx) -> Result<Vec<BlobInfo>>;

        /// Forgets an unfinished blob; a missing one is no error.
        ///
        /// # Errors
        ///
        /// `Busy` while it is being written.
        async fn discard_partial(&self, cx: &Ctx, digest: &Digest) -> Result<()>;

        /// Removes a blob; a missing one is no error. Readers that have it open keep it.
        async fn remove(&self, cx: &Ctx, digest: &Digest) -> Result<()>;

        /// All blobs, in digest order.
        async fn list(&self, cx: &Ctx) -> Result<Vec<BlobInfo>>;

        /// Removes every blob and partial that no [`ContentOwner`] wants and no lease pins. Callers
        /// that come while one runs share the next one. Answers before the disk is cleared.
        ///
        /// # Errors
        ///
        /// Those of the owners, and `Unavailable` if one is down or the daemon has not started yet:
        /// then nothing is removed.
        async fn collect(&self, cx: &Ctx) -> Result<Collected>;
    }
}

kind! {
    /// Provided by whatever keeps records that refer to blobs; a collection asks all of them.
    pub trait ContentOwner: ContentOwners = "content-owners" (1, 0), budget Some(Duration::from_secs(30)) => {
        /// Every digest that must stay, blobs and partials alike.
        ///
        /// # Errors
        ///
        /// If that is not known for sure: nothing is removed then.
        async fn wanted(&self, cx: &Ctx) -> Result<Vec<Digest>>;

        /// Those of [`wanted`](Self::wanted) that a retention policy may drop. Asked only if the
        /// operator has chosen one.
        ///
        /// # Errors
        ///
        /// As for `wanted`.
        async fn droppable(&self, cx: &Ctx) -> Result<Vec<Droppable>>;
    }
}

kind! {
    /// Provided by whatever can fetch blobs again.
    pub trait BlobSource: BlobSources = "blob-sources" (1, 0), budget None => {
        /// Brings back a blob that a retention policy has dropped: writes it into the blob store.
        ///
        /// # Errors
        ///
        /// `NotFound` if this source does not know it.
        async fn fetch(&self, cx: &Ctx, digest: &Digest) -> Result<()>;
    }
}
