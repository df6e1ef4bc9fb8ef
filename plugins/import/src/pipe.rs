//! A bounded pipe between two blocking threads.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio_util::sync::CancellationToken;

/// Bytes handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces that may wait.
const QUEUE: usize = 4;

/// What both ends and whoever watches know.
#[derive(Debug, Default)]
pub struct State {
    /// Bytes handed over.
    pub bytes: AtomicU64,
    /// Whether the writer has ended well.
    complete: AtomicBool,
    /// Whether the reader went first.
    pub refused: AtomicBool,
}

/// The writing end. A drop without [`finish`](Self::finish) is an error at the other end.
#[derive(Debug)]
pub struct PipeWriter {
    pieces: SyncSender<Vec<u8>>,
    gathered: Vec<u8>,
    state: Arc<State>,
}

/// The reading end.
#[derive(Debug)]
pub struct PipeReader {
    pieces: Receiver<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    state: Arc<State>,
    cancel: CancellationToken,
}

/// Both ends; reading fails once `cancel` is cancelled.
pub fn pipe(cancel: CancellationToken) -> (PipeWriter, PipeReader, Arc<State>) {
    let (sender, pieces) = sync_channel(QUEUE);
    let state = Arc::<State>::default();
    let writer = PipeWriter { pieces: sender, gathered: Vec::new(), state: state.clone() };
    let reader = PipeReader { pieces, current: Vec::new(), at: 0, state: state.clone(), cancel };
    (writer, reader, state)
}

impl PipeWriter {
    /// Says that all has been written.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` if nobody reads any more.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.state.complete.store(true, Ordering::Release);
        Ok(())
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PIECE - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..n]);
        if self.gathered.len() == PIECE {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.gathered, Vec::with_capacity(PIECE));
        self.state.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        self.pieces.send(piece).map_err(|_| {
            self.state.refused.store(true, Ordering::Release);
            io::ErrorKind::BrokenPipe.into()
        })
    }
}

impl Read for PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let broken = |why: &'static str| io::Error::new(io::ErrorKind::ConnectionAborted, why);
        if self.at == self.current.len() {
            if self.cancel.is_cancelled() {
                return Err(broken("the import was given up"));
            }
            let Ok(next) = self.pieces.recv() else {
                let complete = self.state.complete.load(Ordering::Acquire);
                return if complete { Ok(0) } else { Err(broken("the image cannot be read")) };
            };
            (self.current, self.at) = (next, 0);
        }
        let n = buf.len().min(self.current.len() - self.at);
        buf[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
