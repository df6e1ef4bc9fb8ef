//! Images: pulled, pushed, saved, loaded, committed and removed, each beside its floor.
//!
//! The images are made up: text of a few thousand words in files of many sizes, in layers as a
//! distribution, a runtime and a program would be. Everything lies in memory, on a file system made
//! for the purpose, so that the disk of the machine says nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::bufread::MultiGzDecoder;
use gantry_test_harness::{Registry, RegistrySetup, Sandbox, Setup, TestDaemon, requires};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::floor::time;
use crate::table::{Row, Samples};

/// An image to measure with.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    /// Files in each layer, base first.
    layers: &'static [usize],
    /// Mean bytes of a file.
    mean: usize,
}

/// About 50 MB packed, 146 MB unpacked, 7 000 entries.
const MEDIUM: Shape = Shape { name: "medium", layers: &[4000, 2000, 800, 60], mean: 20_800 };
/// About 340 MB packed, 864 MB unpacked, 53 000 entries.
const LARGE: Shape =
    Shape { name: "large", layers: &[20_000, 14_000, 9_000, 6_000, 3_000, 400], mean: 16_400 };

/// All rows; `rounds` of each measurement.
///
/// # Errors
///
/// If a tool is missing or something fails.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    for program in ["docker-registry", "skopeo", "umoci"] {
        ensure!(requires::has_program(program), "{program} is not installed");
    }
    let mut rows = Vec::new();
    for shape in [MEDIUM, LARGE] {
        rows.extend(of_image(&shape, rounds)?);
    }
    Ok(rows)
}

fn of_image(shape: &Shape, rounds: usize) -> Result<Vec<Row>> {
    let layout = layout(shape)?;
    let setup = Setup { memory: Some("4g"), ..Setup::default() };
    let mut daemon = TestDaemon::start(setup)?;
    let place = daemon.path("data/bench"); // in memory, like all of the daemon's data
    let sandbox = daemon.sandbox();
    sandbox.sh(&format!(
        "mkdir -p {0}; cp -r {1} {0}/layout",
        place.display(),
        layout.display()
    ))?;
    let registry = RegistrySetup { root: Some(place.join("registry")), ..Default::default() };
    let registry = Registry::start(sandbox, &daemon.path(""), &registry)?;
    let name = format!("{}/bench/{}:1", registry.address(), shape.name);
    skopeo(
        sandbox,
        &format!("copy --dest-tls-verify=false oci:{}/layout:1 docker://{name}", place.display()),
    )?;

    let mut pull = Samples::default();
    let (mut floor, mut peer) = (Samples::default(), Samples::default());
    let (mut remove, mut save, mut load) =
        (Samples::default(), Samples::default(), Samples::default());
    let (mut push, mut push_peer, mut copy) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut peak: f64 = 0.0;
    for _ in 0..rounds {
        floor.push(unpack_floor(&daemon, &place)?);
        peer.push(peer_pull(&daemon, &name, &place)?);
        reset_peak(&daemon)?;
        let started = Instant::now();
        daemon.ok(format!("pull --quiet {name}"))?;
        pull.push(started.elapsed());
        peak = peak.max(peak_memory(&daemon)?);

        let elsewhere = format!("127.0.0.1:5001/{}:1", shape.name);
        daemon.ok(format!("tag {name} {elsewhere}"))?;
        push.push(to_empty(&daemon, &place, || {
            let started = Instant::now();
            daemon.ok(format!("push --quiet {elsewhere}"))?;
            Ok(started.elapsed())
        })?);
        push_peer.push(to_empty(&daemon, &place, || {
            time(daemon.sandbox().command("skopeo").args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                &format!("oci:{}/layout:1", place.display()),
                &format!("docker://{elsewhere}"),
            ]))
        })?);
        daemon.ok(format!("rmi {elsewhere}"))?;

        let archive = place.join("saved.tar");
        let started = Instant::now();
        daemon.ok(format!("save --output {} {name}", inside(&daemon, &archive)?))?;
        save.push(started.elapsed());
        copy.push(time(
            daemon
                .sandbox()
                .command("sh")
                .args(["-c", &format!("cat {0} | cat > {0}.copy; rm {0}.copy", archive.display())]),
        )?);

        let started = Instant::now();
        let answer = daemon.http("DELETE", &format!("/images/{name}?force=1"), b"")?;
        remove.push(started.elapsed());
        ensure!(answer.status == 200, "{}", answer.text());
        settle(&daemon)?;

        let started = Instant::now();
        daemon.ok(format!("load --quiet --input {}", inside(&daemon, &archive)?))?;
        load.push(started.elapsed());
        daemon.ok(format!("rmi --force {name}"))?;
        settle(&daemon)?;
        daemon.sandbox().sh(&format!("rm -rf {}", archive.display()))?;
    }
    registry.stop(daemon.sandbox())?;
    daemon.sandbox().sh(&format!("rm -rf {}", place.display()))?;
    daemon.finish()?;

    let is_large = shape.name == LARGE.name;
    let least = floor.median();
    let what = |verb: &str| format!("{verb} of the {} image", shape.name);
    let floor_is = "hash, inflate, hash, write on one core";
    let mut rows = vec![
        Row::times(&what("pull"), pull, floor.clone(), floor_is, 1.3 * least),
        Row::step("skopeo copy + umoci unpack", peer),
        Row::memory("  daemon's peak while it pulls", peak, 0.0, "nothing", 64.0),
        Row::times(
            &what("push"),
            push,
            push_peer,
            "skopeo copy",
            if is_large { 3000.0 } else { 1000.0 },
        ),
        Row::times(&what("save"), save, copy, "cat | cat", if is_large { 2000.0 } else { 500.0 }),
        Row::times(&what("load"), load, floor, floor_is, 1.3 * least),
        Row::times(&what("rmi"), remove, Samples::default(), "nothing", 50.0),
    ];
    if is_large {
        rows.push(commit(rounds.max(10))?);
    }
    Ok(rows)
}

/// The same path, as the docker CLI outside the daemon's mount namespace sees it.
fn inside(daemon: &TestDaemon, path: &Path) -> Result<String> {
    let init = daemon.sandbox().init();
    let path = path.to_str().context("not UTF-8")?;
    Ok(format!("/proc/{init}/root{path}"))
}

fn skopeo(sandbox: &Sandbox, line: &str) -> Result<String> {
    sandbox.sh(&format!("skopeo --insecure-policy {line}"))
}

/// Waits until nothing is being removed any more.
fn settle(daemon: &TestDaemon) -> Result<()> {
    gantry_test_harness::wait_until("removed images are gone", 30, || {
        let left = daemon.sandbox().sh(&format!(
            "ls {0}/storage/*/t {0}/storage/*/l 2>/dev/null | grep -v : | wc -w",
            daemon.path("data").display()
        ))?;
        Ok(left.trim() == "0")
    })
}

/// Runs `push` beside a registry on port 5001 that has nothing.
fn to_empty(
    daemon: &TestDaemon,
    place: &Path,
    push: impl FnOnce() -> Result<Duration>,
) -> Result<Duration> {
    let root = place.join("empty");
    let setup = RegistrySetup { port: 5001, root: Some(root.clone()), ..Default::default() };
    let registry = Registry::start(daemon.sandbox(), &daemon.path(""), &setup)?;
    let took = push()?;
    registry.stop(daemon.sandbox())?;
    daemon.sandbox().sh(&format!("rm -rf {}", root.display()))?;
    Ok(took)
}

/// The least that has to be done with every layer, one after the other: the packed bytes hashed,
/// inflated, hashed again and written.
fn unpack_floor(daemon: &TestDaemon, place: &Path) -> Result<Duration> {
    let root = PathBuf::from(format!("/proc/{}/root", daemon.sandbox().init()));
    let at = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let layout = at(&place.join("layout"));
    let layers = layers_of(&layout)?;
    let target = at(&place.join("floor"));
    let started = Instant::now();
    for layer in layers {
        let packed = std::fs::read(layer)?;
        std::hint::black_box(Sha256::digest(&packed));
        let out = File::create(&target)?;
        let (mut inflater, mut hash) = (MultiGzDecoder::new(&packed[..]), Sha256::new());
        let (mut buffer, mut offset) = (vec![0; 1 << 20], 0);
        loop {
            let n = inflater.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            out.write_all_at(&buffer[..n], offset)?;
            offset += n as u64;
        }
        std::hint::black_box(hash.finalize());
    }
    let took = started.elapsed();
    std::fs::remove_file(&target)?;
    Ok(took)
}

/// What a pull is with tools that do one thing after the other.
fn peer_pull(daemon: &TestDaemon, name: &str, place: &Path) -> Result<Duration> {
    let place = place.display();
    let script = format!(
        "set -e; skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://{name} \
         oci:{place}/peer:1 >/dev/null; umoci raw unpack --image {place}/peer:1 {place}/peer-tree \
         >/dev/null 2>&1"
    );
    let took = time(daemon.sandbox().command("sh").args(["-c", &script]))?;
    daemon.sandbox().sh(&format!("rm -rf {place}/peer {place}/peer-tree"))?;
    Ok(took)
}

/// Source: proc_pid_clear_refs(5), value 5.
fn reset_peak(daemon: &TestDaemon) -> Result<()> {
    Ok(std::fs::write(format!("/proc/{}/clear_refs", daemon.pid()?), "5")?)
}

/// MiB.
fn peak_memory(daemon: &TestDaemon) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()?))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
    Ok(kib / 1024.0)
}

/// A container that wrote 1 MB becomes an image.
fn commit(rounds: usize) -> Result<Row> {
    let mut daemon = TestDaemon::start(Setup { memory: Some("1g"), ..Setup::default() })?;
    daemon.load_busybox()?;
    daemon.ok(
        "run --name writer --network none busybox dd if=/dev/urandom of=/written bs=1M count=1",
    )?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for round in 0..rounds {
        let path = format!("/commit?container=writer&repo=committed&tag={round}");
        let started = Instant::now();
        let answer = daemon.http("POST", &path, b"{}")?;
        ours.push(started.elapsed());
        ensure!(answer.status == 201, "{}", answer.text());
        let started = Instant::now();
        let file = daemon.path("floor");
        let bytes = vec![7u8; 1 << 20];
        std::hint::black_box(Sha256::digest(&bytes));
        let mut out = File::create(&file)?;
        out.write_all(&bytes)?;
        out.sync_all()?;
        floor.push(started.elapsed());
    }
    daemon.ok("rm writer")?;
    daemon.finish()?;
    Ok(Row::times("commit of 1 MB", ours, floor, "hash, write and sync 1 MB", 10.0))
}

/// The layer blobs of an OCI layout, base first.
fn layers_of(layout: &Path) -> Result<Vec<PathBuf>> {
    let read = |digest: &Value| -> Result<PathBuf> {
        let digest = digest.as_str().context("no digest")?;
        Ok(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")))
    };
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    let manifest = std::fs::read(read(&index["manifests"][0]["digest"])?)?;
    let manifest: Value = serde_json::from_slice(&manifest)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    layers.iter().map(|layer| read(&layer["digest"])).collect()
}

/// The image as an OCI layout; made once and kept.
fn layout(shape: &Shape) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("no HOME")?;
    let place = PathBuf::from(home).join(".cache/gantry/fixtures/bench-2").join(shape.name);
    if place.join("index.json").exists() {
        return Ok(place);
    }
    eprintln!("Making the {} image, once.", shape.name);
    let blobs = place.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (n, files) in shape.layers.iter().enumerate() {
        let partial = blobs.join("partial");
        let (digest, size, diff_id) = write_layer(&partial, n, *files, shape.mean)?;
        std::fs::rename(&partial, blobs.join(&digest))?;
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": format!("sha256:{digest}"), "size": size,
        }));
        diff_ids.push(format!("sha256:{diff_id}"));
    }
    let put = |kind: &str, value: Value| -> Result<Value> {
        let bytes = value.to_string();
        let digest = hex::encode(Sha256::digest(&bytes));
        std::fs::write(blobs.join(&digest), &bytes)?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let config = put(
        "application/vnd.oci.image.config.v1+json",
        json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux", "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }),
    )?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers,
    });
    let mut manifest = put(kind, manifest)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    std::fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(place.join("index.json"), index.to_string())?;
    Ok(place)
}

/// Writes one layer; digest, size and diff id.
fn write_layer(
    path: &Path,
    seed: usize,
    files: usize,
    mean: usize,
) -> Result<(String, u64, String)> {
    let mut tar = tar::Builder::new(Hashed::new(flate2::write::GzEncoder::new(
        Hashed::new(std::io::BufWriter::new(File::create(path)?)),
        flate2::Compression::new(6),
    )));
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1));
    let words: Vec<Vec<u8>> = (0..4096).map(|_| random.word()).collect();
    let mut content = Vec::new();
    let header = |kind, size: usize, mode| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header
    };
    for n in 0..files {
        if n % 40 == 0 {
            let mut directory = header(tar::EntryType::Directory, 0, 0o755);
            let name = format!("layer-{seed}/dir-{}/", n / 40);
            if n == 0 {
                let mut top = header(tar::EntryType::Directory, 0, 0o755);
                tar.append_data(&mut top, format!("layer-{seed}/"), std::io::empty())?;
            }
            tar.append_data(&mut directory, name, std::io::empty())?;
        }
        // Many small files and a few large ones, with the wanted mean.
        let size = match random.next() % 16 {
            0 => mean * 8,
            1..4 => mean * 2,
            _ => (random.next() as usize % (mean / 4)).max(1),
        };
        content.clear();
        while content.len() < size {
            if random.next().is_multiple_of(3) {
                content.extend_from_slice(&random.next().to_le_bytes());
            } else {
                content.extend_from_slice(&words[random.next() as usize % words.len()]);
            }
        }
        content.truncate(size);
        let mut file = header(tar::EntryType::Regular, size, 0o644);
        tar.append_data(&mut file, format!("layer-{seed}/dir-{}/file-{n}", n / 40), &content[..])?;
    }
    let outer = tar.into_inner()?;
    let diff_id = hex::encode(outer.hash.finalize());
    let inner = outer.inner.finish()?;
    let (digest, size) = (hex::encode(inner.hash.finalize()), inner.bytes);
    inner.inner.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    Ok((digest, size, diff_id))
}

/// Hashes and counts what is written through it.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// The same numbers each time. Source: the xorshift64 generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn word(&mut self) -> Vec<u8> {
        let length = 3 + self.next() as usize % 12;
        (0..length).map(|_| b'a' + (self.next() % 26) as u8).chain([b' ']).collect()
    }
}
