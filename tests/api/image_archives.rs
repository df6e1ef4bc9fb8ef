//! `load`, `save` and `import`: images as archives.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result};
use gantry_test_harness::fixtures::{self, Fixture, Layer};
use gantry_test_harness::{TestDaemon, TestResult, daemon_test};
use serde_json::{Value, json};

use crate::support::{strings, with_busybox};

fn id(daemon: &TestDaemon, image: &str) -> Result<String> {
    daemon.ok(format!("image inspect --format '{{{{.Id}}}}' {image}"))
}

#[test]
fn every_kind_of_archive_loads_and_runs() -> TestResult {
    daemon_test(|daemon| {
        let mut ids = Vec::new();
        for (fixture, name) in [
            (Fixture::Busybox, "busybox:latest"),
            (Fixture::BusyboxOld, "busybox:old"),
            (Fixture::BusyboxGzip, "busybox:gzip"),
            (Fixture::BusyboxZstd, "busybox:zstd"),
        ] {
            let archive = fixtures::archive(fixture)?;
            let said = daemon.ok(["load", "--input", &archive.display().to_string()])?;
            assert!(said.contains(&format!("Loaded image: {name}")), "{name}: {said}");
            assert_eq!(
                daemon.ok(format!("run --rm {name} echo from {name}"))?,
                format!("from {name}")
            );
            ids.push(id(daemon, name)?);
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "the same image, however it came: {ids:?}");
        Ok(())
    })
}

#[test]
fn an_archive_comes_by_standard_input_too() -> TestResult {
    daemon_test(|daemon| {
        let archive = std::fs::read(fixtures::archive(Fixture::Busybox)?)?;
        let said = daemon.docker_with_input("load", &archive)?.success()?;
        assert!(said.contains("Loaded image: busybox:latest"), "{said}");
        let again = daemon.docker_with_input("load --quiet", &archive)?.success()?;
        assert!(again.contains("Loaded image: busybox:latest"), "{again}");
        Ok(())
    })
}

#[test]
fn layers_change_each_other_as_they_say() -> TestResult {
    daemon_test(|daemon| {
        daemon.load(Fixture::Layered)?;
        let script = "cd /data; ls; cat kept changed hidden/* becomes-a-directory/inside; \
            stat -c '%u:%g %a' owned; stat -c %a set-user-id changed; \
            stat -c %h one-name; cat other-name; readlink dangling";
        let seen = daemon.ok(["run", "--rm", "layered", "sh", "-c", script])?;
        let expected = "becomes-a-directory\nchanged\ndangling\nhidden\nkept\none-name\n\
            other-name\nowned\nset-user-id\n\
            from layer 2\nfrom layer 3\nfrom layer 3\nfrom layer 3\n\
            1000:1000 640\n4755\n600\n2\ntwo names\n/no/such/file";
        assert_eq!(seen, expected);
        Ok(())
    })
}

/// The files of a tar, by name.
fn unpack(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(name.trim_start_matches("./").to_owned(), content);
    }
    Ok(files)
}

#[test]
fn what_is_saved_loads_as_the_same_image() -> TestResult {
    daemon_test(|daemon| {
        daemon.load(Fixture::Layered)?;
        daemon.load(Fixture::BusyboxZstd)?;
        let (layered, busybox) = (id(daemon, "layered")?, id(daemon, "busybox:zstd")?);
        let file = daemon.path("tmp/../saved.tar").display().to_string();
        daemon.ok(["save", "--output", &file, "layered", "busybox:zstd"])?;

        let files = unpack(&std::fs::read(&file)?)?;
        let manifests: Value = serde_json::from_slice(files.get("manifest.json").context("none")?)?;
        assert_eq!(manifests.as_array().map(Vec::len), Some(2), "{manifests}");
        for manifest in manifests.as_array().into_iter().flatten() {
            let config = manifest["Config"].as_str().context("no Config")?;
            assert!(files.contains_key(config), "{config}");
            for layer in strings(&manifest["Layers"]) {
                assert!(files.contains_key(layer), "{layer}");
            }
        }
        assert!(files.contains_key("index.json") && files.contains_key("oci-layout"));

        daemon.ok("rmi layered busybox:zstd")?;
        assert_eq!(daemon.ok("images --quiet")?, "");
        daemon.ok(["load", "--input", &file])?;
        assert_eq!(id(daemon, "layered")?, layered);
        assert_eq!(id(daemon, "busybox:zstd")?, busybox);
        assert_eq!(daemon.ok("run --rm layered cat /data/changed")?, "from layer 3");
        std::fs::remove_file(&file)?;
        Ok(())
    })
}

#[test]
fn saving_what_is_not_there_fails() -> TestResult {
    with_busybox(|daemon| {
        let said = daemon.docker("save nosuch")?.failure()?;
        assert!(said.contains("nosuch"), "{said}");
        let answer = daemon.http("GET", "/images/nosuch/get", b"")?;
        assert_eq!(answer.status, 404, "{}", answer.text());
        Ok(())
    })
}

#[test]
fn a_tree_is_imported_with_changes() -> TestResult {
    with_busybox(|daemon| {
        let mut layer = Layer::default();
        layer.directory("bin", 0o755, 0)?;
        let busybox =
            std::fs::read("/bin/busybox").or_else(|_| std::fs::read("/usr/bin/busybox"))?;
        layer.file("bin/busybox", &busybox, 0o755, 0)?.symlink("bin/sh", "busybox")?;
        let tree = layer.into_bytes()?;
        let id = daemon
            .docker_with_input(
                [
                    "import",
                    "--change",
                    "ENV A=b",
                    "--change",
                    "CMD [\"/bin/sh\", \"-c\", \"echo $A\"]",
                    "--message",
                    "by hand",
                    "-",
                    "imported:1",
                ]
                .map(str::to_owned)
                .as_slice(),
                &tree,
            )?
            .success()?;
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(daemon.ok("run --rm imported:1")?, "b");
        let image = daemon.get("/images/imported:1/json")?;
        assert_eq!(image["Id"].as_str(), Some(id.as_str()));
        assert_eq!(image["Comment"], "by hand");
        assert_eq!(image["RootFS"]["Layers"].as_array().map(Vec::len), Some(1));
        Ok(())
    })
}

#[test]
fn archives_that_are_none_change_nothing() -> TestResult {
    with_busybox(|daemon| {
        let good = std::fs::read(fixtures::archive(Fixture::Layered)?)?;
        let escape = hostile_layer(|layer| {
            layer.symlink("escape", "/tmp")?.file("escape/gantry-was-here", b"x", 0o644, 0)?;
            Ok(())
        })?;
        let mut wrong_digest = good.clone();
        let part = b"from layer 2";
        let place = good.windows(part.len()).position(|w| w == part).context("not found")?;
        wrong_digest[place] ^= 1;
        let cases: [(&str, &[u8]); 6] = [
            ("empty", b""),
            ("not a tar", &[b'x'; 4096]),
            ("cut short", &good[..good.len() / 2]),
            ("a changed layer", &wrong_digest),
            ("no manifest", &tar_of("a", b"b")?),
            (
                "a manifest that names nothing",
                &tar_of(
                    "manifest.json",
                    br#"[{"Config":"../../etc/passwd","RepoTags":["x:y"],"Layers":["nope"]}]"#,
                )?,
            ),
        ];
        for (what, bytes) in cases {
            let answer = daemon.request(&gantry_test_harness::http::Request {
                method: "POST",
                path: "/images/load?quiet=1",
                headers: &[("Content-Type", "application/x-tar")],
                body: bytes,
            })?;
            let refused = answer.status >= 400 || answer.text().contains("errorDetail");
            assert!(refused, "{what}: {} {}", answer.status, answer.text());
            assert_eq!(daemon.ok("images --quiet")?.lines().count(), 1, "{what}");
        }
        // Resolved beneath the layer's root: written there or refused, never on the host.
        let marker = std::path::Path::new("/tmp/gantry-was-here");
        daemon.docker_with_input("load --quiet", &escape)?;
        assert!(!marker.exists(), "a layer wrote to the host");
        Ok(())
    })
}

fn tar_of(name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Layer::default();
    tar.file(name, content, 0o644, 0)?;
    tar.into_bytes()
}

fn hostile_layer(fill: impl FnOnce(&mut Layer) -> Result<()>) -> Result<Vec<u8>> {
    let mut layer = Layer::default();
    fill(&mut layer)?;
    let image = fixtures::Image {
        layers: vec![("hostile".to_owned(), layer.into_bytes()?)],
        config: json!({}),
    };
    image.archive(fixtures::ArchiveKind::Docker, "hostile:1")
}
