//! Data of files: in a row, or in chunks where there are holes.

use std::io::{self, BufRead};
use std::os::fd::AsFd;

use gantry_archive::{ArchiveError, Reader, Result, Run};
use rustix::io::Errno;

use crate::disk::{BLOCK, HOLE};
use crate::sink::{Sink, block_of};

/// Sparse files up to this size are written with their holes.
const SMALL: u64 = 128 << 10;
/// Most chunks of one file. Larger files have larger chunks, so that their tables stay small.
const CHUNKS: u64 = 1 << 16;

/// Where the data of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// In a row from this block on.
    Blocks(u32),
    /// In chunks of `1 << bits` blocks.
    Chunks {
        /// Of two, the power.
        bits: u8,
        /// First blocks, [`HOLE`] for holes.
        table: Box<[u32]>,
    },
}

/// Where data come from, in order.
pub(crate) trait Pull {
    /// Copies the next `length` bytes into `sink`.
    ///
    /// # Errors
    ///
    /// Those of both sides; an early end is one.
    fn pull(&mut self, sink: &mut Sink<'_>, length: u64) -> Result<()>;
}

impl<R: BufRead> Pull for Reader<R> {
    fn pull(&mut self, sink: &mut Sink<'_>, mut length: u64) -> Result<()> {
        while length > 0 {
            let available = self.fill()?;
            let n = usize::try_from(length).map_or(available.len(), |n| n.min(available.len()));
            if n == 0 {
                return Err(ArchiveError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            sink.write(&available[..n])?;
            self.consume(n);
            length -= n as u64;
        }
        Ok(())
    }
}

/// Data of a file of the layers below.
#[derive(Debug)]
pub(crate) struct Copied<'a, F> {
    file: &'a F,
    path: &'a [u8],
    /// What is to be read, in order, and how far the first has been.
    runs: Vec<Run>,
}

impl<'a, F: AsFd> Copied<'a, F> {
    /// Reads `runs` of `file`; `path` is for messages.
    pub(crate) fn new(file: &'a F, path: &'a [u8], runs: &[Run]) -> Self {
        Self { file, path, runs: runs.iter().rev().copied().collect() }
    }
}

impl<F: AsFd> Pull for Copied<'_, F> {
    fn pull(&mut self, sink: &mut Sink<'_>, mut length: u64) -> Result<()> {
        let failed = |errno| ArchiveError::io("copy", self.path, errno);
        let mut buffer = vec![0; 256 << 10];
        while length > 0 {
            let run = self.runs.last_mut().ok_or_else(|| failed(Errno::IO))?;
            let wanted = run.length.min(length).min(buffer.len() as u64) as usize;
            let n =
                rustix::io::pread(self.file, &mut buffer[..wanted], run.offset).map_err(failed)?;
            if n == 0 {
                return Err(failed(Errno::IO)); // it shrank meanwhile
            }
            sink.write(&buffer[..n])?;
            run.offset += n as u64;
            run.length -= n as u64;
            length -= n as u64;
            if run.length == 0 {
                self.runs.pop();
            }
        }
        Ok(())
    }
}

/// Writes `size` bytes in a row.
pub(crate) fn write_plain(sink: &mut Sink<'_>, from: &mut impl Pull, size: u64) -> Result<Data> {
    if size == 0 {
        return Ok(Data::Blocks(0));
    }
    sink.align()?;
    let block = sink.block()?;
    block_of(sink.position().saturating_add(size))?;
    from.pull(sink, size)?;
    sink.align()?;
    Ok(Data::Blocks(block))
}

/// Writes a file of `size` bytes of which only `runs` are data.
pub(crate) fn write_sparse(
    sink: &mut Sink<'_>,
    from: &mut impl Pull,
    runs: &[Run],
    size: u64,
) -> Result<Data> {
    if size <= SMALL {
        return write_small(sink, from, runs, size);
    }
    let mut chunks = Chunks::new(size);
    for run in runs {
        let end = run.offset.saturating_add(run.length);
        let mut at = run.offset;
        while at < end {
            let (position, left) = chunks.place(sink, at)?;
            sink.skip_to(position)?;
            let length = left.min(end - at);
            from.pull(sink, length)?;
            at += length;
        }
    }
    chunks.end(sink)
}

fn write_small(sink: &mut Sink<'_>, from: &mut impl Pull, runs: &[Run], size: u64) -> Result<Data> {
    if size == 0 {
        return Ok(Data::Blocks(0));
    }
    sink.align()?;
    let (block, start) = (sink.block()?, sink.position());
    for run in runs {
        sink.skip_to(start + run.offset)?;
        from.pull(sink, run.length)?;
    }
    sink.skip_to(start + size)?;
    sink.align()?;
    Ok(Data::Blocks(block))
}

/// A table of chunks being filled, in the order of the file.
#[derive(Debug)]
struct Chunks {
    size: u64,
    bits: u8,
    table: Box<[u32]>,
    /// Where the last chunk ends in the image.
    end: u64,
}

impl Chunks {
    fn new(size: u64) -> Self {
        let mut bits = 0;
        while size.div_ceil(BLOCK << bits) > CHUNKS {
            bits += 1;
        }
        let count = usize::try_from(size.div_ceil(BLOCK << bits)).unwrap_or(0);
        Self { size, bits, table: vec![HOLE; count].into_boxed_slice(), end: 0 }
    }

    fn bytes(&self) -> u64 {
        BLOCK << self.bits
    }

    /// Where the byte `at` of the file goes, and how many after it go behind it.
    fn place(&mut self, sink: &Sink<'_>, at: u64) -> Result<(u64, u64)> {
        let (index, inside) = (at / self.bytes(), at % self.bytes());
        let bytes = self.bytes();
        let first_byte = index * bytes;
        let slot = usize::try_from(index).ok().and_then(|index| self.table.get_mut(index));
        // Runs lie within the file, or the archive would have been refused.
        let slot =
            slot.ok_or(ArchiveError::Limit { limit: self.size, unit: "bytes in one file" })?;
        if *slot == HOLE {
            let start = sink.position().max(self.end).next_multiple_of(BLOCK);
            let length = bytes.min(self.size - first_byte).next_multiple_of(BLOCK);
            *slot = block_of(start)?;
            self.end = start + length;
            block_of(self.end)?;
        }
        Ok((u64::from(*slot) * BLOCK + inside, bytes - inside))
    }

    fn end(self, sink: &mut Sink<'_>) -> Result<Data> {
        if self.end > 0 {
            sink.skip_to(self.end)?;
        }
        Ok(Data::Chunks { bits: self.bits, table: self.table })
    }
}
