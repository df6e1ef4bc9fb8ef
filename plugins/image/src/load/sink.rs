//! Where blobs go, and layers at the same time to be unpacked; for blocking threads of a runtime.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use gantry_archive::{ArchiveError, Compression};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, BlobStore, BlobWriter, Lease};
use gantry_sdk::kinds::layers::{Hold, LayerStore, Staged};
use gantry_sdk::{Ctx, Error, Result};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::ingest::refused;
use crate::store::Store;

/// Bytes read and handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces that may wait to be unpacked.
const QUEUE: usize = 8;
/// Level of our own compression: at this one it is about as fast as writing.
pub const ZSTD_LEVEL: i32 = 1;
/// Where `ustar` is in an archive that is not compressed.
const USTAR: std::ops::Range<usize> = 257..262;

/// A blob, and what it is when decompressed.
#[derive(Clone)]
pub struct Stored {
    /// Digest of the blob.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// Digest of the content when decompressed; None if nobody has looked yet.
    pub diff_id: Option<Digest>,
    /// Bytes of it; 0 if nobody has looked yet.
    pub diff_bytes: u64,
    /// Keeps what was unpacked on the way.
    pub hold: Option<Hold>,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored")
            .field("digest", &self.digest)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// A blob that is stored, and perhaps still being unpacked.
#[derive(Debug)]
pub struct Coming {
    info: BlobInfo,
    compression: Compression,
    staging: Option<JoinHandle<Result<Staged>>>,
}

/// Where blobs and layers go.
#[derive(Clone)]
pub struct Sink {
    blobs: Arc<dyn BlobStore>,
    /// None: nothing is unpacked on the way.
    layers: Option<Arc<dyn LayerStore>>,
    /// Keeps what was stored while the sink, or whoever else has it, lives.
    lease: Lease,
    cx: Ctx,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl Sink {
    /// Blobs go to the stores of `store`, kept by `lease`.
    pub fn new(store: &Store, lease: Lease, cx: &Ctx) -> Self {
        let (blobs, layers) = (store.blobs.clone(), Some(store.layers.clone()));
        Self { blobs, layers, lease, cx: cx.clone() }
    }

    /// Blobs go to `blobs`, and nothing is unpacked.
    pub fn of_blobs(blobs: Arc<dyn BlobStore>, lease: Lease, cx: &Ctx) -> Self {
        Self { blobs, layers: None, lease, cx: cx.clone() }
    }

    /// What keeps blobs that were stored.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// A new blob.
    ///
    /// # Errors
    ///
    /// Those of the blob store.
    pub fn writer(&self) -> Result<Box<dyn BlobWriter>> {
        Handle::current().block_on(self.blobs.writer(&self.cx, &self.lease))
    }

    /// Stores bytes as they are; `expected` must be their digest.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it is not; those of the blob store.
    pub fn store(&self, bytes: &[u8], expected: Option<&Digest>) -> Result<Digest> {
        let mut writer = self.writer()?;
        writer.write_all(bytes).map_err(write_failed)?;
        Ok(writer.commit(expected)?.digest)
    }

    /// Whether a blob is here; if so it stays.
    ///
    /// # Errors
    ///
    /// Those of the blob store.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        self.lease.pin(digest);
        match Handle::current().block_on(self.blobs.stat(&self.cx, digest)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == gantry_sdk::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The blob's content, at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Those of the blob store.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        Handle::current().block_on(self.blobs.read(&self.cx, digest, limit))
    }

    /// Stores a stream as it is, and looks at what it is when decompressed.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it is compressed and damaged; those of the blob store.
    pub fn stream(&self, reader: impl Read + Send) -> Result<Stored> {
        let coming = self.keep(reader, false)?;
        self.known(self.finish(coming)?)
    }

    /// Stores a stream as it is. If it looks like a layer it is unpacked at the same time: that may
    /// go on after this, until [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// Those of the reader and of the blob store.
    pub fn layer(&self, reader: impl Read + Send) -> Result<Coming> {
        self.keep(reader, true)
    }

    fn keep(&self, reader: impl Read + Send, unpack: bool) -> Result<Coming> {
        let (compression, mut reader) = gantry_archive::detect(reader).map_err(refused)?;
        if !is_stored_as_it_is(compression) {
            let stored = self.repack(compression, reader)?;
            let info = BlobInfo { digest: stored.digest, size: stored.bytes };
            return Ok(Coming { info, compression: Compression::Zstd, staging: None });
        }
        let mut writer = self.writer()?;
        let mut piece = vec![0; PIECE];
        let mut feed: Option<Feed> = None;
        let mut first = true;
        loop {
            let n = fill(&mut reader, &mut piece).map_err(|e| refused(ArchiveError::Read(e)))?;
            if n == 0 {
                break;
            }
            writer.write_all(&piece[..n]).map_err(write_failed)?;
            if std::mem::take(&mut first) && unpack && looks_like_layer(compression, &piece[..n]) {
                feed = self.layers.clone().map(|layers| Feed::begin(layers, &self.cx));
            }
            if let Some(feed) = &mut feed {
                piece = feed.send(piece, n);
            }
        }
        let info = writer.commit(None)?;
        Ok(Coming { info, compression, staging: feed.map(Feed::end) })
    }

    /// What has become of a layer.
    ///
    /// # Errors
    ///
    /// `Internal` if the daemon is ending.
    pub fn finish(&self, coming: Coming) -> Result<Stored> {
        let Coming { info, compression, staging } = coming;
        let staged = match staging {
            Some(staging) => Handle::current().block_on(staging)?,
            None => Err(Error::invalid("not a layer")),
        };
        let mut stored = Stored {
            digest: info.digest,
            bytes: info.size,
            compression,
            diff_id: None,
            diff_bytes: 0,
            hold: None,
        };
        match staged {
            Ok(staged) => {
                stored.diff_id = Some(staged.diff_id);
                stored.diff_bytes = staged.unpacked;
                stored.hold = Some(staged.hold);
            }
            // It may be none; if it is one, its image will say what is wrong.
            Err(error) => tracing::debug!(error = %error.chain(), "Not unpacked on the way."),
        }
        Ok(stored)
    }

    /// Looks at what a blob is when decompressed, if nobody has yet.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it is damaged; those of the blob store.
    pub fn known(&self, mut stored: Stored) -> Result<Stored> {
        if stored.diff_id.is_some() {
            return Ok(stored);
        }
        if stored.compression == Compression::None {
            stored.diff_id = Some(stored.digest.clone());
            stored.diff_bytes = stored.bytes;
            return Ok(stored);
        }
        let file = Handle::current().block_on(self.blobs.open(&self.cx, &stored.digest))?;
        let ((), passed) =
            gantry_archive::decompressed_with(file, false, |_| Ok(())).map_err(refused)?;
        stored.diff_id = Some(passed.diff_id.parse()?);
        stored.diff_bytes = passed.diff_bytes;
        Ok(stored)
    }

    /// Stores a stream that is compressed in a way that manifests have no word for.
    fn repack(&self, compression: Compression, reader: impl Read + Send) -> Result<Stored> {
        tracing::debug!(compression = compression.name(), "A layer is compressed anew.");
        let mut packer = Packer::new(self.writer()?)?;
        gantry_archive::decompressed_with(reader, false, |chunks| {
            io::copy(chunks, &mut packer).map_err(ArchiveError::Read)
        })
        .map_err(refused)?;
        packer.finish()
    }
}

/// Whether a manifest can name such a blob.
fn is_stored_as_it_is(compression: Compression) -> bool {
    matches!(compression, Compression::None | Compression::Gzip | Compression::Zstd)
}

fn looks_like_layer(compression: Compression, head: &[u8]) -> bool {
    compression != Compression::None || head.get(USTAR) == Some(b"ustar")
}

fn write_failed(error: io::Error) -> Error {
    Error::io("write", "a blob", error)
}

/// Reads until `piece` is full or the stream ends.
fn fill(reader: &mut impl Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < piece.len() {
        match reader.read(&mut piece[n..]) {
            Ok(0) => break,
            Ok(read) => n += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n)
}

/// The sending end of a layer that is being unpacked.
struct Feed {
    /// None once the layer store has stopped reading.
    full: Option<SyncSender<(Vec<u8>, usize)>>,
    empty: Receiver<Vec<u8>>,
    complete: Arc<AtomicBool>,
    staging: JoinHandle<Result<Staged>>,
}

impl Feed {
    fn begin(layers: Arc<dyn LayerStore>, cx: &Ctx) -> Self {
        let (full, pieces) = sync_channel(QUEUE);
        let (used, empty) = sync_channel(QUEUE);
        let complete = Arc::<AtomicBool>::default();
        let current = (Vec::new(), 0);
        let source = Pieces { pieces, used, current, at: 0, complete: complete.clone() };
        let cx = cx.clone();
        let staging =
            Handle::current().spawn(async move { layers.stage(&cx, Box::new(source), None).await });
        Self { full: Some(full), empty, complete, staging }
    }

    /// Hands the first `n` bytes over; returns another piece to fill.
    fn send(&mut self, piece: Vec<u8>, n: usize) -> Vec<u8> {
        let Some(full) = &self.full else { return piece };
        if let Err(refused) = full.send((piece, n)) {
            self.full = None;
            return refused.0.0;
        }
        self.empty.try_recv().unwrap_or_else(|_| vec![0; PIECE])
    }

    fn end(self) -> JoinHandle<Result<Staged>> {
        self.complete.store(true, Ordering::Release);
        self.staging
    }
}

/// The reading end.
struct Pieces {
    pieces: Receiver<(Vec<u8>, usize)>,
    used: SyncSender<Vec<u8>>,
    current: (Vec<u8>, usize),
    at: usize,
    /// Set before the sender goes: a channel that closes without it was broken off.
    complete: Arc<AtomicBool>,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.1 {
            let Ok(next) = self.pieces.recv() else {
                let complete = self.complete.load(Ordering::Acquire);
                let broken = || io::Error::new(io::ErrorKind::ConnectionAborted, "broken off");
                return if complete { Ok(0) } else { Err(broken()) };
            };
            let (used, _) = std::mem::replace(&mut self.current, next);
            if !used.is_empty() {
                let _ = self.used.try_send(used);
            }
            self.at = 0;
        }
        let n = buf.len().min(self.current.1 - self.at);
        buf[..n].copy_from_slice(&self.current.0[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// A layer that is written here: what is written is hashed and compressed on its way to the blob
/// store.
pub struct Packer {
    encoder: zstd::stream::write::Encoder<'static, Box<dyn BlobWriter>>,
    plain: gantry_archive::Hasher,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("plain", &self.plain).finish_non_exhaustive()
    }
}

impl Packer {
    /// Writes to `blob`.
    ///
    /// # Errors
    ///
    /// `Internal`.
    pub fn new(blob: Box<dyn BlobWriter>) -> Result<Self> {
        let encoder = zstd::stream::write::Encoder::new(blob, ZSTD_LEVEL)
            .map_err(|e| Error::io("compress", "a layer", e))?;
        Ok(Self { encoder, plain: gantry_archive::Hasher::default() })
    }

    /// Ends and commits the blob.
    ///
    /// # Errors
    ///
    /// Those of the blob store.
    pub fn finish(self) -> Result<Stored> {
        let info = self.encoder.finish().map_err(write_failed)?.commit(None)?;
        let (diff_id, diff_bytes) = self.plain.finish();
        Ok(Stored {
            digest: info.digest,
            bytes: info.size,
            compression: Compression::Zstd,
            diff_id: Some(diff_id.parse()?),
            diff_bytes,
            hold: None,
        })
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.encoder.write(bytes)?;
        self.plain.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}
