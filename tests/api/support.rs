//! What several resources' tests need.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use gantry_test_harness::{TestDaemon, TestResult, daemon_test};
use serde_json::Value;

/// A test with the busybox image loaded.
pub(crate) fn with_busybox(body: impl FnOnce(&mut TestDaemon) -> TestResult) -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        body(daemon)
    })
}

/// Starts a container called `name` that runs until it is stopped, at once, by any signal.
pub(crate) fn sleeper(daemon: &TestDaemon, name: &str, options: &str) -> Result<String> {
    daemon.ok(format!("run --detach --name {name} {options} busybox {UNTIL_TOLD}"))
}

/// Ends with 0 at SIGTERM: the first process of a pid namespace ignores what it does not handle.
pub(crate) const UNTIL_TOLD: &str =
    "sh -c 'trap \"exit 0\" TERM; while :; do sleep 1 & wait $!; done'";

/// Fails with what there is unless `condition`.
pub(crate) fn check(condition: bool, what: &str, seen: impl std::fmt::Debug) -> TestResult {
    ensure!(condition, "{what}: {seen:?}");
    Ok(())
}

/// The strings of a JSON list.
pub(crate) fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A file of a container's cgroup, read from outside: `controller/file` on cgroup v1, `file` on v2.
pub(crate) fn cgroup_file(
    daemon: &TestDaemon,
    container: &str,
    v1: &str,
    v2: &str,
) -> Result<String> {
    let pid = daemon.inspect(container)?["State"]["Pid"].as_u64().context("no pid")?;
    let own = daemon.sandbox().sh(&format!("cat /proc/{pid}/cgroup"))?;
    let (controller, file) = v1.split_once('/').context("controller/file")?;
    let mut unified = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or("/"));
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|c| c == controller) {
            let base = PathBuf::from("/sys/fs/cgroup").join(controllers).join(path);
            return read(base.join(file));
        }
        if controllers.is_empty() {
            unified = Some(PathBuf::from("/sys/fs/cgroup").join(path).join(v2));
        }
    }
    read(unified.context("no cgroup")?)
}

/// Whether this machine has cgroup v2 only.
pub(crate) fn unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn read(path: PathBuf) -> Result<String> {
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}
