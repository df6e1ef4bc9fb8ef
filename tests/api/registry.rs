//! `docker pull` and `docker push` against Debian's registry.

use std::io::Read as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use gantry_test_harness::fixtures::{self, Fixture};
use gantry_test_harness::registry::{PASSWORD, USER, certificate};
use gantry_test_harness::{
    Registry, RegistrySetup, Setup, TestDaemon, TestResult, command, daemon_test, daemon_test_with,
    requires, wait_until,
};
use serde_json::{Value, json};

/// A test with an open registry at `127.0.0.1:5000`.
fn with_registry(body: impl FnOnce(&mut TestDaemon, &Registry) -> TestResult) -> TestResult {
    requires!("docker-registry", "skopeo");
    daemon_test(|daemon| {
        let registry =
            Registry::start(daemon.sandbox(), &daemon.path(""), &RegistrySetup::default())?;
        body(daemon, &registry)?;
        registry.stop(daemon.sandbox())
    })
}

/// Runs skopeo in the daemon's namespaces.
fn skopeo(daemon: &TestDaemon, line: &str) -> Result<String> {
    daemon.sandbox().sh(&format!("skopeo --insecure-policy {line}"))
}

/// Puts the image of a fixture into the registry, without any engine, and returns its digest.
fn seed(daemon: &TestDaemon, fixture: Fixture, name: &str) -> Result<String> {
    let archive = fixtures::archive(fixture)?;
    skopeo(
        daemon,
        &format!(
            "copy --dest-tls-verify=false docker-archive:{} docker://{name} >&2",
            archive.display()
        ),
    )?;
    let digest = skopeo(
        daemon,
        &format!("inspect --tls-verify=false --format '{{{{.Digest}}}}' docker://{name}"),
    )?;
    Ok(digest.trim().to_owned())
}

/// `RepoDigests` and other fields of an image.
fn image(daemon: &TestDaemon, name: &str) -> Result<Value> {
    daemon.get(&format!("/images/{name}/json"))
}

#[test]
fn an_image_is_pulled_run_pushed_and_pulled_again_by_digest() -> TestResult {
    with_registry(|daemon, registry| {
        let name = format!("{}/team/layered:1", registry.address());
        let digest = seed(daemon, Fixture::Layered, &name)?;
        let said = daemon.ok(format!("pull {name}"))?;
        for expected in [
            "1: Pulling from team/layered",
            "Pull complete",
            &format!("Digest: {digest}"),
            &format!("Status: Downloaded newer image for {name}"),
        ] {
            assert!(said.contains(expected), "no {expected:?} in {said}");
        }
        assert_eq!(daemon.ok(format!("run --rm {name} cat data/changed"))?, "from layer 3");
        let again = daemon.ok(format!("pull {name}"))?;
        assert!(again.contains(&format!("Status: Image is up to date for {name}")), "{again}");

        let other = format!("{}/other/copy:2", registry.address());
        daemon.ok(format!("tag {name} {other}"))?;
        let said = daemon.ok(format!("push {other}"))?;
        assert!(said.contains("Mounted from team/layered"), "{said}");
        assert!(said.contains(&format!("2: digest: {digest}")), "{said}");
        let raw = |name: &str| {
            skopeo(daemon, &format!("inspect --raw --tls-verify=false docker://{name}"))
        };
        assert_eq!(raw(&other)?, raw(&name)?, "not the same manifest");

        let digests = image(daemon, &name)?["RepoDigests"].clone();
        let by_digest = format!("{}/other/copy@{digest}", registry.address());
        assert!(digests.to_string().contains(&by_digest), "{digests}");
        daemon.ok(format!("rmi --force {name} {other}"))?;
        ensure!(image(daemon, &name).is_err(), "it is still here");
        daemon.ok(format!("pull {by_digest}"))?;
        assert_eq!(daemon.ok(format!("run --rm {by_digest} cat data/changed"))?, "from layer 3");
        Ok(())
    })
}

#[test]
fn what_was_loaded_is_pushed_to_an_empty_registry() -> TestResult {
    with_registry(|daemon, registry| {
        daemon.load(Fixture::BusyboxZstd)?;
        let name = format!("{}/busybox:zstd", registry.address());
        daemon.ok(format!("tag busybox:zstd {name}"))?;
        let said = daemon.ok(format!("push {name}"))?;
        assert!(said.contains("Pushed") && said.contains("zstd: digest: sha256:"), "{said}");
        let said = daemon.ok(format!("push {name}"))?;
        assert!(said.contains("Layer already exists"), "{said}");
        // Tools of others agree on what it is.
        let directory = daemon.path("copied");
        skopeo(
            daemon,
            &format!("copy --src-tls-verify=false docker://{name} dir:{} >&2", directory.display()),
        )?;
        let config =
            skopeo(daemon, &format!("inspect --config --tls-verify=false docker://{name}"))?;
        let config: Value = serde_json::from_str(&config)?;
        let here = image(daemon, "busybox:zstd")?;
        assert_eq!(config["rootfs"]["diff_ids"], here["RootFS"]["Layers"]);
        Ok(())
    })
}

#[test]
fn all_tags_are_pulled_and_pushed() -> TestResult {
    with_registry(|daemon, registry| {
        let repository = format!("{}/many", registry.address());
        for (tag, fixture) in [("a", Fixture::Busybox), ("b", Fixture::Layered)] {
            seed(daemon, fixture, &format!("{repository}:{tag}"))?;
        }
        let said = daemon.ok(format!("pull --all-tags {repository}"))?;
        assert!(said.contains("a: Pulling from many") && said.contains("b: Pulling from many"));
        let tags = daemon.ok(format!("images --format {{{{.Tag}}}} {repository}"))?;
        let mut tags: Vec<_> = tags.split_whitespace().collect();
        tags.sort_unstable();
        assert_eq!(tags, ["a", "b"]);
        for tag in ["a", "b"] {
            let copy = format!("{}/copies:{tag}", registry.address());
            daemon.ok(format!("tag {repository}:{tag} {copy}"))?;
        }
        daemon.ok(format!("push --all-tags {}/copies", registry.address()))?;
        let listed = skopeo(
            daemon,
            &format!("list-tags --tls-verify=false docker://{}/copies", registry.address()),
        )?;
        assert!(listed.contains("\"a\"") && listed.contains("\"b\""), "{listed}");
        Ok(())
    })
}

#[test]
fn what_is_not_there_is_said_clearly() -> TestResult {
    with_registry(|daemon, registry| {
        let address = registry.address();
        let name = format!("{address}/none:1");
        let answer = daemon.http("POST", &format!("/images/create?fromImage={name}"), b"")?;
        assert_eq!(answer.status, 404, "{}", answer.text());
        let said = daemon.fails(format!("pull {name}"))?;
        assert!(said.contains(&format!("manifest for {name} not found")), "{said}");
        let said = daemon.fails(format!("push {name}"))?;
        let expected = format!("An image does not exist locally with the tag: {address}/none");
        assert!(said.contains(&expected), "{said}");
        let said = daemon.fails("pull 127.0.0.1:1/x")?;
        assert!(said.contains("127.0.0.1:1"), "{said}");
        let digest = format!("sha256:{}", "0".repeat(64));
        let said = daemon.fails(format!("push {address}/x@{digest}"))?;
        assert!(said.contains("digest"), "{said}");
        seed(daemon, Fixture::Busybox, &format!("{address}/busybox:1"))?;
        let said = daemon.fails(format!("pull --platform linux/s390x {address}/busybox:1"))?;
        assert!(said.contains("does not match the specified platform"), "{said}");
        assert_eq!(daemon.ok("images --quiet")?, "");
        Ok(())
    })
}

#[test]
fn a_registry_with_tls_and_a_password() -> TestResult {
    requires!("docker-registry", "openssl", "skopeo");
    daemon_test(|daemon| {
        const ADDRESS: &str = "10.77.0.1";
        let directory = daemon.path("");
        let etc = daemon.path("etc");
        daemon.sandbox().sh(&format!("ip address add {ADDRESS}/32 dev lo"))?;
        let tls = certificate(daemon.sandbox(), &directory, "r", &format!("IP:{ADDRESS}"))?;
        let setup = RegistrySetup { auth: true, tls: Some(tls), ..RegistrySetup::default() };
        let registry = Registry::start(daemon.sandbox(), &directory, &setup)?;
        let server = format!("{ADDRESS}:5000");
        let (e, d) = (etc.display(), directory.display());
        // `/etc` with more in it, for this sandbox only.
        daemon.sandbox().sh(&format!(
            "mkdir {e}; mount -t tmpfs tmpfs {e}; mkdir -p {e}/work {e}/upper/docker/certs.d/{server}; \
             cp {d}/r.crt {e}/upper/docker/certs.d/{server}/ca.crt; \
             mount -t overlay overlay -o lowerdir=/etc,upperdir={e}/upper,workdir={e}/work /etc"
        ))?;
        let outcome = (|| {
            daemon.load(Fixture::Busybox)?;
            let name = format!("{server}/private/busybox:1");
            daemon.ok(format!("tag busybox {name}"))?;
            let said = daemon.fails(format!("push {name}"))?;
            assert!(said.contains("no basic auth credentials"), "{said}");
            daemon.ok(format!("login --username {USER} --password {PASSWORD} {server}"))?;
            daemon.ok(format!("push {name}"))?;
            daemon.ok(format!("rmi --force {name} busybox"))?;
            daemon.ok(format!("pull {name}"))?;
            assert_eq!(daemon.ok(format!("run --rm {name} echo in"))?, "in");
            daemon.ok(format!("logout {server}"))?;
            daemon.ok(format!("rmi {name}"))?;
            let said = daemon.fails(format!("pull {name}"))?;
            assert!(
                said.contains("pull access denied") || said.contains("no basic auth"),
                "{said}"
            );
            Ok(())
        })();
        daemon.sandbox().sh(&format!("umount /etc; umount {e}"))?;
        registry.stop(daemon.sandbox())?;
        daemon.sandbox().sh(&format!("ip address del {ADDRESS}/32 dev lo"))?;
        outcome
    })
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_where_it_has_nothing() -> TestResult {
    requires!("docker-registry", "skopeo");
    let rules = json!({
        "127.0.0.1:5000": {"mirrors": ["http://127.0.0.1:5001"]},
        "blocked.example": {"blocked": true},
    });
    let config = json!({"kernel-plugins": {"registry": {"config": {"registries": rules}}}});
    daemon_test_with(Setup::config(config), |daemon| {
        let directory = daemon.path("");
        let start = |port| {
            let setup = RegistrySetup { port, ..RegistrySetup::default() };
            Registry::start(daemon.sandbox(), &directory, &setup)
        };
        let (origin, mirror) = (start(5000)?, start(5001)?);
        // Only the mirror has the one, only the origin the other.
        seed(daemon, Fixture::Busybox, "127.0.0.1:5001/team/one:1")?;
        seed(daemon, Fixture::Layered, "127.0.0.1:5000/team/two:1")?;
        daemon.ok("pull 127.0.0.1:5000/team/one:1")?;
        daemon.ok("pull 127.0.0.1:5000/team/two:1")?;
        mirror.stop(daemon.sandbox())?;
        daemon.ok("rmi --force 127.0.0.1:5000/team/two:1")?;
        daemon.ok("pull 127.0.0.1:5000/team/two:1")?;
        origin.stop(daemon.sandbox())?;
        let said = daemon.fails("pull blocked.example/x")?;
        assert!(said.contains("blocked"), "{said}");
        Ok(())
    })
}

/// The id of the image that a platform's manifest of an index is for.
fn push_multi(daemon: &TestDaemon, registry: &Registry) -> Result<String> {
    // Two images that differ in what they say they run on.
    let directory = daemon.path("multi");
    let script = format!(
        "set -e; mkdir -p {d}; cd {d}; skopeo --insecure-policy copy docker-archive:{a} oci:image:x >&2; \
         cat image/index.json",
        d = directory.display(),
        a = fixtures::archive(Fixture::Busybox)?.display(),
    );
    let index: Value = serde_json::from_str(&daemon.sandbox().sh(&script)?)?;
    let blob = |digest: &str| {
        let hex = digest.trim_start_matches("sha256:");
        directory.join("image/blobs/sha256").join(hex)
    };
    let read = |value: &Value| -> Result<Value> {
        let digest = value["digest"].as_str().context("no digest")?;
        Ok(serde_json::from_slice(&std::fs::read(blob(digest))?)?)
    };
    let manifest = read(&index["manifests"][0])?;
    let config = read(&manifest["config"])?;
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let mut config = config.clone();
        config["architecture"] = json!(architecture);
        let mut manifest = manifest.clone();
        manifest["config"] =
            put_blob(&directory, &config, manifest["config"]["mediaType"].clone())?;
        let mut entry =
            put_blob(&directory, &manifest, index["manifests"][0]["mediaType"].clone())?;
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    let kind = json!("application/vnd.oci.image.index.v1+json");
    let inner = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
    let mut top = put_blob(&directory, &inner, kind.clone())?;
    top["annotations"] = json!({"org.opencontainers.image.ref.name": "multi"});
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [top]});
    std::fs::write(directory.join("image/index.json"), index.to_string())?;
    let name = format!("{}/multi:1", registry.address());
    skopeo(
        daemon,
        &format!(
            "copy --all --dest-tls-verify=false oci:{}/image:multi docker://{name} >&2",
            directory.display()
        ),
    )?;
    Ok(name)
}

/// Adds a document to the OCI layout below `directory`; returns its descriptor.
fn put_blob(directory: &std::path::Path, value: &Value, media_type: Value) -> Result<Value> {
    let bytes = value.to_string();
    let file = directory.join("image/blobs/new");
    std::fs::write(&file, &bytes)?;
    let mut sum = Command::new("sha256sum");
    sum.arg(&file);
    let printed = command::run(sum, b"", command::DEADLINE)?.success()?;
    let hex = printed.split_whitespace().next().context("no digest")?;
    std::fs::rename(&file, directory.join("image/blobs/sha256").join(hex))?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()}))
}

#[test]
fn several_platforms_of_one_name_are_kept_beside_each_other() -> TestResult {
    with_registry(|daemon, registry| {
        let name = push_multi(daemon, registry)?;
        let seen = daemon.get(&format!("/distribution/{name}/json"))?;
        assert_eq!(seen["Platforms"].as_array().map(Vec::len), Some(2), "{seen}");
        daemon.ok(format!("pull {name}"))?;
        let architecture = |platform: &str| -> Result<String> {
            let query = if platform.is_empty() {
                String::new()
            } else {
                format!("?platform=%7B%22os%22:%22linux%22,%22architecture%22:%22{platform}%22%7D")
            };
            let answer = daemon.get(&format!("/v1.49/images/{name}/json{query}"))?;
            Ok(answer["Architecture"].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(architecture("")?, "amd64");
        ensure!(architecture("arm64").is_err(), "it was not pulled");
        daemon.ok(format!("pull --platform linux/arm64 {name}"))?;
        assert_eq!(architecture("arm64")?, "arm64");
        assert_eq!(architecture("")?, "amd64", "the host's platform is still what the name means");
        let listed = daemon.get("/v1.47/images/json?manifests=1")?;
        let manifests = listed[0]["Manifests"].as_array().context("no manifests")?;
        assert_eq!(manifests.len(), 2, "{listed}");
        assert!(manifests.iter().all(|m| m["Available"] == true), "{listed}");

        // All of it is here, so all of it goes.
        let copy = format!("{}/copy:1", registry.address());
        daemon.ok(format!("tag {name} {copy}"))?;
        daemon.ok(format!("push {copy}"))?;
        let raw = |name: &str| {
            skopeo(daemon, &format!("inspect --raw --tls-verify=false docker://{name}"))
        };
        assert_eq!(raw(&copy)?, raw(&name)?);
        Ok(())
    })
}

#[test]
fn a_client_that_leaves_ends_its_pull_and_the_next_goes_on_from_there() -> TestResult {
    with_registry(|daemon, registry| {
        let name = format!("{}/debian:1", registry.address());
        seed(daemon, Fixture::Debian, &name)?;
        let mut pull = daemon.cli();
        pull.args(["pull", &name]).stdout(Stdio::piped());
        let mut pull = pull.spawn()?;
        // Its first words come before its first bytes.
        let mut first = [0; 16];
        pull.stdout.take().context("no output")?.read_exact(&mut first)?;
        pull.kill()?;
        pull.wait()?;
        let said = daemon.ok(format!("pull {name}"))?;
        assert!(said.contains("Digest: sha256:"), "{said}");
        assert_eq!(daemon.ok(format!("run --rm {name} echo whole"))?, "whole");
        Ok(())
    })
}

#[test]
fn many_pulls_of_one_image_at_once() -> TestResult {
    with_registry(|daemon, registry| {
        let name = format!("{}/debian:1", registry.address());
        seed(daemon, Fixture::Debian, &name)?;
        let mut pulls = Vec::new();
        for _ in 0..6 {
            let mut pull = daemon.cli();
            pull.args(["pull", "--quiet", &name]).stdout(Stdio::null()).stderr(Stdio::piped());
            pulls.push(pull.spawn()?);
        }
        for pull in pulls {
            let ended = pull.wait_with_output()?;
            ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        }
        assert_eq!(daemon.ok(format!("run --rm {name} echo whole"))?, "whole");
        wait_until("nothing is half fetched", 10, || {
            let left = std::fs::read_dir(daemon.path("data/blobs/ingest"))?.count();
            Ok(left == 0)
        })
    })
}

#[test]
fn a_daemon_killed_while_it_pulls_goes_on_after_its_start() -> TestResult {
    with_registry(|daemon, registry| {
        let name = format!("{}/debian:1", registry.address());
        seed(daemon, Fixture::Debian, &name)?;
        for delay in [20, 60, 120, 250] {
            let mut pull = daemon.cli();
            pull.args(["pull", "--quiet", &name]).stdout(Stdio::null()).stderr(Stdio::null());
            let mut pull = pull.spawn()?;
            std::thread::sleep(std::time::Duration::from_millis(delay));
            daemon.kill9()?;
            pull.wait()?;
            daemon.start_again()?;
        }
        daemon.ok(format!("pull {name}"))?;
        assert_eq!(daemon.ok(format!("run --rm {name} echo whole"))?, "whole");
        Ok(())
    })
}
