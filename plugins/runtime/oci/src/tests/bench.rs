//! How long a start takes, and what a shim weighs. Run with `--ignored --nocapture`.

use super::fixture::{Fixture, can_run, within};
use gantry_sdk::Ctx;
use gantry_sdk::kinds::runtime::{Runtime, Stdio};
use std::time::Instant;

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
        let launch = fixture.launch(&id, &fixture.spec(&id, &["true"]), Stdio::default());
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
