//! Digests of streams, while they pass.

use std::fmt;
use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

/// Counts and hashes (SHA-256) the bytes of a stream.
#[derive(Clone, Default)]
pub struct Hasher {
    sha256: Sha256,
    bytes: u64,
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `sha256:<64 hex digits>`, and the count.
    pub fn finish(self) -> (String, u64) {
        (format!("sha256:{}", hex::encode(self.sha256.finalize())), self.bytes)
    }
}

/// Hashes what is read through it.
#[derive(Debug)]
pub struct HashRead<R> {
    inner: R,
    /// What has been read so far.
    pub hasher: Hasher,
}

impl<R> HashRead<R> {
    /// Around `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::default() }
    }
}

impl<R: Read> Read for HashRead<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// Hashes what is written through it.
#[derive(Debug)]
pub struct HashWrite<W> {
    /// The sink.
    pub inner: W,
    /// What has been written so far.
    pub hasher: Hasher,
}

impl<W> HashWrite<W> {
    /// Around `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::default() }
    }
}

impl<W: Write> Write for HashWrite<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
