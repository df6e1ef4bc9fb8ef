//! The protocol against servers that do as a script says, and plugins that come and go.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::kinds::volume::{Scope, Volume, VolumeDriver};
use gantry_sdk::mounts::Step;
use gantry_sdk::registry::Registry;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, ErrorKind, Labels, Result};
use tokio_util::sync::CancellationToken;

use crate::discover::Address;
use crate::keeper::Keeper;
use crate::settings::Settings;
use crate::volume::Driver;

/// What a server does with a request, by method.
type Script = BTreeMap<&'static str, Act>;

#[derive(Clone)]
enum Act {
    /// Answers 200 with this body.
    Say(&'static str),
    /// Answers with this status and body.
    Fail(u16, &'static str),
    /// Writes these bytes and closes.
    Raw(&'static str),
    /// Answers with this many bytes.
    Flood(usize),
    /// Reads and stays silent.
    Silent,
}

/// A server that follows a script, and what it was asked.
struct Server {
    path: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(path: &Path, script: Script) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, log) = (script.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &script, &log));
            }
        });
        Self { path: path.to_owned(), asked }
    }

    fn driver(&self) -> Driver {
        Driver {
            name: "x".into(),
            address: Address::Unix(self.path.clone()),
            scope: Scope::Local,
            line: Arc::default(),
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut stream: UnixStream, script: &Script, log: &Mutex<Vec<String>>) {
    let mut seen = Vec::new();
    let (mut buffer, mut whole) = ([0; 4096], None);
    while whole.is_none() {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => seen.extend_from_slice(&buffer[..n]),
        }
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                whole = Some(text);
            }
        }
    }
    let text = whole.unwrap_or_default();
    let method = text.strip_prefix("POST /").and_then(|rest| rest.split(' ').next());
    let method = method.unwrap_or_default().to_owned();
    log.lock().unwrap().push(text);
    let answer = match script.get(method.as_str()) {
        Some(Act::Say(body)) => answer(200, body),
        Some(Act::Fail(status, body)) => answer(*status, body),
        Some(Act::Raw(bytes)) => (*bytes).to_owned(),
        Some(Act::Flood(size)) => answer(200, &" ".repeat(*size)),
        Some(Act::Silent) => {
            let _ = stream.read(&mut buffer); // until the other side gives up
            return;
        }
        None => answer(404, "404 page not found\n"),
    };
    let _ = stream.write_all(answer.as_bytes());
}

fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn cx() -> Ctx {
    Ctx::background().within(Duration::from_millis(400))
}

#[tokio::test]
async fn a_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(
        &dir.path().join("s"),
        Script::from([
            ("VolumeDriver.Create", Act::Say("{}")),
            ("VolumeDriver.Get", Act::Say(r#"{"Volume":{"Name":"v","Status":{"a":1,"b":"c"}}}"#)),
            ("VolumeDriver.Path", Act::Say(r#"{"Mountpoint":"/p","Err":""}"#)),
            (
                "VolumeDriver.List",
                Act::Say(r#"{"Volumes":[{"Name":"z"},null,{"Name":"a","Mountpoint":"/a"},{}]}"#),
            ),
            ("VolumeDriver.Mount", Act::Say(r#"{"Mountpoint":"/mnt/v","Err":null}"#)),
            ("VolumeDriver.Unmount", Act::Fail(500, r#"{"Err":"not mounted"}"#)),
            ("VolumeDriver.Remove", Act::Say(r#"{"Err":"volume in use"}"#)),
        ]),
    );
    let driver = server.driver();
    let options = Labels::from([("k".to_owned(), "v".to_owned())]);
    driver.create(&cx(), "v", &options).await.unwrap();
    let info = driver.get(&cx(), "v").await.unwrap();
    assert_eq!(
        (info.mountpoint.as_str(), &info.status["a"], &info.status["b"]),
        ("/p", &"1".into(), &"c".into())
    );
    let names = |infos: Vec<gantry_sdk::kinds::volume::VolumeInfo>| {
        infos.into_iter().map(|info| info.name).collect::<Vec<_>>()
    };
    assert_eq!(names(driver.list(&cx(), None, 10).await.unwrap()), ["a", "z"]);
    assert_eq!(names(driver.list(&cx(), Some("a"), 10).await.unwrap()), ["z"]);
    assert_eq!(names(driver.list(&cx(), None, 1).await.unwrap()), ["a"]);
    let plan = driver.publish(&cx(), "v", "u").await.unwrap();
    assert_eq!(plan.steps, [Step::Premounted { host_path: "/mnt/v".into() }]);
    driver.unpublish(&cx(), "v", "u").await.unwrap();
    let refused = driver.remove(&cx(), "v").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(refused.to_string(), "volume driver x: VolumeDriver.Remove: volume in use");

    let asked = server.asked();
    assert!(!asked.iter().any(|text| text.contains("Create")), "it was there already");
    let mount = asked.iter().find(|text| text.contains("VolumeDriver.Mount")).unwrap();
    let golden = "POST /VolumeDriver.Mount HTTP/1.1\r\n\
                  host: plugin.moby.localhost\r\n\
                  accept: application/vnd.docker.plugins.v1.2+json\r\n\
                  content-type: application/vnd.docker.plugins.v1.2+json\r\n\
                  content-length: 21\r\n\r\n\
                  {\"Name\":\"v\",\"ID\":\"u\"}";
    assert_eq!(mount, golden);
}

#[tokio::test]
async fn a_volume_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(
        &dir.path().join("s"),
        Script::from([
            ("VolumeDriver.Create", Act::Say(r#"{"Err":"bad option"}"#)),
            ("VolumeDriver.Get", Act::Fail(500, r#"{"Err":"whatever it says"}"#)),
            ("VolumeDriver.Remove", Act::Say(r#"{"Err":"no such volume"}"#)),
        ]),
    );
    let driver = server.driver();
    let kind = |error: gantry_sdk::Error| error.kind();
    assert_eq!(driver.get(&cx(), "v").await.map_err(kind), Err(ErrorKind::NotFound));
    driver.remove(&cx(), "v").await.unwrap();
    let made = driver.create(&cx(), "v", &Labels::from([("k".into(), "v".into())])).await;
    assert_eq!(made.map_err(kind), Err(ErrorKind::InvalidArgument));
    let last = server.asked().pop().unwrap();
    assert!(last.ends_with("\r\n\r\n{\"Name\":\"v\",\"Opts\":{\"k\":\"v\"}}"), "{last}");
    assert_eq!(driver.list(&cx(), None, 9).await.map_err(kind), Err(ErrorKind::Unsupported));
}

#[tokio::test]
async fn misbehaviour_is_a_fault_in_time() {
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"Volumes\":[{\"Name\":\"a\"";
    let table = [
        ("silent", Act::Silent, ErrorKind::Deadline),
        ("garbage", Act::Raw("\0\u{1}garbage"), ErrorKind::Unavailable),
        ("closed", Act::Raw(""), ErrorKind::Unavailable),
        ("half a head", Act::Raw("HTTP/1.1 200 OK\r\nContent-"), ErrorKind::Unavailable),
        ("half a body", Act::Raw(half), ErrorKind::Unavailable),
        ("10 MB", Act::Flood(10 << 20), ErrorKind::Unavailable),
        ("no JSON", Act::Say("<html>"), ErrorKind::Unavailable),
        ("nothing", Act::Say(""), ErrorKind::Unavailable),
        ("other JSON", Act::Say(r#"{"Volumes":7}"#), ErrorKind::Unavailable),
        ("deep JSON", Act::Say("[[[[[[[[[[[[[["), ErrorKind::Unavailable),
        ("a status", Act::Fail(502, "bad gateway"), ErrorKind::Unavailable),
        ("refused", Act::Fail(500, r#"{"Err":"no"}"#), ErrorKind::Conflict),
    ];
    for (what, act, kind) in table {
        let dir = tempfile::tempdir().unwrap();
        let server =
            Server::start(&dir.path().join("s"), Script::from([("VolumeDriver.List", act)]));
        let driver = server.driver();
        let begun = Instant::now();
        let error = driver.list(&cx(), None, 10).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}: {:?}", begun.elapsed());
        let suspected = tokio::time::timeout(Duration::ZERO, driver.line.suspect.notified()).await;
        assert_eq!(suspected.is_ok(), kind != ErrorKind::Conflict, "{what}");
    }
    let gone = Driver {
        name: "x".into(),
        address: Address::Unix("/nonexistent/x.sock".into()),
        scope: Scope::Local,
        line: Arc::default(),
    };
    let error = gone.get(&cx(), "v").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("cannot connect"), "{error:?}");
}

/// A metadata store in memory.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

#[async_trait]
impl MetadataStore for Memory {
    async fn get(&self, _: &Ctx, _: &'static str, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }

    async fn scan(&self, _: &Ctx, _: &'static str, _: &str) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(self.0.lock().unwrap().clone().into_iter().collect())
    }

    async fn commit(&self, _: &Ctx, changes: Vec<Change>) -> Result<()> {
        let mut map = self.0.lock().unwrap();
        for change in changes {
            match change {
                Change::Put { key, value, .. } => drop(map.insert(key, value)),
                Change::Delete { key, .. } => drop(map.remove(&key)),
                Change::Expect { .. } => {}
            }
        }
        Ok(())
    }
}

/// A daemon's part that carries plugins.
struct Carrier {
    registry: Arc<Registry>,
    tasks: Tasks,
    /// How long its start took.
    took: Duration,
}

impl Carrier {
    async fn start(dir: &Path, memory: Arc<Memory>) -> Self {
        let registry = Arc::new(Registry::default());
        registry.mark_down("volume", "local", "stands for a driver of the build");
        let settings = Settings { sockets: dir.join("run"), specs: vec![dir.join("etc")] };
        let tasks = Tasks::new("test", &CancellationToken::new());
        let begun = Instant::now();
        Arc::new(Keeper::new(settings, registry.clone(), memory)).start(&tasks).await.unwrap();
        Self { registry, tasks, took: begun.elapsed() }
    }

    /// Waits until `name` is as `wanted` says of the error that it gives.
    async fn wait(&self, name: &str, wanted: impl Fn(Option<&gantry_sdk::Error>) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let seen = self.registry.get::<Volume>(name).map(drop).err();
            if wanted(seen.as_ref()) {
                return;
            }
            assert!(Instant::now() < end, "{name} stays {seen:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn volumes() -> Script {
    Script::from([
        ("Plugin.Activate", Act::Say(r#"{"Implements":["VolumeDriver","Other"]}"#)),
        ("VolumeDriver.Capabilities", Act::Say(r#"{"Capabilities":{"Scope":"global"}}"#)),
        ("VolumeDriver.List", Act::Say(r#"{"Volumes":[]}"#)),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_come_go_and_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Arc::<Memory>::default();
    let carrier = Carrier::start(dir.path(), memory.clone()).await;
    let not_found =
        |e: Option<&gantry_sdk::Error>| e.is_some_and(|e| e.kind() == ErrorKind::NotFound);
    carrier.wait("late", not_found).await;

    // The directory itself comes later as well.
    std::fs::create_dir_all(dir.path().join("run/late")).unwrap();
    let server = Server::start(&dir.path().join("run/late/late.sock"), volumes());
    carrier.wait("late", |e| e.is_none()).await;
    let driver = carrier.registry.get::<Volume>("late").unwrap();
    assert_eq!(driver.scope(), Scope::Global);
    assert!(driver.list(&cx(), None, 10).await.unwrap().is_empty());

    // A name of somebody else is not taken, whatever answers there.
    let _local = Server::start(&dir.path().join("run/local.sock"), volumes());
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("tcp://{}", tcp.local_addr().unwrap());
    std::fs::write(dir.path().join("etc/bad.spec"), "nonsense").unwrap();
    std::fs::write(dir.path().join("etc/far.spec"), spec).unwrap();
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer(200, r#"{"Implements":["VolumeDriver"]}"#).as_bytes());
        }
    });
    carrier.wait("far", |e| e.is_none()).await;
    carrier.wait("bad", |e| e.is_some_and(|e| e.to_string().contains("no address"))).await;
    carrier.wait("local", |e| e.is_some_and(|e| e.to_string().contains("stands for"))).await;

    // After a restart it is in service at once, before it was asked.
    carrier.tasks.shut_down(Duration::from_secs(5)).await;
    let again = Carrier::start(dir.path(), memory).await;
    assert!(again.registry.get::<Volume>("late").is_ok());

    std::fs::remove_file(&server.path).unwrap();
    again.wait("late", not_found).await;
    again.tasks.shut_down(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_dead_sockets_cost_nobody_time() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let path = |name: String| dir.path().join("run").join(name);
    let silent: Vec<_> =
        (0..50).map(|n| UnixListener::bind(path(format!("silent{n}.sock"))).unwrap()).collect();
    for n in 0..50 {
        drop(UnixListener::bind(path(format!("dead{n}.sock"))).unwrap());
    }
    let _good = Server::start(&path("good.sock".into()), volumes());
    let begun = Instant::now();
    let carrier = Carrier::start(dir.path(), Arc::default()).await;
    carrier.wait("good", |e| e.is_none()).await;
    let good = begun.elapsed();
    carrier.wait("dead7", |e| e.is_some_and(|e| e.to_string().contains("refused"))).await;
    carrier.wait("silent7", |e| e.is_some_and(|e| e.to_string().contains("no answer"))).await;
    println!("100 bad sockets: start {:?}, the good one ready after {good:?}", carrier.took);
    assert!(carrier.took < Duration::from_secs(2), "{:?}", carrier.took);
    assert_eq!(carrier.registry.all::<Volume>().len(), 1);
    carrier.tasks.shut_down(Duration::from_secs(5)).await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_falls_silent_is_down_until_it_answers_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let path = dir.path().join("run/x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let speaks = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = speaks.clone();
    std::thread::spawn(move || {
        let script = volumes();
        let silent =
            Script::from([("Plugin.Activate", Act::Silent), ("VolumeDriver.List", Act::Silent)]);
        for stream in listener.incoming().flatten() {
            let speaks = flag.load(std::sync::atomic::Ordering::SeqCst);
            let script = if speaks { script.clone() } else { silent.clone() };
            std::thread::spawn(move || serve(stream, &script, &Mutex::default()));
        }
    });
    let carrier = Carrier::start(dir.path(), Arc::default()).await;
    carrier.wait("x", |e| e.is_none()).await;
    speaks.store(false, std::sync::atomic::Ordering::SeqCst);
    let driver = carrier.registry.get::<Volume>("x").unwrap();
    // Who has all the time of the world need not wait for long either.
    let begun = Instant::now();
    let given_up = driver.list(&Ctx::background(), None, 1).await.unwrap_err();
    assert_eq!(given_up.kind(), ErrorKind::Unavailable, "{given_up:?}");
    println!("a silent plugin is given up after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    carrier.wait("x", |e| e.is_some_and(|e| e.to_string().contains("does not answer"))).await;
    speaks.store(true, std::sync::atomic::Ordering::SeqCst);
    carrier.wait("x", |e| e.is_none()).await;
    carrier.tasks.shut_down(Duration::from_secs(5)).await;
}
