//! The image file while it grows: large writes at rising positions, and nothing for zeros.

use std::fs::File;

use gantry_archive::{ArchiveError, Result};
use rustix::io::Errno;

use crate::disk::BLOCK;

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;
/// From here on data are written without being gathered first.
const DIRECT: usize = 128 << 10;
/// Granularity of holes in the image file.
const PIECE: u64 = 32 << 10;
/// Bytes written between two looks at the free space.
const SPACE_CHECK: u64 = 64 << 20;

/// See the module's text. The file is empty at the start.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Where the buffer goes.
    start: u64,
    /// Bytes that must stay available.
    reserve: u64,
    unchecked: u64,
}

impl<'a> Sink<'a> {
    /// Writes into `file`, which is emptied, from `start` on.
    pub(crate) fn new(file: &'a File, start: u64, reserve: u64) -> Result<Self> {
        rustix::fs::ftruncate(file, 0).map_err(failed)?;
        let sink = Self { file, buffer: Vec::new(), start, reserve, unchecked: 0 };
        sink.check_space()?;
        Ok(sink)
    }

    /// Where the next byte goes.
    pub(crate) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// The block in which the next byte goes; only after [`align`](Self::align).
    ///
    /// # Errors
    ///
    /// `Limit` beyond what the format can address.
    pub(crate) fn block(&self) -> Result<u32> {
        block_of(self.position())
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<()> {
        if data.len() >= DIRECT {
            self.flush()?;
            self.put(data, self.start)?;
            self.start += data.len() as u64;
            return Ok(());
        }
        if self.buffer.len() + data.len() > BUFFER {
            self.flush()?;
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    /// Zeros up to the next block.
    pub(crate) fn align(&mut self) -> Result<()> {
        self.skip_to(self.position().next_multiple_of(BLOCK))
    }

    /// Zeros up to `position`, which is not before the current one.
    pub(crate) fn skip_to(&mut self, position: u64) -> Result<()> {
        let gap = position.saturating_sub(self.position());
        match usize::try_from(gap) {
            Ok(0) => {}
            Ok(gap) if gap <= BLOCK as usize => {
                if self.buffer.len() + gap > BUFFER {
                    self.flush()?;
                }
                self.buffer.resize(self.buffer.len() + gap, 0);
            }
            _ => {
                self.flush()?;
                self.start = position;
            }
        }
        Ok(())
    }

    /// Writes what is left, and makes the file as long as it is to be.
    pub(crate) fn end(mut self) -> Result<()> {
        self.align()?;
        self.flush()?;
        rustix::fs::ftruncate(self.file, self.start).map_err(failed)
    }

    fn flush(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.put(&buffer, self.start)?;
        self.start += buffer.len() as u64;
        self.buffer = buffer;
        self.buffer.clear();
        if self.unchecked > SPACE_CHECK {
            self.unchecked = 0;
            self.check_space()?;
        }
        Ok(())
    }

    /// Writes what is not zero.
    fn put(&mut self, data: &[u8], at: u64) -> Result<()> {
        let mut from = 0;
        while from < data.len() {
            let (run, is_hole) = next_run(&data[from..], at + from as u64);
            if !is_hole {
                write_all(self.file, &data[from..from + run], at + from as u64).map_err(failed)?;
                self.unchecked += run as u64;
            }
            from += run;
        }
        Ok(())
    }

    fn check_space(&self) -> Result<()> {
        let stat = rustix::fs::fstatvfs(self.file)
            .map_err(|e| ArchiveError::io("read the free space of", b"", e))?;
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        if available < self.reserve {
            return Err(ArchiveError::NoSpace { available, reserve: self.reserve });
        }
        Ok(())
    }
}

/// The number of the block at `position`.
pub(crate) fn block_of(position: u64) -> Result<u32> {
    // The last number means that there is no block.
    u32::try_from(position / BLOCK)
        .ok()
        .filter(|block| *block != u32::MAX)
        .ok_or(ArchiveError::Limit { limit: BLOCK << 32, unit: "bytes in one image" })
}

fn failed(errno: Errno) -> ArchiveError {
    ArchiveError::io("write the image at", b"", errno)
}

/// The longest start of `data` that is all holes, or holds none.
fn next_run(data: &[u8], offset: u64) -> (usize, bool) {
    let mut run = 0;
    let mut is_hole = false;
    while run < data.len() {
        let at = offset + run as u64;
        let to_boundary = usize::try_from(PIECE - at % PIECE).unwrap_or(usize::MAX);
        let piece = &data[run..data.len().min(run + to_boundary)];
        let hole = is_zero(piece);
        if run > 0 && hole != is_hole {
            break;
        }
        is_hole = hole;
        run += piece.len();
    }
    (run, is_hole)
}

/// Stops at the first byte that is not zero, so it costs nothing for ordinary data.
fn is_zero(data: &[u8]) -> bool {
    data.first().is_none_or(|first| *first == 0)
        && data.chunks(4096).all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
}

pub(crate) fn write_all(file: &File, mut data: &[u8], mut at: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(file, data, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                data = &data[n..];
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn bytes_land_where_they_belong_and_zeros_take_no_room() {
        let file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(&file, BLOCK, 0).unwrap();
        sink.write(b"abc").unwrap();
        sink.align().unwrap();
        assert_eq!(sink.block().unwrap(), 2);
        sink.write(&vec![0; 8 << 20]).unwrap();
        sink.write(&vec![7; 300_000]).unwrap();
        sink.skip_to(64 << 20).unwrap();
        sink.write(b"end").unwrap();
        sink.end().unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), (64 << 20) + BLOCK);
        assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());
        let read = |at: u64, n: usize| {
            let mut data = vec![0; n];
            rustix::io::pread(&file, &mut data, at).unwrap();
            data
        };
        assert_eq!(read(BLOCK, 4), b"abc\0");
        assert_eq!(read(2 * BLOCK + (8 << 20) - 1, 2), [0, 7]);
        assert_eq!(read(64 << 20, 4), b"end\0");
        assert!(block_of(BLOCK << 32).is_err());
    }
}
