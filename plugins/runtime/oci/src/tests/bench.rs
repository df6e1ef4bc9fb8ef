//! How long a start takes, and what a shim weighs. Run with `--ignored --nocapture`.

use super::fixture::{Fixture, can_run, within};
use gantry_sdk::Ctx;
use gantry_sdk::kinds::runtime::{Runtime, Stdio};
use gantry_sdk::mounts::MountFd;
use gantry_sys::mount::Overlay;
use std::os::fd::AsFd;
use std::time::Instant;

/// A writable overlay over the fixture's root, as a storage driver makes one.
fn overlay(fixture: &Fixture, id: &str) -> MountFd {
    let open = |path: std::path::PathBuf| {
        std::fs::create_dir_all(&path).unwrap();
        std::fs::File::open(path).unwrap()
    };
    // The file systems of test machines may be overlays themselves, which cannot be upper layers.
    let base = std::path::Path::new("/dev/shm").join(fixture.dir.file_name().unwrap()).join(id);
    let lower = open(fixture.dir.join("rootfs"));
    let (upper, work) = (open(base.join("upper")), open(base.join("work")));
    let overlay = Overlay {
        lowers: vec![lower.as_fd()],
        upper: Some((upper.as_fd(), work.as_fd())),
        ..Overlay::default()
    };
    MountFd::new(overlay.mount().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn root_measures_starts() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let (mut started, mut total) = (Vec::new(), Vec::new());
    for round in 0..60 {
        let id = format!("b{round}");
        let mut launch = fixture.launch(&id, &fixture.spec(&id, &["true"]), Stdio::default());
        launch.root = overlay(&fixture, &id);
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        let begin = Instant::now();
        let container = fixture.oci.launch(&Ctx::background(), launch).await.unwrap();
        started.push(begin.elapsed());
        within(container.wait()).await.unwrap();
        container.delete().await.unwrap();
        total.push(begin.elapsed());
    }
    for (name, times) in [("started", &mut started), ("total", &mut total)] {
        times.sort();
        eprintln!(
            "{name}: least {:?}, median {:?}, p95 {:?}",
            times[0],
            times[times.len() / 2],
            times[times.len() * 95 / 100]
        );
    }
    let shared = std::path::Path::new("/dev/shm").join(fixture.dir.file_name().unwrap());
    std::fs::remove_dir_all(shared).unwrap();
    let mut weights = Vec::new();
    let mut running = Vec::new();
    for round in 0..10 {
        let id = format!("w{round}");
        let launch = fixture.launch(&id, &fixture.spec(&id, &["sleep", "60"]), Stdio::default());
        running.push(fixture.oci.launch(&Ctx::background(), launch).await.unwrap());
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    for container in &running {
        let status = std::fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
        let shim = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
        let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        weights.push(rollup.lines().find(|line| line.starts_with("Pss:")).unwrap().to_owned());
    }
    eprintln!("{weights:?}");
    for container in running {
        container.signal(9, false).await.unwrap();
        within(container.wait()).await.unwrap();
        container.delete().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn root_measures_the_log() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script = "busybox yes 'a line of a usual length, of some seventy characters or so, all told' \
        | busybox head -c 200000000";
    let path = fixture.dir.join("log");
    let mut launch =
        fixture.launch("log", &fixture.spec("log", &["sh", "-c", script]), Stdio::default());
    launch.log = gantry_sdk::kinds::logs::LogSink::JsonFile {
        path: path.clone(),
        max_size: 20_000_000,
        max_files: 3,
        compress: true,
        attrs: None,
        ring: None,
    };
    let begin = Instant::now();
    let container = fixture.oci.launch(&Ctx::background(), launch).await.unwrap();
    within(container.wait()).await.unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!("log: {:.0} MB/s of output", 200.0 / seconds);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    for entry in std::fs::read_dir(&fixture.dir).unwrap().flatten() {
        eprintln!("{:?} {}", entry.file_name(), entry.metadata().unwrap().len());
    }
    container.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn root_measures_many_at_once() {
    if !can_run() {
        return;
    }
    let fixture = std::sync::Arc::new(Fixture::new());
    let begin = Instant::now();
    let runs = fixture.oci.machine.tasks.clone();
    let mut tasks = Vec::new();
    for round in 0..50 {
        let fixture = fixture.clone();
        tasks.push(runs.spawn("run", async move {
            let id = format!("m{round}");
            let spec = fixture.spec(&id, &["sh", "-c", "echo $0; exit 3", &id]);
            let outcome = fixture.run(&id, &spec).await;
            assert_eq!((outcome.exit.code, outcome.stdout), (3, format!("{id}\n")));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    eprintln!("50 containers at once: {:?}", begin.elapsed());
}
