//! The `json-file` log driver: one JSON object per line, in the format of the reference engine.
//!
//! The container's shim writes and rotates the file; this crate decides how, and reads it back.
//!
//! # Map
//!
//! - [`options`]: `--log-opt`, checked
//! - [`attrs`]: labels, environment and tag in each line
//! - [`mod@line`]: one line
//! - [`files`]: the current file and the rotated ones
//! - [`cursor`]: from the first wanted line to the last, across rotation
//! - [`watch`]: noticing that something was written
//!
//! # Invariants
//!
//! 1. A line is delivered once and whole; a damaged one is passed over, with a warning.
//! 2. Neither a slow client nor a silent container holds a thread.
//!
//! # Not here
//!
//! Writing: that goes on while there is no daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_sdk::kinds::logs::{Log, LogDriver, LogLine, LogSink, LogStream, LogTarget, ReadLogs};
use gantry_sdk::registry::Kind as _;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{
    Context, Ctx, Descriptor, Error, Init, Labels, Phase, Plugin, Provide, Registration, Result,
};
use tokio::sync::mpsc;

pub mod attrs;
pub mod cursor;
pub mod files;
pub mod line;
pub mod options;
pub mod watch;

use cursor::{Cursor, State};
use options::Options;
use watch::Watcher;

/// Lines that may wait for a client.
const CHANNEL: usize = 1024;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Log::NAME, "json-file")],
    ..Descriptor::new("log.json-file", Phase::Log)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(JsonFilePlugin)) }

struct JsonFilePlugin;

#[async_trait]
impl Plugin for JsonFilePlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        cx.provide::<Log>("json-file", Arc::new(JsonFile::new(cx.tasks.clone())))?;
        Ok(Init::Ready)
    }
}

/// The driver.
#[derive(Debug)]
pub struct JsonFile {
    tasks: Tasks,
    watcher: Watcher,
}

impl JsonFile {
    /// A driver whose readers are tasks among `tasks`.
    pub fn new(tasks: Tasks) -> Self {
        let watcher = Watcher::new(&tasks);
        Self { tasks, watcher }
    }
}

fn path_of(target: &LogTarget) -> PathBuf {
    target.dir.join(format!("{}-json.log", target.container))
}

#[async_trait]
impl LogDriver for JsonFile {
    async fn validate(&self, _: &Ctx, options: &Labels) -> Result<()> {
        Options::parse(options).map(drop)
    }

    async fn open(&self, _: &Ctx, target: &LogTarget) -> Result<LogSink> {
        let options = Options::parse(&target.options)?;
        Ok(LogSink::JsonFile {
            path: path_of(target),
            max_size: options.max_size,
            max_files: options.max_files,
            compress: options.compress,
            attrs: attrs::attributes(&options, target)?,
            ring: options.ring,
        })
    }

    async fn read(&self, _: &Ctx, target: &LogTarget, wanted: ReadLogs) -> Result<LogStream> {
        // Watched first, so that nothing written after the first look goes unnoticed.
        let watched = wanted.follow.is_some().then(|| self.watcher.watch(&target.dir));
        let path = path_of(target);
        let shown = path.display().to_string();
        let (cursor, wanted) = tokio::task::spawn_blocking(move || {
            Cursor::open(path, &wanted).map(|cursor| (cursor, wanted))
        })
        .await?
        .map_err(|e| Error::io("open", &shown, e))?;
        let (lines, stream) = mpsc::channel(CHANNEL);
        let stop = self.tasks.stopping().clone();
        self.tasks.spawn("log-read", async move {
            tokio::select! {
                answer = deliver(cursor, &wanted, watched, &lines) => {
                    if let Err(error) = answer {
                        let _ = lines.send(Err(error.context(format!("log {shown}")))).await;
                    }
                }
                () = lines.closed() => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(stream)
    }

    async fn remove(&self, _: &Ctx, target: &LogTarget) -> Result<()> {
        let path = path_of(target);
        tokio::task::spawn_blocking(move || remove_all(&path)).await?
    }

    async fn path(&self, _: &Ctx, target: &LogTarget) -> Result<String> {
        Ok(path_of(target).display().to_string())
    }
}

/// Sends lines until the end: of what is there, or, when following, of what comes until the token
/// is cancelled or `until` is reached.
async fn deliver(
    mut cursor: Cursor,
    wanted: &ReadLogs,
    mut watched: Option<watch::Watched>,
    lines: &mpsc::Sender<Result<LogLine>>,
) -> Result<()> {
    let mut ending = false;
    loop {
        if let Some(watched) = &mut watched {
            watched.mark();
        }
        let (moved, answer) = tokio::task::spawn_blocking(move || {
            let answer = cursor.step();
            (cursor, answer)
        })
        .await?;
        cursor = moved;
        let (found, state) = answer.map_err(|e| Error::internal("cannot read", e))?;
        if !send(lines, found).await {
            return Ok(());
        }
        match (state, &wanted.follow, &mut watched) {
            (State::More, ..) => {}
            (State::End, Some(follow), Some(watched)) if !ending => {
                tokio::select! {
                    () = watched.changed() => {}
                    () = follow.cancelled() => ending = true,
                    () = reached(wanted.until) => ending = true,
                }
            }
            _ => return Ok(()),
        }
    }
}

/// Sends all; `false` if nobody wants them.
async fn send(lines: &mpsc::Sender<Result<LogLine>>, mut found: Vec<LogLine>) -> bool {
    let mut left = found.drain(..);
    while left.len() > 0 {
        let Ok(permits) = lines.reserve_many(left.len().min(CHANNEL / 2)).await else {
            return false;
        };
        for (permit, line) in permits.zip(left.by_ref()) {
            permit.send(Ok(line));
        }
    }
    true
}

async fn reached(until: Option<SystemTime>) {
    match until {
        None => std::future::pending().await,
        Some(until) => {
            let wait = until.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
            tokio::time::sleep(wait).await;
        }
    }
}

/// Removes the log at `path` and what it was rotated to.
fn remove_all(path: &std::path::Path) -> Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(());
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", dir.display(), error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("read", dir.display(), e))?;
        let found = entry.file_name();
        let ours = found
            .to_str()
            .and_then(|found| found.strip_prefix(name))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if !ours {
            continue;
        }
        match std::fs::remove_file(entry.path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", entry.path().display(), error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
