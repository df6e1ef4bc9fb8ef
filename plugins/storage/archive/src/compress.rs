//! Decompression, and the pipe that lets it run beside whoever uses the bytes.
//!
//! One thread reads, hashes the raw bytes and decompresses; the caller's thread consumes. Chunks
//! travel through a bounded queue and come back for reuse, so memory is constant.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::digest::Hasher;
use crate::{ArchiveError, Result};

/// Size of one chunk: large enough that hashing and writing dominate the hand-over.
const CHUNK: usize = 256 << 10;
/// Chunks in flight.
const QUEUE: usize = 8;

/// No stream may unpack to more than this many times its own bytes: a little more than what gzip can
/// do. Source: zlib's technical notes, "Maximum Compression Factor", 1032.
const MOST_RATIO: u64 = 1100;
/// Streams may unpack to this many bytes whatever their ratio.
const ANY_RATIO: u64 = if cfg!(test) { 16 << 20 } else { 1 << 30 };

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or more members (RFC 1952).
    Gzip,
    /// Zstandard, one or more frames (RFC 8878).
    Zstd,
}

impl Compression {
    /// From the first bytes of a stream (six are enough; fewer mean a short stream).
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Compression`] for formats that are known and not read.
    pub fn detect(magic: &[u8]) -> Result<Self> {
        const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18]; // after 0x50 … 0x5f; RFC 8878 §3.1.2
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            [0x50..=0x5f, rest @ ..] if rest.starts_with(&SKIPPABLE) => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(ArchiveError::Compression("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err(ArchiveError::Compression("bzip2")),
            _ => Ok(Self::None),
        }
    }
}

/// A reader whose first bytes have been looked at.
type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Reads the first bytes and says how the stream is compressed; the returned reader still yields
/// every byte.
///
/// # Errors
///
/// Those of the reader and of [`Compression::detect`].
pub fn detect<R: Read>(mut reader: R) -> Result<(Compression, impl Read)> {
    let (compression, head) = peek(&mut reader)?;
    Ok((compression, Cursor::new(head).chain(reader)))
}

fn peek(reader: &mut impl Read) -> Result<(Compression, Vec<u8>)> {
    let mut head = Vec::with_capacity(6);
    reader.take(6).read_to_end(&mut head).map_err(ArchiveError::Read)?;
    Ok((Compression::detect(&head)?, head))
}

/// The digests of a stream that has passed, compressed and not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// How it was compressed.
    pub compression: Compression,
    /// Digest of the bytes as given; None if it was not asked for.
    pub digest: Option<String>,
    /// Their count.
    pub bytes: u64,
    /// Digest of the uncompressed bytes.
    pub diff_id: String,
    /// Their count.
    pub diff_bytes: u64,
}

/// Runs `consume` on the decompressed bytes of `reader`, while another thread reads ahead, and then
/// drains the rest, so that the digests cover everything.
///
/// If `consume` fails, the thread ends at its next chunk; a reader that can block for ever must
/// have its own end.
///
/// # Errors
///
/// Those of `consume`; otherwise what reading reported.
pub fn decompressed<R: Read + Send, T>(
    reader: R,
    consume: impl FnOnce(&mut Chunks) -> Result<T>,
) -> Result<(T, Passed)> {
    decompressed_with(reader, true, consume)
}

/// [`decompressed`], with the digest of the bytes as given only if `hash_raw`: for readers that
/// verify what they give.
///
/// # Errors
///
/// Those of [`decompressed`].
pub fn decompressed_with<R: Read + Send, T>(
    mut reader: R,
    hash_raw: bool,
    consume: impl FnOnce(&mut Chunks) -> Result<T>,
) -> Result<(T, Passed)> {
    let (compression, head) = peek(&mut reader)?;
    // The raw bytes may be the uncompressed ones, whose digest is always wanted.
    let hasher = (hash_raw || compression == Compression::None).then(Hasher::default);
    let raw = Raw { inner: Cursor::new(head).chain(reader), hasher, bytes: Arc::default() };
    let (full_in, full_out) = sync_channel(QUEUE);
    let (empty_in, empty_out) = sync_channel(QUEUE);

    thread::scope(|scope| {
        let producer = scope.spawn(move || produce(compression, raw, &full_in, &empty_out));
        let mut chunks = Chunks::new(compression, full_out, empty_in);
        let outcome = consume(&mut chunks).and_then(|value| {
            chunks.drain().map_err(ArchiveError::Read)?;
            Ok(value)
        });
        let hasher = chunks.close();
        let Ok(raw) = producer.join() else {
            return Err(ArchiveError::Read(io::Error::other("the decompressing thread died")));
        };
        let value = outcome?;
        let (hashed, bytes) = raw;
        let digest = hashed.map(|hasher| hasher.finish().0);
        let (diff_id, diff_bytes) = match hasher {
            Some(hasher) => hasher.finish(),
            None => (digest.clone().unwrap_or_default(), bytes),
        };
        Ok((value, Passed { compression, digest, bytes, diff_id, diff_bytes }))
    })
}

type Chunk = io::Result<Vec<u8>>;

/// The producing thread's whole life; returns the hash of what it read.
fn produce<R: Read>(
    compression: Compression,
    mut raw: Raw<Peeked<R>>,
    full: &SyncSender<Chunk>,
    empty: &Receiver<Vec<u8>>,
) -> (Option<Hasher>, u64) {
    let read = raw.bytes.clone();
    match compression {
        Compression::None => pump(&mut raw, full, empty),
        Compression::Gzip => {
            let buffered = BufReader::with_capacity(CHUNK, &mut raw);
            let inner = flate2::bufread::MultiGzDecoder::new(buffered);
            pump(&mut Bounded { inner, read, produced: 0 }, full, empty);
        }
        Compression::Zstd => {
            let buffered = BufReader::with_capacity(CHUNK, &mut raw);
            match zstd::stream::read::Decoder::with_buffer(buffered) {
                Ok(inner) => pump(&mut Bounded { inner, read, produced: 0 }, full, empty),
                Err(error) => drop(full.send(Err(error))),
            }
        }
    }
    (raw.hasher, raw.bytes.load(Relaxed))
}

/// The stream as given, counted and perhaps hashed.
struct Raw<R> {
    inner: R,
    hasher: Option<Hasher>,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Raw<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        self.bytes.fetch_add(n as u64, Relaxed);
        Ok(n)
    }
}

/// Ends a stream that unpacks to far more than it is.
struct Bounded<R> {
    inner: R,
    /// Bytes that went into unpacking, and perhaps a few more.
    read: Arc<AtomicU64>,
    produced: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.produced = self.produced.saturating_add(n as u64);
        let most = self.read.load(Relaxed).saturating_mul(MOST_RATIO).max(ANY_RATIO);
        if self.produced > most {
            let why = format!("it unpacks to more than {MOST_RATIO} times its size");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(n)
    }
}

/// Moves chunks until the end, an error, or until nobody listens any more.
fn pump(source: &mut impl Read, full: &SyncSender<Chunk>, empty: &Receiver<Vec<u8>>) {
    loop {
        let mut chunk = empty.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        match fill(source, &mut chunk) {
            Ok(0) => return,
            Ok(n) => {
                chunk.truncate(n);
                if full.send(Ok(chunk)).is_err() {
                    return;
                }
            }
            Err(error) => return drop(full.send(Err(error))),
        }
    }
}

/// Reads until `chunk` is full or the stream ends. An error after some bytes is reported by the
/// next call (readers repeat it, or end).
fn fill(source: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match source.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The consuming end: a [`BufRead`] that hands out whole chunks without copying them.
#[derive(Debug)]
pub struct Chunks {
    full: Receiver<Chunk>,
    empty: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    /// None when the raw bytes are the uncompressed ones: they are hashed once, elsewhere.
    hasher: Option<Hasher>,
    ended: bool,
}

impl Chunks {
    fn new(compression: Compression, full: Receiver<Chunk>, empty: SyncSender<Vec<u8>>) -> Self {
        let hasher = (compression != Compression::None).then(Hasher::default);
        Self { full, empty, chunk: Vec::new(), at: 0, hasher, ended: false }
    }

    fn drain(&mut self) -> io::Result<()> {
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                return Ok(());
            }
            self.consume(n);
        }
    }

    fn close(self) -> Option<Hasher> {
        self.hasher
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() && !self.ended {
            let used = std::mem::take(&mut self.chunk);
            self.at = 0;
            if used.capacity() >= CHUNK {
                // A full return queue only means one allocation more.
                let _ = self.empty.try_send(used);
            }
            match self.full.recv() {
                Ok(Ok(chunk)) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&chunk);
                    }
                    self.chunk = chunk;
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.chunk.len());
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read_all(data: &[u8]) -> Result<(Vec<u8>, Passed)> {
        decompressed(data, |chunks| {
            let mut out = Vec::new();
            chunks.read_to_end(&mut out).map_err(ArchiveError::Read)?;
            Ok(out)
        })
    }

    #[test]
    fn every_compression_yields_the_same_bytes_and_diff_id() {
        let data: Vec<u8> = (0..900_000u32).flat_map(u32::to_le_bytes).collect();
        let two_members = [gzip(&data[..1000]), gzip(&data[1000..])].concat();
        let zstd = zstd::bulk::compress(&data, 1).unwrap();
        let (_, plain) = read_all(&data).unwrap();
        assert_eq!(Some(&plain.diff_id), plain.digest.as_ref());
        for (what, bytes) in [("plain", &data), ("gzip", &two_members), ("zstd", &zstd)] {
            let (out, passed) = read_all(bytes).unwrap();
            assert_eq!(out, data, "{what}");
            assert_eq!(passed.diff_id, plain.diff_id, "{what}");
            assert_eq!(passed.bytes, bytes.len() as u64, "{what}");
        }
    }

    #[test]
    fn a_consumer_that_stops_early_still_gets_whole_digests() {
        let data = gzip(&vec![7; 3_000_000]);
        let ((), passed) = decompressed(&data[..], |_| Ok(())).unwrap();
        assert_eq!((passed.bytes, passed.diff_bytes), (data.len() as u64, 3_000_000));
        let ((), unhashed) = decompressed_with(&data[..], false, |_| Ok(())).unwrap();
        assert_eq!(unhashed, Passed { digest: None, ..passed });
    }

    #[test]
    fn a_stream_that_unpacks_to_far_more_than_it_is_ends() {
        let zeros = io::repeat(0).take(ANY_RATIO + (4 << 20));
        let bomb = zstd::encode_all(zeros, 1).unwrap();
        let error = decompressed_with(&bomb[..], false, |_| Ok(())).unwrap_err();
        assert!(error.is_bad_archive(), "{error:?}");
        let allowed = zstd::encode_all(io::repeat(0).take(ANY_RATIO), 1).unwrap();
        decompressed_with(&allowed[..], false, |_| Ok(())).unwrap();
    }

    #[test]
    fn damage_and_unknown_formats_are_errors() {
        let mut cut = gzip(&vec![7; 3_000_000]);
        cut.truncate(cut.len() / 2);
        assert!(matches!(read_all(&cut), Err(ArchiveError::Read(_))));
        let xz = read_all(b"\xfd7zXZ\0....").unwrap_err();
        assert_eq!(xz.to_string(), "xz compression is not supported");
        assert_eq!(read_all(b"").unwrap().0, b"");
    }
}
