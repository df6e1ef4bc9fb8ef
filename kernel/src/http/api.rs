//! One request of the API: version, route, handler, headers, errors, log.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use gantry_sdk::guard::panic_text;
use gantry_sdk::route::{Handler, Payload, Query, ResponseBody};
use gantry_sdk::{ApiVersion, Error, ErrorKind, Method, Request, Response, Shape};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Limits;
use super::body::{GuardedBody, PatientBody};
use super::conn::{Answer, Connection, Endpoint};
use super::tap::Takeover;
use crate::metrics::Metrics;
use crate::router::path::RequestPath;
use crate::router::{Params, Router, Target};
use crate::{error, version};

/// Seconds after which a client should try a part again that is down.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// The API: a router behind the rules that hold for every request.
#[derive(Debug)]
pub struct Api {
    router: Arc<Router>,
    min_version: ApiVersion,
    body_idle: Duration,
    standard: HeaderMap,
    metrics: Arc<Metrics>,
    requests: AtomicU64,
    /// Requests that end by themselves, until their answers are complete.
    unsettled: TaskTracker,
}

/// What the router made of a request.
enum Plan {
    Run { handler: Handler, params: Params, version: ApiVersion, shape: Shape },
    Reply(Response),
}

/// A request on its way.
struct Trace {
    id: Arc<str>,
    method: http::Method,
    path: String,
    started: Instant,
}

impl Api {
    /// Serves `router` to clients of `min_version` and newer.
    #[must_use]
    pub fn new(
        router: Arc<Router>,
        min_version: ApiVersion,
        product_version: &str,
        experimental: bool,
        limits: &Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut standard = HeaderMap::new();
        let value = |text: &str| {
            HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
        };
        standard.insert(header::SERVER, value(&format!("Docker/{product_version} (linux)")));
        standard.insert("api-version", value(&version::NEWEST.to_string()));
        standard.insert("ostype", HeaderValue::from_static("linux"));
        standard.insert("docker-experimental", value(&experimental.to_string()));
        let (requests, unsettled) = (AtomicU64::new(1), TaskTracker::new());
        let body_idle = limits.body_idle;
        Self { router, min_version, body_idle, standard, metrics, requests, unsettled }
    }

    /// Completes when no request is in flight but streams, which may have no end.
    pub async fn settled(&self) {
        self.unsettled.close();
        self.unsettled.wait().await;
    }

    fn plan(&self, request: &http::Request<Incoming>, path: Option<&RequestPath>) -> Plan {
        let reply = Plan::Reply;
        let (Some(path), Some(method)) = (path, method(request.method())) else {
            return reply(error::page_not_found());
        };
        let segments = path.segments();
        let negotiated = version::negotiate(path.version.as_deref(), self.min_version);
        // Whether there is such a path comes before whether its version is served.
        let wanted = *negotiated.as_ref().unwrap_or(&version::NEWEST);
        let found = self.router.find(method, &segments, wanted);
        // Every path has options, as far as the reference engine goes.
        if found.is_none() && method != Method::Options {
            return reply(error::page_not_found());
        }
        let version = match negotiated {
            Ok(version) => version,
            Err(refused) => {
                let response = if refused.plain_text {
                    let text = format!("{}\n", refused.message);
                    Response::full(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", text)
                } else {
                    error::message(StatusCode::BAD_REQUEST, &refused.message)
                };
                return reply(response);
            }
        };
        let Some(found) = found else {
            return reply(Response::empty(StatusCode::OK));
        };
        if !found.entry.holds(version) {
            return reply(outside_window(
                &found.entry.signature(),
                found.entry.decl.since,
                version,
            ));
        }
        match found.target {
            Some(Target::Handler(handler)) => Plan::Run {
                handler: handler.clone(),
                params: found.params,
                version,
                shape: found.entry.decl.shape,
            },
            Some(Target::Down(why)) => {
                let text = format!("plugin {} is not in service: {why}", found.entry.owner);
                reply(unavailable(&text))
            }
            None => reply(unavailable("the daemon is still starting")),
        }
    }

    fn next_id(&self) -> Arc<str> {
        format!("{:06x}", self.requests.fetch_add(1, Relaxed)).into()
    }

    /// Runs the handler and turns whatever it does into a response.
    async fn run(handler: Handler, request: Request, trace: &Trace) -> Response {
        // Called inside the guard, since a handler may panic before it returns its future.
        let call = async move { handler(request).await };
        match AssertUnwindSafe(call).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(failure)) => {
                let status = error::status(failure.kind());
                if status.is_server_error() {
                    tracing::error!(
                        request = %trace.id, method = %trace.method, path = trace.path,
                        %status, error = failure.chain(), "A request failed.",
                    );
                } else {
                    tracing::debug!(
                        request = %trace.id, %status, error = failure.chain(),
                        "A request was refused.",
                    );
                }
                error::respond(&failure)
            }
            Err(panic) => {
                let what = panic_text(panic.as_ref());
                tracing::error!(
                    request = %trace.id, method = %trace.method, path = trace.path,
                    panic = what, "A handler panicked.",
                );
                let text = format!("internal error: the handler panicked: {what}");
                error::message(StatusCode::INTERNAL_SERVER_ERROR, &text)
            }
        }
    }

    /// The response with the standard headers, ready for the HTTP library.
    fn finish(
        &self,
        response: Response,
        connection: &Connection,
        upgrade: Option<Option<HeaderValue>>,
        gone: CancellationToken,
        unsettled: Option<TaskTrackerToken>,
    ) -> http::Response<ResponseBody> {
        match response.payload {
            Payload::Body(body) => {
                let body = GuardedBody::new(body, gone.drop_guard(), unsettled);
                let mut answer = http::Response::new(UnsyncBoxBody::new(body));
                *answer.status_mut() = response.status;
                *answer.headers_mut() = self.with_standard(response.headers);
                answer
            }
            Payload::Hijack(run) => {
                let headers = self.with_standard(response.headers);
                let Some(switches) = &connection.switches else {
                    return self.finish(hijack_over_h2(), connection, None, gone, unsettled);
                };
                let head = hijack_head(&headers, upgrade.flatten().as_ref(), response.status);
                switches.take_over(Takeover { head, run, gone });
                dummy()
            }
        }
    }

    fn with_standard(&self, mut headers: HeaderMap) -> HeaderMap {
        for (name, value) in &self.standard {
            headers.entry(name).or_insert_with(|| value.clone());
        }
        headers
    }
}

impl Api {
    /// The work of [`Endpoint::call`] once the head is looked at.
    async fn answer(
        self: Arc<Self>,
        plan: Plan,
        parts: http::request::Parts,
        body: Incoming,
        path: Option<RequestPath>,
        connection: Connection,
        trace: Trace,
    ) -> http::Response<ResponseBody> {
        let gone = CancellationToken::new();
        // Dropped with this future when the client goes away before there is an answer.
        let guard = gone.clone().drop_guard();
        let upgrade = parts.headers.get(header::UPGRADE).cloned();
        let mut hijackable = None;
        let settles = matches!(plan, Plan::Reply(_) | Plan::Run { shape: Shape::Json, .. });
        let unsettled = settles.then(|| self.unsettled.token());
        let response = match plan {
            Plan::Reply(response) => response,
            Plan::Run { shape: Shape::Hijack | Shape::Upgrade, .. }
                if connection.switches.is_none() =>
            {
                hijack_over_h2()
            }
            Plan::Run { handler, params, version, shape } => {
                if matches!(shape, Shape::Hijack | Shape::Upgrade) {
                    hijackable = Some(upgrade);
                }
                let request = Request {
                    method: method(&parts.method).unwrap_or(Method::Get),
                    path: path.map(|p| p.path).unwrap_or_default(),
                    params,
                    query: Query::parse(parts.uri.query().unwrap_or_default()),
                    version,
                    headers: parts.headers,
                    body: UnsyncBoxBody::new(PatientBody::new(body, self.body_idle)),
                    peer: (*connection.peer).clone(),
                    id: trace.id.clone(),
                    gone: gone.clone(),
                };
                Self::run(handler, request, &trace).await
            }
        };
        let status = response.status;
        let hijacked = matches!(response.payload, Payload::Hijack(_));
        if !hijacked && let Some(switches) = &connection.switches {
            switches.hide_end(false);
        }
        let answer = self.finish(response, &connection, hijackable, gone, unsettled);
        drop(guard.disarm());
        let elapsed = trace.started.elapsed();
        self.metrics.request(&trace.method, status, elapsed);
        tracing::debug!(
            request = %trace.id, method = %trace.method, path = trace.path, %status, hijacked,
            micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            "Answered.",
        );
        answer
    }
}

/// The API as the endpoint of connections.
#[derive(Clone, Debug)]
pub struct ApiEndpoint(pub Arc<Api>);

impl Endpoint for ApiEndpoint {
    fn call(&self, request: http::Request<Incoming>, connection: &Connection) -> Answer {
        let api = self.0.clone();
        let path = RequestPath::parse(request.uri().path()).ok();
        let plan = api.plan(&request, path.as_ref());
        if let (Plan::Run { shape: Shape::Hijack | Shape::Upgrade, .. }, Some(switches)) =
            (&plan, &connection.switches)
        {
            // Before the library looks at the stream again.
            switches.hide_end(true);
        }
        let trace = Trace {
            id: api.next_id(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            started: Instant::now(),
        };
        let connection = connection.clone();
        let (parts, body) = request.into_parts();
        Box::pin(async move { Ok(api.answer(plan, parts, body, path, connection, trace).await) })
    }
}

fn method(method: &http::Method) -> Option<Method> {
    match *method {
        http::Method::GET => Some(Method::Get),
        http::Method::HEAD => Some(Method::Head),
        http::Method::POST => Some(Method::Post),
        http::Method::PUT => Some(Method::Put),
        http::Method::DELETE => Some(Method::Delete),
        http::Method::OPTIONS => Some(Method::Options),
        _ => None,
    }
}

/// The reference engine's words for a route that is newer than the client's version; for one that
/// is gone there are none, so it does not exist.
fn outside_window(signature: &str, since: ApiVersion, version: ApiVersion) -> Response {
    if version < since {
        let text = format!("{signature} requires minimum API version {since}");
        error::message(StatusCode::BAD_REQUEST, &text)
    } else {
        error::page_not_found()
    }
}

fn unavailable(text: &str) -> Response {
    let mut response = error::message(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers.insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}

fn hijack_over_h2() -> Response {
    error::respond(&Error::new(
        ErrorKind::InvalidArgument,
        "this request takes over its connection, which HTTP/2 cannot do: use HTTP/1.1",
    ))
}

/// What the HTTP library is given to write when the connection is taken over: nobody sees it, and
/// it ends the library's work on the connection.
fn dummy() -> http::Response<ResponseBody> {
    let mut answer = http::Response::new(gantry_sdk::route::empty_body());
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The head of a hijacked connection's answer.
///
/// Names are in the case that the reference engine sends, since some clients compare bytes.
fn hijack_head(headers: &HeaderMap, upgrade: Option<&HeaderValue>, status: StatusCode) -> Bytes {
    let mut head = BytesMut::with_capacity(512);
    let mut headers = headers.clone();
    match upgrade {
        Some(protocol) => {
            // A handler that speaks another protocol (WebSocket) says 101 itself, and gets the
            // standard reason.
            let reason = match status {
                StatusCode::SWITCHING_PROTOCOLS => "Switching Protocols",
                _ => "UPGRADED",
            };
            head.put_slice(format!("HTTP/1.1 101 {reason}\r\n").as_bytes());
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.entry(header::UPGRADE).or_insert_with(|| protocol.clone());
        }
        None => head.put_slice(b"HTTP/1.1 200 OK\r\n"),
    }
    for (name, value) in &headers {
        put_name(&mut head, name);
        head.put_slice(b": ");
        head.put_slice(value.as_bytes());
        head.put_slice(b"\r\n");
    }
    head.put_slice(b"\r\n");
    head.freeze()
}

/// `content-type` as `Content-Type`.
fn put_name(head: &mut BytesMut, name: &HeaderName) {
    let mut up = true;
    for byte in name.as_str().bytes() {
        head.put_u8(if up { byte.to_ascii_uppercase() } else { byte });
        up = byte == b'-';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_written_as_clients_expect_them() {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/x"));
        let text = |upgrade: Option<&'static str>, status| {
            let upgrade = upgrade.map(HeaderValue::from_static);
            String::from_utf8(hijack_head(&headers, upgrade.as_ref(), status).to_vec()).unwrap()
        };
        assert_eq!(
            text(Some("tcp"), StatusCode::OK),
            "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/x\r\nConnection: Upgrade\r\n\
             Upgrade: tcp\r\n\r\n"
        );
        assert_eq!(
            text(None, StatusCode::OK),
            "HTTP/1.1 200 OK\r\nContent-Type: application/x\r\n\r\n"
        );
        assert!(
            text(Some("websocket"), StatusCode::SWITCHING_PROTOCOLS)
                .starts_with("HTTP/1.1 101 Switching Protocols\r\n")
        );
    }
}
