//! Retention policies of blobs, and the governor of a full disk.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use gantry_test_harness::fixtures::{self, Fixture};
use gantry_test_harness::{
    Registry, RegistrySetup, Setup, TestDaemon, TestResult, daemon_test_with, requires, wait_until,
};
use serde_json::{Value, json};

/// A test with an open registry that has busybox, and this section for the content plugin.
fn with_policy(
    section: Value,
    body: impl FnOnce(&mut TestDaemon, &str, Registry) -> TestResult,
) -> TestResult {
    requires!("docker-registry", "skopeo");
    let config = json!({"kernel-plugins": {"content": {"config": section}}});
    daemon_test_with(Setup::config(config), |daemon| {
        let registry =
            Registry::start(daemon.sandbox(), &daemon.path(""), &RegistrySetup::default())?;
        let name = format!("{}/busybox:1", registry.address());
        daemon.sandbox().sh(&format!(
            "skopeo --insecure-policy copy --quiet --dest-tls-verify=false docker-archive:{} \
             docker://{name}",
            fixtures::archive(Fixture::Busybox)?.display()
        ))?;
        body(daemon, &name, registry)
    })
}

/// Where the only layer of an image is kept.
fn layer(daemon: &TestDaemon, name: &str) -> Result<PathBuf> {
    let raw = daemon.sandbox().sh(&format!(
        "skopeo --insecure-policy inspect --raw --tls-verify=false docker://{name}"
    ))?;
    let manifest: Value = serde_json::from_str(&raw)?;
    let digest = manifest["layers"][0]["digest"].as_str().context("no layer")?;
    Ok(daemon.path("data/blobs/sha256").join(digest.trim_start_matches("sha256:")))
}

#[test]
fn a_layer_that_a_registry_has_is_dropped_and_comes_back_when_it_is_needed() -> TestResult {
    with_policy(json!({"retention": "drop-if-remote"}), |daemon, name, registry| {
        daemon.ok(format!("pull {name}"))?;
        let blob = layer(daemon, name)?;
        daemon.http("POST", "/x/content/collect", b"")?;
        wait_until("the layer is dropped", 10, || Ok(!blob.exists()))?;
        assert_eq!(daemon.ok(format!("run --rm {name} echo unpacked"))?, "unpacked");

        let archive = daemon.path("saved.tar");
        daemon.ok(format!("save --output {} {name}", archive.display()))?;
        let saved = std::fs::metadata(&archive)?.len();
        ensure!(saved > 500_000, "the layer is not in the archive of {saved} bytes");
        wait_until("the layer is dropped again", 10, || Ok(!blob.exists()))?;
        registry.stop(daemon.sandbox())?;
        let said = daemon.fails(format!("save --output {} {name}", archive.display()))?;
        ensure!(!said.is_empty(), "nobody says why");
        // What is unpacked still runs.
        assert_eq!(daemon.ok(format!("run --rm {name} echo unpacked"))?, "unpacked");
        Ok(())
    })
}

#[test]
fn what_was_only_loaded_is_never_dropped() -> TestResult {
    with_policy(json!({"retention": "until-unpacked"}), |daemon, _, registry| {
        daemon.load(Fixture::BusyboxGzip)?;
        daemon.http("POST", "/x/content/collect", b"")?;
        let answer = daemon.get("/x/content/governor")?;
        let items = answer["items"].as_array().context("no items")?;
        let mut blobs = items.iter().filter(|item| item["kind"] == "blob");
        ensure!(blobs.all(|blob| blob["fate"] == "keep"), "{answer}");
        daemon.ok(format!("save --output {} busybox:gzip", daemon.path("saved.tar").display()))?;
        registry.stop(daemon.sandbox())
    })
}

#[test]
fn a_dry_run_says_why_each_thing_stays_or_goes() -> TestResult {
    with_policy(json!({"retention": "drop-if-remote"}), |daemon, name, registry| {
        daemon.ok(format!("pull {name}"))?;
        let answer = daemon.http("POST", "/x/content/collect?dry-run=1", b"")?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        for expected in ["\"fate\":\"keep\"", "\"why\":"] {
            ensure!(text.contains(expected), "no {expected} in {text}");
        }
        registry.stop(daemon.sandbox())
    })
}
