//! The daemon as a process: configuration, start, reload, stop.

use std::process::Stdio;

use anyhow::Result;
use gantry_test_harness::{
    Output, Setup, TestDaemon, TestResult, command, daemon_test, daemon_test_with,
};
use nix::sys::signal::Signal;
use serde_json::json;

/// Runs `gantryd` to its end with these arguments instead of the test's.
fn gantryd(daemon: &TestDaemon, arguments: &str) -> Result<Output> {
    let mut command = daemon.daemon_command(&command::words(arguments))?;
    command.stdin(Stdio::null());
    command::run(command, b"", command::DEADLINE)
}

#[test]
fn validation_tells_every_mistake_at_once_and_starts_nothing() -> TestResult {
    daemon_test(|daemon| {
        let file = daemon.path("other.json");
        let validate = format!("--validate --config-file {}", file.display());
        std::fs::write(&file, r#"{"debug": true}"#)?;
        let valid = gantryd(daemon, &validate)?;
        assert_eq!(valid.status, 0, "{valid}");
        let all = format!("{}{}", valid.stdout, valid.stderr);
        assert!(all.contains("configuration OK"), "{all}");

        std::fs::write(&file, r#"{"no-such-key": 1, "log-level": "shout", "debug": "yes"}"#)?;
        let invalid = gantryd(daemon, &validate)?;
        assert_ne!(invalid.status, 0, "{invalid}");
        for part in ["no-such-key", "shout", "debug"] {
            assert!(invalid.stderr.contains(part), "{part} in {invalid}");
        }
        std::fs::write(&file, r#"{"data-root": "/a"}"#)?;
        let both = gantryd(daemon, &format!("{validate} --data-root /b"))?;
        assert_ne!(both.status, 0, "{both}");
        assert!(both.stderr.contains("data-root"), "{both}");
        std::fs::write(&file, "{")?;
        assert_ne!(gantryd(daemon, &validate)?.status, 0);
        Ok(())
    })
}

#[test]
fn every_flag_of_existing_units_is_understood() -> TestResult {
    daemon_test(|daemon| {
        let file = daemon.path("other.json");
        std::fs::write(&file, "{}")?;
        let validate = |flags: &str| {
            gantryd(daemon, &format!("--validate --config-file {} {flags}", file.display()))
        };
        let valid = validate(
            "-H fd:// --containerd=/run/containerd/containerd.sock -D -l warn \
             --userland-proxy-path=/usr/bin/docker-proxy --default-ulimit nofile=1024:2048 \
             --bip 10.9.0.1/16 --label a=b --storage-driver overlay2 --mtu 1400 \
             --exec-opt native.cgroupdriver=cgroupfs --log-driver json-file \
             --log-opt max-size=1m --iptables=true --ip-forward --live-restore=false",
        )?;
        assert_eq!(valid.status, 0, "{valid}");
        // What this build cannot do is refused by name, all of it at once.
        let refused = validate("--selinux-enabled --node-generic-resource gpu=1")?;
        assert_ne!(refused.status, 0, "{refused}");
        for flag in ["--selinux-enabled", "--node-generic-resource"] {
            assert!(refused.stderr.contains(flag), "{flag} in {refused}");
        }
        let wrong = gantryd(daemon, "--no-such-flag")?;
        assert_ne!(wrong.status, 0);
        assert!(wrong.stderr.contains("no-such-flag"), "{wrong}");
        assert_eq!(gantryd(daemon, "--version")?.status, 0);
        assert!(gantryd(daemon, "--help")?.stdout.contains("--data-root"));
        Ok(())
    })
}

#[test]
fn a_second_daemon_on_the_same_directories_stops_at_once() -> TestResult {
    daemon_test(|daemon| {
        let line = daemon.arguments().join(" ").replace("docker.sock", "second.sock");
        let line = line.replace("daemon.pid", "second.pid");
        let second = gantryd(daemon, &line)?;
        assert_ne!(second.status, 0, "{second}");
        assert_eq!(daemon.http("GET", "/_ping", b"")?.status, 200);
        assert!(!daemon.path("second.pid").exists());
        Ok(())
    })
}

#[test]
fn the_socket_is_for_its_owner_and_group() -> TestResult {
    daemon_test(|daemon| {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(daemon.socket())?.permissions().mode() & 0o777;
        assert_eq!(mode, 0o660);
        let pid = std::fs::read_to_string(daemon.path("daemon.pid"))?;
        assert!(pid.trim().parse::<u32>().is_ok(), "{pid:?}");
        Ok(())
    })
}

#[test]
fn reload_takes_all_or_nothing() -> TestResult {
    daemon_test_with(Setup::config(json!({"labels": ["first=1"], "debug": false})), |daemon| {
        let labels = |daemon: &TestDaemon| -> Result<String> {
            Ok(daemon.get("/info")?["Labels"].to_string())
        };
        assert!(labels(daemon)?.contains("first=1"));
        std::fs::write(
            daemon.path("daemon.json"),
            r#"{"labels":["second=2"],"shutdown-timeout":7}"#,
        )?;
        daemon.signal(Signal::SIGHUP)?;
        gantry_test_harness::wait_until("the labels change", 5, || {
            Ok(labels(daemon)?.contains("second=2"))
        })?;
        std::fs::write(
            daemon.path("daemon.json"),
            r#"{"labels":["third=3"],"shutdown-timeout":"soon"}"#,
        )?;
        daemon.signal(Signal::SIGHUP)?;
        gantry_test_harness::wait_until("the mistake is logged", 5, || {
            Ok(daemon.log().contains("shutdown-timeout"))
        })?;
        assert!(labels(daemon)?.contains("second=2"), "nothing changed");
        let until = std::time::UNIX_EPOCH.elapsed()?.as_secs() + 1;
        let events = daemon.http("GET", &format!("/events?since=1&until={until}"), b"")?.text();
        assert!(events.contains("\"reload\""), "{events}");
        Ok(())
    })
}

#[test]
fn the_other_storage_drivers_do_the_same() -> TestResult {
    for driver in ["vfs", "erofs"] {
        let systems = std::fs::read_to_string("/proc/filesystems")?;
        if driver == "erofs" && !systems.contains(driver) {
            eprintln!("skipped: this kernel has no EROFS");
            continue;
        }
        daemon_test_with(Setup::arguments(&format!("--storage-driver {driver}")), |daemon| {
            daemon.load(gantry_test_harness::fixtures::Fixture::Layered)?;
            assert_eq!(daemon.get("/info")?["Driver"], driver);
            let seen = daemon.ok("run --name box layered \
                 sh -c 'cat /data/changed; ls /data/hidden; rm /data/kept; ls /data/kept'");
            assert!(seen.is_err_and(|e| e.to_string().contains("from layer 3\nabove")), "{driver}");
            // The same when it starts again, and nothing is left when all is removed.
            daemon.ok("run --rm layered cat /data/changed")?;
            daemon.ok("rm box")?;
            daemon.ok("rmi layered")?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn stopping_the_daemon_stops_its_containers_unless_told_otherwise() -> TestResult {
    daemon_test_with(Setup::config(json!({"live-restore": false})), |daemon| {
        daemon.load_busybox()?;
        crate::support::sleeper(daemon, "stops", "")?;
        daemon.stop()?;
        daemon.start_again()?;
        let state = &daemon.inspect("stops")?["State"];
        assert_eq!((&state["Status"], &state["ExitCode"]), (&"exited".into(), &0.into()));
        Ok(())
    })?;
    daemon_test_with(Setup::config(json!({"live-restore": true})), |daemon| {
        daemon.load_busybox()?;
        crate::support::sleeper(daemon, "stays", "")?;
        let pid = daemon.inspect("stays")?["State"]["Pid"].clone();
        daemon.stop()?;
        daemon.start_again()?;
        assert_eq!(daemon.inspect("stays")?["State"]["Pid"], pid);
        assert_eq!(daemon.ok("exec stays echo alive")?, "alive");
        Ok(())
    })
}
