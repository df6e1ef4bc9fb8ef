//! The files of one log: the current one, and rotated ones `.1`, `.2.gz`, …, the higher the older.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;

use crate::options::MAX_FILES;

/// How often the set of files is opened again because it was rotated meanwhile.
const ATTEMPTS: usize = 5;
/// Bytes of one step backwards.
const BLOCK: usize = 64 << 10;

/// A file's identity, whatever it is called at the moment.
pub type Identity = (u64, u64);

/// One file of a log, opened.
#[derive(Debug)]
pub struct LogFile {
    source: Source,
    /// Which file it is.
    pub identity: Identity,
    /// Bytes when it was opened; of a compressed file, those of the compressed form.
    pub length: u64,
    /// When it was last written to.
    pub modified: SystemTime,
    /// Where reading goes on; of a plain file only.
    pub offset: u64,
    /// Lines to pass over first.
    pub skip: u64,
}

#[derive(Debug)]
enum Source {
    Plain(File),
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
}

impl LogFile {
    fn open(path: &Path, gzip: bool) -> io::Result<Option<Self>> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let source = if gzip {
            Source::Gzip(Box::new(MultiGzDecoder::new(BufReader::new(file))))
        } else {
            Source::Plain(file)
        };
        Ok(Some(Self {
            source,
            identity: identity(&about),
            length: about.len(),
            modified: about.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            offset: 0,
            skip: 0,
        }))
    }

    /// Whether it is compressed, and so never grows.
    pub fn is_compressed(&self) -> bool {
        matches!(self.source, Source::Gzip(_))
    }

    /// Reads on; 0 at the end, for now.
    ///
    /// # Errors
    ///
    /// Those of the file; `InvalidData`, `InvalidInput` or `UnexpectedEof` for damaged compression.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            Source::Plain(file) => {
                let count = file.read_at(buffer, self.offset)?;
                self.offset += u64::try_from(count).unwrap_or(0);
                Ok(count)
            }
            Source::Gzip(reader) => reader.read(buffer),
        }
    }

    /// Bytes now.
    ///
    /// # Errors
    ///
    /// Those of the file.
    pub fn length_now(&self) -> io::Result<u64> {
        match &self.source {
            Source::Plain(file) => Ok(file.metadata()?.len()),
            Source::Gzip(_) => Ok(self.length),
        }
    }

    /// Moves the start so that `wanted` complete lines are left, or all if there are fewer; returns
    /// how many are left. Reads a plain file from its end only; a compressed one as a whole.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn keep_last(&mut self, wanted: u64) -> io::Result<u64> {
        match &mut self.source {
            Source::Plain(file) => {
                let (offset, kept) = start_of_last(file, self.length, wanted)?;
                self.offset = offset;
                Ok(kept)
            }
            Source::Gzip(reader) => {
                let lines = count_lines(reader)?;
                let mut file = std::mem::replace(
                    reader,
                    Box::new(MultiGzDecoder::new(BufReader::new(File::open("/dev/null")?))),
                )
                .into_inner()
                .into_inner();
                io::Seek::rewind(&mut file)?;
                **reader = MultiGzDecoder::new(BufReader::new(file));
                self.skip = lines.saturating_sub(wanted);
                Ok(lines.min(wanted))
            }
        }
    }

    /// The beginning of the file, up to one block, for a look at its first line.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn peek(path: &Path, gzip: bool) -> io::Result<Vec<u8>> {
        let mut content = vec![0; BLOCK];
        let Some(mut file) = Self::open(path, gzip)? else { return Ok(Vec::new()) };
        let mut filled = 0;
        while let Some(rest) = content.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest)? {
                0 => break,
                count => filled += count,
            }
        }
        content.truncate(filled);
        Ok(content)
    }
}

fn identity(about: &Metadata) -> Identity {
    (about.dev(), about.ino())
}

/// The identity of what `path` names now; none if there is nothing.
///
/// # Errors
///
/// Those of stat(2).
pub fn identity_at(path: &Path) -> io::Result<Option<Identity>> {
    match std::fs::symlink_metadata(path) {
        Ok(about) => Ok(Some(identity(&about))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `path` with `.number` and `extension`.
pub fn numbered(path: &Path, number: u32, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}{extension}"));
    PathBuf::from(name)
}

/// Opens the rotated file `number`, whether it is compressed already or not. With its path.
///
/// # Errors
///
/// Those of open(2).
pub fn open_rotated(path: &Path, number: u32) -> io::Result<Option<(LogFile, PathBuf)>> {
    // It may be compressed between two looks.
    for extension in ["", ".gz", ""] {
        let name = numbered(path, number, extension);
        if let Some(file) = LogFile::open(&name, !extension.is_empty())? {
            return Ok(Some((file, name)));
        }
    }
    Ok(None)
}

/// The current file.
///
/// # Errors
///
/// Those of open(2).
pub fn open_current(path: &Path) -> io::Result<Option<LogFile>> {
    LogFile::open(path, false)
}

/// Opens all files of a log, oldest first: as they were at one moment.
///
/// # Errors
///
/// Those of open(2).
pub fn open_all(path: &Path) -> io::Result<Vec<LogFile>> {
    let mut files = Vec::new();
    for _ in 0..ATTEMPTS {
        files.clear();
        files.extend(open_current(path)?);
        for number in 1..MAX_FILES {
            let Some((file, _)) = open_rotated(path, number)? else { break };
            files.push(file);
        }
        // Rotated meanwhile: one might be there twice.
        if identity_at(path)? == files.first().map(|f| f.identity) || files.len() < 2 {
            break;
        }
    }
    files.reverse();
    Ok(files)
}

/// Where the last `wanted` complete lines begin, and how many there are.
fn start_of_last(file: &File, length: u64, wanted: u64) -> io::Result<(u64, u64)> {
    let mut block = vec![0; BLOCK];
    let (mut end, mut newlines) = (length, 0);
    while end > 0 {
        let start = end.saturating_sub(u64::try_from(BLOCK).unwrap_or(u64::MAX));
        let size = usize::try_from(end - start).unwrap_or(BLOCK);
        let part = block.get_mut(..size).unwrap_or_default();
        file.read_exact_at(part, start)?;
        for at in memchr::memrchr_iter(b'\n', part) {
            if newlines == wanted {
                return Ok((start + u64::try_from(at).unwrap_or(0) + 1, wanted));
            }
            newlines += 1;
        }
        end = start;
    }
    Ok((0, newlines))
}

fn count_lines(reader: &mut impl Read) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut lines = 0;
    loop {
        let count = reader.read(&mut block)?;
        if count == 0 {
            return Ok(lines);
        }
        let found = memchr::memchr_iter(b'\n', block.get(..count).unwrap_or_default()).count();
        lines += u64::try_from(found).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let long = "x".repeat(BLOCK - 1) + "\n";
        let text = format!("one\n{long}{long}two\nthree\npart");
        std::fs::write(&path, &text).unwrap();
        let length = u64::try_from(text.len()).unwrap();
        let from = |wanted| {
            let file = File::open(&path).unwrap();
            let (at, kept) = start_of_last(&file, length, wanted).unwrap();
            (text[usize::try_from(at).unwrap()..].chars().take(3).collect::<String>(), kept)
        };
        assert_eq!(from(0), ("par".to_owned(), 0));
        assert_eq!(from(1), ("thr".to_owned(), 1));
        assert_eq!(from(2), ("two".to_owned(), 2));
        assert_eq!(from(3), ("xxx".to_owned(), 3));
        assert_eq!(from(5), ("one".to_owned(), 5));
        assert_eq!(from(9), ("one".to_owned(), 5));
    }
}
