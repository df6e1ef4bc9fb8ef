//! Reading a blob while it is written.
//!
//! Writer and followers share a [`Progress`]: the open file, the bytes that are there, and how it
//! ended. Followers sleep until the writer moves it on. They read at their own places, so many
//! of them need no more descriptors than one.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use gantry_sdk::id::Digest;

/// How far a writer is.
#[derive(Debug)]
pub(crate) struct Progress {
    file: File,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    len: u64,
    end: Option<End>,
    /// Where content was replaced by other content, in order of time: the server said something
    /// else than before.
    cuts: Vec<u64>,
}

/// How writing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The content was what it had to be.
    Committed,
    /// The writer went away.
    Gone,
}

impl Progress {
    /// `len` bytes are in `file`.
    pub(crate) fn new(file: File, len: u64) -> Self {
        Self { file, state: Mutex::new(State { len, ..State::default() }), moved: Condvar::new() }
    }

    /// What is written to and read from, each at its own place.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now `len` bytes are there.
    pub(crate) fn grown(&self, len: u64) {
        self.state().len = len;
        self.moved.notify_all();
    }

    /// Only the first `len` bytes are still there.
    pub(crate) fn cut(&self, len: u64) {
        let mut state = self.state();
        state.len = len;
        state.cuts.push(len);
    }

    /// Nothing more will come. The first word counts.
    pub(crate) fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.moved.notify_all();
    }
}

/// A reader of a blob that is being written; for blocking threads.
#[derive(Debug)]
pub(crate) struct Follower {
    digest: Digest,
    progress: Arc<Progress>,
    at: u64,
    /// Cuts that have been looked at: what was read was either before or after them.
    cuts: usize,
}

impl Follower {
    /// Reads from the beginning, as far as `progress` has come.
    pub(crate) fn new(digest: Digest, progress: Arc<Progress>) -> Self {
        let cuts = progress.state().cuts.len();
        Self { digest, progress, at: 0, cuts }
    }

    fn failed(&self, what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionAborted, format!("blob {} {what}", self.digest))
    }

    /// Whether what lies before `at` is still what was there.
    fn check(&self, state: &State, at: u64) -> io::Result<()> {
        if state.end == Some(End::Gone) {
            return Err(self.failed("is no longer being written"));
        }
        if state.cuts[self.cuts..].iter().any(|cut| at > *cut) {
            return Err(self.failed("was replaced while it was read"));
        }
        Ok(())
    }

    /// Waits until there is more, and says how much; 0 at the end.
    fn wait(&mut self) -> io::Result<u64> {
        let progress = self.progress.clone();
        let mut state = progress.state();
        loop {
            self.check(&state, self.at)?;
            if state.len > self.at || state.end.is_some() {
                self.cuts = state.cuts.len(); // what is read from now on is newer than these
                return Ok(state.len.saturating_sub(self.at));
            }
            state = progress.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Read for Follower {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let available = usize::try_from(self.wait()?).unwrap_or(usize::MAX);
            let wanted = buf.len().min(available);
            if wanted == 0 {
                return Ok(0);
            }
            let n = self.progress.file.read_at(&mut buf[..wanted], self.at)?;
            self.check(&self.progress.state(), self.at + n as u64)?;
            // None: the file was cut in between, and there will be more.
            if n > 0 {
                self.at += n as u64;
                return Ok(n);
            }
        }
    }
}
