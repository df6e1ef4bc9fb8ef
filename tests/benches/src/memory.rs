//! Memory, as proportional set size: shared pages count for each user by its share.

use anyhow::{Context, Result, ensure};
use gantry_test_harness::TestDaemon;

use crate::table::Row;
use crate::{create, post};

/// Proportional set size of a process in MiB; `proc` is where its namespace's `/proc` is seen.
/// Source: proc_pid_smaps(5).
fn pss(proc: &str, pid: u32) -> Result<f64> {
    let path = format!("{proc}/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find(|l| l.starts_with("Pss:")).context("no Pss")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
    Ok(kib / 1024.0)
}

/// The daemon after its first requests.
pub(crate) fn idle(daemon: &TestDaemon) -> Result<Row> {
    let ours = pss("/proc", daemon.pid()?)?;
    Ok(Row::memory("idle daemon", ours, pss("/proc", std::process::id())?, "this program", 20.0))
}

/// The mean shim of `count` running containers, beside the mean process it looks after.
pub(crate) fn shims(daemon: &TestDaemon, count: usize) -> Result<Row> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let id = create(daemon, "none", &["sleep", "3600"])?;
        post(daemon, &format!("/containers/{id}/start"), b"", 204)?;
        ids.push(id);
    }
    let proc = format!("/proc/{}/root/proc", daemon.sandbox().init());
    let mean = |part: &str| -> Result<f64> {
        let mut sizes = Vec::new();
        for (pid, line) in daemon.sandbox().processes()? {
            if line.contains(part) {
                sizes.push(pss(&proc, pid)?);
            }
        }
        ensure!(sizes.len() == count, "{} processes called {part}, not {count}", sizes.len());
        Ok(sizes.iter().sum::<f64>() / count as f64)
    };
    let (shims, programs) = (mean("gantry-shim")?, mean("sleep 3600")?);
    for id in ids {
        let removed = daemon.http("DELETE", &format!("/containers/{id}?force=1"), b"")?;
        ensure!(removed.status == 204, "cannot remove: {}", removed.text());
    }
    Ok(Row::memory("shim of a running container", shims, programs, "the container's sleep", 0.6))
}
