//! Reads members from a stream: headers with their extensions, bounded, then the data.
//!
//! Where formats leave room, this reader decides as Go's `archive/tar` does, which the reference
//! engine reads layers with: kinds without data have none whatever their size says, a `size`
//! record overrides the header, a GNU long name overrides a `path` record, and a stream may end
//! without the two zero blocks.

use std::io::{self, BufRead};

use crate::entry::{Entry, Run, Sparse};
use crate::header::{BLOCK, Block, Dialect, number, text};
use crate::limits::Limits;
use crate::pax::{Records, decimal, runs};
use crate::{ArchiveError, Result};

/// Most runs of one sparse file.
const SPARSE_RUNS: usize = 1 << 16;

/// Reads an uncompressed archive member by member.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    limits: Limits,
    /// Bytes consumed.
    offset: u64,
    /// Data of the current member not consumed yet, and the padding behind.
    data: u64,
    padding: u64,
    entries: u64,
}

/// Extension headers collected for the next member.
#[derive(Default)]
struct Extensions {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> Reader<R> {
    /// Reads from `inner` within `limits`.
    pub fn new(inner: R, limits: Limits) -> Self {
        Self { inner, limits, offset: 0, data: 0, padding: 0, entries: 0 }
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Members returned so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The next member, after skipping what is left of the current one; None at the end.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Malformed`], [`ArchiveError::Limit`], or [`ArchiveError::Read`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.skip_data()?;
        let mut extensions = Extensions::default();
        let mut extended = 0;
        loop {
            let Some(block) = self.header()? else { return Ok(None) };
            match block.type_flag() {
                b'x' => {
                    let data = self.extension(&block)?;
                    extensions.records = Records::parse(&data).map_err(|what| self.bad(what))?;
                }
                // Defaults for the members that follow. Nothing that writes layers puts more than
                // a comment here, and the reference engine ignores it.
                b'g' => drop(self.extension(&block)?),
                b'L' => extensions.long_name = Some(text(&self.extension(&block)?).to_vec()),
                b'K' => extensions.long_link = Some(text(&self.extension(&block)?).to_vec()),
                _ => return self.member(&block, extensions).map(Some),
            }
            extended += 1;
            if extended > 16 {
                return Err(self.bad("a member has too many extension headers"));
            }
        }
    }

    /// The next bytes of the member's data, empty at its end.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Read`], also for a stream that ends too early.
    pub fn fill(&mut self) -> Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let buf = self.inner.fill_buf().map_err(ArchiveError::Read)?;
        if buf.is_empty() {
            return Err(ArchiveError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        let n = usize::try_from(self.data).map_or(buf.len(), |data| data.min(buf.len()));
        Ok(&buf[..n])
    }

    /// Marks `n` bytes of the last [`fill`](Self::fill) as used.
    pub fn consume(&mut self, n: usize) {
        self.inner.consume(n);
        self.data = self.data.saturating_sub(n as u64);
        self.offset += n as u64;
    }

    /// The rest of the member's data, at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Limit`] for more; those of [`fill`](Self::fill).
    pub fn read_data(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.data > limit {
            return Err(ArchiveError::Limit { limit, unit: "bytes in one member" });
        }
        let mut data = Vec::new();
        loop {
            let piece = self.fill()?;
            if piece.is_empty() {
                return Ok(data);
            }
            data.extend_from_slice(piece);
            let n = piece.len();
            self.consume(n);
        }
    }

    /// Understands a member's own header together with its extensions.
    fn member(&mut self, block: &Block, extensions: Extensions) -> Result<Entry> {
        let malformed = "a header field is malformed";
        let kind = block.kind().ok_or_else(|| self.bad("a member is of an unknown type"))?;
        let mut entry = Entry::new(kind, block.name(), 0);
        entry.link = block.link();
        let fields = || Some((block.mode()?, block.size()?, block.mtime()?, block.device()?));
        let (mode, size, mtime, device) = fields().ok_or_else(|| self.bad(malformed))?;
        entry.mode = mode & 0o7777;
        entry.size = if kind.has_data() { size } else { 0 };
        entry.mtime = mtime;
        entry.device = device;

        // Owners in the header may be out of range when records carry the true ones.
        entry.uid = block.uid().unwrap_or(u32::MAX);
        entry.gid = block.gid().unwrap_or(u32::MAX);
        let records = &extensions.records;
        records.apply(&mut entry).map_err(|what| self.bad(what))?;
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(self.bad("an owner is out of range"));
        }

        // Before any arithmetic with it.
        if entry.size > self.limits.file_bytes {
            return Err(self.file_too_large());
        }
        if self.offset.saturating_add(entry.size) > self.limits.stream_bytes {
            return Err(self.too_long());
        }
        self.data = entry.size;
        self.padding = entry.size.next_multiple_of(BLOCK as u64) - entry.size;
        entry.sparse = self.sparse(block, records, &mut entry)?;
        entry.size = self.data;
        if let Some(name) = extensions.long_name {
            entry.name = name;
        }
        if let Some(link) = extensions.long_link {
            entry.link = link;
        }

        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(ArchiveError::Limit { limit: self.limits.entries, unit: "entries" });
        }
        if entry.file_size() > self.limits.file_bytes {
            return Err(self.file_too_large());
        }
        Ok(entry)
    }

    /// Reads the sparse map, wherever the format keeps it, and checks it.
    fn sparse(
        &mut self,
        block: &Block,
        records: &Records,
        entry: &mut Entry,
    ) -> Result<Option<Sparse>> {
        let sparse = if block.type_flag() == b'S' {
            Some(self.gnu_sparse(block)?)
        } else if let Some(size) = records.has_leading_map(entry).map_err(|w| self.bad(w))? {
            Some(Sparse { runs: self.leading_map()?, size })
        } else {
            records.sparse(entry).map_err(|what| self.bad(what))?
        };
        let Some(sparse) = sparse else { return Ok(None) };
        if sparse.runs.len() > SPARSE_RUNS {
            return Err(self.bad("a sparse map is too long"));
        }

        let mut end = 0;
        let mut total = 0u64;
        for run in &sparse.runs {
            if run.offset < end {
                return Err(self.bad("a sparse map is not in order"));
            }
            end = run
                .offset
                .checked_add(run.length)
                .ok_or_else(|| self.bad("a sparse map is too large"))?;
            total += run.length; // no overflow: runs do not overlap and end below 2^64
        }
        if end > sparse.size || total != self.data {
            return Err(self.bad("a sparse map does not fit its file"));
        }
        Ok(Some(sparse))
    }

    /// The old GNU format: four runs in the header, more in blocks behind it.
    fn gnu_sparse(&mut self, block: &Block) -> Result<Sparse> {
        if block.dialect() != Dialect::Gnu {
            return Err(self.bad("a sparse member is not in the GNU format"));
        }
        let mut fields = block.0[386..482].to_vec();
        let mut more = block.0[482] != 0;
        while more {
            if fields.len() / 24 > SPARSE_RUNS {
                return Err(self.bad("a sparse map is too long"));
            }
            let Some(next) = self.block()? else {
                return Err(ArchiveError::Read(io::ErrorKind::UnexpectedEof.into()));
            };
            fields.extend_from_slice(&next.0[..504]);
            more = next.0[504] != 0;
        }
        let malformed = "a sparse map is malformed";
        let mut runs = Vec::new();
        for pair in fields.as_chunks::<24>().0 {
            let field = |bytes| number(bytes).and_then(|n| u64::try_from(n).ok());
            let (Some(offset), Some(length)) = (field(&pair[..12]), field(&pair[12..])) else {
                return Err(self.bad(malformed));
            };
            if text(&pair[..12]).is_empty() && length == 0 {
                break; // unused slots
            }
            runs.push(Run { offset, length });
        }
        let size = number(&block.0[483..495]).and_then(|n| u64::try_from(n).ok());
        Ok(Sparse { runs, size: size.ok_or_else(|| self.bad(malformed))? })
    }

    /// PAX sparse format 1.0: decimal lines at the start of the data, padded to a block.
    fn leading_map(&mut self) -> Result<Vec<Run>> {
        let malformed = "a sparse map is malformed";
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut line = Vec::new();
        loop {
            if self.data < BLOCK as u64 {
                return Err(self.bad(malformed));
            }
            let data = self.data;
            let Some(block) = self.block()? else { return Err(self.bad(malformed)) };
            self.data = data - BLOCK as u64;
            for byte in block.0 {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(self.bad(malformed));
                    }
                    continue;
                }
                let value = decimal(&line).ok_or_else(|| self.bad(malformed))?;
                line.clear();
                match wanted {
                    None if value > SPARSE_RUNS as u64 => {
                        return Err(self.bad("a sparse map is too long"));
                    }
                    None => wanted = Some(value as usize * 2),
                    Some(_) => numbers.push(value),
                }
                if wanted == Some(numbers.len()) {
                    return runs(&numbers).map_err(|what| self.bad(what));
                }
            }
        }
    }

    /// Reads a block outside of the data accounting; None at a clean end of the stream.
    fn block(&mut self) -> Result<Option<Block>> {
        let mut block = Block([0; BLOCK]);
        let mut filled = 0;
        while filled < BLOCK {
            let buf = self.inner.fill_buf().map_err(ArchiveError::Read)?;
            if buf.is_empty() {
                return match filled {
                    0 => Ok(None),
                    _ => Err(ArchiveError::Read(io::ErrorKind::UnexpectedEof.into())),
                };
            }
            let n = buf.len().min(BLOCK - filled);
            block.0[filled..filled + n].copy_from_slice(&buf[..n]);
            self.inner.consume(n);
            filled += n;
        }
        self.offset += BLOCK as u64;
        self.check_length()?;
        Ok(Some(block))
    }

    /// The next header; None at the end, which is two zero blocks or the end of the stream.
    fn header(&mut self) -> Result<Option<Block>> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.is_zero() {
            return match self.block()? {
                Some(second) if !second.is_zero() => Err(self.bad("a lone zero block")),
                _ => Ok(None),
            };
        }
        if !block.has_valid_checksum() {
            return Err(self.bad("a header's checksum is wrong"));
        }
        Ok(Some(block))
    }

    /// The data of an extension header.
    fn extension(&mut self, block: &Block) -> Result<Vec<u8>> {
        let size = block.size().ok_or_else(|| self.bad("a header field is malformed"))?;
        let limit = self.limits.extension_bytes;
        if size > limit {
            return Err(ArchiveError::Limit { limit, unit: "bytes in one extension header" });
        }
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let data = self.read_data(limit)?;
        self.skip_data()?;
        Ok(data)
    }

    fn skip_data(&mut self) -> Result<()> {
        // Checked before skipping: a member may claim to be larger than anything.
        if self.data.checked_add(self.padding).is_none() {
            return Err(self.bad("a size overflows"));
        }
        loop {
            let n = self.fill()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
            self.check_length()?;
        }
        // Some tools end with the last byte of the last file (umoci's insert): nothing is missing.
        let mut padding = std::mem::take(&mut self.padding) as usize;
        while padding > 0 {
            let n = self.inner.fill_buf().map_err(ArchiveError::Read)?.len().min(padding);
            if n == 0 {
                break;
            }
            self.inner.consume(n);
            self.offset += n as u64;
            padding -= n;
        }
        self.check_length()
    }

    fn check_length(&self) -> Result<()> {
        if self.offset > self.limits.stream_bytes {
            return Err(self.too_long());
        }
        Ok(())
    }

    fn too_long(&self) -> ArchiveError {
        ArchiveError::Limit { limit: self.limits.stream_bytes, unit: "bytes" }
    }

    fn file_too_large(&self) -> ArchiveError {
        ArchiveError::Limit { limit: self.limits.file_bytes, unit: "bytes in one file" }
    }

    fn bad(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Malformed { offset: self.offset, what }
    }
}
