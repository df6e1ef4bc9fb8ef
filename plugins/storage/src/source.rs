//! Blobs being read: with progress, and an end when nobody wants them any more.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use gantry_sdk::id::Digest;
use tokio_util::sync::CancellationToken;

use crate::flights::Listeners;

/// Time between two reports of progress.
const REPORT: Duration = Duration::from_millis(100);

/// A stream that ends with an error once `stop` is cancelled.
pub(crate) struct Stoppable<R> {
    pub(crate) inner: R,
    pub(crate) stop: CancellationToken,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other(
                "nobody waits for it any more, or the daemon is stopping",
            ));
        }
        self.inner.read(buf)
    }
}

/// A layer's blob.
pub(crate) struct Source {
    blob: Stoppable<Box<dyn Read + Send>>,
    diff_id: Digest,
    done: u64,
    /// 0 if it is not known.
    total: u64,
    reported: Instant,
    listeners: Listeners,
}

impl Source {
    pub(crate) fn new(
        blob: Stoppable<Box<dyn Read + Send>>,
        diff_id: Digest,
        total: u64,
        listeners: Listeners,
    ) -> Self {
        Self { blob, diff_id, done: 0, total, reported: Instant::now(), listeners }
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.blob.read(buf)?;
        self.done += n as u64;
        if n == 0 || self.reported.elapsed() >= REPORT {
            self.reported = Instant::now();
            self.listeners.tell(&self.diff_id, self.done, self.total);
        }
        Ok(n)
    }
}
