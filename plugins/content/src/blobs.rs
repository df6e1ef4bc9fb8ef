//! Files named by their digest: `sha256/<64 hex digits>`.
//!
//! A blob is written to `ingest/` while its digest is computed, synced, then renamed into place.
//! What a dead process left in `ingest/` is removed when the store is opened.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, BlobStore, BlobWriter};
use gantry_sdk::{Ctx, Error, Result};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

/// A directory of blobs.
#[derive(Debug)]
pub struct FileBlobs {
    blobs: PathBuf,
    ingest: PathBuf,
}

impl FileBlobs {
    /// Opens the store below `root` and drops unfinished blobs.
    ///
    /// # Errors
    ///
    /// `Internal` or `NoSpace` with the path.
    pub fn open(root: &Path) -> Result<Self> {
        let (blobs, ingest) = (root.join("sha256"), root.join("ingest"));
        match fs::remove_dir_all(&ingest) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("clear", ingest.display(), e));
            }
            _ => {}
        }
        for dir in [&blobs, &ingest] {
            fs::create_dir_all(dir).map_err(|e| Error::io("create", dir.display(), e))?;
        }
        Ok(Self { blobs, ingest })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
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
        let path = self.path(digest);
        let meta = fs::metadata(&path).map_err(|e| missing(digest, "stat", &path, e))?;
        Ok(BlobInfo { digest: digest.clone(), size: meta.len() })
    }

    async fn open(&self, _: &Ctx, digest: &Digest) -> Result<File> {
        let path = self.path(digest);
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

    async fn writer(&self, _: &Ctx) -> Result<Box<dyn BlobWriter>> {
        let (ingest, blobs) = (self.ingest.clone(), self.blobs.clone());
        blocking(move || {
            let file = NamedTempFile::new_in(&ingest)
                .map_err(|e| Error::io("create a file in", ingest.display(), e))?;
            let writer = Ingest { file, hash: Sha256::new(), size: 0, blobs };
            Ok(Box::new(writer) as Box<dyn BlobWriter>)
        })
        .await
    }

    async fn remove(&self, _: &Ctx, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", path.display(), e))
            }
            _ => Ok(()),
        }
    }

    async fn list(&self, _: &Ctx) -> Result<Vec<BlobInfo>> {
        let dir = self.blobs.clone();
        blocking(move || {
            let failed = |e| Error::io("list", dir.display(), e);
            let mut found = Vec::new();
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                // Anything else in this directory is not ours; it is left alone.
                let name = format!("sha256:{}", entry.file_name().to_string_lossy());
                if let Ok(digest) = name.parse() {
                    found.push(BlobInfo { digest, size: entry.metadata().map_err(failed)?.len() });
                }
            }
            found.sort_by(|a, b| a.digest.cmp(&b.digest));
            Ok(found)
        })
        .await
    }
}

struct Ingest {
    file: NamedTempFile,
    hash: Sha256,
    size: u64,
    blobs: PathBuf,
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter for Ingest {
    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<BlobInfo> {
        let Self { file, hash, size, blobs } = *self;
        let digest = Digest::from_sha256(&hash.finalize().into());
        if let Some(expected) = expected.filter(|e| **e != digest) {
            return Err(Error::invalid(format!("content has digest {digest}, not {expected}")));
        }
        let path = blobs.join(digest.hex());
        let failed = |e| Error::io("store", path.display(), e);
        if !path.exists() {
            file.as_file().sync_all().map_err(failed)?; // content before name
            file.persist(&path).map_err(|e| failed(e.error))?;
        }
        // Also when it was there already: the process that named it may have died before this.
        File::open(&blobs).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(BlobInfo { digest, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::ErrorKind;

    async fn put(store: &FileBlobs, content: &[u8], expected: Option<&Digest>) -> Result<BlobInfo> {
        let mut writer = store.writer(&Ctx::background()).await?;
        writer.write_all(content).unwrap();
        writer.commit(expected)
    }

    #[tokio::test]
    async fn a_blob_is_found_by_its_digest_and_a_lie_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileBlobs::open(dir.path()).unwrap();
        let cx = Ctx::background();
        let blob = put(&store, b"hello", None).await.unwrap();
        assert_eq!(store.read(&cx, &blob.digest, 5).await.unwrap(), b"hello");
        assert_eq!(
            store.read(&cx, &blob.digest, 4).await.unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        assert!(put(&store, b"other", Some(&blob.digest)).await.is_err());
        assert_eq!(store.list(&cx).await.unwrap(), std::slice::from_ref(&blob));
        store.remove(&cx, &blob.digest).await.unwrap();
        store.remove(&cx, &blob.digest).await.unwrap();
        assert_eq!(store.stat(&cx, &blob.digest).await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn unfinished_blobs_are_dropped_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileBlobs::open(dir.path()).unwrap();
        fs::write(dir.path().join("ingest/half"), b"x").unwrap();
        drop(store);
        FileBlobs::open(dir.path()).unwrap();
        assert!(fs::read_dir(dir.path().join("ingest")).unwrap().next().is_none());
    }
}
