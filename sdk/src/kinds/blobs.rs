//! The blob store: content by digest, the truth that no driver owns.

use std::fs::File;
use std::time::Duration;

use crate::id::Digest;
use crate::{Result, kind};

/// A blob being written. Blocking: use it on a blocking thread. Dropping it discards what was
/// written.
pub trait BlobWriter: std::io::Write + Send {
    /// Makes the content visible under its digest, durably; `expected` must match. Content that is
    /// already there is kept as it is.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the digest is another one; `NoSpace`; `Internal`.
    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<BlobInfo>;
}

/// Identity and size of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

kind! {
    /// Blobs by digest.
    pub trait BlobStore: Blobs = "blobs" (1, 0), budget Some(Duration::from_secs(60)) => {
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

        /// Begins a blob.
        async fn writer(&self, cx: &Ctx) -> Result<Box<dyn BlobWriter>>;

        /// Removes a blob; a missing one is no error. Readers that have it open keep it.
        async fn remove(&self, cx: &Ctx, digest: &Digest) -> Result<()>;

        /// All blobs, in digest order.
        async fn list(&self, cx: &Ctx) -> Result<Vec<BlobInfo>>;
    }
}
