//! One call of a plugin: a POST with JSON on a connection of its own.
//!
//! Source: Docker's plugin protocol, version 1.

use std::time::Duration;

use bytes::Bytes;
use gantry_sdk::{Error, ErrorKind};
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::discover::Address;

/// The media type of the protocol.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// What plugins behind a unix socket are called.
const NO_HOST: &str = "plugin.moby.localhost";
/// How long connecting may take: on this machine, and over a network.
const CONNECT_HERE: Duration = Duration::from_millis(250);
const CONNECT: Duration = Duration::from_secs(2);
/// The largest answer and the largest head of one, in bytes.
const MAX_ANSWER: usize = 8 << 20;
const MAX_HEAD: usize = 64 << 10;
/// The longest message of a plugin that is passed on, in characters.
const MAX_MESSAGE: usize = 4096;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// It could not be reached; nothing was sent.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// The connection broke, or what came is not HTTP.
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    /// The answer is too large, or ended early.
    #[error("cannot read the answer: {0}")]
    Body(String),
    /// The answer is not the JSON that the protocol wants.
    #[error("the answer makes no sense")]
    Nonsense(#[source] serde_json::Error),
    /// A status without a message in the protocol's form.
    #[error("answered {0}: {1}")]
    Status(StatusCode, String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// Waiting was given up: the plugin answers nobody.
    #[error("the plugin does not answer")]
    Down,
    /// The request could not be written.
    #[error("cannot write the request: {0}")]
    Request(String),
    /// What the plugin says is wrong with the request.
    #[error("{0}")]
    Refused(String),
}

impl Fault {
    /// Whether the plugin is there and speaks the protocol.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Status(StatusCode::NOT_FOUND, _))
    }

    /// As an error; what the plugin refused is of kind `refused`.
    pub(crate) fn into_error(self, what: &str, refused: ErrorKind) -> Error {
        match self {
            Self::Refused(message) => Error::new(refused, format!("{what}: {message}")),
            Self::Status(StatusCode::NOT_FOUND, _) => {
                Error::unsupported(format!("{what}: the plugin has no such method"))
            }
            Self::Late(_) => Error::new(ErrorKind::Deadline, what).caused_by(self),
            other => Error::unavailable(what).caused_by(other),
        }
    }
}

/// Calls `method` with `arguments`; all of it may take `limit`.
pub(crate) async fn call<A: Serialize + Sync, R: DeserializeOwned>(
    address: &Address,
    method: &str,
    arguments: Option<&A>,
    limit: Duration,
) -> Result<R, Fault> {
    let body = match arguments {
        Some(arguments) => serde_json::to_vec(arguments).map_err(Fault::Nonsense)?,
        None => Vec::new(),
    };
    let answer = tokio::time::timeout(limit, send(address, method, body)).await;
    let (status, body) = answer.map_err(|_| Fault::Late(limit))??;
    if let Some(message) = refusal(&body) {
        return Err(Fault::Refused(shortened(&message)));
    }
    if status != StatusCode::OK {
        return Err(Fault::Status(status, shortened(String::from_utf8_lossy(&body).trim())));
    }
    serde_json::from_slice(&body).map_err(Fault::Nonsense)
}

/// The message of `{"Err": "…"}`, which comes with any status.
fn refusal(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Refusal {
        #[serde(rename = "Err", default)]
        message: Option<String>,
    }
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    refusal.message.filter(|message| !message.is_empty())
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

async fn send(
    address: &Address,
    method: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), Fault> {
    match address {
        Address::Unix(path) => {
            let stream = connected(CONNECT_HERE, UnixStream::connect(path)).await?;
            exchange(stream, NO_HOST, method, body).await
        }
        Address::Tcp(host) => {
            let stream = connected(CONNECT, TcpStream::connect(host)).await?;
            exchange(stream, host, method, body).await
        }
    }
}

async fn connected<S>(
    limit: Duration,
    connect: impl Future<Output = std::io::Result<S>>,
) -> Result<S, Fault> {
    match tokio::time::timeout(limit, connect).await {
        Ok(stream) => stream.map_err(Fault::Connect),
        Err(_) => Err(Fault::Late(limit)),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    method: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), Fault> {
    let request = Request::post(format!("/{method}"))
        .header(HOST, host)
        .header(ACCEPT, MEDIA_TYPE)
        .header(CONTENT_TYPE, MEDIA_TYPE)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Fault::Request(error.to_string()))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Fault::Broken)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(Fault::Broken)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| Fault::Body(error.to_string()))?;
        Ok((head.status, body.to_bytes()))
    };
    let mut answer = std::pin::pin!(answer);
    // The connection is no task of its own: it ends with this call, however that ends.
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        _ = connection => {}
    }
    answer.await
}
