//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use gantry_sdk::guard::panic_text;
use gantry_sdk::route::{Peer, ResponseBody};
use gantry_sdk::tasks::Tasks;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::prefix::Prefixed;
use super::tap::{Switches, Takeover, Tap};

/// What a client of HTTP/2 with prior knowledge sends first. Source: RFC 9113 §3.4.
const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is known about a connection when a request arrives on it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    /// For taking it over; none on HTTP/2, whose streams share one connection.
    pub switches: Option<Switches>,
}

/// An answer in the making.
pub type Answer =
    Pin<Box<dyn Future<Output = Result<http::Response<ResponseBody>, Infallible>> + Send>>;

/// Answers requests.
pub trait Endpoint: Send + Sync + 'static {
    /// Called once for each request, as soon as its head is read.
    fn call(&self, request: http::Request<Incoming>, connection: &Connection) -> Answer;
}

/// How a connection is served.
#[derive(Clone)]
pub struct Serving {
    /// Who answers.
    pub endpoint: Arc<dyn Endpoint>,
    /// What bounds it.
    pub limits: Limits,
    /// Runs the streams of HTTP/2 connections.
    pub tasks: Tasks,
    /// Cancelled when no further requests are taken.
    pub draining: CancellationToken,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Any stream that connections arrive on.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// Serves one connection until it ends.
///
/// Its faults concern its client, so they are logged for those who look and not returned.
pub async fn serve<S: Stream>(mut stream: S, peer: Peer, serving: Serving) {
    let peer = Arc::new(peer);
    let first = tokio::select! {
        first = timeout(serving.limits.head_time, sniff(&mut stream)) => first,
        () = serving.draining.cancelled() => return,
    };
    let (first, is_h2) = match first {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return tracing::debug!(%error, "A connection broke off."),
        Err(_) => return tracing::debug!("A client connected and sent no request in time."),
    };
    let stream = Prefixed::new(first, stream);
    let result = if is_h2 {
        serve_http2(stream, peer, serving).await
    } else {
        serve_http1(stream, peer, serving).await
    };
    if let Err(error) = result {
        tracing::debug!(error = %chain(&error), "A connection ended early.");
    }
}

/// Reads until it is clear which protocol the client speaks.
async fn sniff(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Bytes, bool)> {
    let mut first = BytesMut::with_capacity(2048);
    while first.len() < H2_PREFACE.len() && H2_PREFACE.starts_with(&first) {
        if stream.read_buf(&mut first).await? == 0 {
            break;
        }
    }
    let is_h2 = first.starts_with(H2_PREFACE);
    Ok((first.freeze(), is_h2))
}

/// A hyper service for the requests of one connection.
struct Requests {
    endpoint: Arc<dyn Endpoint>,
    connection: Connection,
}

impl Service<http::Request<Incoming>> for Requests {
    type Response = http::Response<ResponseBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: http::Request<Incoming>) -> Answer {
        self.endpoint.call(request, &self.connection)
    }
}

async fn serve_http1<S: Stream>(
    stream: Prefixed<S>,
    peer: Arc<Peer>,
    serving: Serving,
) -> hyper::Result<()> {
    let switches = Switches::default();
    let connection = Connection { peer, switches: Some(switches.clone()) };
    let requests = Requests { endpoint: serving.endpoint, connection };
    let io = TokioIo::new(Tap::new(stream, switches.clone()));
    let mut conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(serving.limits.head_time)
        // As the reference engine writes them: some clients compare bytes.
        .title_case_headers(true)
        .max_buf_size(serving.limits.head_bytes)
        .serve_connection(io, requests);

    let mut draining = false;
    let result = loop {
        tokio::select! {
            result = poll_fn(|cx| conn.poll_without_shutdown(cx)) => break result,
            () = serving.draining.cancelled(), if !draining => {
                draining = true;
                Pin::new(&mut conn).graceful_shutdown();
            }
        }
    };
    let parts = conn.into_parts();
    let mut stream = parts.io.into_inner().into_inner();
    match switches.taken() {
        Some(takeover) => hand_over(Prefixed::new(parts.read_buf, stream), takeover).await,
        None => {
            let _ = stream.shutdown().await; // the client may be gone; nothing is lost then
            return result;
        }
    }
    Ok(())
}

/// Writes the head and lets the handler have the stream.
async fn hand_over<S: Stream>(mut stream: Prefixed<S>, takeover: Takeover) {
    let _done = takeover.gone.drop_guard();
    let written = async {
        stream.write_all(&takeover.head).await?;
        stream.flush().await
    };
    if let Err(error) = written.await {
        // The handler still runs: what it does at the end of a stream is its own affair.
        tracing::debug!(%error, "A client left before its connection was handed over.");
    }
    let run = AssertUnwindSafe((takeover.run)(Box::pin(stream))).catch_unwind();
    if let Err(panic) = run.await {
        tracing::error!(panic = panic_text(panic.as_ref()), "A hijacked connection panicked.");
    }
}

async fn serve_http2<S: Stream>(
    stream: Prefixed<S>,
    peer: Arc<Peer>,
    serving: Serving,
) -> hyper::Result<()> {
    let connection = Connection { peer, switches: None };
    let requests = Requests { endpoint: serving.endpoint, connection };
    let head_bytes = u32::try_from(serving.limits.head_bytes).unwrap_or(u32::MAX);
    let conn = http2::Builder::new(Spawner(serving.tasks))
        .timer(TokioTimer::new())
        .max_concurrent_streams(serving.limits.h2_streams)
        .max_header_list_size(head_bytes)
        .keep_alive_interval(Some(serving.limits.head_time))
        .serve_connection(TokioIo::new(stream), requests);
    let mut conn = std::pin::pin!(conn);
    let mut draining = false;
    loop {
        tokio::select! {
            result = conn.as_mut() => return result,
            () = serving.draining.cancelled(), if !draining => {
                draining = true;
                conn.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Runs HTTP/2 streams as tracked tasks.
#[derive(Clone)]
struct Spawner(Tasks);

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn("http2-stream", task);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
