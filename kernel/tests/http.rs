//! The wire, with raw sockets: what clients of every style see.

#![allow(clippy::unwrap_used, reason = "a failing step fails the test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use common::{Fake, Node, read_head, register, start, within};
use gantry_kernel::http::Limits;
use gantry_sdk::route::HijackedIo;
use gantry_sdk::{
    ApiVersion, Context, Descriptor, Error, Init, Method, Phase, Registration, Request, Response,
    Result, RouteDecl, Shape,
};
use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ROUTES: &[RouteDecl] = &[
    RouteDecl::new("ping", Method::Get, "/_ping"),
    RouteDecl::new("echo", Method::Post, "/echo"),
    RouteDecl::new("image", Method::Get, "/images/{name..}/json"),
    RouteDecl::new("new", Method::Get, "/new").since(ApiVersion::v1(45)),
    RouteDecl::new("panic", Method::Get, "/panic"),
    RouteDecl::new("fail", Method::Get, "/fail/{kind}"),
    RouteDecl::new("slow", Method::Get, "/slow"),
    RouteDecl::new("flood", Method::Get, "/flood").shaped(Shape::Stream),
    RouteDecl::new("quiet", Method::Get, "/quiet").shaped(Shape::Stream),
    RouteDecl::new("attach", Method::Post, "/attach/{name}").shaped(Shape::Hijack),
    RouteDecl::new("ws", Method::Get, "/ws").shaped(Shape::Upgrade),
];

/// What handlers saw.
#[derive(Default)]
struct Seen {
    flooded: AtomicUsize,
    gone: AtomicBool,
    input_ended: AtomicBool,
}

static SEEN: std::sync::LazyLock<Arc<Seen>> = std::sync::LazyLock::new(Arc::default);

async fn fail(_: Arc<Seen>, request: Request) -> Result<Response> {
    Err(match request.param("kind") {
        "missing" => Error::not_found("no such thing"),
        "same" => Error::not_modified(),
        "chain" => Error::internal("cannot do it", std::io::Error::other("disk on fire")),
        other => Error::invalid(format!("bad kind {other}")),
    })
}

async fn flood(seen: Arc<Seen>, request: Request) -> Result<Response> {
    let (sender, response) = Response::stream("application/octet-stream");
    #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks")]
    tokio::spawn(async move {
        while sender.send(vec![b'x'; 64 * 1024]).await {
            seen.flooded.fetch_add(1, Relaxed);
        }
        request.gone.cancelled().await;
        seen.gone.store(true, Relaxed);
    });
    Ok(response)
}

async fn slow(seen: Arc<Seen>, request: Request) -> Result<Response> {
    struct OnDrop(Arc<Seen>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.gone.store(true, Relaxed);
        }
    }
    let _dropped = OnDrop(seen);
    request.gone.cancelled().await;
    std::future::pending().await
}

/// Says hello, echoes until the input ends, says how much there was, and ends the output.
async fn conversation(seen: Arc<Seen>, mut io: HijackedIo) {
    io.write_all(b"hello;").await.unwrap();
    let (mut total, mut buffer) = (0, [0; 4096]);
    loop {
        let n = io.read(&mut buffer).await.unwrap();
        if n == 0 {
            break;
        }
        total += n;
        io.write_all(&buffer[..n]).await.unwrap();
    }
    seen.input_ended.store(true, Relaxed);
    io.write_all(format!(";{total}").as_bytes()).await.unwrap();
    io.shutdown().await.unwrap();
}

async fn attach(seen: Arc<Seen>, mut request: Request) -> Result<Response> {
    match request.param("name") {
        "ghost" => return Err(Error::not_found("No such container: ghost")),
        "late" => tokio::time::sleep(Duration::from_millis(200)).await,
        "panic" => return Ok(Response::hijack("x/y", |_| async { panic!("in the stream") })),
        // Output only: the handler writes after the client ended its input.
        "output" => {
            return Ok(Response::hijack("x/y", |mut io| async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                io.write_all(b"still here").await.unwrap();
                io.shutdown().await.unwrap();
            }));
        }
        _ => {}
    }
    let _ = request.bytes(1024).await?;
    let content_type = "application/vnd.docker.raw-stream";
    Ok(Response::hijack(content_type, move |io| conversation(seen, io)))
}

fn wire() -> &'static Registration {
    register(Descriptor { routes: ROUTES, ..Descriptor::new("wire", Phase::Api) }, || {
        Box::new(Fake(|cx: &mut Context| {
            let seen = SEEN.clone();
            cx.route("ping", &seen, |_, _| async {
                Ok(Response::full(StatusCode::OK, "text/plain; charset=utf-8", "OK"))
            });
            cx.route("echo", &seen, |_, mut request: Request| async move {
                let value: serde_json::Value = request.json().await?;
                Response::ok(&value)
            });
            cx.route("image", &seen, |_, request: Request| async move {
                Response::ok(&json!({
                    "name": request.param("name"), "version": request.version.to_string(),
                    "uid": request.peer.uid,
                }))
            });
            cx.route("new", &seen, |_, _| async { Response::ok(&1) });
            cx.route("panic", &seen, |_, _| async { panic!("dropped it") });
            cx.route("fail", &seen, fail);
            cx.route("slow", &seen, slow);
            cx.route("flood", &seen, flood);
            cx.route("quiet", &seen, |_, request: Request| async move {
                let (sender, response) = Response::stream("application/json");
                #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks")]
                tokio::spawn(async move {
                    request.gone.cancelled().await;
                    drop(sender);
                });
                Ok(response)
            });
            cx.route("attach", &seen, attach);
            cx.route("ws", &seen, |seen, _| async {
                let mut response = Response::hijack("x/y", |io| conversation(seen, io))
                    .header("sec-websocket-accept", "abc");
                response.status = StatusCode::SWITCHING_PROTOCOLS;
                Ok(response)
            });
            Ok(Init::Ready)
        }))
    })
}

async fn node() -> Node {
    start(&[wire()], json!({}), Limits::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_standard_headers() {
    let node = node().await;
    for (path, status) in [
        ("/_ping", 200),
        ("/v1.30/_ping", 200),
        ("/nowhere", 404),
        ("/v1.10/_ping", 400),
        ("/fail/same", 304),
        ("/panic", 500),
    ] {
        let answer = node.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        for header in [
            "server: docker/1.2.3 (linux)",
            "api-version: 1.",
            "ostype: linux",
            "docker-experimental: false",
        ] {
            assert!(answer.head.contains(header), "{path}: {header} in {}", answer.head);
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_told_in_the_reference_engines_way() {
    let node = node().await;
    let newest = gantry_kernel::version::NEWEST;
    let cases = [
        ("/nowhere", 404, "page not found".to_owned()),
        ("/v1.30/nowhere", 404, "page not found".to_owned()),
        ("/v1.10/nowhere", 404, "page not found".to_owned()),
        ("/images/../_ping", 404, "page not found".to_owned()),
        ("/echo", 404, "page not found".to_owned()),
        (
            "/v1.99/_ping",
            400,
            format!("client version 1.99 is too new. Maximum supported API version is {newest}"),
        ),
        ("/v1.44/new", 400, "GET /new requires minimum API version 1.45".to_owned()),
        ("/fail/missing", 404, "no such thing".to_owned()),
        ("/fail/chain", 500, "cannot do it: disk on fire".to_owned()),
        ("/panic", 500, "internal error: the handler panicked: dropped it".to_owned()),
    ];
    for (path, status, message) in cases {
        let answer = node.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.json(), json!({"message": message}), "{path}");
        assert!(answer.head.contains("content-type: application/json"), "{path}");
    }
    let old = node.get("/v1.12/_ping").await;
    assert_eq!(old.status, 400);
    assert!(old.head.contains("content-type: text/plain"));
    assert!(
        old.body
            .starts_with("client version 1.12 is too old. Minimum supported API version is 1.24")
    );
    assert_eq!(node.get("/fail/same").await.body, "");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_versions_and_heads_arrive() {
    let node = node().await;
    let image = node.get("/v1.41/images/reg:5000%2Fa/b/json").await.json();
    assert_eq!(image["name"], "reg:5000/a/b");
    assert_eq!(image["version"], "1.41");
    assert!(image["uid"].is_u64());
    let head = node.ask("HEAD /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.head.contains("content-length: 2"), "{}", head.head);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_has_options() {
    let node = node().await;
    for (path, status) in
        [("/", 200), ("/nowhere/at/all", 200), ("/v1.41/_ping", 200), ("/v1.99/x", 400)]
    {
        let ask = format!("OPTIONS {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n");
        let answer = node.ask(&ask).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.body.is_empty(), status == 200, "{path}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_checked_and_bounded() {
    let node = node().await;
    let post = |kind: &str, body: &str| {
        format!(
            "POST /echo HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let good = node.ask(&post("application/json", "{\"a\":1}")).await;
    assert_eq!((good.status, good.json()), (200, json!({"a": 1})));
    for (kind, body) in [("application/json", "{"), ("text/plain", "{}"), ("application/json", "")]
    {
        assert_eq!(node.ask(&post(kind, body)).await.status, 400, "{kind} {body}");
    }
    let huge = format!("\"{}\"", "x".repeat(gantry_sdk::route::JSON_LIMIT));
    let mut stream = node.connect().await;
    let (mut read, mut write) = stream.split();
    let request = post("application/json", &huge);
    let mut answer = Vec::new();
    // The daemon may answer and close before everything is sent.
    let (_, _) = tokio::join!(write.write_all(request.as_bytes()), read.read_to_end(&mut answer));
    assert!(String::from_utf8_lossy(&answer).contains("400 Bad Request"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_bounded_in_size_and_time() {
    let limits = Limits {
        head_bytes: 16 * 1024,
        head_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let node = start(&[wire()], json!({}), limits).await.unwrap();
    let big = format!("GET /_ping HTTP/1.1\r\nX-Big: {}\r\n\r\n", "x".repeat(64 * 1024));
    let mut stream = node.connect().await;
    let _ = stream.write_all(big.as_bytes()).await; // refused midway
    let mut answer = Vec::new();
    let _ = within(5, stream.read_to_end(&mut answer)).await;
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 431"), "{answer:?}");

    // One that sends nothing, one that stops in the first line, one that dribbles.
    for begin in ["", "GE", "GET /_ping HTTP/1.1\r\nX: "] {
        let mut stream = node.connect().await;
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = within(3, stream.read_to_end(&mut rest)).await;
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"), "{begin:?}");
    }
    assert_eq!(node.get("/_ping").await.status, 200);
    node.stop().await;
}

/// Docker's CLI: `Connection: Upgrade`, `Upgrade: tcp`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_hijack_is_raw_both_ways_with_half_close() {
    let node = node().await;
    for name in ["now", "late"] {
        let mut stream = node.connect().await;
        let request = format!(
            "POST /v1.41/attach/{name}?stdin=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\n\
             Upgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{head}");
        assert!(head.contains("Connection: Upgrade\r\n") && head.contains("Upgrade: tcp\r\n"));
        assert!(head.contains("Content-Type: application/vnd.docker.raw-stream\r\n"));
        assert!(head.contains("Api-Version: 1.") && !head.contains("Content-Length"), "{head}");
        talk(&mut stream).await;
    }
    node.stop().await;
}

/// docker-py and older SDKs: no upgrade, `200 OK`, then raw; on a connection used before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_hijack_is_raw_both_ways_with_half_close() {
    let node = node().await;
    for name in ["now", "late"] {
        let mut stream = node.connect().await;
        stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 OK"));
        let mut ok = [0; 2];
        stream.read_exact(&mut ok).await.unwrap();
        let body = "{\"Tty\":false}";
        let request = format!(
            "POST /attach/{name} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
        assert!(!head.to_lowercase().contains("content-length"), "{head}");
        talk(&mut stream).await;
    }
    node.stop().await;
}

async fn talk(stream: &mut tokio::net::UnixStream) {
    let mut hello = [0; 6];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello;");
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    stream.shutdown().await.unwrap(); // the end of the input is not the end of the output
    let mut rest = String::new();
    within(5, stream.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, ";4");
}

/// A client that sends its input and ends it in one go, without waiting for the head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_input_and_early_end_are_kept() {
    let node = node().await;
    for (upgrade, input) in
        [("", "early"), ("Connection: Upgrade\r\nUpgrade: tcp\r\n", "early"), ("", "")]
    {
        for name in ["now", "late"] {
            let mut stream = node.connect().await;
            let request =
                format!("POST /attach/{name} HTTP/1.1\r\nHost: d\r\n{upgrade}\r\n{input}");
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            within(5, stream.read_to_string(&mut answer)).await.unwrap();
            let expected = format!("\r\n\r\nhello;{input};{}", input.len());
            assert!(answer.ends_with(&expected), "{name} {upgrade:?} {input:?}: {answer:?}");
        }
    }
    let mut stream = node.connect().await;
    stream.write_all(b"POST /attach/output HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    within(5, stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("still here"), "{answer}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_hijack_is_an_ordinary_answer_on_a_living_connection() {
    let node = node().await;
    let mut stream = node.connect().await;
    for _ in 0..2 {
        stream
            .write_all(b"POST /attach/ghost HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        let head = read_head(&mut stream).await.to_lowercase();
        assert!(head.starts_with("http/1.1 404"), "{head}");
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .and_then(|n| n.parse().ok())
            .unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("No such container"));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_say_101_with_their_own_headers() {
    let node = node().await;
    let mut stream = node.connect().await;
    stream
        .write_all(
            b"GET /ws HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .await
        .unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("Upgrade: websocket") && head.contains("Sec-Websocket-Accept: abc"));
    talk(&mut stream).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_hijacked_stream_ends_that_stream_only() {
    let node = node().await;
    let answer = node.ask("POST /attach/panic HTTP/1.1\r\nHost: d\r\n\r\n").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert_eq!(node.get("/_ping").await.status, 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_stops_the_writer_and_a_gone_one_ends_it() {
    let node = node().await;
    let mut stream = node.connect().await;
    stream.write_all(b"GET /flood HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
    assert!(read_head(&mut stream).await.to_lowercase().contains("transfer-encoding: chunked"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stalled = SEEN.flooded.load(Relaxed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(SEEN.flooded.load(Relaxed), stalled, "the writer waits for the reader");
    assert!(stalled < 200, "{stalled} blocks are buffered");
    SEEN.gone.store(false, Relaxed);
    drop(stream);
    until(|| SEEN.gone.load(Relaxed)).await;

    // And one that hangs up while the handler is still thinking.
    SEEN.gone.store(false, Relaxed);
    let mut stream = node.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!SEEN.gone.load(Relaxed));
    drop(stream);
    until(|| SEEN.gone.load(Relaxed)).await;
    node.stop().await;
}

/// `wait` tells its client that it waits before there is anything to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_of_a_stream_does_not_wait_for_its_body() {
    let node = node().await;
    let mut stream = node.connect().await;
    stream.write_all(b"GET /quiet HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 OK"));
    drop(stream);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_is_given_up() {
    let limits = Limits { body_idle: Duration::from_millis(200), ..Limits::default() };
    let node = start(&[wire()], json!({}), limits).await.unwrap();
    let answer = node
        .ask(
            "POST /echo HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        )
        .await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("nothing came for 200ms"), "{answer:?}");
    node.stop().await;
}

async fn until(condition: impl Fn() -> bool) {
    within(5, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_by_prior_knowledge_serves_and_refuses_hijacks() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let node = node().await;
    let io = TokioIo::new(node.connect().await);
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks")]
    tokio::spawn(connection);
    let request = |method: &str, path: &str| {
        http::Request::builder()
            .method(method)
            .uri(format!("http://d{path}"))
            .body(Empty::<bytes::Bytes>::new())
            .unwrap()
    };
    let answers = futures_util::future::join_all((0..20).map(|_| {
        let mut client = client.clone();
        let request = request("GET", "/_ping");
        async move { client.send_request(request).await.unwrap() }
    }))
    .await;
    for answer in answers {
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["ostype"], "linux");
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "OK");
    }
    let refused = client.send_request(request("POST", "/attach/now")).await.unwrap();
    assert_eq!(refused.status(), 400);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_waits_for_answers_and_cuts_off_streams() {
    let node = node().await;
    let mut stream = node.connect().await;
    stream.write_all(b"GET /flood HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
    read_head(&mut stream).await;
    let mut idle = node.connect().await;
    idle.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
    read_head(&mut idle).await;
    let began = std::time::Instant::now();
    assert!(node.stop().await.is_empty());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let mut rest = Vec::new();
    let _ = within(5, stream.read_to_end(&mut rest)).await; // ended, one way or the other
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_served_where_configured() {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = probe.local_addr().unwrap();
    drop(probe);
    let node = start(&[wire()], json!({"metrics-addr": addr.to_string()}), Limits::default())
        .await
        .unwrap();
    node.get("/_ping").await;
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("gantry_http_requests_total{method=\"GET\",status=\"200\"} 1"), "{text}");
    assert!(text.contains("gantry_plugin_ready{plugin=\"wire\"} 1"), "{text}");
    node.stop().await;
}
