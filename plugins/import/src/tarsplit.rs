//! What a layer's archive was made of: everything but the content of its files, in order.
//!
//! A gzip stream of JSON documents, one a line. Type 1 is a file: its name, and if it has content
//! the size and a checksum (CRC-64 of ISO 3309, big-endian, in base64). Type 2 is a run of bytes of
//! the archive: headers, padding and the end.
//!
//! Source: the package `tar/storage` of vbatts/tar-split.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde::Deserialize;

/// Longest line, in bytes: extended headers may hold a megabyte.
const MAX_LINE: u64 = 16 << 20;
/// Most pieces of one layer.
const MAX_PIECES: u64 = 1 << 25;
/// Most bytes of all lines of one layer.
const MAX_TEXT: u64 = 16 << 30;
/// Most bytes of an archive.
const MAX_ARCHIVE: u64 = 1 << 42;
const FILE: u64 = 1;
const SEGMENT: u64 = 2;

#[derive(Deserialize)]
struct Line {
    r#type: u64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    payload: Option<String>,
}

/// A piece of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The content of a file.
    File {
        /// Path in the layer, as the archive has it.
        name: Vec<u8>,
        /// Bytes; 0 for what has no content.
        size: u64,
        /// The checksum.
        crc: Option<u64>,
    },
}

/// The pieces of an archive. Ends after the first error.
#[derive(Debug)]
pub struct Pieces<R: Read> {
    text: BufReader<io::Take<GzDecoder<R>>>,
    count: u64,
    bytes: u64,
}

fn bad(words: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words.into())
}

impl<R: Read> Pieces<R> {
    /// Reads the compressed stream.
    pub fn new(compressed: R) -> Self {
        let text = BufReader::new(GzDecoder::new(compressed).take(MAX_TEXT));
        Self { text, count: 0, bytes: 0 }
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    ///
    /// `InvalidData` for what is damaged or exceeds a bound.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let mut line = Vec::new();
        self.text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            // Nothing left of the bound is not the end of the stream.
            let is_end = self.text.get_ref().limit() > 0;
            return if is_end { Ok(None) } else { Err(bad("the list of pieces is too long")) };
        }
        let line: Line = serde_json::from_slice(&line).map_err(|e| bad(e.to_string()))?;
        self.count += 1;
        let payload = line.payload.as_deref().unwrap_or_default();
        let payload = STANDARD.decode(payload).map_err(|e| bad(e.to_string()))?;
        let (piece, size) = match line.r#type {
            SEGMENT => {
                let size = payload.len() as u64;
                (Piece::Bytes(payload), size)
            }
            FILE => {
                let raw = line.name_raw.filter(|raw| !raw.is_empty());
                let name = match raw {
                    Some(raw) => STANDARD.decode(raw).map_err(|e| bad(e.to_string()))?,
                    None => line.name.into_bytes(),
                };
                let crc = payload.try_into().ok().map(u64::from_be_bytes);
                (Piece::File { name, size: line.size, crc }, line.size)
            }
            other => return Err(bad(format!("a piece of unknown type {other}"))),
        };
        self.bytes = self.bytes.saturating_add(size);
        if self.count > MAX_PIECES || self.bytes > MAX_ARCHIVE {
            return Err(bad("the archive would be too large"));
        }
        Ok(Some(piece))
    }

    /// Reads to the end; the bytes of the whole archive.
    ///
    /// # Errors
    ///
    /// Those of [`next_piece`](Self::next_piece).
    pub fn total(mut self) -> io::Result<u64> {
        while self.next_piece()?.is_some() {}
        Ok(self.bytes)
    }
}

/// An archive that is put together while it is read.
pub struct Assembly<R: Read, F> {
    pieces: Pieces<R>,
    open: F,
    bytes: io::Cursor<Vec<u8>>,
    file: Option<(io::Take<File>, Vec<u8>)>,
}

impl<R: Read, F> std::fmt::Debug for Assembly<R, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Assembly")
    }
}

impl<R: Read, F: FnMut(&[u8]) -> io::Result<File>> Assembly<R, F> {
    /// Puts `pieces` together with the content of the files that `open` opens.
    pub fn new(pieces: Pieces<R>, open: F) -> Self {
        Self { pieces, open, bytes: io::Cursor::default(), file: None }
    }
}

fn about(name: &[u8], error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", name.escape_ascii()))
}

impl<R: Read, F: FnMut(&[u8]) -> io::Result<File>> Read for Assembly<R, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some((file, name)) = &mut self.file {
                let n = file.read(buf).map_err(|e| about(name, &e))?;
                if n > 0 {
                    return Ok(n);
                }
                if file.limit() > 0 {
                    let words = format!("{} has become shorter", name.escape_ascii());
                    return Err(bad(words));
                }
                self.file = None;
            }
            let n = self.bytes.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            match self.pieces.next_piece()? {
                None => return Ok(0),
                Some(Piece::Bytes(bytes)) => self.bytes = io::Cursor::new(bytes),
                Some(Piece::File { size: 0, .. }) => {}
                Some(Piece::File { name, size, .. }) => {
                    let file = (self.open)(&name).map_err(|e| about(&name, &e))?;
                    self.file = Some((file.take(size), name));
                }
            }
        }
    }
}

/// The first files (at most `most`) whose content is not what the list says.
///
/// # Errors
///
/// Those of [`Pieces::next_piece`].
pub fn changed_files<R: Read>(
    mut pieces: Pieces<R>,
    mut open: impl FnMut(&[u8]) -> io::Result<File>,
    most: usize,
) -> io::Result<Vec<String>> {
    let mut changed = Vec::new();
    while let Some(piece) = pieces.next_piece()? {
        let Piece::File { name, size, crc: Some(expected) } = piece else { continue };
        if size == 0 || changed.len() >= most {
            continue;
        }
        let found = open(&name).and_then(|file| crc64(file.take(size)));
        if found.ok() != Some(expected) {
            changed.push(name.escape_ascii().to_string());
        }
    }
    Ok(changed)
}

const TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut value, mut bit) = (n as u64, 0);
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xd800_0000_0000_0000 } else { value >> 1 };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
}

/// CRC-64 of ISO 3309.
///
/// # Errors
///
/// Those of `source`.
pub fn crc64(mut source: impl Read) -> io::Result<u64> {
    let (mut crc, mut piece) = (u64::MAX, vec![0; 64 << 10]);
    loop {
        let n = source.read(&mut piece)?;
        if n == 0 {
            return Ok(!crc);
        }
        for byte in &piece[..n] {
            crc = TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
        }
    }
}
