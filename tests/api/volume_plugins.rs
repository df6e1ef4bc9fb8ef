//! Volume drivers in other processes, over Docker's plugin protocol.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_test_harness::command;
use gantry_test_harness::{Setup, TestDaemon, TestResult, daemon_test_with, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use crate::support::sleeper;

/// A directory for plugins, and a daemon's setup that looks for them there only.
fn plugin_directory() -> Result<(TempDir, Setup)> {
    let dir = tempfile::Builder::new().prefix("gp-").tempdir_in("/tmp")?;
    let section = json!({"sockets": dir.path().join("run"), "specs": [dir.path().join("etc")]});
    let config = json!({"kernel-plugins": {"carrier.socket": {"config": section}}});
    Ok((dir, Setup::config(config)))
}

/// Runs `line` of the docker CLI and says on standard output how long it took.
fn timed(daemon: &TestDaemon, line: &str) -> Result<(command::Output, Duration)> {
    let begun = Instant::now();
    let output = daemon.docker(line)?;
    let took = begun.elapsed();
    println!("{took:>12.1?}  docker {line}");
    Ok((output, took))
}

/// Starts `rclone serve docker` where the daemon is and waits for nothing.
fn start_rclone(daemon: &TestDaemon, dir: &Path) -> Result<Child> {
    let log = std::fs::File::create(dir.join("rclone.log"))?;
    let mut rclone = daemon.sandbox().command("rclone");
    rclone.args(["serve", "docker", "--no-spec", "--forget-state", "--config", ""]);
    rclone.arg("--socket-addr").arg(dir.join("run/rclone.sock"));
    rclone.arg("--base-dir").arg(dir.join("mounts")).arg("--cache-dir").arg(dir.join("cache"));
    rclone.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    rclone.spawn().context("cannot start rclone")
}

fn signal_rclone(daemon: &TestDaemon, signal: &str) -> TestResult {
    daemon.sandbox().sh(&format!("kill -{signal} $(pidof rclone)")).map(drop)
}

#[test]
fn rclone_keeps_volumes_and_harms_nobody_when_it_stops() -> TestResult {
    gantry_test_harness::requires!(root, "rclone", "fusermount3", "pidof");
    let (dir, setup) = plugin_directory()?;
    let dir = dir.path();
    for name in ["mounts", "cache", "backing"] {
        std::fs::create_dir(dir.join(name))?;
    }
    daemon_test_with(setup, |daemon| {
        daemon.load_busybox()?;
        let create = format!(
            "volume create --driver rclone --label a=b -o type=local -o path={} far",
            dir.join("backing").display()
        );
        let said = daemon.fails(&create)?;
        assert!(said.contains("rclone"), "{said}");

        // It arrives later, and its directory with it.
        std::fs::create_dir(dir.join("run"))?;
        let mut rclone = start_rclone(daemon, dir)?;
        let ready = || Ok(daemon.docker(&create)?.success().is_ok());
        wait_until("rclone is found", 20, ready)?;
        let volume = daemon.get("/volumes/far")?;
        assert_eq!((&volume["Driver"], &volume["Labels"]["a"]), (&"rclone".into(), &"b".into()));
        let drivers = daemon.get("/info")?["Plugins"]["Volume"].to_string();
        assert!(drivers.contains("rclone"), "{drivers}");

        daemon.ok("run --rm -v far:/data busybox sh -c 'echo hello > /data/file'")?;
        assert_eq!(std::fs::read_to_string(dir.join("backing/file"))?, "hello\n");
        sleeper(daemon, "user", "-v far:/data")?;
        assert_eq!(daemon.ok("exec user cat /data/file")?, "hello");

        // A restart of the daemon disturbs nobody, and the driver is in service at once.
        daemon.stop()?;
        daemon.start_again()?;
        assert_eq!(daemon.ok("exec user cat /data/file")?, "hello");
        assert_eq!(daemon.get("/volumes/far")?["Labels"]["a"], "b");

        sleeper(daemon, "other", "")?;
        signal_rclone(daemon, "STOP")?;
        without_rclone(daemon)?;
        signal_rclone(daemon, "CONT")?;
        // Its parent, `nsenter`, stops with it and does not go on with it.
        kill(Pid::from_raw(rclone.id().try_into()?), Signal::SIGCONT)?;
        let back = || Ok(daemon.docker("volume inspect far")?.success().is_ok());
        wait_until("rclone is back", 20, back)?;
        assert_eq!(daemon.ok("exec user cat /data/file")?, "hello");
        daemon.ok("rm --force user")?;
        daemon.ok("volume rm far")?;
        signal_rclone(daemon, "TERM")?;
        let ended = command::wait(&mut rclone, Duration::from_secs(10))?;
        ensure!(ended.is_some(), "rclone has not ended");
        Ok(())
    })
}

/// What works, and what it says, while rclone does not answer.
fn without_rclone(daemon: &TestDaemon) -> TestResult {
    // The first to notice waits until it is known that nobody gets an answer.
    let (output, first) = timed(daemon, "volume ls")?;
    assert!(output.success()?.contains("far"), "volumes are listed from the records");
    ensure!(first < Duration::from_secs(8), "volume ls took {first:?}");
    let down = || Ok(daemon.http("GET", "/volumes/far", b"")?.status == 503);
    wait_until("rclone is known to be down", 10, down)?;
    for line in ["volume ls", "ps", "inspect other", "inspect user", "rm --force other"] {
        let (output, took) = timed(daemon, line)?;
        output.success()?;
        ensure!(took < Duration::from_secs(2), "docker {line} took {took:?}");
    }
    let warnings = daemon.get("/volumes")?["Warnings"].to_string();
    assert!(warnings.contains("rclone") && warnings.contains("does not answer"), "{warnings}");
    let said = daemon.fails("run --rm -v far:/data busybox true")?;
    assert!(said.contains("rclone"), "{said}");
    Ok(())
}

#[test]
fn fifty_dead_and_fifty_silent_sockets_cost_nobody_time() -> TestResult {
    let (dir, setup) = plugin_directory()?;
    let sockets = dir.path().join("run");
    std::fs::create_dir(&sockets)?;
    let mut silent = Vec::new();
    for n in 0..50 {
        silent.push(UnixListener::bind(sockets.join(format!("silent{n}.sock")))?);
        drop(UnixListener::bind(sockets.join(format!("dead{n}.sock")))?);
    }
    daemon_test_with(setup, |daemon| {
        for line in ["volume ls", "ps", "info", "volume create here", "volume inspect here"] {
            let (output, took) = timed(daemon, line)?;
            output.success()?;
            ensure!(took < Duration::from_secs(2), "docker {line} took {took:?}");
        }
        for (name, why) in [("dead7", "refused"), ("silent7", "does not answer")] {
            let said = || {
                let said = daemon.fails(format!("volume create --driver {name} x"))?;
                Ok(said.contains(why))
            };
            wait_until("its state is known", 15, said)?;
        }
        daemon.stop()?;
        let begun = Instant::now();
        daemon.start_again()?;
        let took = begun.elapsed();
        println!("{took:>12.1?}  start with 100 bad sockets");
        ensure!(took < Duration::from_secs(10), "the start took {took:?}");
        daemon.ok("volume rm here").map(drop)
    })
}

/// A driver with one volume, `v`, which it knows while `knows` is set.
fn fake_driver(socket: &Path, knows: Arc<AtomicBool>) -> TestResult {
    let listener = UnixListener::bind(socket)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 8192];
            let length = stream.read(&mut buffer).unwrap_or(0);
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let knows = knows.load(Ordering::SeqCst);
            let body = match text.split(' ').nth(1) {
                Some("/Plugin.Activate") => r#"{"Implements":["VolumeDriver"]}"#,
                Some("/VolumeDriver.Get") if knows => r#"{"Volume":{"Name":"v"}}"#,
                Some("/VolumeDriver.Get") => r#"{"Err":"no such volume"}"#,
                Some("/VolumeDriver.List") if knows => r#"{"Volumes":[{"Name":"v"}]}"#,
                _ => "{}",
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    Ok(())
}

#[test]
fn a_driver_that_forgot_a_volume_at_boot_costs_it_no_label() -> TestResult {
    let (dir, setup) = plugin_directory()?;
    std::fs::create_dir(dir.path().join("run"))?;
    let knows = Arc::new(AtomicBool::new(true));
    fake_driver(&dir.path().join("run/fake.sock"), knows.clone())?;
    daemon_test_with(setup, |daemon| {
        let make = "volume create --driver fake --label a=b v";
        let made = || Ok(daemon.docker(make)?.success().is_ok());
        wait_until("the driver is ready", 10, made)?;
        knows.store(false, Ordering::SeqCst);
        daemon.stop()?;
        daemon.start_again()?;
        daemon.ok("volume ls")?;
        let said = daemon.fails("volume inspect v")?;
        assert!(said.to_lowercase().contains("no such volume"), "{said}");
        knows.store(true, Ordering::SeqCst);
        assert_eq!(daemon.get("/volumes/v")?["Labels"], json!({"a": "b"}));
        daemon.ok("volume rm v").map(drop)
    })
}
