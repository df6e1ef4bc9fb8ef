//! `docker pull` from registries that stall, cut, lie, forget and attack.

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_test_harness::fault_registry::digest;
use gantry_test_harness::fixtures::{self, Compression, Fixture, Layer};
use gantry_test_harness::{
    Fault, FaultRegistry, Setup, TestDaemon, TestResult, daemon_test, daemon_test_with, requires,
    wait_until,
};
use serde_json::{Value, json};

/// What the tests' image is called, below the registry's address.
const NAME: &str = "team/app";

/// An image of one layer in a registry.
struct Served {
    /// As the CLI takes it.
    name: String,
    manifest: Value,
    /// The layer's digest and size.
    layer: String,
    size: usize,
}

/// Has the busybox image as tag `1`.
fn served(registry: &FaultRegistry) -> Result<Served> {
    let archive = std::fs::read(fixtures::archive(Fixture::BusyboxGzip)?)?;
    let manifest = registry.put_archive("1", &archive)?;
    let layer = manifest["layers"][0]["digest"].as_str().context("no layer")?.to_owned();
    let size = manifest["layers"][0]["size"].as_u64().context("no size")?.try_into()?;
    Ok(Served { name: format!("{}/{NAME}:1", registry.address()), manifest, layer, size })
}

/// A test with a registry that asks for tokens.
fn with_registry(
    body: impl FnOnce(&mut TestDaemon, &FaultRegistry, &Served) -> TestResult,
) -> TestResult {
    daemon_test(|daemon| {
        let registry = FaultRegistry::start(daemon.sandbox(), 5000, true)?;
        let served = served(&registry)?;
        body(daemon, &registry, &served)
    })
}

/// Pulls, and runs what was pulled.
fn pulls(daemon: &TestDaemon, name: &str) -> TestResult {
    let said = daemon.ok(format!("pull {name}"))?;
    ensure!(said.contains("Status: Downloaded newer image"), "{said}");
    ensure!(daemon.ok(format!("run --rm {name} echo it runs"))? == "it runs", "it does not run");
    Ok(())
}

/// Tries to pull, which must fail soon, with a reason, and leave no image. Returns the reason.
fn refuses(daemon: &TestDaemon, name: &str) -> Result<String> {
    let begun = Instant::now();
    let said = daemon.fails(format!("pull {name}"))?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "only after {:?}: {said}", begun.elapsed());
    let listed = daemon.ok("images --all --quiet")?;
    ensure!(listed.is_empty(), "{said}, but there is an image: {listed}");
    Ok(said)
}

/// Where the requests for an object began.
fn ranges(registry: &FaultRegistry, name: &str) -> Vec<Option<u64>> {
    registry.asked(name).iter().map(|asked| asked.range).collect()
}

#[test]
fn a_blob_that_stalls_for_a_while_comes_in_one_request() -> TestResult {
    with_registry(|daemon, registry, image| {
        registry.fault(&image.layer, Fault::Stall(image.size / 2, Duration::from_secs(2)));
        let begun = Instant::now();
        pulls(daemon, &image.name)?;
        assert!(begun.elapsed() >= Duration::from_secs(2));
        assert_eq!(registry.asked(&image.layer).len(), 1);
        Ok(())
    })
}

#[test]
fn a_blob_that_stalls_for_ever_is_asked_for_again_from_there() -> TestResult {
    with_registry(|daemon, registry, image| {
        let half = image.size / 2;
        registry.fault(&image.layer, Fault::Stall(half, Duration::from_secs(50)));
        let begun = Instant::now();
        pulls(daemon, &image.name)?;
        assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
        assert_eq!(ranges(registry, &image.layer), [None, Some(half as u64)]);
        Ok(())
    })
}

#[test]
fn a_cut_at_99_percent_is_resumed_by_range() -> TestResult {
    with_registry(|daemon, registry, image| {
        let cut = image.size - image.size / 100;
        registry.fault(&image.layer, Fault::Cut(cut));
        pulls(daemon, &image.name)?;
        assert_eq!(ranges(registry, &image.layer), [None, Some(cut as u64)]);
        Ok(())
    })
}

#[test]
fn a_registry_without_ranges_is_heard_from_the_start() -> TestResult {
    with_registry(|daemon, registry, image| {
        registry.fault(&image.layer, Fault::Cut(image.size / 2));
        registry.fault(&image.layer, Fault::NoRange);
        pulls(daemon, &image.name)?;
        assert_eq!(ranges(registry, &image.layer)[1], Some((image.size / 2) as u64));
        Ok(())
    })
}

#[test]
fn wrong_bytes_are_never_seen() -> TestResult {
    with_registry(|daemon, registry, image| {
        for _ in 0..20 {
            registry.fault(&image.layer, Fault::Flip(image.size / 2));
        }
        let said = refuses(daemon, &image.name)?;
        assert!(said.contains("digest") || said.contains("verif"), "{said}");
        let blob = image.layer.replace(':', "/");
        assert!(!daemon.path(&format!("data/blobs/{blob}")).exists(), "the lie was kept");
        let partial = std::fs::read_dir(daemon.path("data/blobs/ingest"))?.count();
        assert_eq!(partial, 0, "bytes that cannot be of use were kept");
        Ok(())
    })
}

#[test]
fn a_registry_that_is_busy_is_given_the_time_it_asks_for() -> TestResult {
    with_registry(|daemon, registry, image| {
        let busy = || Fault::Status("429 Too Many Requests", "Retry-After: 1\r\n");
        registry.fault("1", busy());
        registry.fault(&image.layer, busy());
        pulls(daemon, &image.name)?;
        let asked = registry.asked(&image.layer);
        assert_eq!(asked.len(), 2);
        let waited = asked[1].at - asked[0].at;
        assert!(waited >= Duration::from_millis(950), "only {waited:?}");
        Ok(())
    })
}

#[test]
fn a_token_that_expires_in_the_middle_is_replaced() -> TestResult {
    with_registry(|daemon, registry, image| {
        registry.fault(&image.layer, Fault::Cut(image.size / 2));
        registry.fault(&image.layer, Fault::Expire);
        pulls(daemon, &image.name)?;
        let asked = registry.asked(&image.layer);
        let half = Some((image.size / 2) as u64);
        let seen: Vec<_> = asked.iter().map(|asked| asked.range).collect();
        assert_eq!(seen, [None, half, half]);
        assert_ne!(asked[1].authorization, asked[2].authorization);
        Ok(())
    })
}

#[test]
fn another_origin_is_not_told_who_asks() -> TestResult {
    with_registry(|daemon, registry, image| {
        let other = FaultRegistry::start(daemon.sandbox(), 5001, false)?;
        served(&other)?;
        registry.fault(&image.layer, Fault::Redirect(other.address()));
        pulls(daemon, &image.name)?;
        let asked = other.all_asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!(asked[0].authorization, None);
        let here = registry.asked(&image.layer);
        assert!(here[0].authorization.is_some(), "{here:?}");
        Ok(())
    })
}

#[test]
fn a_redirect_without_end_is_not_followed() -> TestResult {
    with_registry(|daemon, registry, image| {
        for _ in 0..100 {
            registry.fault(&image.layer, Fault::Redirect(registry.address()));
        }
        let said = refuses(daemon, &image.name)?;
        assert!(said.contains("redirect"), "{said}");
        Ok(())
    })
}

#[test]
fn a_manifest_that_is_not_what_its_digest_says_is_refused() -> TestResult {
    with_registry(|daemon, registry, image| {
        let manifest = image.manifest.to_string().into_bytes();
        let lie = format!("sha256:{}", "1".repeat(64));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        registry.put_as(&lie, kind, &manifest);
        let said = refuses(daemon, &format!("{}/{NAME}@{lie}", registry.address()))?;
        assert!(said.contains("digest") || said.contains("verif"), "{said}");
        // The same lie within an index.
        registry.put_index(
            "2",
            &[json!({
                "mediaType": kind, "digest": lie, "size": manifest.len(),
                "platform": {"os": "linux", "architecture": fixtures::architecture()},
            })],
        );
        let said = refuses(daemon, &format!("{}/{NAME}:2", registry.address()))?;
        assert!(said.contains("digest") || said.contains("verif"), "{said}");
        Ok(())
    })
}

#[test]
fn sizes_that_are_not_true_are_refused() -> TestResult {
    with_registry(|daemon, registry, image| {
        for wrong in [-1, i64::MAX] {
            let mut layer = image.manifest["layers"][0].clone();
            layer["size"] = json!(wrong);
            registry.put_manifest("absurd", &image.manifest["config"], &[layer]);
            let said = refuses(daemon, &format!("{}/{NAME}:absurd", registry.address()))?;
            assert!(said.contains("bytes"), "{wrong}: {said}");
        }
        // What was true of it is still there to be used.
        pulls(daemon, &image.name)
    })
}

#[test]
fn an_index_that_contains_itself_has_an_end() -> TestResult {
    with_registry(|daemon, registry, _| {
        let own = format!("sha256:{}", "2".repeat(64));
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({
            "schemaVersion": 2, "mediaType": kind,
            "manifests": [{"mediaType": kind, "digest": own, "size": 300}],
        });
        // Nobody can make one that is true; the lie is found before the loop.
        registry.put_as(&own, kind, index.to_string().as_bytes());
        registry.put_as("loop", kind, index.to_string().as_bytes());
        refuses(daemon, &format!("{}/{NAME}:loop", registry.address()))?;
        // Indexes in indexes, all of them true, deeper than anybody needs.
        let mut inner = registry.put_index("deep", &[]);
        for _ in 0..100 {
            inner = registry.put_index("deep", &[inner]);
        }
        refuses(daemon, &format!("{}/{NAME}:deep", registry.address()))?;
        assert!(registry.all_asked().len() < 60, "{}", registry.all_asked().len());
        Ok(())
    })
}

#[test]
fn manifests_have_bounds() -> TestResult {
    with_registry(|daemon, registry, image| {
        let address = registry.address();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut large = image.manifest.clone();
        large["annotations"] = json!({"x": "y".repeat(5 << 20)});
        registry.put_as("large", kind, large.to_string().as_bytes());
        let said = refuses(daemon, &format!("{address}/{NAME}:large"))?;
        assert!(said.contains("bytes") || said.contains("larger"), "{said}");

        let many = vec![image.manifest["layers"][0].clone(); 1000];
        registry.put_manifest("many", &image.manifest["config"], &many);
        let said = refuses(daemon, &format!("{address}/{NAME}:many"))?;
        assert!(said.contains("layers"), "{said}");

        for (tag, text) in [("empty", "{}"), ("list", "[]"), ("text", "<html>"), ("none", "")] {
            registry.put_as(tag, kind, text.as_bytes());
            refuses(daemon, &format!("{address}/{NAME}:{tag}"))?;
        }
        // Nesting that would overflow a careless parser's stack.
        registry.put_as("nested", kind, "[".repeat(1 << 20).as_bytes());
        refuses(daemon, &format!("{address}/{NAME}:nested"))?;
        Ok(())
    })
}

#[test]
fn a_configuration_must_be_about_these_layers() -> TestResult {
    with_registry(|daemon, registry, image| {
        let layers = [image.manifest["layers"][0].clone()];
        let other = digest(b"another layer");
        let cases: [(&str, Vec<String>); 3] = [
            ("other", vec![other.clone()]),
            ("none", vec![]),
            ("more", vec![other.clone(), other]),
        ];
        for (tag, diff_ids) in cases {
            let config = registry.put_config(&diff_ids);
            registry.put_manifest(tag, &config, &layers);
            let said = refuses(daemon, &format!("{}/{NAME}:{tag}", registry.address()))?;
            assert!(!said.contains("internal"), "{tag}: {said}");
        }
        Ok(())
    })
}

/// Has an image of the busybox layer and `above` it as `tag`; returns its name.
fn with_layer(
    registry: &FaultRegistry,
    image: &Served,
    tag: &str,
    kind: Compression,
    (compressed, diff_id): (&[u8], &str),
    busybox_id: &str,
) -> String {
    let above = registry.put(kind.media_type(), compressed);
    let config = registry.put_config(&[busybox_id.to_owned(), diff_id.to_owned()]);
    registry.put_manifest(tag, &config, &[image.manifest["layers"][0].clone(), above]);
    format!("{}/{NAME}:{tag}", registry.address())
}

/// The id of the busybox layer: what the image's configuration says.
fn busybox_id(daemon: &TestDaemon, image: &Served) -> Result<String> {
    daemon.ok(format!("pull {}", image.name))?;
    let inspected = daemon.get(&format!("/images/{}/json", image.name))?;
    daemon.ok(format!("rmi {}", image.name))?;
    let id = inspected["RootFS"]["Layers"][0].as_str().context("no layer")?;
    Ok(id.to_owned())
}

/// Bytes in use on the file system of the data root.
fn used(daemon: &TestDaemon) -> Result<u64> {
    let data = daemon.path("data");
    let line = format!("stat --file-system --format '%b %f %S' {}", data.display());
    let numbers = daemon.sandbox().sh(&line)?;
    let numbers: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    Ok((numbers[0] - numbers[1]) * numbers[2])
}

#[test]
fn a_bomb_fills_no_disk() -> TestResult {
    requires!("gzip", "zstd");
    // A GiB of nothing, where there is a quarter of the room.
    let setup = Setup { memory: Some("256m"), ..Setup::default() };
    daemon_test_with(setup, |daemon| {
        let registry = FaultRegistry::start(daemon.sandbox(), 5000, true)?;
        let image = served(&registry)?;
        let below = busybox_id(daemon, &image)?;
        let before = used(daemon)?;
        let mut header = tar::Header::new_gnu();
        header.set_path("zeros")?;
        header.set_size(1 << 30);
        header.set_mode(0o644);
        header.set_cksum();
        let head = daemon.path("tmp/../bomb.head");
        std::fs::File::create(&head)?.write_all(header.as_bytes())?;
        for (kind, program) in [(Compression::Gzip, "gzip -1"), (Compression::Zstd, "zstd -1 -q")] {
            let out = daemon.path("bomb");
            daemon.sandbox().sh(&format!(
                "{{ cat {}; head -c {} /dev/zero | tr '\\0' a; }} | {program} > {}",
                head.display(),
                (1 << 30) + 1024,
                out.display()
            ))?;
            let bomb = std::fs::read(&out)?;
            let tag = program.split(' ').next().unwrap_or_default();
            let lie = digest(b"nobody gets that far");
            let name = with_layer(&registry, &image, tag, kind, (&bomb, &lie), &below);
            let said = refuses(daemon, &name)?;
            assert!(
                ["space", "times", "bomb", "large"].iter().any(|word| said.contains(word)),
                "{tag}: {said}"
            );
            wait_until("the room is free again", 10, || Ok(used(daemon)? < before + (8 << 20)))?;
        }
        pulls(daemon, &image.name)
    })
}

#[test]
fn a_layer_cannot_reach_outside() -> TestResult {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let host = std::fs::read("/etc/passwd")?;
    with_registry(|daemon, registry, image| {
        let below = busybox_id(daemon, image)?;
        let mark = daemon.path("gantry-was-here");
        let marked = mark.display().to_string();
        let secret = daemon.path("secret");
        std::fs::write(&secret, "of the host")?;
        let secret = secret.display().to_string();
        let up = "../".repeat(12);
        let in_directory = format!("way/{}", "gantry-was-here");
        let test_directory = daemon.path("").display().to_string();
        type Entry<'a> = (tar::EntryType, String, String, &'a [u8]);
        let entry = |kind, path: &str, target: &str, bytes: &'static [u8]| -> Entry<'_> {
            (kind, path.to_owned(), target.to_owned(), bytes)
        };
        let cases: [(&str, Vec<Entry<'_>>); 6] = [
            (
                "dots",
                vec![
                    entry(Regular, &format!("{up}etc/passwd"), "", b"owned"),
                    entry(Regular, &format!("{up}{}", &marked[1..]), "", b"owned"),
                ],
            ),
            ("absolute", vec![entry(Regular, &marked, "", b"owned")]),
            (
                "symlink",
                vec![
                    entry(Symlink, "way", &test_directory, b""),
                    entry(Regular, &in_directory, "", b"owned"),
                ],
            ),
            (
                "swap",
                vec![
                    entry(Directory, "way/", "", b""),
                    entry(Symlink, "way", &test_directory, b""),
                    entry(Regular, &in_directory, "", b"owned"),
                ],
            ),
            ("hardlink", vec![entry(Link, "stolen", &secret, b"")]),
            ("hardlink-up", vec![entry(Link, "stolen", &format!("{up}{}", &secret[1..]), b"")]),
        ];
        for (tag, entries) in cases {
            let mut layer = Layer::default();
            for (kind, path, target, content) in entries {
                layer.hostile(kind, &path, &target, content)?;
            }
            let tar = layer.into_bytes()?;
            let (gzip, id) = (Compression::Gzip.compress(&tar)?, digest(&tar));
            let name = with_layer(registry, image, tag, Compression::Gzip, (&gzip, &id), &below);
            let pulled = daemon.docker(format!("pull {name}"))?;
            if pulled.status == 0 {
                // Then all of it is inside.
                let seen = daemon.docker(format!("run --rm {name} cat /stolen"))?;
                assert!(!seen.stdout.contains("of the host"), "{tag}: {seen}");
                assert_eq!(daemon.ok(format!("run --rm {name} echo in"))?, "in", "{tag}");
                daemon.ok(format!("rmi {name}"))?;
            } else {
                assert!(pulled.stderr.len() > 20, "{tag}: no reason: {pulled}");
            }
            assert!(!mark.exists(), "{tag}: a layer wrote to the host");
            assert_eq!(std::fs::read("/etc/passwd")?, host, "{tag}");
        }
        Ok(())
    })
}

#[test]
fn a_daemon_killed_in_the_middle_of_a_blob_goes_on_from_there() -> TestResult {
    with_registry(|daemon, registry, image| {
        // Large enough for several writes.
        let below = busybox_id(daemon, image)?;
        let mut noise = vec![0; 8 << 20];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
        let mut tar = Layer::default();
        tar.file("noise", &noise, 0o644, 0)?;
        let tar = tar.into_bytes()?;
        let (gzip, id) = (Compression::Gzip.compress(&tar)?, digest(&tar));
        let name = with_layer(registry, image, "2", Compression::Gzip, (&gzip, &id), &below);
        let (layer, half) = (digest(&gzip), gzip.len() / 2);
        registry.fault(&layer, Fault::Stall(half, Duration::from_secs(20)));
        let mut pull = daemon.cli();
        pull.args(["pull", &name]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut pull = pull.spawn()?;
        wait_until("much of it is here", 10, || {
            let mut bytes = 0;
            for entry in std::fs::read_dir(daemon.path("data/blobs/ingest"))? {
                let path = entry?.path();
                let found = daemon.sandbox().sh(&format!("du -sb {}", path.display()))?;
                let size: usize = found.split_whitespace().next().context("no size")?.parse()?;
                bytes += size;
            }
            Ok(bytes >= half / 2)
        })?;
        daemon.kill9()?;
        pull.wait()?;
        daemon.start_again()?;
        pulls(daemon, &name)?;
        let asked = ranges(registry, &layer);
        assert_eq!(asked.len(), 2, "{asked:?}");
        // What the file system did not have yet is asked for again, the rest is not.
        let start = asked[1].unwrap_or_default();
        assert!(start > 0 && start <= half as u64, "{asked:?}, half is {half}");
        Ok(())
    })
}

#[test]
fn other_images_can_be_removed_while_a_pull_stalls() -> TestResult {
    with_registry(|daemon, registry, image| {
        daemon.load(Fixture::Layered)?;
        registry.fault(&image.layer, Fault::Stall(image.size / 2, Duration::from_secs(6)));
        let mut pull = daemon.cli();
        pull.args(["pull", "--quiet", &image.name]).stdout(Stdio::null()).stderr(Stdio::piped());
        let pull = pull.spawn()?;
        wait_until("the blob is asked for", 10, || Ok(!registry.asked(&image.layer).is_empty()))?;
        let begun = Instant::now();
        daemon.ok("rmi layered")?;
        daemon.ok("image prune --all --force")?;
        daemon.ok("images")?;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        let ended = pull.wait_with_output()?;
        ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(daemon.ok(format!("run --rm {} echo whole", image.name))?, "whole");
        Ok(())
    })
}
