//! Requests and answers over connections that are kept. Everything is bounded.
//!
//! A connection is driven by whoever waits for its answer, on the same task: no bytes change tasks on their way, and
//! dropping the answer closes the connection.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, LOCATION,
    PROXY_AUTHORIZATION, USER_AGENT,
};
use http::{Method, Request, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::time::sleep;

use super::address::{AddressError, Url};
use super::body::{Body, Pulse};
use super::connect::{CONNECT, Connector, Io};
use super::proxy::Proxies;

/// The largest body read whole unless told otherwise, in bytes.
pub(crate) const MAX_BODY: usize = 1 << 20;
/// The largest head read, in bytes and in lines.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
/// What is read at once at most: as much as a large body comes in, little for a small one.
const READ: usize = 512 << 10;
/// How often a server may send us elsewhere.
const MAX_REDIRECTS: usize = 5;
/// Connections kept for each origin, and for how long.
const MAX_IDLE: usize = 8;
const MAX_AGE: Duration = Duration::from_secs(10);
/// How long a kept connection may take to be ready for the next request.
const READY: Duration = Duration::from_secs(1);

/// How long a server may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Between bytes, either way.
    pub(crate) idle: Duration,
    /// After the last byte of a large body, which a registry may have to move and hash.
    pub(crate) digesting: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { idle: Duration::from_secs(30), digesting: Duration::from_secs(600) }
    }
}

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
    /// No way through a proxy.
    #[error("cannot use the proxy {0}: {1}")]
    Proxy(String, String),
    /// The connection broke, or what came is not HTTP.
    #[error("no proper answer from {0}")]
    Broken(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing comes, or nothing is taken.
    #[error("nothing came from {0} for {1:?}")]
    Stalled(String, Duration),
    /// Too much came.
    #[error("the answer of {0} is larger than {1} bytes")]
    TooLarge(String, usize),
    /// Sent elsewhere.
    #[error("{0} redirects to another server, and credentials are for the one they were given for")]
    Elsewhere(String),
    /// Sent to where others can listen.
    #[error("{0} uses TLS and redirects to a server that does not")]
    Downgrade(String),
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

    /// Whether the same request may have an answer later.
    pub(crate) const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Connect(..)
                | Self::Slow(_)
                | Self::Proxy(..)
                | Self::Broken(..)
                | Self::Stalled(..)
        )
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

/// What is asked.
pub(crate) struct Call<'a> {
    /// Method.
    pub(crate) method: Method,
    /// To whom.
    pub(crate) url: &'a Url,
    /// Headers of this request alone.
    pub(crate) headers: HeaderMap,
    /// For the server of `url` and no other.
    pub(crate) authorization: Option<&'a HeaderValue>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, url: &'a Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), authorization: None }
    }
}

type Connection = http1::Connection<TokioIo<Box<dyn Io>>, Body>;

/// A connection between two requests, or with one under way.
struct Link {
    sender: http1::SendRequest<Body>,
    connection: Connection,
}

type Origin = (bool, String, u16);

/// Connections that wait for another request.
#[derive(Default)]
struct Pool {
    idle: Mutex<HashMap<Origin, Vec<(Instant, Link)>>>,
    /// Whether somebody will look for connections that have waited too long.
    swept: AtomicBool,
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, HashMap<Origin, Vec<(Instant, Link)>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, origin: &Origin) -> Option<Link> {
        let mut all = self.idle();
        let idle = all.get_mut(origin)?;
        idle.retain(|(since, _)| since.elapsed() < MAX_AGE);
        idle.pop().map(|(_, link)| link)
    }

    fn put(self: &Arc<Self>, origin: Origin, link: Link) {
        {
            let mut all = self.idle();
            let idle = all.entry(origin).or_default();
            if idle.len() < MAX_IDLE {
                idle.push((Instant::now(), link));
            }
        }
        if !self.swept.swap(true, Ordering::SeqCst) {
            #[expect(
                clippy::disallowed_methods,
                reason = "it ends with the client, whoever made it"
            )]
            tokio::spawn(Self::sweep(Arc::downgrade(self)));
        }
    }

    /// Closes what nobody asked for again, until nothing is left or the client is gone.
    async fn sweep(pool: Weak<Self>) {
        loop {
            tokio::time::sleep(MAX_AGE).await;
            let Some(pool) = pool.upgrade() else { return };
            let mut all = pool.idle();
            all.retain(|_, idle| {
                idle.retain(|(since, _)| since.elapsed() < MAX_AGE);
                !idle.is_empty()
            });
            if all.is_empty() {
                // Under the lock: whoever puts the next one in sees it.
                pool.swept.store(false, Ordering::SeqCst);
                return;
            }
        }
    }
}

/// Talks to servers that are trusted in one way, through the same proxies.
pub(crate) struct Client {
    connector: Connector,
    agent: HeaderValue,
    pool: Arc<Pool>,
    patience: Patience,
}

impl Client {
    /// A client that trusts as `tls` says and calls itself `agent`.
    pub(crate) fn new(tls: ClientConfig, agent: HeaderValue, proxies: Arc<Proxies>) -> Self {
        Self {
            connector: Connector::new(tls, proxies),
            agent,
            pool: Arc::default(),
            patience: Patience::default(),
        }
    }

    /// The same client with another patience.
    #[must_use]
    pub(crate) fn patient(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
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
            let mut call = Call { authorization, ..Call::new(Method::GET, &at) };
            call.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
            let reply = self.send(&call, Body::Whole(Bytes::new())).await?;
            let Some(next) = redirect(&at, reply.status, &reply.headers)? else {
                return reply.whole(MAX_BODY).await;
            };
            if !next.has_origin_of(&at) {
                return Err(ClientError::Elsewhere(at.to_string()));
            }
            at = next;
        }
        Err(ClientError::Loop(url.to_string()))
    }

    /// `POST` of a form; a redirect is an answer like any other.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub(crate) async fn post(&self, url: &Url, form: String) -> Result<Answer, ClientError> {
        let mut call = Call::new(Method::POST, url);
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        call.headers.insert(CONTENT_TYPE, kind);
        call.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        self.send(&call, Body::Whole(form.into())).await?.whole(MAX_BODY).await
    }

    /// `GET` or `HEAD`, following redirects to anywhere but from TLS to none. The authorization stays at home.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub(crate) async fn follow(&self, call: &Call<'_>) -> Result<Reply, ClientError> {
        let mut at = call.url.clone();
        let mut authorization = call.authorization;
        for _ in 0..=MAX_REDIRECTS {
            let hop = Call {
                method: call.method.clone(),
                url: &at,
                headers: call.headers.clone(),
                authorization,
            };
            let reply = self.send(&hop, Body::Whole(Bytes::new())).await?;
            let Some(next) = redirect(&at, reply.status, &reply.headers)? else {
                return Ok(reply);
            };
            if at.tls && !next.tls {
                return Err(ClientError::Downgrade(at.to_string()));
            }
            if !next.has_origin_of(&at) {
                authorization = None; // and it does not come back
            }
            at = next;
        }
        Err(ClientError::Loop(call.url.to_string()))
    }

    /// One request and its answer's head. A kept connection that turns out to be closed is replaced, if the body can be
    /// sent again.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub(crate) async fn send(&self, call: &Call<'_>, body: Body) -> Result<Reply, ClientError> {
        let origin = (call.url.tls, call.url.host.to_ascii_lowercase(), call.url.port);
        let spare = body.again();
        if let Some(link) = self.kept(&origin).await {
            match (self.exchange(call, body, link, &origin).await, spare) {
                (Err(ClientError::Broken(..)), Some(body)) => {
                    return self.send_anew(call, body, &origin).await;
                }
                (result, _) => return result,
            }
        }
        self.send_anew(call, body, &origin).await
    }

    async fn send_anew(
        &self,
        call: &Call<'_>,
        body: Body,
        origin: &Origin,
    ) -> Result<Reply, ClientError> {
        let stream = self.connector.connect(call.url).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(call.url, error))?;
        self.exchange(call, body, Link { sender, connection }, origin).await
    }

    /// A kept connection that still works as far as one can tell.
    async fn kept(&self, origin: &Origin) -> Option<Link> {
        while let Some(mut link) = self.pool.take(origin) {
            let ready = async {
                let Link { sender, connection } = &mut link;
                tokio::select! {
                    biased; // a connection that has ended is not ready, whatever it says
                    _ = connection => false,
                    ready = sender.ready() => ready.is_ok(),
                }
            };
            if tokio::time::timeout(READY, ready).await.unwrap_or(false) {
                return Some(link);
            }
        }
        None
    }

    async fn exchange(
        &self,
        call: &Call<'_>,
        body: Body,
        mut link: Link,
        origin: &Origin,
    ) -> Result<Reply, ClientError> {
        let pulse = body.pulse();
        let request = self.request(call, body)?;
        let answer = link.sender.send_request(request);
        let connection = &mut link.connection;
        let conversation = async move {
            tokio::pin!(answer);
            tokio::select! {
                biased; // an answer that is complete counts, however the connection ended
                answer = &mut answer => (answer, false),
                // The connection hands over all it has, errors included, before it ends.
                _ = connection => (answer.await, true),
            }
        };
        let (answer, ended) = tokio::select! {
            biased;
            answer = conversation => answer,
            waited = self.impatient(pulse) => {
                return Err(ClientError::Stalled(call.url.authority.clone(), waited));
            }
        };
        let (head, body) = answer.map_err(|error| broken(call.url, error))?.into_parts();
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            url: call.url.clone(),
            body,
            link: if ended { None } else { Some(link) },
            pool: self.pool.clone(),
            origin: origin.clone(),
            patience: self.patience,
        })
    }

    /// Ends when a server has been silent for too long, with the time.
    async fn impatient(&self, pulse: Option<Arc<Pulse>>) -> Duration {
        let Patience { idle, digesting } = self.patience;
        let Some(pulse) = pulse else {
            sleep(idle).await;
            return idle;
        };
        loop {
            let limit = if pulse.is_done() { digesting } else { idle };
            let waited = pulse.idle();
            if waited >= limit {
                return limit;
            }
            sleep((limit - waited).min(idle)).await;
        }
    }

    fn request(&self, call: &Call<'_>, body: Body) -> Result<Request<Body>, ClientError> {
        let url = call.url;
        let proxy = self.connector.forwarder(url);
        let target = match proxy {
            Some(_) => format!("http://{}{}", url.authority, url.target),
            None => url.target.clone(),
        };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(target)
            .header(HOST, &url.authority)
            .header(USER_AGENT, &self.agent)
            .body(body)
            .map_err(|error| ClientError::Request(url.to_string(), error))?;
        let headers = request.headers_mut();
        headers.extend(call.headers.clone());
        if let Some(value) = call.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        if let Some(value) = proxy.and_then(|proxy| proxy.authorization.as_ref()) {
            headers.insert(PROXY_AUTHORIZATION, value.clone());
        }
        Ok(request)
    }
}

fn broken(url: &Url, error: hyper::Error) -> ClientError {
    ClientError::Broken(url.authority.clone(), error.into())
}

/// An answer whose body is still to be read.
pub(crate) struct Reply {
    /// Status.
    pub(crate) status: StatusCode,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// Who answered, after all redirects.
    pub(crate) url: Url,
    body: Incoming,
    link: Option<Link>,
    pool: Arc<Pool>,
    origin: Origin,
    patience: Patience,
}

impl Reply {
    /// The next bytes of the body; none at its end, where the connection goes back to the others.
    ///
    /// # Errors
    ///
    /// If the connection breaks, or nothing comes.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let idle = self.patience.idle;
        let first = poll_fn(|cx| Poll::Ready(self.poll_data(cx))).await;
        let next = match first {
            Poll::Ready(next) => next,
            // A timer costs something: only for those who have to wait.
            Poll::Pending => tokio::time::timeout(idle, poll_fn(|cx| self.poll_data(cx)))
                .await
                .map_err(|_| ClientError::Stalled(self.url.authority.clone(), idle))?,
        };
        match next {
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(error)) => Err(broken(&self.url, error)),
            None => {
                if let Some(link) = self.link.take() {
                    self.pool.put(self.origin.clone(), link);
                }
                Ok(None)
            }
        }
    }

    fn poll_data(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Option<hyper::Result<Bytes>>> {
        loop {
            let mut ended = self.link.is_none();
            for _ in 0..2 {
                if let Poll::Ready(next) = Pin::new(&mut self.body).poll_frame(cx) {
                    match next.map(|frame| frame.map(http_body::Frame::into_data)) {
                        Some(Ok(Ok(bytes))) => return Poll::Ready(Some(Ok(bytes))),
                        Some(Ok(Err(_))) => continue, // trailers
                        Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                        None => return Poll::Ready(None),
                    }
                }
                if ended {
                    return Poll::Pending;
                }
                if let Some(link) = &mut self.link {
                    ended = Pin::new(&mut link.connection).poll(cx).is_ready();
                }
            }
            if !ended {
                return Poll::Pending;
            }
            self.link = None; // what it had, it has handed over
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    ///
    /// If the body is larger than `limit` bytes, or does not come.
    pub(crate) async fn whole(mut self, limit: usize) -> Result<Answer, ClientError> {
        let too_large = ClientError::TooLarge(self.url.authority.clone(), limit);
        if self.body.size_hint().lower() > limit as u64 {
            return Err(too_large);
        }
        let mut body = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            if body.len() + bytes.len() > limit {
                return Err(too_large);
            }
            body.extend_from_slice(&bytes);
        }
        Ok(Answer {
            status: self.status,
            headers: std::mem::take(&mut self.headers),
            body: body.freeze(),
        })
    }

    /// How many bytes the body has, if the server says so.
    pub(crate) fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }
}

/// Where an answer from `from` sends us; none if it does not.
fn redirect(
    from: &Url,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Option<Url>, ClientError> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    from.join(location.unwrap_or_default())
        .map(Some)
        .map_err(|error| ClientError::Location(from.to_string(), error))
}
