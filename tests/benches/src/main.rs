//! Measurements, each beside its floor in the same run on the same machine.
//!
//! ```text
//! cargo build --release -p gantryd -p gantry-benches
//! gantry-benches            a hundred rounds of each
//! gantry-benches --short    ten: shows that everything runs, and a first impression
//! gantry-benches --images   pulls, pushes and archives of large images, three rounds of each
//! ```
//!
//! A floor is what the machine needs for the same thing without an engine: an OCI runtime on a
//! bundle with the same tree, a program that does nothing, the smallest request. Ours and the floor
//! take turns, so that a noisy machine disturbs both.

mod floor;
mod images;
mod memory;
mod table;

use std::io::Read;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_test_harness::http::{self, Request};
use gantry_test_harness::{Setup, TestDaemon, requires};

use floor::Bundle;
use table::{Row, Samples};

/// Containers in the list whose time is taken.
const LISTED: usize = 200;

/// Containers that run while the memory of their shims is added up.
const RUNNING: usize = 10;

fn main() -> ExitCode {
    let short = std::env::args().any(|argument| argument == "--short");
    if !requires::is_root() {
        eprintln!("The benchmarks start containers, so they need root.");
        return ExitCode::FAILURE;
    }
    let of_images = std::env::args().any(|argument| argument == "--images");
    let outcome = match (of_images, short) {
        (true, true) => images::measure(1),
        (true, false) => images::measure(3),
        (false, true) => measure(10),
        (false, false) => measure(100),
    };
    match outcome {
        Ok(rows) => {
            print!("{}", table::render(&rows));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rounds: usize) -> Result<Vec<Row>> {
    let mut rows = vec![cold_start(rounds)?];
    let mut daemon = TestDaemon::start(Setup::default())?;
    daemon.load_busybox()?;
    rows.push(memory::idle(&daemon)?);

    let bundle = Bundle::unpack()?;
    for (network, aim) in [("none", 12.0), ("bridge", 16.0)] {
        rows.extend(whole_life(&daemon, &bundle, network, aim, rounds)?);
    }
    rows.push(exec(&daemon, &bundle, rounds)?);
    rows.push(memory::shims(&daemon, RUNNING)?);
    rows.push(list(&daemon, rounds)?);
    daemon.finish()?;
    Ok(rows)
}

/// From the start of the program to its first answer, on a directory that has been used before.
fn cold_start(rounds: usize) -> Result<Row> {
    let mut daemon = TestDaemon::start(Setup::default())?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        daemon.kill9()?;
        let start = Instant::now();
        daemon.start_again()?;
        ours.push(start.elapsed());
        let mut version = daemon.daemon_command(&["--version".to_owned()])?;
        floor.push(floor::time(&mut version)?);
    }
    daemon.finish()?;
    Ok(Row::times("cold start to the first _ping", ours, floor, "gantryd --version", 40.0))
}

/// The requests of a container's whole life, in order.
const STEPS: [&str; 4] = ["create", "start", "wait", "remove"];

/// Creates, starts, waits for and removes a container that runs `true`; then each step alone.
fn whole_life(
    daemon: &TestDaemon,
    bundle: &Bundle,
    network: &str,
    aim: f64,
    rounds: usize,
) -> Result<Vec<Row>> {
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let mut steps: [Samples; STEPS.len()] = Default::default();
    for _ in 0..rounds {
        let took = one_life(daemon, network)?;
        ours.push(took.iter().sum());
        for (samples, step) in steps.iter_mut().zip(took) {
            samples.push(step);
        }
        floor.push(bundle.run()?);
    }
    let name = format!("create+start+wait+rm of true, {network}");
    let mut rows = vec![Row::times(&name, ours, floor, &format!("{} run", bundle.runtime()), aim)];
    rows.extend(STEPS.iter().zip(steps).map(|(name, samples)| Row::step(name, samples)));
    Ok(rows)
}

fn one_life(daemon: &TestDaemon, network: &str) -> Result<[Duration; STEPS.len()]> {
    let start = Instant::now();
    let id = create(daemon, network, &["true"])?;
    let created = start.elapsed();
    post(daemon, &format!("/containers/{id}/start"), b"", 204)?;
    let started = start.elapsed();
    let waited = post(daemon, &format!("/containers/{id}/wait"), b"", 200)?;
    let over = start.elapsed();
    let removed = daemon.http("DELETE", &format!("/containers/{id}"), b"")?;
    let gone = start.elapsed();
    ensure!(removed.status == 204, "cannot remove: {}", removed.text());
    ensure!(waited.contains("\"StatusCode\":0"), "true failed: {waited}");
    Ok([created, started - created, over - started, gone - over])
}

fn create(daemon: &TestDaemon, network: &str, command: &[&str]) -> Result<String> {
    let body = serde_json::json!({
        "Image": "busybox", "Cmd": command, "HostConfig": {"NetworkMode": network},
    });
    let made = post(daemon, "/containers/create", body.to_string().as_bytes(), 201)?;
    let made: serde_json::Value = serde_json::from_str(&made)?;
    Ok(made["Id"].as_str().context("no Id")?.to_owned())
}

fn post(daemon: &TestDaemon, path: &str, body: &[u8], status: u16) -> Result<String> {
    let answer = daemon.http("POST", path, body)?;
    ensure!(answer.status == status, "POST {path}: {} {}", answer.status, answer.text());
    Ok(answer.text())
}

/// Runs `true` in a container that runs already, to the end of its output and its code.
fn exec(daemon: &TestDaemon, bundle: &Bundle, rounds: usize) -> Result<Row> {
    let id = create(daemon, "none", &["sleep", "3600"])?;
    post(daemon, &format!("/containers/{id}/start"), b"", 204)?;
    let running = bundle.start()?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        ours.push(one_exec(daemon, &id)?);
        floor.push(running.exec()?);
    }
    drop(running);
    ensure!(daemon.http("DELETE", &format!("/containers/{id}?force=1"), b"")?.status == 204);
    Ok(Row::times("exec of true", ours, floor, &format!("{} exec", bundle.runtime()), 10.0))
}

fn one_exec(daemon: &TestDaemon, id: &str) -> Result<Duration> {
    let start = Instant::now();
    let body = br#"{"AttachStdout":true,"AttachStderr":true,"Cmd":["true"]}"#;
    let made = post(daemon, &format!("/containers/{id}/exec"), body, 201)?;
    let made: serde_json::Value = serde_json::from_str(&made)?;
    let exec = made["Id"].as_str().context("no Id")?;
    let path = format!("/exec/{exec}/start");
    let headers = [("Content-Type", "application/json")];
    let request = Request { method: "POST", path: &path, headers: &headers, body: b"{}" };
    let (_, mut stream) = http::open(&daemon.socket(), &request, true)?;
    stream.read_to_end(&mut Vec::new())?;
    let code = daemon.get(&format!("/exec/{exec}/json"))?["ExitCode"].clone();
    let took = start.elapsed();
    ensure!(code == 0, "true ended with {code}");
    Ok(took)
}

/// The list of many containers, beside the smallest request there is.
fn list(daemon: &TestDaemon, rounds: usize) -> Result<Row> {
    for _ in 0..LISTED {
        create(daemon, "none", &["true"])?;
    }
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        let start = Instant::now();
        let answer = daemon.http("GET", "/containers/json?all=1", b"")?;
        ours.push(start.elapsed());
        ensure!(answer.json()?.as_array().map(Vec::len) == Some(LISTED), "{}", answer.text());
        let start = Instant::now();
        daemon.http("GET", "/_ping", b"")?;
        floor.push(start.elapsed());
    }
    Ok(Row::times(&format!("list of {LISTED} containers"), ours, floor, "GET /_ping", 1.0))
}
