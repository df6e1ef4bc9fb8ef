//! What becomes of a daemon whose plugins misbehave.

#![allow(clippy::unwrap_used, reason = "a failing step fails the test")]

mod common;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use common::{Fake, Node, register, start};
use gantry_kernel::http::Limits;
use gantry_kernel::lifecycle::StartError;
use gantry_kernel::plan::Plan;
use gantry_sdk::{
    ConfigKey, ConfigView, Context, Descriptor, Error, Init, Method, Need, Phase, Plugin, Provide,
    Registration, Response, Result, RouteDecl,
};
use serde_json::{Value, json};

gantry_sdk::kind! {
    /// For these tests.
    pub trait Thing: Things = "thing" (1, 0), budget None => {
        plain {
            /// Its size.
            fn size(&self) -> u64;
        }
    }
}

struct Pebble;

#[async_trait]
impl Thing for Pebble {
    fn size(&self) -> u64 {
        1
    }
}

async fn hello(_: std::sync::Arc<()>, _: gantry_sdk::Request) -> Result<Response> {
    Response::ok(&"hello")
}

fn serve(cx: &mut Context) -> Result<Init> {
    cx.provide::<Things>("it", std::sync::Arc::new(Pebble))?;
    cx.route("hello", &std::sync::Arc::new(()), hello);
    Ok(Init::Ready)
}

struct Hang;

#[async_trait]
impl Plugin for Hang {
    async fn init(&self, _: &mut Context) -> Result<Init> {
        std::future::pending().await
    }
}

const BUILD_READY: fn() -> Box<dyn Plugin> = || Box::new(Fake(serve));
const BUILD_SKIP: fn() -> Box<dyn Plugin> =
    || Box::new(Fake(|_: &mut Context| Ok(Init::Skipped("no pebbles here".into()))));
const BUILD_FAIL: fn() -> Box<dyn Plugin> =
    || Box::new(Fake(|_: &mut Context| Err(Error::unavailable("the quarry is closed"))));
const BUILD_PANIC: fn() -> Box<dyn Plugin> =
    || Box::new(Fake(|_: &mut Context| panic!("a rock fell")));
const BUILD_HANG: fn() -> Box<dyn Plugin> = || Box::new(Hang);
const BUILD_STUCK: fn() -> Box<dyn Plugin> = || {
    Box::new(Fake(|_: &mut Context| {
        std::thread::sleep(Duration::from_secs(3)); // a system call that does not come back
        Ok(Init::Ready)
    }))
};
const BUILD_LIE: fn() -> Box<dyn Plugin> = || Box::new(Fake(|_: &mut Context| Ok(Init::Ready)));

fn thing(required: bool, build: fn() -> Box<dyn Plugin>) -> &'static Registration {
    const ROUTES: &[RouteDecl] = &[RouteDecl::new("hello", Method::Get, "/hello")];
    const PROVIDES: &[Provide] = &[Provide::new("thing", "it")];
    register(
        Descriptor {
            routes: ROUTES,
            provides: PROVIDES,
            required,
            ..Descriptor::new("thing", Phase::Storage)
        },
        build,
    )
}

async fn boot(plugins: &[&'static Registration]) -> Result<Node, StartError> {
    let quick = json!({"kernel-plugins": {"thing": {"init-timeout": 1}}});
    start(plugins, quick, Limits::default()).await
}

/// {required, optional} × {skip, fail, panic, hang, stuck, lie}.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_boot_matrix_holds() {
    let cases = [
        ("skip", BUILD_SKIP, "skipped", "no pebbles here", false),
        ("fail", BUILD_FAIL, "failed", "the quarry is closed", true),
        ("panic", BUILD_PANIC, "panicked", "a rock fell", true),
        ("hang", BUILD_HANG, "timed-out", "did not start within 1s", true),
        ("stuck", BUILD_STUCK, "timed-out", "did not start within 1s", true),
        ("lie", BUILD_LIE, "failed", "declares thing it and did not provide it", true),
    ];
    for (what, build, word, reason, is_fault) in cases {
        let began = Instant::now();
        let error = boot(&[thing(true, build)]).await.unwrap_err();
        assert_eq!(error.exit_code(), 3, "{what}");
        assert!(error.to_string().contains(reason), "{what}: {error}");
        assert!(began.elapsed() < Duration::from_millis(2500), "{what}");

        let node = boot(&[thing(false, build)]).await.unwrap();
        let state = node.daemon.plugins.get("thing").unwrap();
        assert_eq!(state.outcome.word(), word, "{what}");
        assert_eq!(state.tainted, what == "stuck", "{what}");
        let answer = node.get("/v1.40/hello").await;
        assert_eq!(answer.status, 503, "{what}");
        assert!(answer.body.contains(reason), "{what}: {answer:?}");
        assert!(answer.head.contains("retry-after"), "{what}");
        assert_eq!(node.daemon.plugins.warnings().len(), usize::from(is_fault), "{what}");
        let (events, _) = node.daemon.events.subscribe();
        assert_eq!(events.iter().any(|e| e.action == "down"), is_fault, "{what}");
        let health = node.get("/x/kernel/health").await;
        let expected = if is_fault { "degraded" } else { "ok" };
        assert_eq!((health.status, &health.json()["status"]), (200, &json!(expected)), "{what}");
        let down = node.daemon.registry.get::<Things>("it").map(|_| ()).unwrap_err();
        assert!(down.to_string().contains(reason), "{what}: {down}");
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_plugin_serves_and_introspection_shows_it() {
    let node = boot(&[thing(true, BUILD_READY)]).await.unwrap();
    let answer = node.get("/hello").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "\"hello\"\n"));
    let plugin = node.get("/x/kernel/plugins/thing").await.json();
    assert_eq!(plugin["state"], "ready");
    assert_eq!(plugin["instances"][0]["ready"], true);
    assert_eq!(node.get("/x/kernel/plugins/ghost").await.status, 404);
    let order = node.get("/x/kernel/order").await.json();
    assert_eq!(order[0]["id"], "thing");
    let routes = node.get("/x/kernel/routes").await.json();
    assert!(routes.as_array().unwrap().iter().any(|r| r["template"] == "/hello"));
    assert_eq!(node.get("/x/kernel/graph").await.json()["nodes"][0]["state"], "ready");
    assert!(node.get("/x/kernel/graph?format=dot").await.body.starts_with("digraph"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_needs_a_failed_plugin_is_blocked_and_the_root_cause_comes_first() {
    let user = |required| {
        register(
            Descriptor {
                needs: &[Need::Instance("thing", "it")],
                required,
                ..Descriptor::new("user", Phase::Image)
            },
            || Box::new(Fake(|_: &mut Context| Ok(Init::Ready))),
        )
    };
    let node = boot(&[user(false), thing(false, BUILD_FAIL)]).await.unwrap();
    let state = node.daemon.plugins.get("user").unwrap();
    assert_eq!(state.outcome.to_string(), "needs thing, which is not in service");
    node.stop().await;

    let error = boot(&[user(true), thing(false, BUILD_FAIL)]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "required plugin thing is not in service: the quarry is closed\n\
         required plugin user is not in service: needs thing, which is not in service"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_overrides_required_and_enabled() {
    let plugins = [thing(true, BUILD_FAIL)];
    let with = |section: Value| json!({"kernel-plugins": {"thing": section}});
    let optional = start(&plugins, with(json!({"required": false})), Limits::default()).await;
    optional.unwrap().stop().await;
    let disabled = start(&plugins, with(json!({"enabled": false})), Limits::default()).await;
    let node = disabled.unwrap();
    assert_eq!(node.daemon.plugins.get("thing").unwrap().outcome.word(), "disabled");
    assert!(node.get("/hello").await.body.contains("disabled by configuration"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_start_that_succeeds_too_late_is_ignored() {
    let late: fn() -> Box<dyn Plugin> = || {
        Box::new(Fake(|cx: &mut Context| {
            std::thread::sleep(Duration::from_millis(1500));
            serve(cx)
        }))
    };
    let node = boot(&[thing(false, late)]).await.unwrap();
    assert!(node.daemon.plugins.get("thing").unwrap().tainted);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert!(node.daemon.registry.get::<Things>("it").is_err());
    assert_eq!(node.get("/hello").await.status, 503);
    node.stop().await;
}

static STOPS: Mutex<Vec<&str>> = Mutex::new(Vec::new());

struct Stopping(&'static str);

#[async_trait]
impl Plugin for Stopping {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let stop = cx.tasks.stopping().clone();
        cx.tasks.spawn("waits", async move { stop.cancelled().await });
        Ok(Init::Ready)
    }

    async fn stop(&self) -> Result<()> {
        STOPS.lock().unwrap().push(self.0);
        match self.0 {
            "b" => Err(Error::conflict("busy")),
            "c" => panic!("stumbled"),
            _ => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_stop_backwards_whatever_the_others_do() {
    let plugins = [
        register(Descriptor::new("a", Phase::Host), || Box::new(Stopping("a"))),
        register(Descriptor::new("b", Phase::Volume), || Box::new(Stopping("b"))),
        register(Descriptor::new("c", Phase::Api), || Box::new(Stopping("c"))),
    ];
    let node = start(&plugins, json!({}), Limits::default()).await.unwrap();
    let (socket, pidfile) = (node.socket.clone(), node.dir.path().join("docker.pid"));
    assert!(socket.exists() && pidfile.exists());
    assert!(node.stop().await.is_empty());
    assert_eq!(*STOPS.lock().unwrap(), ["c", "b", "a"]);
    assert!(!socket.exists() && !pidfile.exists());
}

struct Tunable;

static TUNED: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[async_trait]
impl Plugin for Tunable {
    async fn init(&self, _: &mut Context) -> Result<Init> {
        Ok(Init::Ready)
    }

    async fn reload(&self, config: &ConfigView) -> Result<Box<dyn FnOnce() + Send>> {
        let value = config.get("default-runtime").cloned().unwrap_or_default().to_string();
        if value.contains("forbidden") {
            return Err(Error::invalid("no such runtime"));
        }
        Ok(Box::new(move || TUNED.lock().unwrap().push(value)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_all_or_nothing() {
    const KEYS: &[ConfigKey] = &[ConfigKey::reloadable("default-runtime")];
    let tunable =
        register(Descriptor { config: KEYS, ..Descriptor::new("tunable", Phase::Runtime) }, || {
            Box::new(Tunable)
        });
    let node =
        start(&[tunable], json!({"default-runtime": "one"}), Limits::default()).await.unwrap();
    let path = node.dir.path().join("daemon.json");
    let original: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let rewrite = |key: &str, value: Value| {
        let mut file = original.clone();
        file[key] = value;
        file["debug"] = true.into();
        std::fs::write(&path, file.to_string()).unwrap();
    };
    let (_, mut live) = node.daemon.events.subscribe();

    rewrite("default-runtime", json!("forbidden"));
    assert!(node.daemon.reload().await.unwrap_err().to_string().contains("no such runtime"));
    rewrite("default-runtime", json!(7));
    assert!(node.daemon.reload().await.unwrap_err().to_string().contains("must be a string"));
    assert!(!node.daemon.config().kernel.debug, "nothing has changed");
    assert!(live.try_recv().is_err() && TUNED.lock().unwrap().is_empty());

    rewrite("default-runtime", json!("two"));
    node.daemon.reload().await.unwrap();
    assert!(node.daemon.config().kernel.debug);
    assert_eq!(*TUNED.lock().unwrap(), ["\"two\""]);
    let event = live.try_recv().unwrap();
    assert_eq!((event.kind, event.action.as_str()), ("daemon", "reload"));
    assert_eq!(event.attributes["default-runtime"], "two");
    node.stop().await;
}

#[test]
fn every_mistake_of_a_build_is_in_one_message() {
    const CLASH: &[RouteDecl] = &[RouteDecl::new("v", Method::Get, "/volumes/{name}")];
    const OTHER: &[RouteDecl] = &[RouteDecl::new("v", Method::Get, "/volumes/{id}")];
    let ready: fn() -> Box<dyn Plugin> = BUILD_LIE;
    let plugins = vec![
        register(Descriptor { routes: CLASH, ..Descriptor::new("one", Phase::Api) }, ready),
        register(Descriptor { routes: OTHER, ..Descriptor::new("two", Phase::Api) }, ready),
        register(
            Descriptor { needs: &[Need::Kind("gone")], ..Descriptor::new("three", Phase::Api) },
            ready,
        ),
    ];
    let error = Plan::resolve(plugins).unwrap_err().to_string();
    assert!(error.contains("three needs gone, which no plugin provides"), "{error}");
    assert!(error.contains("GET /volumes/{name} of one and GET /volumes/{id} of two"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_one_data_root_is_refused() {
    let node = start(&[], json!({}), Limits::default()).await.unwrap();
    let same = json!({"data-root": node.dir.path().join("data")});
    let error = start(&[], same, Limits::default()).await.unwrap_err();
    assert!(error.to_string().contains("another daemon uses the data root"), "{error}");
    assert_eq!(error.exit_code(), 1);
    node.stop().await;
}
