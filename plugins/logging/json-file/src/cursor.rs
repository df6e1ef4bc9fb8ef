//! Reading a log: from the oldest wanted line to the newest, across rotation.
//!
//! A [`Cursor`] is moved by [`Cursor::step`], which does a bounded amount of work and returns what
//! it found, so that no thread is held while a client is slow or a container silent.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use gantry_sdk::kinds::logs::{LogLine, ReadLogs};

use crate::files::{LogFile, identity_at, open_all, open_current, open_rotated};
use crate::line;
use crate::options::MAX_FILES;

/// Bytes read at a time.
const BLOCK: usize = 256 << 10;
/// The longest line that is kept; what the shim writes is far shorter.
const LINE_MAX: usize = 8 << 20;

/// Where a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There may be more right now.
    More,
    /// At the end of what is written.
    End,
    /// Past the last wanted line.
    Done,
}

/// A position in a log.
#[derive(Debug)]
pub struct Cursor {
    path: PathBuf,
    /// Read next, oldest first.
    queue: VecDeque<LogFile>,
    current: Option<LogFile>,
    pending: Pending,
    block: Vec<u8>,
    wanted: Wanted,
    follow: bool,
    /// The current file has been rotated and is read to its end once more.
    rotated: bool,
    /// Time of the last line seen.
    last: SystemTime,
    warned: bool,
}

#[derive(Debug)]
struct Wanted {
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    tail: Option<u64>,
    stdout: bool,
    stderr: bool,
}

impl Cursor {
    /// Opens the files of the log at `path`. None there is an empty log.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open(path: PathBuf, wanted: &ReadLogs) -> io::Result<Self> {
        Ok(Self {
            queue: open_all(&path)?.into(),
            path,
            current: None,
            pending: Pending::default(),
            block: vec![0; BLOCK],
            wanted: Wanted {
                since: wanted.since,
                until: wanted.until,
                tail: wanted.tail,
                stdout: wanted.stdout,
                stderr: wanted.stderr,
            },
            follow: wanted.follow.is_some(),
            rotated: false,
            last: SystemTime::UNIX_EPOCH,
            warned: false,
        })
    }

    /// Reads on by at most one block.
    ///
    /// # Errors
    ///
    /// Those of the files.
    pub fn step(&mut self) -> io::Result<(Vec<LogLine>, State)> {
        if let Some(tail) = self.wanted.tail.take() {
            self.keep_last(tail)?;
        }
        if self.current.is_none() && !self.next_file()? {
            return Ok((Vec::new(), State::End));
        }
        let count = self.read_block()?;
        if count == 0 {
            let state = if self.at_end()? { State::End } else { State::More };
            return Ok((Vec::new(), state));
        }
        let mut lines = Vec::new();
        let state = self.decode(count, &mut lines);
        Ok((lines, state))
    }

    /// Drops all but the last `tail` lines of all files together.
    fn keep_last(&mut self, tail: u64) -> io::Result<()> {
        let mut left = tail;
        let mut first = self.queue.len();
        for (index, file) in self.queue.iter_mut().enumerate().rev() {
            // The newest stays even if it gives nothing: it is the one to follow.
            let newest = !file.is_compressed() && first == index + 1 && left == tail;
            if left == 0 && !newest {
                break;
            }
            match file.keep_last(left) {
                Ok(kept) => left -= kept,
                Err(error) if file.is_compressed() => damaged(&self.path, &error),
                Err(error) => return Err(error),
            }
            first = index;
        }
        self.queue.drain(..first);
        Ok(())
    }

    fn next_file(&mut self) -> io::Result<bool> {
        if self.queue.is_empty() && self.follow && self.current.is_none() {
            self.queue.extend(open_current(&self.path)?);
        }
        while let Some(file) = self.queue.pop_front() {
            // All lines of a rotated file are older than its last change.
            let old = self.wanted.since.is_some_and(|since| file.modified < since);
            if old && !self.queue.is_empty() {
                continue;
            }
            self.pending = Pending { skip: file.skip, ..Pending::default() };
            self.current = Some(file);
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads into the block; 0 at the end of the current file.
    fn read_block(&mut self) -> io::Result<usize> {
        let Some(file) = &mut self.current else { return Ok(0) };
        let mut size = self.block.len();
        if !self.follow && !file.is_compressed() {
            // A container that writes as fast as we read must not make this endless.
            let left = file.length.saturating_sub(file.offset);
            size = size.min(usize::try_from(left).unwrap_or(size));
        }
        match file.read(self.block.get_mut(..size).unwrap_or_default()) {
            Err(error) if file.is_compressed() => {
                damaged(&self.path, &error);
                Ok(0)
            }
            answer => answer,
        }
    }

    /// At the end of the current file: whether there is nothing more to read now.
    fn at_end(&mut self) -> io::Result<bool> {
        if !self.queue.is_empty() {
            self.current = None;
            return Ok(false);
        }
        let Some(file) = &mut self.current else { return Ok(true) };
        if !self.follow {
            return Ok(true);
        }
        if self.rotated {
            // Nothing is written to it any more, and all of it has been read.
            self.rotated = false;
            self.queue = self.newer()?;
            self.current = None;
            return Ok(false);
        }
        match identity_at(&self.path)? {
            // Between renaming the old file and making the new one, or removed.
            None => Ok(true),
            Some(now) if now != file.identity => {
                self.rotated = true;
                Ok(false)
            }
            Some(_) if file.length_now()? < file.offset => {
                // `max-file` is 1: the same file was emptied.
                file.offset = 0;
                self.pending = Pending::default();
                Ok(false)
            }
            Some(_) => Ok(true),
        }
    }

    /// The files that came after the current one, oldest first. Usually one; after a long wait more.
    fn newer(&self) -> io::Result<VecDeque<LogFile>> {
        let mut newer = VecDeque::new();
        newer.extend(open_current(&self.path)?);
        let ours = self.current.as_ref().map(|file| file.identity);
        for number in 1..MAX_FILES {
            let Some((file, name)) = open_rotated(&self.path, number)? else { break };
            if Some(file.identity) == ours {
                break;
            }
            // Ours may have been compressed and so be another file now: told by its time.
            let head = LogFile::peek(&name, file.is_compressed())?;
            let first = head.split(|byte| *byte == b'\n').next().and_then(line::time_of);
            if first.is_none_or(|first| first <= self.last) {
                break;
            }
            newer.push_front(file);
        }
        Ok(newer)
    }

    fn decode(&mut self, count: usize, lines: &mut Vec<LogLine>) -> State {
        let Self { pending, block, wanted, last, warned, path, .. } = self;
        let mut rest = block.get(..count).unwrap_or_default();
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (head, tail) = rest.split_at(at);
            rest = tail.get(1..).unwrap_or_default();
            let Some(whole) = pending.complete(head) else { continue };
            let decoded = line::decode(&whole);
            pending.reuse(whole);
            let Some(line) = decoded else {
                if !std::mem::replace(warned, true) {
                    tracing::warn!(path = %path.display(), "Skipping damaged lines of a log.");
                }
                continue;
            };
            *last = (*last).max(line.at);
            match wanted.judge(&line) {
                Judgement::Wanted => lines.push(line),
                Judgement::Skipped => {}
                Judgement::Beyond => return State::Done,
            }
        }
        pending.keep(rest);
        State::More
    }
}

enum Judgement {
    Wanted,
    Skipped,
    Beyond,
}

impl Wanted {
    fn judge(&self, line: &LogLine) -> Judgement {
        if self.until.is_some_and(|until| line.at > until) {
            return Judgement::Beyond;
        }
        let early = self.since.is_some_and(|since| line.at < since);
        let stream = if line.stderr { self.stderr } else { self.stdout };
        if early || !stream { Judgement::Skipped } else { Judgement::Wanted }
    }
}

/// The beginning of a line whose end has not been read yet.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// It became too long: the rest of it is dropped.
    overlong: bool,
    /// Lines still to pass over.
    skip: u64,
}

impl Pending {
    /// The whole line that ends with `head`; none if it is to be passed over.
    fn complete<'a>(&mut self, head: &'a [u8]) -> Option<std::borrow::Cow<'a, [u8]>> {
        let overlong = std::mem::take(&mut self.overlong);
        if self.skip > 0 || overlong {
            self.skip = self.skip.saturating_sub(1);
            self.bytes.clear();
            return None;
        }
        if self.bytes.is_empty() {
            return Some(head.into());
        }
        self.keep(head);
        Some(std::mem::take(&mut self.bytes).into())
    }

    /// Gives the buffer of a line back.
    fn reuse(&mut self, line: std::borrow::Cow<'_, [u8]>) {
        if let std::borrow::Cow::Owned(mut bytes) = line
            && bytes.capacity() <= BLOCK
        {
            bytes.clear();
            self.bytes = bytes;
        }
    }

    fn keep(&mut self, part: &[u8]) {
        if self.overlong || self.bytes.len() + part.len() > LINE_MAX {
            self.overlong = true;
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(part);
        }
    }
}

fn damaged(path: &std::path::Path, error: &io::Error) {
    tracing::warn!(path = %path.display(), %error, "Cannot read a compressed log to its end.");
}
