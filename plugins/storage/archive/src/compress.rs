//! Decompression, and the pipe that lets it run beside whoever uses the bytes.
//!
//! One thread reads, hashes the raw bytes and decompresses; the caller's thread consumes. Chunks
//! travel through a bounded queue and come back for reuse, so memory is constant.

use std::io::{self, BufRead, Cursor, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::decode::{CHUNK, Chunk, Pipe, Ratio, Sent, produce};
use crate::digest::Hasher;
use crate::{ArchiveError, Result};

/// Chunks in flight.
const QUEUE: usize = 2;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or more members (RFC 1952).
    Gzip,
    /// Zstandard, one or more frames (RFC 8878).
    Zstd,
    /// xz, one or more streams (The .xz File Format 1.2.1).
    Xz,
    /// bzip2, one or more streams.
    Bzip2,
}

impl Compression {
    /// From the first bytes of a stream (six are enough; fewer mean a short stream).
    pub fn detect(magic: &[u8]) -> Self {
        const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18]; // after 0x50 … 0x5f; RFC 8878 §3.1.2
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x50..=0x5f, rest @ ..] if rest.starts_with(&SKIPPABLE) => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::None,
        }
    }

    /// The name of the format, empty for none.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }
}

/// Reads the first bytes and says how the stream is compressed; the returned reader still yields
/// every byte.
///
/// # Errors
///
/// Those of the reader.
pub fn detect<R: Read>(mut reader: R) -> Result<(Compression, impl Read)> {
    let (compression, head) = peek(&mut reader)?;
    Ok((compression, Cursor::new(head).chain(reader)))
}

fn peek(reader: &mut impl Read) -> Result<(Compression, Vec<u8>)> {
    let mut head = Vec::with_capacity(6);
    reader.take(6).read_to_end(&mut head).map_err(ArchiveError::Read)?;
    Ok((Compression::detect(&head), head))
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
    reader: R,
    hash_raw: bool,
    consume: impl FnOnce(&mut Chunks) -> Result<T>,
) -> Result<(T, Passed)> {
    run(reader, hash_raw, Ratio::USUAL, consume)
}

fn run<R: Read + Send, T>(
    mut reader: R,
    hash_raw: bool,
    ratio: Ratio,
    consume: impl FnOnce(&mut Chunks) -> Result<T>,
) -> Result<(T, Passed)> {
    let (compression, head) = peek(&mut reader)?;
    let raw = Cursor::new(head).chain(reader);
    // The raw bytes may be the uncompressed ones, whose digest is always wanted.
    let hash_raw = hash_raw || compression == Compression::None;
    let (full, full_out) = sync_channel(QUEUE);
    let (empty_in, empty) = sync_channel(QUEUE);
    let pipe = Pipe { full, empty };

    thread::scope(|scope| {
        let producer = scope.spawn(move || produce(compression, raw, hash_raw, ratio, &pipe));
        let mut chunks = Chunks::new(compression, full_out, empty_in);
        let outcome = consume(&mut chunks).and_then(|value| {
            chunks.drain().map_err(ArchiveError::Read)?;
            Ok(value)
        });
        let hasher = chunks.close();
        let Ok((hashed, bytes)) = producer.join() else {
            return Err(ArchiveError::Read(io::Error::other("the decompressing thread died")));
        };
        let value = outcome?;
        let digest = hashed.map(|hasher| hasher.finish().0);
        let (diff_id, diff_bytes) = match hasher {
            Some(hasher) => hasher.finish(),
            None => (digest.clone().unwrap_or_default(), bytes),
        };
        Ok((value, Passed { compression, digest, bytes, diff_id, diff_bytes }))
    })
}

/// The consuming end: a [`BufRead`] that hands out whole chunks without copying them.
#[derive(Debug)]
pub struct Chunks {
    full: Receiver<Sent>,
    empty: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    /// None when the raw bytes are the uncompressed ones: they are hashed once, elsewhere.
    hasher: Option<Hasher>,
    ended: bool,
}

impl Chunks {
    fn new(compression: Compression, full: Receiver<Sent>, empty: SyncSender<Vec<u8>>) -> Self {
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
                Ok(Ok(Chunk { bytes, start })) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&bytes[start..]);
                    }
                    (self.chunk, self.at) = (bytes, start);
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
        let ratio = Ratio { most: 100, free: 4 << 20 };
        let zeros = |bytes| io::repeat(0).take(bytes);
        for (bytes, allowed) in [(4 << 20, true), (6 << 20, false)] {
            let zstd = zstd::encode_all(zeros(bytes), 1).unwrap();
            let mut plain = Vec::new();
            zeros(bytes).read_to_end(&mut plain).unwrap();
            for bomb in [zstd, gzip(&plain)] {
                let outcome = run(&bomb[..], false, ratio, |_| Ok(()));
                assert_eq!(outcome.is_ok(), allowed, "{outcome:?}");
                assert!(allowed || outcome.is_err_and(|error| error.is_bad_archive()));
            }
        }
    }

    /// Fifty times the same words, by other people's tools.
    const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21,
        0x01, 0x0c, 0x00, 0x00, 0x00, 0x8f, 0x98, 0x41, 0x9c, 0xe0, 0x03, 0xe7, 0x00, 0x20, 0x5d,
        0x00, 0x3a, 0x1a, 0x08, 0xce, 0x76, 0xc7, 0xe5, 0xe9, 0xd6, 0x07, 0x34, 0xc3, 0xd1, 0x0e,
        0xbf, 0xce, 0x55, 0xe1, 0xaa, 0xbd, 0xe1, 0x1d, 0x0b, 0x3f, 0xdb, 0x04, 0x97, 0x4f, 0xcc,
        0x7d, 0x94, 0x00, 0x00, 0x94, 0x3e, 0x71, 0x49, 0x2b, 0x01, 0x12, 0xc3, 0x00, 0x01, 0x3c,
        0xe8, 0x07, 0x00, 0x00, 0x00, 0xac, 0xa7, 0x9e, 0x35, 0xb1, 0xc4, 0x67, 0xfb, 0x02, 0x00,
        0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];
    const BZIP2: &[u8] = &[
        0x42, 0x5a, 0x68, 0x39, 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, 0x5a, 0x88, 0x39, 0x07, 0x00,
        0x01, 0xa8, 0x91, 0x80, 0x40, 0x00, 0x1b, 0x69, 0xb6, 0xc0, 0x20, 0x00, 0x60, 0x29, 0x54,
        0x46, 0x46, 0x87, 0xa7, 0xaa, 0x14, 0xc0, 0x01, 0x34, 0xf4, 0x8b, 0xda, 0x2e, 0x11, 0x62,
        0x2f, 0x28, 0xba, 0x45, 0xd2, 0x2d, 0xd1, 0x69, 0x17, 0x68, 0xbe, 0x22, 0xc4, 0x58, 0x8b,
        0x48, 0xb9, 0x45, 0xa4, 0x5b, 0x22, 0xc4, 0x58, 0x45, 0xfc, 0x5d, 0xc9, 0x14, 0xe1, 0x42,
        0x41, 0x6a, 0x20, 0xe4, 0x1c,
    ];
    /// Wants a dictionary of 4 GiB.
    const XZ_GREEDY: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21,
        0x01, 0x28, 0x00, 0x00, 0x00, 0xe6, 0xa0, 0x11, 0xb3, 0xe0, 0x03, 0xe7, 0x00, 0x20, 0x5d,
        0x00, 0x3a, 0x1a, 0x08, 0xce, 0x76, 0xc7, 0xe5, 0xe9, 0xd6, 0x07, 0x34, 0xc3, 0xd1, 0x0e,
        0xbf, 0xce, 0x55, 0xe1, 0xaa, 0xbd, 0xe1, 0x1d, 0x0b, 0x3f, 0xdb, 0x04, 0x97, 0x4f, 0xcc,
        0x7d, 0x94, 0x00, 0x00, 0x94, 0x3e, 0x71, 0x49, 0x2b, 0x01, 0x12, 0xc3, 0x00, 0x01, 0x3c,
        0xe8, 0x07, 0x00, 0x00, 0x00, 0xac, 0xa7, 0x9e, 0x35, 0xb1, 0xc4, 0x67, 0xfb, 0x02, 0x00,
        0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];

    #[test]
    fn xz_and_bzip2_are_read_within_bounds() {
        let text = "the quick brown fox ".repeat(50).into_bytes();
        for (what, packed) in [("xz", XZ), ("bzip2", BZIP2)] {
            let (out, passed) = read_all(&packed.repeat(3)).unwrap();
            assert_eq!(passed.compression.name(), what);
            assert_eq!(out, text.repeat(3), "{what}");
            for cut in [packed.len() / 2, packed.len() - 1] {
                assert!(read_all(&packed[..cut]).is_err(), "{what} cut at {cut}");
            }
            let mut damaged = packed.to_vec();
            damaged[packed.len() / 2] ^= 0x40;
            let error = read_all(&damaged).unwrap_err();
            assert!(error.is_bad_archive(), "{what}: {error:?}");
        }
        let error = read_all(XZ_GREEDY).unwrap_err();
        assert!(error.is_bad_archive(), "{error:?}");
    }

    #[test]
    fn damage_and_unknown_formats_are_errors() {
        let mut cut = gzip(&vec![7; 3_000_000]);
        cut.truncate(cut.len() / 2);
        assert!(matches!(read_all(&cut), Err(ArchiveError::Read(_))));
        assert!(read_all(b"\xfd7zXZ\0....").is_err());
        assert_eq!(read_all(b"").unwrap().0, b"");
    }
}
