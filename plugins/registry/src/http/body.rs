//! Bodies of requests: nothing, bytes, or a part of a file.

use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

/// Bytes read from a file at once.
const PIECE: usize = 512 << 10;
/// Pieces read ahead.
const AHEAD: usize = 2;

/// The body of a request.
pub(crate) enum Body {
    /// Bytes, possibly none.
    Whole(Bytes),
    /// Pieces that a blocking thread reads.
    File(FileBody),
}

impl Body {
    /// The same body once more; none if it is gone once sent.
    pub(crate) fn again(&self) -> Option<Self> {
        match self {
            Self::Whole(bytes) => Some(Self::Whole(bytes.clone())),
            Self::File(_) => None,
        }
    }

    /// What tells whether it moves; none for bodies that are sent at once.
    pub(crate) fn pulse(&self) -> Option<Arc<Pulse>> {
        match self {
            Self::Whole(_) => None,
            Self::File(file) => Some(file.pulse.clone()),
        }
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::File(file) => file.left,
        }
    }
}

/// When something of a body was last taken, and whether all of it was.
#[derive(Debug)]
pub(crate) struct Pulse {
    begun: Instant,
    last: AtomicU64,
    done: AtomicBool,
}

impl Pulse {
    fn new() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0), done: AtomicBool::new(false) }
    }

    fn beat(&self) {
        self.last.store(self.elapsed(), Relaxed);
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How long nothing has been taken.
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_millis(self.elapsed().saturating_sub(self.last.load(Relaxed)))
    }

    /// Whether all has been taken.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Relaxed)
    }
}

/// A part of a file, told piece by piece.
pub(crate) struct FileBody {
    pieces: mpsc::Receiver<std::io::Result<Bytes>>,
    left: u64,
    pulse: Arc<Pulse>,
    told: Box<dyn Fn(u64) + Send + Sync>,
}

impl FileBody {
    /// The next `size` bytes of `file`; `told` hears how many bytes have been handed on with each piece.
    /// Dropping the body ends the reading.
    pub(crate) fn new(
        file: std::fs::File,
        size: u64,
        told: impl Fn(u64) + Send + Sync + 'static,
    ) -> Self {
        let (sender, pieces) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || read(file, size, &sender));
        Self { pieces, left: size, pulse: Arc::new(Pulse::new()), told: Box::new(told) }
    }
}

fn read(file: std::fs::File, size: u64, sender: &mpsc::Sender<std::io::Result<Bytes>>) {
    let mut left = size;
    while left > 0 {
        let wanted = left.min(PIECE as u64);
        let mut piece = Vec::with_capacity(wanted as usize);
        let read = (&file).take(wanted).read_to_end(&mut piece);
        let result = match read {
            Ok(count) if count as u64 == wanted => Ok(Bytes::from(piece)),
            Ok(_) => Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "the content is shorter than it should be",
            )),
            Err(error) => Err(error),
        };
        let failed = result.is_err();
        if sender.blocking_send(result).is_err() || failed {
            return;
        }
        left -= wanted;
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::File(file) => {
                if file.left == 0 {
                    file.pulse.done.store(true, Relaxed);
                    return Poll::Ready(None);
                }
                let Poll::Ready(next) = file.pieces.poll_recv(cx) else { return Poll::Pending };
                file.pulse.beat();
                let gone = || Err(std::io::Error::other("nobody reads the content any more"));
                Poll::Ready(Some(next.unwrap_or_else(gone).map(|piece| {
                    file.left = file.left.saturating_sub(piece.len() as u64);
                    file.pulse.done.store(file.left == 0, Relaxed);
                    (file.told)(piece.len() as u64);
                    Frame::data(piece)
                })))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}
