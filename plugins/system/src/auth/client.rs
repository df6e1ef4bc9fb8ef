//! The little of an HTTP client that a login needs. Everything is bounded.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, LOCATION,
    USER_AGENT,
};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::{AddressError, Url};

/// Until a connection is there, TLS included.
const CONNECT: Duration = Duration::from_secs(10);

/// The largest body read, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The largest head read, in bytes and in lines.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;

/// How often a server may send us elsewhere.
const MAX_REDIRECTS: usize = 5;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody there, or no such name.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] std::io::Error),
    /// Nobody there, slowly.
    #[error("cannot connect to {0}: no connection after {CONNECT:?}")]
    Slow(String),
    /// No agreement on TLS.
    #[error("cannot agree on TLS with {0}")]
    Tls(String, #[source] std::io::Error),
    /// The connection broke, or what came is not HTTP.
    #[error("no proper answer from {0}")]
    Broken(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// Too much came.
    #[error("the answer of {0} is larger than {MAX_BODY} bytes")]
    TooLarge(String),
    /// Sent elsewhere.
    #[error("{0} redirects to another server, and credentials are for the one they were given for")]
    Elsewhere(String),
    /// Sent nowhere.
    #[error("the redirect of {0} cannot be followed")]
    Location(String, #[source] AddressError),
    /// Sent around.
    #[error("{0} redirects more than {MAX_REDIRECTS} times")]
    Loop(String),
    /// The request could not be put together.
    #[error("cannot make a request to {0}")]
    Request(String, #[source] http::Error),
}

impl ClientError {
    /// Whether there was no connection at all that could be used: then another way may be tried.
    pub(crate) const fn is_connection(&self) -> bool {
        matches!(self, Self::Connect(..) | Self::Slow(_) | Self::Tls(..))
    }
}

/// An answer, whole.
pub(crate) struct Answer {
    /// Status.
    pub(crate) status: StatusCode,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// Body.
    pub(crate) body: Bytes,
}

/// One connection for each request.
pub(crate) struct Client {
    tls: TlsConnector,
    agent: HeaderValue,
}

impl Client {
    /// A client that trusts as `tls` says and calls itself `agent`.
    pub(crate) fn new(tls: ClientConfig, agent: HeaderValue) -> Self {
        Self { tls: TlsConnector::from(Arc::new(tls)), agent }
    }

    /// `GET`, following redirects to the same scheme, host and port.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub(crate) async fn get(
        &self,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, ClientError> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.request(Method::GET, &at, Bytes::new())?;
            if let Some(value) = authorization {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            let answer = self.send(&at, request).await?;
            match redirect(&at, &answer)? {
                Some(next) => at = next,
                None => return Ok(answer),
            }
        }
        Err(ClientError::Loop(url.to_string()))
    }

    /// `POST` of a form; a redirect is an answer like any other.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub(crate) async fn post(&self, url: &Url, form: String) -> Result<Answer, ClientError> {
        let mut request = self.request(Method::POST, url, form.into())?;
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        self.send(url, request).await
    }

    fn request(
        &self,
        method: Method,
        url: &Url,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        Request::builder()
            .method(method)
            .uri(&url.target)
            .header(HOST, &url.authority)
            .header(USER_AGENT, &self.agent)
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|error| ClientError::Request(url.to_string(), error))
    }

    async fn send(&self, url: &Url, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        let shown = || url.authority.clone();
        let connect = async {
            TcpStream::connect((url.host.as_str(), url.port))
                .await
                .map_err(|error| ClientError::Connect(shown(), error))
        };
        if !url.tls {
            let stream = in_time(url, connect).await?;
            return exchange(url, stream, request).await;
        }
        let stream = in_time(url, async {
            let name = ServerName::try_from(url.host.trim_end_matches('.').to_owned())
                .map_err(|error| ClientError::Tls(shown(), std::io::Error::other(error)))?;
            let stream = connect.await?;
            self.tls
                .connect(name, stream)
                .await
                .map_err(|error| ClientError::Tls(shown(), in_words(error)))
        })
        .await?;
        exchange(url, stream, request).await
    }
}

async fn in_time<T>(
    url: &Url,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(CONNECT, work).await.unwrap_or_else(|_| Err(ClientError::Slow(url.authority.clone())))
}

/// The commonest mistake deserves better than "received corrupt message".
fn in_words(error: std::io::Error) -> std::io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if matches!(inner, Some(rustls::Error::InvalidMessage(_))) {
        return std::io::Error::new(error.kind(), "the server does not speak TLS");
    }
    error
}

/// Sends `request` over `stream` and reads the whole answer.
async fn exchange<S>(
    url: &Url,
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<Answer, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| ClientError::Broken(url.authority.clone(), error.into());
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let conversation = async {
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ClientError::TooLarge(url.authority.clone())
            } else {
                ClientError::Broken(url.authority.clone(), error)
            }
        })?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    };
    tokio::pin!(conversation);
    tokio::select! {
        biased; // an answer that is complete counts, however the connection ended
        answer = &mut conversation => answer,
        // The connection hands over all it has, errors included, before it ends.
        _ = connection => conversation.await,
    }
}

/// Where `answer` sends us; none if it does not.
fn redirect(from: &Url, answer: &Answer) -> Result<Option<Url>, ClientError> {
    if !matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let next = from
        .join(location.unwrap_or_default())
        .map_err(|error| ClientError::Location(from.to_string(), error))?;
    if !next.has_origin_of(from) {
        return Err(ClientError::Elsewhere(from.to_string()));
    }
    Ok(Some(next))
}
