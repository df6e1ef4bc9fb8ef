//! Writes archives: ustar headers, with PAX records for what does not fit.

use std::io::{self, Read, Write};

use crate::entry::{Entry, Kind};
use crate::header::BLOCK;
use crate::pax::{format_time, push_record};
use crate::{ArchiveError, Result};

/// Writes members in the order given. Equal members give equal bytes.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    entries: u64,
}

impl<W: Write> Writer<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, entries: 0 }
    }

    /// Members written.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Writes a member with `entry.size` bytes of data. Data that end early are filled with zeros:
    /// the header is out, and a live file may shrink; what is beyond is not read.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Write`]; [`ArchiveError::Read`] from `data`.
    pub fn append(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        let size = if entry.kind.has_data() { entry.size } else { 0 };
        let records = records(entry, size);
        if !records.is_empty() {
            let mut header = Header::new(b'x', &pax_name(&entry.name));
            header.number(100, 8, 0o644);
            header.number(124, 12, records.len() as u64);
            header.number(136, 12, 0);
            self.put(&header.finish())?;
            self.put(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.put(&header(entry, size).finish())?;
        self.copy(data, size)?;
        self.pad(size)?;
        self.entries += 1;
        Ok(())
    }

    /// Writes the end marker and returns the sink.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Write`].
    pub fn finish(mut self) -> Result<W> {
        self.put(&[0; 2 * BLOCK])?;
        self.inner.flush().map_err(ArchiveError::Write)?;
        Ok(self.inner)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.inner.write_all(bytes).map_err(ArchiveError::Write)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let rest = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        self.put(&[0; BLOCK][..rest])
    }

    fn copy(&mut self, data: &mut dyn Read, size: u64) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        let length = usize::try_from(size).map_or(256 << 10, |n| n.min(256 << 10));
        let mut buf = vec![0; length];
        let mut left = size;
        let mut ended = false;
        while left > 0 {
            let wanted = usize::try_from(left).map_or(buf.len(), |n| n.min(buf.len()));
            let n = if ended { 0 } else { read(data, &mut buf[..wanted])? };
            if n == 0 {
                if !ended {
                    buf.fill(0);
                    ended = true;
                }
                self.put(&buf[..wanted])?;
                left -= wanted as u64;
            } else {
                self.put(&buf[..n])?;
                left -= n as u64;
            }
        }
        Ok(())
    }
}

fn read(data: &mut dyn Read, buf: &mut [u8]) -> Result<usize> {
    loop {
        match data.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer.map_err(ArchiveError::Read),
        }
    }
}

/// The largest number in an octal field of `width` bytes, the last one a NUL.
const fn octal_max(width: u32) -> u64 {
    (1 << (3 * (width - 1))) - 1
}

/// What the plain header cannot say.
fn records(entry: &Entry, size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if entry.name.len() > 100 || !entry.name.is_ascii() {
        push_record(&mut out, b"path", &entry.name);
    }
    if entry.link.len() > 100 || !entry.link.is_ascii() {
        push_record(&mut out, b"linkpath", &entry.link);
    }
    if u64::from(entry.uid) > octal_max(8) {
        push_record(&mut out, b"uid", entry.uid.to_string().as_bytes());
    }
    if u64::from(entry.gid) > octal_max(8) {
        push_record(&mut out, b"gid", entry.gid.to_string().as_bytes());
    }
    if size > octal_max(12) {
        push_record(&mut out, b"size", size.to_string().as_bytes());
    }
    let mtime = entry.mtime;
    if mtime.nanos != 0
        || u64::try_from(mtime.seconds).is_ok_and(|s| s > octal_max(12))
        || mtime.seconds < 0
    {
        push_record(&mut out, b"mtime", format_time(mtime).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        push_record(&mut out, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    out
}

/// A name for the extended header itself, seen only by readers that do not know it.
fn pax_name(name: &[u8]) -> Vec<u8> {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let ascii: Vec<u8> = last.iter().copied().filter(u8::is_ascii).take(80).collect();
    [b"PaxHeaders.0/".as_slice(), &ascii].concat()
}

fn header(entry: &Entry, size: u64) -> Header {
    let flag = match entry.kind {
        Kind::File => b'0',
        Kind::Hardlink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    let fits = |n: u64, width| if n > octal_max(width) { 0 } else { n };
    let mut header = Header::new(flag, &entry.name);
    header.text(157, 100, &entry.link);
    header.number(100, 8, u64::from(entry.mode & 0o7777));
    header.number(108, 8, fits(entry.uid.into(), 8));
    header.number(116, 8, fits(entry.gid.into(), 8));
    header.number(124, 12, fits(size, 12));
    header.number(136, 12, fits(u64::try_from(entry.mtime.seconds).unwrap_or(0), 12));
    if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
        header.number(329, 8, fits(entry.device.0.into(), 8));
        header.number(337, 8, fits(entry.device.1.into(), 8));
    }
    header
}

struct Header([u8; BLOCK]);

impl Header {
    fn new(flag: u8, name: &[u8]) -> Self {
        let mut header = Self([0; BLOCK]);
        header.text(0, 100, name);
        header.number(108, 8, 0);
        header.number(116, 8, 0);
        header.0[156] = flag;
        header.text(257, 8, b"ustar\x0000");
        header
    }

    /// Cut where it does not fit; the records then hold the whole.
    fn text(&mut self, at: usize, width: usize, text: &[u8]) {
        let n = text.len().min(width);
        self.0[at..at + n].copy_from_slice(&text[..n]);
    }

    fn number(&mut self, at: usize, width: usize, value: u64) {
        self.text(at, width, format!("{value:0digits$o}\0", digits = width - 1).as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}
