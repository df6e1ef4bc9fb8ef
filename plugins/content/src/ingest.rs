//! Blobs on their way in: written aside while their digest is computed, then renamed into place.
//!
//! A blob whose digest is known beforehand is written to a partial, which outlives the writer: the
//! next one goes on where it ended. All others have a name of their own and vanish with their
//! writer.
//!
//! # What it costs
//!
//! Hashing is the floor, and it is done by the thread that writes: a second one saves a quarter of the
//! time when it has a processor for itself, but whoever unpacks meanwhile has better use for that.
//! The disk is asked to begin early, because a sync of 300 MB at the end stalls everybody for a tenth
//! of a second and more, and one of the last 8 MB does not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, BlobWriter, Lease};
use gantry_sdk::{Error, Result};
use gantry_sys::file::start_write_back;
use sha2::{Digest as _, Sha256};

use crate::dirs::{self, Shared};
use crate::follow::{End, Progress};

/// Read at once when what is there is hashed or compared.
const PIECE: usize = 256 << 10;
/// Handed to the disk at once while more is written.
const WRITE_BACK: u64 = 8 << 20;

/// A blob being written.
pub(crate) struct Ingest {
    shared: Arc<Shared>,
    lease: Lease,
    path: PathBuf,
    /// Known beforehand: what is written is kept.
    digest: Option<Digest>,
    /// Of the first `hashed` bytes: fewer than `offset` only right after a resumption.
    hash: Sha256,
    hashed: u64,
    /// Where the next byte goes.
    offset: u64,
    /// Bytes of the file: more than `offset` after a restart. What comes is compared with them, so
    /// that followers need not begin anew with the writer, and a cut now leaves more than nothing.
    len: u64,
    /// The disk has been asked to write everything before this.
    started: u64,
    progress: Arc<Progress>,
    /// The file has another name, or none.
    settled: bool,
}

impl Ingest {
    /// Begins a blob of unknown digest. Blocking.
    pub(crate) fn begin(shared: &Arc<Shared>, lease: &Lease) -> Result<Self> {
        let path = shared.dirs.temporary();
        let progress = Arc::new(Progress::new(open(&path)?, 0));
        Ok(Self::new(shared, lease, path, progress, 0))
    }

    /// Begins `digest` or goes on with it. Blocking.
    pub(crate) fn resume(shared: &Arc<Shared>, lease: &Lease, digest: &Digest) -> Result<Self> {
        lease.pin(digest); // from now on it is not removed, whether it is there already or not
        let mut writing = shared.writing();
        if writing.contains_key(digest) {
            return Err(Error::busy(format!("blob {digest} is being written")));
        }
        // A writer names its blob before it leaves the table, so this order misses none.
        if shared.dirs.blob(digest).exists() {
            return Err(Error::exists(format!("blob {digest} is here already")));
        }
        let path = shared.dirs.partial(digest);
        let file = open(&path)?;
        let len = file.metadata().map_err(|e| Error::io("stat", path.display(), e))?.len();
        let progress = Arc::new(Progress::new(file, len));
        writing.insert(digest.clone(), progress.clone());
        drop(writing);
        let mut ingest = Self::new(shared, lease, path, progress, len);
        ingest.digest = Some(digest.clone());
        Ok(ingest)
    }

    fn new(
        shared: &Arc<Shared>,
        lease: &Lease,
        path: PathBuf,
        progress: Arc<Progress>,
        len: u64,
    ) -> Self {
        Self {
            shared: shared.clone(),
            lease: lease.clone(),
            path,
            digest: None,
            hash: Sha256::new(),
            hashed: 0,
            offset: len,
            len,
            started: len,
            progress,
            settled: false,
        }
    }

    /// Hashes what was there before.
    fn catch_up(&mut self) -> io::Result<()> {
        if self.hashed == self.offset {
            return Ok(());
        }
        let mut piece = vec![0; PIECE];
        while self.hashed < self.offset {
            let left = usize::try_from(self.offset - self.hashed).unwrap_or(PIECE);
            let piece = &mut piece[..left.min(PIECE)];
            self.progress.file().read_exact_at(piece, self.hashed)?;
            self.hash.update(&*piece);
            self.hashed += piece.len() as u64;
        }
        Ok(())
    }

    /// Compares `bytes` with what is there, as far as there is something; how many are equal.
    fn compare(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let there = usize::try_from(self.len - self.offset).unwrap_or(PIECE);
        let bytes = &bytes[..bytes.len().min(there).min(PIECE)];
        let mut piece = vec![0; bytes.len()];
        self.progress.file().read_exact_at(&mut piece, self.offset)?;
        Ok(piece.iter().zip(bytes).take_while(|(old, new)| old == new).count())
    }

    /// Forgets what is there behind `offset`.
    fn cut(&mut self) -> io::Result<()> {
        self.progress.cut(self.offset);
        self.progress.file().set_len(self.offset)?;
        self.len = self.offset;
        self.started = self.started.min(self.len);
        Ok(())
    }

    /// Asks the disk to begin with what has come together.
    fn write_back(&mut self) {
        let length = self.len - self.started;
        if length >= WRITE_BACK {
            // Only a hint: a file system that cannot take it, or an error it met, is the sync's matter.
            let _ = start_write_back(self.progress.file(), self.started, length);
            self.started = self.len;
        }
    }

    /// Writes as many of `bytes` as go at once.
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.offset < self.len {
            let same = self.compare(bytes)?;
            if same > 0 || bytes.is_empty() {
                return Ok(same);
            }
            self.cut()?;
        }
        let n = self.progress.file().write_at(bytes, self.offset)?;
        self.len = self.offset + n as u64;
        self.progress.grown(self.len); // followers go on while this is hashed
        self.write_back();
        Ok(n)
    }

    /// Gives the file its place among the blobs.
    fn place(&mut self, digest: &Digest) -> Result<()> {
        let path = self.shared.dirs.blob(digest);
        let failed = |e| Error::io("store", path.display(), e);
        if path.exists() {
            dirs::remove(&self.path)?;
        } else {
            self.progress.file().sync_data().map_err(failed)?; // content before name
            fs::rename(&self.path, &path).map_err(failed)?;
        }
        self.settled = true;
        // Also when it was there already: the process that named it may have died before this.
        self.shared.dirs.sync_names().map_err(failed)
    }

    /// Tells followers how it ended, and lets others write the blob.
    fn leave(&self, end: End) {
        if let Some(digest) = &self.digest {
            let mut writing = self.shared.writing();
            if writing.get(digest).is_some_and(|it| Arc::ptr_eq(it, &self.progress)) {
                writing.remove(digest);
            }
        }
        self.progress.end(end);
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("create", path.display(), e))
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.catch_up()?;
        let n = self.put(bytes)?;
        self.hash.update(&bytes[..n]);
        self.offset += n as u64;
        self.hashed = self.offset;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for Ingest {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn restart(&mut self) -> Result<()> {
        (self.hash, self.hashed, self.offset) = (Sha256::new(), 0, 0);
        Ok(())
    }

    fn commit(mut self: Box<Self>, expected: Option<&Digest>) -> Result<BlobInfo> {
        let failed = |path: &Path, e| Error::io("finish", path.display(), e);
        self.catch_up().map_err(|e| failed(&self.path, e))?;
        if self.offset < self.len {
            self.cut().map_err(|e| failed(&self.path, e))?;
        }
        let digest = Digest::from_sha256(&std::mem::take(&mut self.hash).finalize().into());
        if let Some(other) =
            [expected, self.digest.as_ref()].into_iter().flatten().find(|d| **d != digest)
        {
            let error = Error::invalid(format!("content has digest {digest}, not {other}"));
            dirs::remove(&self.path)?;
            self.settled = true;
            return Err(error);
        }
        self.lease.pin(&digest);
        self.place(&digest)?;
        self.leave(End::Committed);
        Ok(BlobInfo { digest, size: self.len })
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let kept = self.digest.is_some() && self.len > 0;
        if !self.settled
            && !kept
            && let Err(error) = dirs::remove(&self.path)
        {
            tracing::warn!(error = %error.chain(), "An unfinished blob stays until the next start.");
        }
        self.leave(End::Gone); // no news after a commit
    }
}
