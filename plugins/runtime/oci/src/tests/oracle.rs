//! The same container by the built-in core, runc and crun: what it sees must be the same.

use super::fixture::{Fixture, can_run};
use std::path::Path;

/// Prints everything that a runtime decides about, one fact a line.
const PROBE: &str = r#"
busybox grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|NSpid)' /proc/self/status
busybox awk '{print $5, $6, $(NF-2)}' /proc/self/mountinfo | busybox sort
for f in memory/memory.limit_in_bytes pids/pids.max cpu/cpu.shares devices/devices.list; do cat /sys/fs/cgroup/$f; done
busybox sort /proc/self/cgroup
busybox ls /proc/self/fd | busybox wc -l
cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced
ulimit -a
busybox ls -l /dev | busybox awk '{print $1, $3, $4, $5, $6, $NF}' | busybox grep -v total
busybox hostname; umask; pwd; env; cat /proc/self/oom_score_adj
busybox mount -t tmpfs x /tmp; echo mount $?
busybox unshare -m true; echo unshare $?
busybox mknod /tmp/disk b 8 0; busybox dd if=/tmp/disk of=/dev/null count=1 2>/dev/null; echo disk $?
busybox dd if=/dev/null of=/dev/null 2>/dev/null; echo null $?
echo 1 2>/dev/null > /proc/sys/kernel/msgmax; echo sysctl $?
busybox cat /proc/kcore | busybox wc -c; busybox ls /sys/firmware | busybox wc -l
exit 42
"#;

async fn facts(id: &str, program: Option<&str>) -> (i32, Vec<String>) {
    let fixture = Fixture::with(program);
    let mut spec = fixture.spec(id, &["sh", "-c", PROBE]);
    spec["process"]["rlimits"] = serde_json::json!([
        {"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 2000},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}
    ]);
    let outcome = fixture.run(id, &spec).await;
    let text = format!("{}{}", outcome.stdout, outcome.stderr);
    (outcome.exit.code, text.lines().map(str::to_owned).collect())
}

async fn compare(program: &str, ignore: &[&str]) {
    if !can_run() {
        return;
    }
    if !Path::new(program).exists() {
        eprintln!("SKIPPED: {program} is not installed");
        return;
    }
    // Tests run side by side, and a name is a control group.
    let name = program.rsplit('/').next().unwrap_or_default().to_owned();
    let (own_code, own) = facts(&format!("own-{name}"), None).await;
    let (code, theirs) = facts(&name, Some(program)).await;
    assert_eq!((own_code, code), (42, 42), "{own:#?}\n{theirs:#?}");
    let only = |a: &[String], b: &[String]| -> Vec<String> {
        let known =
            |line: &&String| !b.contains(line) && !ignore.iter().any(|word| line.contains(word));
        a.iter().filter(known).cloned().collect()
    };
    let (ours, others) = (only(&own, &theirs), only(&theirs, &own));
    assert!(
        ours.is_empty() && others.is_empty(),
        "only ours: {ours:#?}\nonly {program}: {others:#?}"
    );
}

/// Numbers of processes, and what is stricter here on purpose: the null device that masks files is
/// the host's, out of the image's reach, and the directory of cgroup mounts is read-only.
const DIFFERENT: [&str; 4] = ["NSpid", "/proc/keys", "/proc/timer_list", "/sys/fs/cgroup r"];

#[tokio::test]
async fn root_sees_what_runc_shows() {
    compare("/usr/sbin/runc", &DIFFERENT).await;
}

#[tokio::test]
async fn root_sees_what_crun_shows() {
    // What crun does otherwise than runc, with which we agree.
    let crun =
        ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys ", "c 10:200", "c 5:1", "/proc/kcore"];
    compare("/usr/bin/crun", &[&DIFFERENT[..], &crun].concat()).await;
}
