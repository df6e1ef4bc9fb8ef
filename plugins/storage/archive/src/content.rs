//! Data of files, and names in directories.

use std::io::BufRead;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::RawDir;
use rustix::io::Errno;

use crate::reader::Reader;
use crate::{ArchiveError, Result};

/// Granularity of holes: a piece of zeros this long, at a multiple of it, is not written, and in
/// files smaller than that there are none. Small enough for disk images, large enough not to fragment programs.
const PIECE: u64 = 32 << 10;

/// Writes `length` bytes of the member's data at `offset` of a fresh file; long runs of zeros
/// become holes.
pub(crate) fn write<R: BufRead>(
    reader: &mut Reader<R>,
    fd: &OwnedFd,
    offset: u64,
    length: u64,
    fail: impl Fn(Errno) -> ArchiveError + Copy,
) -> Result<()> {
    let mut at = offset;
    let end = offset.saturating_add(length);
    let mut ends_in_hole = false;
    while at < end {
        let available = reader.fill()?;
        let wanted = usize::try_from(end - at).map_or(available.len(), |n| n.min(available.len()));
        if wanted == 0 {
            return Err(ArchiveError::Read(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let data = &available[..wanted];
        let (run, is_hole) = if length < PIECE { (data.len(), false) } else { next_run(data, at) };
        if !is_hole {
            write_all(fd, &data[..run], at).map_err(fail)?;
        }
        ends_in_hole = is_hole;
        reader.consume(run);
        at += run as u64;
    }
    if ends_in_hole {
        rustix::fs::ftruncate(fd, end).map_err(fail)?;
    }
    Ok(())
}

/// The longest start of `data` that is all holes, or holds none. What a piece's other part holds,
/// beyond the data at hand, does not matter: zeros need no writing either way.
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
pub(crate) fn is_zero(data: &[u8]) -> bool {
    data.first().is_none_or(|first| *first == 0)
        && data.chunks(4096).all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
}

pub(crate) fn write_all(fd: impl AsFd, mut data: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(&fd, data, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                data = &data[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The names in a directory, sorted, from its start (wherever the descriptor stands).
pub(crate) fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buf = vec![MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(dir, &mut buf);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_begin_and_end_at_pieces() {
        let piece = PIECE as usize;
        let mut data = vec![0; 4 * piece];
        assert_eq!(next_run(&data, 0), (4 * piece, true));
        assert_eq!(next_run(&data, 1), (4 * piece, true));
        data[piece] = 1;
        assert_eq!(next_run(&data, 0), (piece, true));
        assert_eq!(next_run(&data[piece..], PIECE), (piece, false));
        assert_eq!(next_run(b"abc", 7), (3, false));
    }
}
