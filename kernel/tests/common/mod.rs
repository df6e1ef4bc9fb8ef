//! A kernel in this process with fake plugins, and raw clients for it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gantry_kernel::config::{Config, Environment, Flags};
use gantry_kernel::http::Limits;
use gantry_kernel::lifecycle::daemon::{Daemon, Setup, StartError};
use gantry_kernel::mounts::Executor;
use gantry_kernel::plan::Plan;
use gantry_sdk::{Context, Descriptor, Init, Plugin, Registration, Result};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

pub type InitFn = fn(&mut Context) -> Result<Init>;

/// A plugin that does in `init` what a function says.
pub struct Fake<F>(pub F);

#[async_trait]
impl<F: Fn(&mut Context) -> Result<Init> + Send + Sync> Plugin for Fake<F> {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        (self.0)(cx)
    }
}

/// Registers `descriptor` for the rest of the test run.
pub fn register(descriptor: Descriptor, build: fn() -> Box<dyn Plugin>) -> &'static Registration {
    Box::leak(Box::new(Registration::new(Box::leak(Box::new(descriptor)), build)))
}

/// A daemon of fake plugins on a socket of its own.
#[derive(Debug)]
pub struct Node {
    pub daemon: Daemon,
    pub dir: TempDir,
    pub socket: PathBuf,
}

/// Starts a daemon; `file` is merged into its `daemon.json`.
pub async fn start(
    plugins: &[&'static Registration],
    file: Value,
    limits: Limits,
) -> Result<Node, StartError> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let mut settings = json!({
        "hosts": [format!("unix://{}", socket.display())],
        "data-root": dir.path().join("data"),
        "exec-root": dir.path().join("exec"),
        "pidfile": dir.path().join("docker.pid"),
        "group": "",
        "shutdown-timeout": 2,
    });
    for (key, value) in file.as_object().unwrap() {
        settings[key] = value.clone();
    }
    let path = dir.path().join("daemon.json");
    std::fs::write(&path, settings.to_string()).unwrap();
    let flags = Flags::parse([format!("--config-file={}", path.display())], "test").unwrap();
    let descriptors: Vec<_> = plugins.iter().map(|plugin| plugin.descriptor).collect();
    let environment = Environment::default();
    let config = Config::load(&flags, &environment, &descriptors).unwrap();
    let daemon = Daemon::start(Setup {
        flags,
        environment,
        config,
        plan: Plan::resolve(plugins.to_vec()).unwrap(),
        mounts: Arc::new(Executor),
        limits,
        version: ("1.2.3", "test"),
        started: Instant::now(),
        log: None,
    })
    .await?;
    Ok(Node { daemon, dir, socket })
}

impl Node {
    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends one request on a connection of its own and returns the whole answer.
    pub async fn ask(&self, request: &str) -> Answer {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        within(5, stream.read_to_end(&mut bytes)).await.unwrap();
        Answer::parse(&bytes)
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")).await
    }

    pub async fn stop(self) -> Vec<&'static str> {
        within(20, self.daemon.shut_down(&CancellationToken::new())).await
    }
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_default();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Reads up to and including the empty line after a head, byte by byte.
pub async fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(5, stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// The result of `work`, which must come within `seconds`.
pub async fn within<T>(seconds: u64, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), work).await.expect("took too long")
}
