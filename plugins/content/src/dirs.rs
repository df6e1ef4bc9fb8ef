//! Where things are on disk, and what all parts of the blob store share.
//!
//! ```text
//! sha256/<hex>           blobs
//! ingest/<hex>.partial   the beginnings of blobs, for the next try
//! ingest/<n>.new         blobs whose digest is not known yet; of no use without their writer
//! dropped/<hex>          what is remembered of blobs that a retention policy dropped
//! trash/<n>              removed, but not gone yet
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::BlobInfo;
use gantry_sdk::{Error, Result};

use crate::dropped::Records;
use crate::follow::Progress;
use crate::pins::Pins;

const PARTIAL: &str = ".partial";

/// The directories of the store.
#[derive(Debug)]
pub(crate) struct Dirs {
    blobs: PathBuf,
    ingest: PathBuf,
    trash: PathBuf,
    /// Blobs that a policy dropped.
    pub(crate) dropped: Records,
    next: AtomicU64,
}

impl Dirs {
    /// Opens the store below `root` and clears what a dead process cannot use any more.
    fn open(root: &Path) -> Result<Self> {
        let dirs = Self {
            blobs: root.join("sha256"),
            ingest: root.join("ingest"),
            trash: root.join("trash"),
            dropped: Records(root.join("dropped")),
            next: AtomicU64::new(0),
        };
        for dir in [&dirs.blobs, &dirs.ingest, &dirs.trash, &dirs.dropped.0] {
            fs::create_dir_all(dir).map_err(|e| Error::io("create", dir.display(), e))?;
        }
        for entry in entries(&dirs.trash)?.into_iter().chain(entries(&dirs.ingest)?) {
            let digest = partial_of(&entry);
            // The process that named the blob may have died before it forgot the partial.
            if digest.is_none_or(|digest| dirs.blob(&digest).exists()) {
                remove(&entry.path())?;
            }
        }
        Ok(dirs)
    }

    /// A blob's content.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// The beginning of a blob.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.ingest.join(format!("{}{PARTIAL}", digest.hex()))
    }

    /// A name for a new file.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.ingest.join(format!("{}.new", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Takes away a file's name, at once; false if there is no such file. What is left of it is
    /// [emptied](Self::empty_trash) later.
    pub(crate) fn discard(&self, path: &Path) -> Result<bool> {
        let to = self.trash.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        match fs::rename(path, &to) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("remove", path.display(), e)),
        }
    }

    /// Frees the space of what was discarded. Blocking.
    pub(crate) fn empty_trash(&self) -> Result<()> {
        entries(&self.trash)?.iter().try_for_each(|entry| remove(&entry.path()))
    }

    /// Makes the names of blobs durable. Blocking.
    pub(crate) fn sync_names(&self) -> io::Result<()> {
        File::open(&self.blobs)?.sync_all()
    }

    /// All blobs, in digest order. Blocking.
    pub(crate) fn list(&self) -> Result<Vec<BlobInfo>> {
        let found = self.files(&self.blobs, |entry| {
            // Anything else in this directory is not ours; it is left alone.
            format!("sha256:{}", entry.file_name().to_string_lossy()).parse().ok()
        })?;
        Ok(found.into_iter().map(|(info, _)| info).collect())
    }

    /// All partials, in digest order, with the time when something was last added. Blocking.
    pub(crate) fn partials(&self) -> Result<Vec<(BlobInfo, SystemTime)>> {
        self.files(&self.ingest, partial_of)
    }

    fn files(
        &self,
        dir: &Path,
        digest: impl Fn(&fs::DirEntry) -> Option<Digest>,
    ) -> Result<Vec<(BlobInfo, SystemTime)>> {
        let mut found = Vec::new();
        for entry in entries(dir)? {
            let Some(digest) = digest(&entry) else { continue };
            match entry.metadata() {
                Ok(meta) => {
                    let touched = meta.modified().unwrap_or_else(|_| SystemTime::now());
                    found.push((BlobInfo { digest, size: meta.len() }, touched));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // gone meanwhile
                Err(e) => return Err(Error::io("stat", entry.path().display(), e)),
            }
        }
        found.sort_by(|(a, _), (b, _)| a.digest.cmp(&b.digest));
        Ok(found)
    }
}

/// What is in `dir`.
pub(crate) fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    fs::read_dir(dir).and_then(Iterator::collect).map_err(|e| Error::io("list", dir.display(), e))
}

fn partial_of(entry: &fs::DirEntry) -> Option<Digest> {
    let name = entry.file_name();
    format!("sha256:{}", name.to_str()?.strip_suffix(PARTIAL)?).parse().ok()
}

/// Removes a file; a missing one is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path.display(), e))
        }
        _ => Ok(()),
    }
}

/// Writers by the digest they were begun for.
pub(crate) type Writing = HashMap<Digest, Arc<Progress>>;

/// What the store, its writers and its leases share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dirs: Dirs,
    pub(crate) pins: Arc<Pins>,
    writing: Mutex<Writing>,
}

impl Shared {
    /// Opens the store below `root`. Blocking.
    pub(crate) fn open(root: &Path) -> Result<Arc<Self>> {
        let dirs = Dirs::open(root)?;
        Ok(Arc::new(Self { dirs, pins: Arc::default(), writing: Mutex::default() }))
    }

    /// What is being written under a digest. Held for an open or a rename at most.
    pub(crate) fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Forgets a partial; a missing one is no error.
    ///
    /// # Errors
    ///
    /// `Busy` while it is being written.
    pub(crate) fn discard_partial(&self, digest: &Digest) -> Result<bool> {
        let writing = self.writing();
        if writing.contains_key(digest) {
            return Err(Error::busy(format!("blob {digest} is being written")));
        }
        let gone = self.dirs.discard(&self.dirs.partial(digest));
        drop(writing);
        gone
    }
}
