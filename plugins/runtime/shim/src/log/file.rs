//! The log file: appending, rotating, compressing.

use super::Stream;
use super::json::write_entry;
use gantry_shim_protocol::LogSink;
use gantry_sys::process::{CloneFlags, Cloned, clone_process, close_from, exit_now};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Entries are written together, up to this many bytes.
const BATCH: usize = 64 << 10;

/// A file of one JSON object per line.
#[derive(Debug)]
pub(super) struct JsonFile {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
    compress: bool,
    attrs: String,
    file: Option<File>,
    size: u64,
    batch: Vec<u8>,
}

impl JsonFile {
    pub(super) fn open(sink: &LogSink) -> Option<Self> {
        let LogSink::JsonFile { path, max_size, max_files, compress, attrs, .. } = sink else {
            return None;
        };
        let mut log = Self {
            path: PathBuf::from(path),
            max_size: *max_size,
            max_files: (*max_files).max(1),
            compress: *compress,
            attrs: attrs.clone(),
            file: None,
            size: 0,
            batch: Vec::new(),
        };
        // A failure shows, and is counted, at the first line.
        let _ = log.reopen();
        Some(log)
    }

    /// Adds one entry; it is written by [`JsonFile::flush`] at the latest.
    pub(super) fn append(
        &mut self,
        stream: Stream,
        line: &[u8],
        whole: bool,
        at: u64,
    ) -> io::Result<()> {
        let pending = u64::try_from(self.batch.len()).unwrap_or(u64::MAX);
        // As in the reference, the entry that crosses the limit still goes to the old file.
        if self.max_size > 0 && self.size + pending >= self.max_size {
            self.flush()?;
            self.rotate()?;
        }
        write_entry(&mut self.batch, stream, line, whole, &self.attrs, at);
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Writes what was added. After a failure that much is lost, and the next entry starts afresh.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        // An idle container keeps no buffer.
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let before = self.size;
        match file.write_all(&batch) {
            Ok(()) => {
                self.size += u64::try_from(batch.len()).unwrap_or(0);
                Ok(())
            }
            Err(error) => {
                // Half an entry would spoil the next one as well.
                let _ = file.set_len(before);
                Err(error)
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Moves every file one number on and starts a new one. With one file, that is emptied.
    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        if self.max_files < 2 {
            File::create(&self.path)?;
            return self.reopen();
        }
        for number in (1..self.max_files).rev() {
            for extension in ["", ".gz"] {
                let from = self.numbered(number, extension);
                if number == self.max_files - 1 {
                    ignore_missing(std::fs::remove_file(&from))?;
                } else {
                    ignore_missing(std::fs::rename(&from, self.numbered(number + 1, extension)))?;
                }
            }
        }
        ignore_missing(std::fs::rename(&self.path, self.numbered(1, "")))?;
        if self.compress {
            compress_aside(&self.path, self.max_files);
        }
        self.reopen()
    }

    fn numbered(&self, number: u32, extension: &str) -> PathBuf {
        numbered(&self.path, number, extension)
    }
}

fn numbered(path: &Path, number: u32, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}{extension}"));
    PathBuf::from(name)
}

fn ignore_missing(answer: io::Result<()>) -> io::Result<()> {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

/// Compresses the file that was rotated last in a process of its own: neither the container waits
/// for it nor does the shim keep the compressor's memory. The shim reaps it like any child.
fn compress_aside(path: &Path, files: u32) {
    // A file that stays uncompressed is still found by readers.
    if let Ok(Cloned::Child) = clone_process(CloneFlags::default(), None) {
        // A client's or the container's descriptor held here would keep its end from being seen.
        let _ = close_from(3, &[]);
        exit_now(i32::from(compress(path, files).is_err()));
    }
}

/// Replaces file number 1 by a compressed one, under the number it has by then: output may be quick
/// enough to rotate it further meanwhile, or away.
fn compress(path: &Path, files: u32) -> io::Result<()> {
    let mut source = File::open(numbered(path, 1, ""))?;
    let identity = source.metadata().map(|meta| (meta.dev(), meta.ino()))?;
    let temporary = numbered(path, std::process::id(), ".gz.tmp");
    let target =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&temporary)?;
    let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
    io::copy(&mut source, &mut encoder)?;
    encoder.finish()?;
    let is_it = |number: &u32| {
        std::fs::metadata(numbered(path, *number, ""))
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == identity)
    };
    let Some(number) = (1..files).find(is_it) else { return std::fs::remove_file(&temporary) };
    std::fs::rename(&temporary, numbered(path, number, ".gz"))?;
    std::fs::remove_file(numbered(path, number, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_shim_protocol::LogMode;

    fn sink(path: &Path, max_size: u64, max_files: u32) -> LogSink {
        LogSink::JsonFile {
            path: path.to_str().unwrap().to_owned(),
            max_size,
            max_files,
            compress: false,
            attrs: String::new(),
            mode: LogMode::Blocking,
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("gantry-shim-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        dir
    }

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
    }

    #[test]
    fn files_are_rotated_by_size_and_the_oldest_goes() {
        let dir = scratch("rotate");
        let path = dir.join("c-json.log");
        let mut log = JsonFile::open(&sink(&path, 200, 3)).unwrap();
        for number in 0..12u64 {
            log.append(Stream::Stdout, b"twenty bytes of text", true, number).unwrap();
        }
        log.flush().unwrap();
        let count = |suffix: &str| lines(&dir.join(format!("c-json.log{suffix}")));
        assert!(count("") > 0 && count(".1") > 0 && count(".2") > 0);
        assert_eq!(count(".3"), 0);
        assert_eq!(count(".1"), count(".2"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn one_file_is_emptied() {
        let dir = scratch("one");
        let path = dir.join("log");
        let mut log = JsonFile::open(&sink(&path, 100, 1)).unwrap();
        for number in 0..5 {
            log.append(Stream::Stderr, b"some text or other", true, number).unwrap();
        }
        log.flush().unwrap();
        assert!(lines(&path) < 5);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_is_compressed_and_stays_readable() {
        use std::io::Read;
        let dir = scratch("gzip");
        let path = dir.join("log");
        std::fs::write(dir.join("log.1"), "line\n".repeat(1000)).unwrap();
        compress(&path, 3).unwrap();
        let packed = File::open(dir.join("log.1.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text.len(), 5000);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        let Some(mut log) = JsonFile::open(&sink(Path::new("/dev/full"), 0, 1)) else { panic!() };
        log.append(Stream::Stdout, b"x", true, 1).unwrap();
        assert!(log.flush().is_err());
        assert!(log.flush().is_ok());
    }
}
