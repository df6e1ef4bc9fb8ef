//! `/events`: what happened, what is happening, in which form.

use std::io::Read;

use anyhow::{Context, Result};
use gantry_test_harness::http::{self, Request};
use gantry_test_harness::{TestDaemon, TestResult, wait_until};
use serde_json::Value;

use crate::support::with_busybox;

fn since_the_start(daemon: &TestDaemon, filters: &str) -> Result<Vec<Value>> {
    let filters = filters.replace('"', "%22").replace('{', "%7B").replace('}', "%7D");
    let answer = daemon.http(
        "GET",
        &format!("/v1.44/events?since=1&until={}&filters={filters}", soon()?),
        b"",
    )?;
    anyhow::ensure!(answer.status == 200, "{}", answer.text());
    answer.text().lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// A moment that is not over yet, in seconds since 1970: events have a finer clock.
fn soon() -> Result<u64> {
    Ok(std::time::UNIX_EPOCH.elapsed()?.as_secs() + 1)
}

fn actions(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|e| e["Action"].as_str()).collect()
}

#[test]
fn a_containers_life_is_told_in_order() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run --rm --name told --label a=b busybox sh -c 'exit 0'")?;
        wait_until("the container is removed", 5, || {
            Ok(daemon.http("GET", "/containers/told/json", b"")?.status == 404)
        })?;
        let events = since_the_start(daemon, r#"{"type":["container"]}"#)?;
        let told = actions(&events);
        let order = ["create", "start", "die", "destroy"];
        let places: Vec<_> = order.iter().map(|a| told.iter().position(|t| t == a)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told:?}");
        let die = events.iter().find(|e| e["Action"] == "die").context("no die")?;
        let attributes = &die["Actor"]["Attributes"];
        assert_eq!(attributes["exitCode"], "0", "{die}");
        assert_eq!(attributes["name"], "told");
        assert_eq!(attributes["image"], "busybox");
        assert_eq!(attributes["a"], "b");
        assert_eq!(die["scope"], "local");
        assert!(die["timeNano"].as_u64() > die["time"].as_u64());
        Ok(())
    })
}

#[test]
fn filters_choose_and_images_and_volumes_tell_too() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("tag busybox other:1")?;
        daemon.ok("rmi other:1")?;
        daemon.ok("volume create vol")?;
        daemon.ok("volume rm vol")?;
        daemon.ok("create --name box busybox true")?;
        let images = since_the_start(daemon, r#"{"type":["image"]}"#)?;
        assert_eq!(actions(&images), ["load", "tag", "untag"]);
        let volumes = since_the_start(daemon, r#"{"type":["volume"],"event":["destroy"]}"#)?;
        assert_eq!(actions(&volumes), ["destroy"]);
        let named = since_the_start(daemon, r#"{"container":["box"]}"#)?;
        assert_eq!(actions(&named), ["create"]);
        let none = since_the_start(daemon, r#"{"container":["nobody"]}"#)?;
        assert!(none.is_empty(), "{none:?}");
        Ok(())
    })
}

#[test]
fn the_stream_is_live_and_its_form_is_the_clients_choice() -> TestResult {
    with_busybox(|daemon| {
        for (version, accept, expected) in [
            ("1.44", "", "application/json"),
            ("1.52", "application/x-ndjson", "application/x-ndjson"),
            ("1.52", "application/json-seq", "application/json-seq"),
            ("1.52", "", "application/jsonl"),
        ] {
            let path = format!("/v{version}/events");
            let headers: &[_] = if accept.is_empty() { &[] } else { &[("Accept", accept)] };
            let request = Request { method: "GET", path: &path, headers, body: b"" };
            let (head, mut stream) = http::open(&daemon.socket(), &request, false)?;
            assert_eq!(head.status, 200);
            assert_eq!(head.header("Content-Type"), Some(expected), "{version} {accept}");
            daemon.ok("volume create live")?;
            let mut seen = Vec::new();
            while !String::from_utf8_lossy(&seen).contains("\"live\"") {
                let mut part = [0; 4096];
                let count = stream.read(&mut part)?;
                anyhow::ensure!(count > 0, "the stream ended");
                seen.extend_from_slice(&part[..count]);
            }
            assert_eq!(accept.contains("seq"), seen.contains(&0x1e), "{version} {accept}");
            drop(stream);
            daemon.ok("volume rm live")?;
        }
        Ok(())
    })
}

#[test]
fn the_command_line_shows_the_past() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("create --name seen busybox true")?;
        let shown =
            daemon.ok(format!("events --since 1 --until {} --filter type=container", soon()?))?;
        assert!(shown.contains("container create") && shown.contains("name=seen"), "{shown}");
        Ok(())
    })
}
