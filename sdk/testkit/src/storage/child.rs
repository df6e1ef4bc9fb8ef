//! Checks that kill: the driver at work in a process of its own.
//!
//! The process is this program again. It makes the driver on the directory that it is told, has itself
//! watched ([`gantry_sys::process::watch_changes`]), and goes through the life of a layer. Before each
//! call that changes a file it waits; whoever watches lets the call happen, or kills the process there.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};

use gantry_sys::process::{let_happen, mark, name_of_call, next_call, watch_changes};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::fixture::{Fixture, Place, cx};
use super::subject::Subject;
use crate::archive::Tar;

/// What a child is to do, and where.
const PART: &str = "GANTRY_KIT_PART";
const ROOT: &str = "GANTRY_KIT_ROOT";
/// What it prints before the number of its listener's descriptor.
const LISTENER: &str = "gantry-kit-listener:";
/// What it prints when it holds what it was to hold.
const HOLDS: &str = "gantry-kit-holds";

/// The parts of a layer's life, in order; a number is where it is in the list.
pub(super) const STEPS: &[&str] =
    &["prepare", "apply", "commit", "sync", "prepare a container", "remove it", "remove", "end"];

/// The layer that is made in a child.
pub(super) fn archive() -> Vec<u8> {
    let tar = Tar::default().dir("d").file("d/large", &"x".repeat(200_000)).file(".wh.gone", "");
    tar.symlink("l", "d/large").hardlink("h", "d/large").file("kept/.wh..wh..opq", "").end()
}

/// What it is made on.
pub(super) fn base() -> Tar {
    Tar::default().file("gone", "").dir("kept").file("kept/old", "").file("a", "a")
}

/// Whether this process was started to do a child's part.
pub fn is_child() -> bool {
    std::env::var_os(PART).is_some()
}

/// Does a child's part, if this process was started for that; `subject` is the same as its parent's.
pub fn child(subject: &Subject) -> ExitCode {
    let (Ok(part), Some(root)) = (std::env::var(PART), std::env::var_os(ROOT)) else {
        return ExitCode::SUCCESS;
    };
    if part == "hold" {
        let runtime = runtime();
        runtime.block_on(hold(subject, Path::new(&root)));
        return ExitCode::SUCCESS;
    }
    let Ok(listener) = watch_changes() else { return ExitCode::FAILURE };
    let mut out = std::io::stdout();
    let _ = writeln!(out, "\n{LISTENER}{}", listener.as_raw_fd());
    let _ = out.flush();
    // Made after that, so its threads are watched too.
    runtime().block_on(life(subject, Path::new(&root)));
    ExitCode::SUCCESS
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
}

async fn on(subject: &Subject, root: &Path) -> Fixture {
    let made = subject.on(root.to_owned(), Place::Lent).await;
    made.unwrap_or_else(|e| panic!("the driver cannot be made: {e}"))
}

/// The life of the layer `top`, on `base`, with a container on it.
async fn life(subject: &Subject, root: &Path) {
    let f = on(subject, root).await;
    f.driver.recover(&cx()).await.expect("recover");
    let at = |step: &str| mark(STEPS.iter().position(|s| *s == step).unwrap_or_default() as u32);
    at("prepare");
    f.prepare("key", Some("base")).await.expect("prepare");
    at("apply");
    f.unpack("key", Some("base"), &archive()).await.expect("apply");
    at("commit");
    f.driver.commit(&cx(), "key", "top").await.expect("commit");
    at("sync");
    f.driver.sync(&cx(), "top").await.expect("sync");
    at("prepare a container");
    f.prepare("rw", Some("top")).await.expect("prepare a container");
    at("remove it");
    f.driver.remove(&cx(), "rw").await.expect("remove a container");
    at("remove");
    f.driver.remove(&cx(), "top").await.expect("remove");
    at("end");
    // Not to come to an end by itself, which would change files too.
    std::process::exit(0);
}

async fn hold(subject: &Subject, root: &Path) {
    let f = on(subject, root).await;
    f.driver.recover(&cx()).await.expect("recover");
    let container = f.writable("rw", Some("base")).await;
    std::fs::write(super::path_of(&container).join("written"), "x").expect("write");
    f.prepare("making", Some("base")).await.expect("prepare");
    let plan = f.driver.unpack_plan(&cx(), "making").await.expect("plan");
    let _target = f.mount(&plan).await;
    println!("\n{HOLDS}");
    std::future::pending::<()>().await;
}

/// A child that is at work.
struct Running {
    process: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Running {
    fn start(f: &Fixture, part: &str) -> Option<Self> {
        let mut command = f.subject.child_command()?;
        command.env(PART, part).env(ROOT, f.given_for_others());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("start this program again");
        let lines = BufReader::new(process.stdout.take().expect("its output"));
        Some(Self { process, lines })
    }

    /// The line that begins with `word`, without that.
    fn line(&mut self, word: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("read its output");
            assert!(read > 0, "the child ended early: {seen}");
            if let Some(rest) = line.trim_end().strip_prefix(word) {
                return rest.to_owned();
            }
            seen += &line;
        }
    }

    fn listener(&mut self) -> OwnedFd {
        let number: i32 = self.line(LISTENER).parse().expect("a number");
        let pid = Pid::from_child(&self.process);
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("a descriptor of the child");
        pidfd_getfd(process, number, PidfdGetfdFlags::empty()).expect("the child's listener")
    }
}

/// A point in the life of a layer: a step of it, and how many calls in it have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) step: usize,
    pub(super) after: usize,
}

/// Has a child go through the life of a layer, and kills it at `stop`. Returns the calls of each step
/// up to there by their names; none if this program cannot be started for that.
pub(super) fn live(f: &Fixture, stop: Option<Point>) -> Option<Vec<Vec<String>>> {
    let mut running = Running::start(f, "live")?;
    let listener = running.listener();
    let mut calls: Vec<Vec<String>> = Vec::new();
    while let Some(call) = next_call(&listener).expect("the next call") {
        if call.mark.is_some() {
            calls.push(Vec::new());
        } else if let (Some(step), Some(at)) = (calls.len().checked_sub(1), calls.last_mut()) {
            if stop == Some(Point { step, after: at.len() }) {
                return Some(calls);
            }
            at.push(name_of_call(call.number));
        }
        let_happen(&listener, call).expect("let a call happen");
        if calls.len() == STEPS.len() {
            break;
        }
    }
    let ended = running.process.wait().expect("wait for the child");
    assert!(ended.success() && calls.len() == STEPS.len(), "the child failed in {calls:?}");
    Some(calls)
}

/// Has a child mount layers, and kills it. False if this program cannot be started for that.
pub(super) fn kill_a_holder(f: &Fixture) -> bool {
    let Some(mut running) = Running::start(f, "hold") else { return false };
    running.line(HOLDS);
    true
}
