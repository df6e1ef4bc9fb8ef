//! The stream under an HTTP/1.1 connection, with two switches for taking it over.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use gantry_sdk::route::HijackFn;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// What a handler wants to do with the connection.
pub struct Takeover {
    /// The head to write first, complete.
    pub head: Bytes,
    /// What runs on the stream then.
    pub run: HijackFn,
    /// Cancelled when it has ended.
    pub gone: CancellationToken,
}

impl std::fmt::Debug for Takeover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Takeover").field("head", &self.head).finish_non_exhaustive()
    }
}

/// The switches, shared between the tap and whoever serves the connection's requests.
///
/// All of it runs on the connection's one task; the types are those of shared state because the
/// HTTP library asks for `Send`.
#[derive(Clone, Debug, Default)]
pub struct Switches(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    hide_end: AtomicBool,
    discard: AtomicBool,
    takeover: Mutex<Option<Takeover>>,
}

impl Switches {
    /// While on, the end of what the client sends is not shown to the HTTP library, which would
    /// take it for a client that is gone. A client that attaches may end its input at once and
    /// still wait for output.
    pub fn hide_end(&self, on: bool) {
        self.0.hide_end.store(on, Relaxed);
    }

    /// Hands the connection over when the present request ends. From now on, what the HTTP library
    /// writes is discarded.
    pub fn take_over(&self, takeover: Takeover) {
        *self.0.takeover.lock().unwrap_or_else(PoisonError::into_inner) = Some(takeover);
        self.0.discard.store(true, Relaxed);
    }

    /// The handler that takes over, once.
    pub fn taken(&self) -> Option<Takeover> {
        self.0.takeover.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A stream with [`Switches`].
#[derive(Debug)]
pub struct Tap<S> {
    inner: S,
    switches: Switches,
}

impl<S> Tap<S> {
    /// `inner` under control of `switches`.
    pub const fn new(inner: S, switches: Switches) -> Self {
        Self { inner, switches }
    }

    /// The stream itself.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn discards(&self) -> bool {
        self.switches.0.discard.load(Relaxed)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        let ended = matches!(result, Poll::Ready(Ok(())))
            && buf.filled().len() == before
            && buf.remaining() > 0;
        if ended && self.switches.0.hide_end.load(Relaxed) {
            // The end stays: the next read of the stream sees it again.
            return Poll::Pending;
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.discards() {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.discards() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.discards() {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
