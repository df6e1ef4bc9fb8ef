//! What `df` says that images take is what is on disk.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use gantry_test_harness::{Setup, TestDaemon, TestResult, daemon_test_with};

/// Blocks are rounded up, and the database grows by itself.
const TOLERANCE: u64 = 192 << 10;
/// How long content may take to go in the background.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that are free on the data root's file system.
fn free(daemon: &TestDaemon) -> anyhow::Result<u64> {
    let stat = format!("stat -f -c '%f %S' {}", daemon.path("data").display());
    let text = daemon.sandbox().sh(&stat)?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next().context("stat says nothing")?.context("no number");
    Ok(next()? * next()?)
}

/// Bytes that `df` says all images take.
fn total(daemon: &TestDaemon) -> anyhow::Result<u64> {
    Ok(daemon.get("/v1.44/system/df")?["LayersSize"].as_u64().unwrap_or_default())
}

#[test]
fn what_df_says_is_what_removal_frees() -> TestResult {
    let setup = Setup { memory: Some("512m"), ..Setup::default() };
    daemon_test_with(setup, |daemon| {
        let empty = (free(daemon)?, total(daemon)?);
        assert_eq!(empty.1, 0);
        daemon.load_busybox()?;
        daemon.ok("run --name wrote busybox dd if=/dev/urandom of=/file bs=1k count=3000")?;
        daemon.ok("commit wrote made:1")?;
        // Unpacked only now.
        daemon.ok("run --rm made:1 true")?;
        daemon.ok("rm wrote")?;
        let used = empty.0 - free(daemon)?;
        assert!(used.abs_diff(total(daemon)?) < TOLERANCE, "{used} {}", total(daemon)?);

        for (image, least) in [("made:1", 6_000_000), ("busybox", 500_000)] {
            let before = (free(daemon)?, total(daemon)?);
            daemon.ok(format!("rmi {image}"))?;
            let end = Instant::now() + PATIENCE;
            loop {
                let gone = before.1 - total(daemon)?;
                let freed = free(daemon)?.saturating_sub(before.0);
                if gone > least && freed.abs_diff(gone) < TOLERANCE {
                    break;
                }
                assert!(Instant::now() < end, "{image}: {gone} gone, {freed} freed");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        assert_eq!(total(daemon)?, 0);
        Ok(())
    })
}
