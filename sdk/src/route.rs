//! Routes as data, and what handlers receive and return.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use gantry_api::ApiVersion;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::Ctx;
use crate::{Error, ErrorKind, Result};

/// What [`Request::json`] reads at most. The reference engine has no limit; ours is far above any
/// honest request.
pub const JSON_LIMIT: usize = 4 << 20;

/// The methods of the API. `HEAD` is derived from `GET` unless it is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
}

/// How a route answers; the kernel treats each differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// One JSON document, or nothing.
    Json,
    /// Bytes of unknown length, with back-pressure.
    Stream,
    /// The connection becomes a raw byte stream (attach, exec).
    Hijack,
    /// The connection changes protocol (h2c, WebSocket).
    Upgrade,
}

/// One route: data, bound to a handler during `init` by its `id`.
#[derive(Clone, Copy, Debug)]
pub struct RouteDecl {
    /// Unique within the plugin.
    pub id: &'static str,
    /// Method.
    pub method: Method,
    /// `/images/{name..}/json`: literals, `{one}` segment, or `{rest..}` of one or more segments.
    pub template: &'static str,
    /// First API version that has it.
    pub since: ApiVersion,
    /// Last API version that has it; none if all later ones do.
    pub until: Option<ApiVersion>,
    /// How it answers.
    pub shape: Shape,
}

impl RouteDecl {
    /// A route of every API version that answers JSON.
    pub const fn new(id: &'static str, method: Method, template: &'static str) -> Self {
        Self { id, method, template, since: ApiVersion::MIN, until: None, shape: Shape::Json }
    }

    /// The same route with another shape.
    #[must_use]
    pub const fn shaped(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// The same route, from `version` on.
    #[must_use]
    pub const fn since(mut self, version: ApiVersion) -> Self {
        self.since = version;
        self
    }
}

/// A future that handlers return.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Result<Response>> + Send>>;
/// A handler with its state.
pub type Handler = Arc<dyn Fn(Request) -> HandlerFuture + Send + Sync>;

/// Handlers by the id of their route.
#[derive(Default)]
pub struct BoundRoutes(BTreeMap<&'static str, Handler>);

impl std::fmt::Debug for BoundRoutes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl BoundRoutes {
    /// Binds `id`; a second binding of the same id replaces the first.
    pub fn bind<S, F, Fut>(&mut self, id: &'static str, state: &Arc<S>, handler: F)
    where
        S: Send + Sync + 'static,
        F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response>> + Send + 'static,
    {
        let state = state.clone();
        let handler: Handler = Arc::new(move |request| Box::pin(handler(state.clone(), request)));
        self.0.insert(id, handler);
    }

    /// The handler of `id`.
    pub fn get(&self, id: &str) -> Option<Handler> {
        self.0.get(id).cloned()
    }

    /// The ids that are bound.
    pub fn ids(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.keys().copied()
    }
}

/// The body of a request. Bounded where it is read whole.
pub type RequestBody = UnsyncBoxBody<Bytes, Error>;
/// The body of a response.
pub type ResponseBody = UnsyncBoxBody<Bytes, Error>;

/// Who sent a request.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// User id, of a unix socket's peer.
    pub uid: Option<u32>,
    /// Process id, of a unix socket's peer.
    pub pid: Option<u32>,
    /// Subject of the client certificate.
    pub certificate: Option<String>,
}

/// A request as a handler sees it: version prefix removed, parameters decoded.
pub struct Request {
    /// Method.
    pub method: Method,
    /// Path without version prefix, percent-decoded.
    pub path: String,
    /// Parameters of the route's template.
    pub params: BTreeMap<&'static str, String>,
    /// The query.
    pub query: Query,
    /// Negotiated API version.
    pub version: ApiVersion,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: RequestBody,
    /// Who sent it.
    pub peer: Peer,
    /// Shown in logs; unique in this process.
    pub id: Arc<str>,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("version", &self.version)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// The parameter `name` of the template; empty if the template has none of that name.
    pub fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// A header's value, if it is readable text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// The context of calls made for this request: cancelled when the client goes away.
    pub fn ctx(&self) -> Ctx {
        Ctx {
            deadline: None,
            op_id: rand::random(),
            caller: Some(self.id.clone()),
            cancelled: self.gone.clone(),
        }
    }

    /// Whether the client asked to switch protocols (`Upgrade` header).
    pub fn wants_upgrade(&self) -> bool {
        self.headers.contains_key(http::header::UPGRADE)
    }

    /// The `filters` parameter, which may use the names `known` only.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` with the reference engine's texts.
    pub fn filters(&self, known: &[&str]) -> Result<gantry_api::Filters> {
        let invalid = |e: gantry_api::FilterError| Error::invalid(e.to_string());
        let filters = gantry_api::Filters::parse(self.query.str("filters")).map_err(invalid)?;
        filters.validate(known).map_err(invalid)?;
        Ok(filters)
    }

    /// The whole body, at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it is larger or breaks off.
    pub async fn bytes(&mut self, limit: usize) -> Result<Bytes> {
        let body = std::mem::replace(&mut self.body, empty_body());
        let read = Limited::new(body, limit).collect().await.map_err(|e| {
            if e.is::<http_body_util::LengthLimitError>() {
                Error::invalid(format!("request body is larger than {limit} bytes"))
            } else {
                Error::invalid("cannot read the request body").caused_by(e)
            }
        })?;
        Ok(read.to_bytes())
    }

    /// The body as JSON. An empty body is an error, as in the reference engine.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, with the texts that clients know.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.json_or_empty()
            .await?
            .ok_or_else(|| Error::invalid("invalid JSON: got EOF while reading request body"))
    }

    /// The body as JSON, or none if it is empty.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for anything but one JSON document sent as `application/json`.
    pub async fn json_or_empty<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let body = self.bytes(JSON_LIMIT).await?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        if let Some(content_type) = self.header("content-type") {
            let essence = content_type.split(';').next().unwrap_or_default().trim();
            if !essence.eq_ignore_ascii_case("application/json") {
                return Err(Error::invalid(format!(
                    "unsupported Content-Type header ({content_type}): must be 'application/json'"
                )));
            }
        } else {
            return Err(Error::invalid("malformed Content-Type header (): mime: no media type"));
        }
        gantry_api::json::from_slice(&body).map(Some).map_err(|e| Error::invalid(e.to_string()))
    }
}

/// A decoded query string; a name may occur several times.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `application/x-www-form-urlencoded` text.
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The first value of `name`, or the empty string.
    pub fn str(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// All values of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Docker's boolean: absent, empty, `0`, `no`, `false` and `none` are false, all else is true.
    pub fn bool(&self, name: &str) -> bool {
        self.bool_or(name, false)
    }

    /// As [`bool`](Self::bool), with another value for an absent name.
    pub fn bool_or(&self, name: &str, absent: bool) -> bool {
        let Some(value) = self.get(name) else {
            return absent;
        };
        let value = value.trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// A whole number; absent or empty is none.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the parameter.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Error::invalid(format!("invalid value {text:.80?} of {name}: not a number"))
            }),
        }
    }
}

/// The raw stream of a hijacked connection. Shutting down the write half sends end-of-file to the
/// client and leaves reading open, and the other way round.
pub type HijackedIo = Pin<Box<dyn Io>>;

/// Both directions of a byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// What runs on a hijacked connection.
pub type HijackFn = Box<dyn FnOnce(HijackedIo) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What a response carries.
pub enum Payload {
    /// A body of any length.
    Body(ResponseBody),
    /// The connection itself. With an `Upgrade` header in the request the kernel answers
    /// `101 UPGRADED`, without one `200 OK`; then the closure owns the stream.
    Hijack(HijackFn),
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Body(_) => "Body",
            Self::Hijack(_) => "Hijack",
        })
    }
}

/// A handler's answer.
pub struct Response {
    /// Status; ignored for a hijack.
    pub status: StatusCode,
    /// Headers beside the standard ones.
    pub headers: HeaderMap,
    /// Body or hijack.
    pub payload: Payload,
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Feeds a streaming response; each send waits while the client is slow.
#[derive(Clone, Debug)]
pub struct BodySender(mpsc::Sender<Result<Bytes>>);

impl BodySender {
    /// Sends `bytes`; `false` means that the client is gone and nobody reads any more.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> bool {
        self.0.send(Ok(bytes.into())).await.is_ok()
    }

    /// As [`send`](Self::send), from a blocking thread.
    pub fn blocking_send(&self, bytes: impl Into<Bytes>) -> bool {
        self.0.blocking_send(Ok(bytes.into())).is_ok()
    }

    /// Sends one JSON document and CR LF, as progress streams do.
    pub async fn json(&self, value: &(impl Serialize + Sync)) -> bool {
        match serde_json::to_vec(value) {
            Ok(mut line) => {
                line.extend_from_slice(b"\r\n");
                self.send(line).await
            }
            Err(error) => self.abort(Error::internal("cannot encode a message", error)).await,
        }
    }

    /// Breaks the stream off, so that the client sees an incomplete body.
    pub async fn abort(&self, error: Error) -> bool {
        self.0.send(Err(error)).await.is_ok()
    }

    /// Completes when nobody reads any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Feeds a streaming response from a blocking thread; gathers small writes.
#[derive(Debug)]
pub struct BodyWriter {
    sender: BodySender,
    gathered: Vec<u8>,
    piece: usize,
}

impl BodyWriter {
    /// Sends `piece` bytes at once. Nothing is sent on drop: flush at the end.
    pub fn new(sender: BodySender, piece: usize) -> Self {
        Self { sender, gathered: Vec::with_capacity(piece), piece }
    }
}

impl std::io::Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = bytes.len().min(self.piece.saturating_sub(self.gathered.len()));
        self.gathered.extend_from_slice(&bytes[..n]);
        if self.gathered.len() >= self.piece {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let bytes = std::mem::replace(&mut self.gathered, Vec::with_capacity(self.piece));
        if bytes.is_empty() || self.sender.blocking_send(bytes) {
            return Ok(());
        }
        Err(std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the client is gone"))
    }
}

impl Response {
    /// `status` without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), payload: Payload::Body(empty_body()) }
    }

    /// `204 No Content`.
    pub fn no_content() -> Self {
        Self::empty(StatusCode::NO_CONTENT)
    }

    /// A JSON document, ended by a newline as the reference engine does.
    ///
    /// # Errors
    ///
    /// `Internal` if the value cannot be encoded.
    pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Self> {
        let mut text = serde_json::to_vec(value)
            .map_err(|e| Error::internal("cannot encode the response", e))?;
        text.push(b'\n');
        Ok(Self::full(status, "application/json", text))
    }

    /// `200 OK` with a JSON document.
    ///
    /// # Errors
    ///
    /// As [`json`](Self::json).
    pub fn ok(value: &impl Serialize) -> Result<Self> {
        Self::json(StatusCode::OK, value)
    }

    /// `200 OK` with `value` in the shape that `version` of the API gives to a `kind`.
    ///
    /// # Errors
    ///
    /// `Internal` if the value cannot be encoded.
    pub fn shaped(
        kind: gantry_api::ObjectKind,
        version: ApiVersion,
        value: &impl Serialize,
    ) -> Result<Self> {
        let mut text = gantry_api::version::to_json(kind, version, value)
            .map_err(|e| Error::internal("cannot encode the response", e))?;
        text.push(b'\n');
        Ok(Self::full(StatusCode::OK, "application/json", text))
    }

    /// Bytes of a known length.
    pub fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let body = http_body_util::Full::new(body.into()).map_err(|never| match never {});
        Self {
            status,
            headers: content_type_header(content_type),
            payload: Payload::Body(UnsyncBoxBody::new(body)),
        }
    }

    /// A stream; whatever is sent through the sender goes out at once. The head is sent when the
    /// handler returns, so errors that deserve a status must be found before.
    pub fn stream(content_type: &'static str) -> (BodySender, Self) {
        let (sender, receiver) = mpsc::channel(16);
        let response = Self {
            status: StatusCode::OK,
            headers: content_type_header(content_type),
            payload: Payload::Body(UnsyncBoxBody::new(ChannelBody(receiver))),
        };
        (BodySender(sender), response)
    }

    /// Takes the connection over; see [`Payload::Hijack`].
    pub fn hijack<F, Fut>(content_type: &'static str, run: F) -> Self
    where
        F: FnOnce(HijackedIo) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self {
            status: StatusCode::OK,
            headers: content_type_header(content_type),
            payload: Payload::Hijack(Box::new(|io| Box::pin(run(io)))),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

fn content_type_header(content_type: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))])
}

/// A body without bytes.
pub fn empty_body() -> ResponseBody {
    UnsyncBoxBody::new(Empty::new().map_err(|never| match never {}))
}

struct ChannelBody(mpsc::Receiver<Result<Bytes>>);

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|item| item.map(|r| r.map(http_body::Frame::data)))
    }
}

/// The status of an error kind belongs to the kernel; this is the body that goes with it.
pub fn error_body(error: &Error) -> gantry_api::ErrorResponse {
    debug_assert!(error.kind() != ErrorKind::NotModified, "304 has no body");
    gantry_api::ErrorResponse { message: error.chain() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_follow_the_reference() {
        for (text, expected) in
            [("a=1", true), ("a=", false), ("a=no", false), ("a=maybe", true), ("", false)]
        {
            assert_eq!(Query::parse(text).bool("a"), expected, "{text}");
        }
    }

    #[test]
    fn queries_decode_and_repeat() {
        let query = Query::parse("names=a%2Fb&names=c+d");
        assert_eq!(query.all("names").collect::<Vec<_>>(), ["a/b", "c d"]);
        assert!(query.number::<u32>("names").is_err());
    }
}
