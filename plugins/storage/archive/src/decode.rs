//! The thread that reads, hashes the bytes as given and decompresses them into chunks.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender};

use lzma_rust2::XzReader;

use crate::compress::Compression;
use crate::digest::Hasher;
use crate::gzip::{Gunzip, WINDOW};

/// Bytes of one chunk: large enough that hashing and writing dominate the hand-over, small enough
/// to stay in a cache meanwhile.
pub(crate) const CHUNK: usize = 256 << 10;
/// Memory for xz: the dictionary of its highest preset, and what is around it. Bytes / 1024.
const XZ_MEMORY: u32 = 80 << 10;

/// How much more may come out of a stream than there is of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    /// Bytes out for each byte in.
    pub(crate) most: u64,
    /// Bytes out whatever the ratio.
    pub(crate) free: u64,
}

impl Ratio {
    /// What gzip can do at best is 1032 (zlib's technical notes, "Maximum Compression Factor"), and
    /// no real layer of a gigabyte comes near it.
    pub(crate) const USUAL: Self = Self { most: 1100, free: 1 << 30 };
}

/// Bytes of the stream. Those before `start` have been handed out already.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) start: usize,
}

/// What the thread sends: chunks, and an error as the last thing.
pub(crate) type Sent = io::Result<Chunk>;

/// Where chunks go, and come back from.
pub(crate) struct Pipe {
    pub(crate) full: SyncSender<Sent>,
    pub(crate) empty: Receiver<Vec<u8>>,
}

/// The thread's whole life. Returns hash, if wanted, and number of the bytes it has read.
pub(crate) fn produce(
    compression: Compression,
    reader: impl Read,
    hash_raw: bool,
    ratio: Ratio,
    pipe: &Pipe,
) -> (Option<Hasher>, u64) {
    let state = RawState::default();
    let mut raw = Raw { inner: reader, hasher: hash_raw.then(Hasher::default), state: &state };
    let outcome = match compression {
        Compression::None => pipe.pump(&mut Plain(&mut raw), None, &state),
        Compression::Gzip => pipe.pump(&mut Gunzip::new(buffered(&mut raw)), Some(ratio), &state),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(buffered(&mut raw))
            .and_then(|decoder| pipe.pump(&mut Plain(decoder), Some(ratio), &state)),
        Compression::Xz => {
            let decoder = XzReader::new_mem_limit(buffered(&mut raw), true, XZ_MEMORY);
            pipe.pump(&mut Plain(decoder), Some(ratio), &state)
        }
        Compression::Bzip2 => {
            let decoder = bzip2::bufread::MultiBzDecoder::new(buffered(&mut raw));
            pipe.pump(&mut Plain(decoder), Some(ratio), &state)
        }
    };
    if let Err(error) = outcome {
        // Nobody may be listening any more.
        let _ = pipe.full.send(Err(state.explain(error)));
    }
    (raw.hasher, state.bytes.get())
}

fn buffered<R: Read>(raw: R) -> BufReader<R> {
    BufReader::with_capacity(CHUNK, raw)
}

impl Pipe {
    /// Moves chunks until the end, or until nobody listens any more.
    fn pump(
        &self,
        source: &mut impl Source,
        ratio: Option<Ratio>,
        state: &RawState,
    ) -> io::Result<()> {
        let mut window = vec![0; source.window()];
        let mut made = 0u64;
        loop {
            let mut bytes = self.empty.try_recv().unwrap_or_default();
            // Zeros only what a short chunk, the last one, had left out.
            bytes.resize(window.len() + CHUNK, 0);
            bytes[..window.len()].copy_from_slice(&window);
            let start = window.len();
            let end = source.fill(&mut bytes, start)?;
            if end == start {
                return Ok(());
            }
            made = made.saturating_add((end - start) as u64);
            if let Some(Ratio { most, free }) = ratio
                && made > state.bytes.get().saturating_mul(most).max(free)
            {
                let what = format!("it unpacks to more than {most} times its size");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            bytes.truncate(end);
            window.copy_from_slice(&bytes[end - start..]);
            if self.full.send(Ok(Chunk { bytes, start })).is_err() {
                return Ok(());
            }
        }
    }
}

/// Something that fills chunks.
trait Source {
    /// Bytes that it wants to see again before those it writes.
    fn window(&self) -> usize {
        0
    }

    /// Fills `out` from `at` on, as far as there is something; returns how far.
    fn fill(&mut self, out: &mut [u8], at: usize) -> io::Result<usize>;
}

impl<R: BufRead> Source for Gunzip<R> {
    fn window(&self) -> usize {
        WINDOW
    }

    fn fill(&mut self, out: &mut [u8], at: usize) -> io::Result<usize> {
        Self::fill(self, out, at)
    }
}

/// A reader as a source.
struct Plain<R>(R);

impl<R: Read> Source for Plain<R> {
    fn fill(&mut self, out: &mut [u8], mut at: usize) -> io::Result<usize> {
        while at < out.len() {
            match self.0.read(&mut out[at..]) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(at)
    }
}

/// The stream as given, counted and perhaps hashed.
struct Raw<'a, R> {
    inner: R,
    hasher: Option<Hasher>,
    state: &'a RawState,
}

#[derive(Default)]
struct RawState {
    bytes: Cell<u64>,
    has_failed: Cell<bool>,
}

impl RawState {
    /// Decoders have many ways to say that the stream is damaged; callers want to know whether it
    /// was that, or the stream's source.
    fn explain(&self, error: io::Error) -> io::Error {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        match error.kind() {
            InvalidData | UnexpectedEof => error,
            _ if self.has_failed.get() => error,
            _ => io::Error::new(InvalidData, error),
        }
    }
}

impl<R: Read> Read for Raw<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let answer = self.inner.read(buf);
        match &answer {
            Ok(n) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&buf[..*n]);
                }
                self.state.bytes.update(|bytes| bytes + *n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.state.has_failed.set(true),
        }
        answer
    }
}
