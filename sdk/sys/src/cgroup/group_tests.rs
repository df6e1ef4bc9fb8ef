//! Plans on recorded machines, and groups on this one.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::cgroup::devices::tests::rule;
use crate::cgroup::layout::tests::{hybrid, pure_v2, v1_with_pairs};
use crate::cgroup::resources::tests::memory;
use crate::cgroup::{
    BlockIo, Cpu, DeviceKind, DeviceRule, HugepageLimit, Pids, ThrottleDevice, Write,
};

fn group(layout: &Layout) -> Group {
    Group::new(layout, Path::new("/docker/4f")).unwrap()
}

/// The steps as text, with the part of the paths that all share cut off.
fn told(plan: &Plan) -> Vec<String> {
    let path = |path: &Path| path.strip_prefix("/sys/fs/cgroup").unwrap().display().to_string();
    let write = |write: &Write| {
        let early = if write.may_be_early { "?" } else { "" };
        format!("{}{early}={}", path(&write.file), write.value)
    };
    let tell = |step: &Step| match step {
        Step::MakeDir(dir) => format!("mkdir {}", path(dir)),
        Step::InheritCpuset(dir) => format!("inherit {}", path(dir)),
        Step::Enable { dir, controllers } => format!("enable {} {}", path(dir), controllers.len()),
        Step::Write(one) => write(one),
        Step::WriteEither(a, b) => format!("{} or {}", write(a), write(b)),
        Step::Devices { dir, program } => format!("devices {} {}", path(dir), program.len()),
    };
    plan.steps.iter().map(tell).collect()
}

fn rich() -> Resources {
    let disk = |rate| ThrottleDevice { major: 8, minor: 0, rate };
    Resources {
        devices: vec![DeviceRule::everything(false), rule(true, DeviceKind::Char, 1, 3, "rwm")],
        cpu: Some(Cpu {
            shares: Some(1024),
            quota: Some(50_000),
            period: Some(100_000),
            cpus: "0-1".to_owned(),
            ..Cpu::default()
        }),
        pids: Some(Pids { limit: 100 }),
        block_io: Some(BlockIo {
            weight: Some(500),
            throttle_read_bps_device: vec![disk(1 << 20)],
            throttle_write_iops_device: vec![disk(0)],
            ..BlockIo::default()
        }),
        ..memory(1 << 30, Some(2 << 30))
    }
}

#[test]
fn creation_on_v2() {
    let plan = group(&pure_v2()).creation(&rich()).unwrap();
    assert_eq!(
        told(&plan),
        [
            "enable  8",
            "mkdir docker",
            "enable docker 8",
            "mkdir docker/4f",
            "devices docker/4f 16",
            "docker/4f/memory.swap.max=1073741824",
            "docker/4f/memory.max=1073741824",
            "docker/4f/cpu.weight=39",
            "docker/4f/cpu.max=50000 100000",
            "docker/4f/cpuset.cpus=0-1",
            "docker/4f/pids.max=100",
            "docker/4f/io.bfq.weight=500 or docker/4f/io.weight=default 4950",
            "docker/4f/io.max=8:0 rbps=1048576",
            "docker/4f/io.max=8:0 wiops=max",
        ]
    );
}

#[test]
fn creation_on_v1() {
    let plan = group(&v1_with_pairs()).creation(&rich()).unwrap();
    let told = told(&plan);
    let limits: Vec<_> = told.iter().filter(|step| step.contains('=')).collect();
    assert_eq!(
        limits,
        [
            "devices/docker/4f/devices.deny=a",
            "devices/docker/4f/devices.allow=c 1:3 rwm",
            "memory/docker/4f/memory.limit_in_bytes?=1073741824",
            "memory/docker/4f/memory.memsw.limit_in_bytes=2147483648",
            "memory/docker/4f/memory.limit_in_bytes=1073741824",
            "cpu,cpuacct/docker/4f/cpu.shares=1024",
            "cpu,cpuacct/docker/4f/cpu.cfs_period_us?=100000",
            "cpu,cpuacct/docker/4f/cpu.cfs_quota_us=50000",
            "cpu,cpuacct/docker/4f/cpu.cfs_period_us=100000",
            "cpuset/docker/4f/cpuset.cpus=0-1",
            "pids/docker/4f/pids.max=100",
            "blkio/docker/4f/blkio.bfq.weight=500 or blkio/docker/4f/blkio.weight=500",
            "blkio/docker/4f/blkio.throttle.read_bps_device=8:0 1048576",
            "blkio/docker/4f/blkio.throttle.write_iops_device=8:0 0",
        ]
    );
    let at = |wanted: &str| told.iter().position(|step| step == wanted).unwrap();
    assert!(at("mkdir cpuset/docker") < at("inherit cpuset/docker"));
    assert!(at("inherit cpuset/docker") < at("mkdir cpuset/docker/4f"));
    assert!(at("inherit cpuset/docker/4f") < at("cpuset/docker/4f/cpuset.cpus=0-1"));
    assert!(told.contains(&"mkdir systemd/docker/4f".to_owned()));
}

#[test]
fn a_hybrid_machine_uses_each_controller_where_it_is() {
    let layout = hybrid();
    let huge = HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 };
    let resources = Resources { hugepage_limits: vec![huge], ..rich() };
    let told = told(&group(&layout).creation(&resources).unwrap());
    for step in [
        "enable unified 1",
        "mkdir unified/docker/4f",
        "unified/docker/4f/hugetlb.2MB.max=4194304",
        "cpu/docker/4f/cpu.shares=1024",
        "devices/docker/4f/devices.deny=a",
    ] {
        assert!(told.iter().any(|it| it == step), "{step} in {told:#?}");
    }
    assert!(!told.iter().any(|step| step.starts_with("devices unified")));
    assert_eq!(group(&layout).join_files().len(), 10);
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    let v2_only = |change: fn(&mut Resources)| {
        let mut resources = memory(1 << 30, None);
        change(&mut resources);
        group(&pure_v2()).creation(&resources).unwrap_err().to_string()
    };
    let errors = [
        v2_only(|it| it.memory.as_mut().unwrap().swappiness = Some(10)),
        v2_only(|it| it.memory.as_mut().unwrap().disable_oom_killer = Some(true)),
        v2_only(|it| it.memory.as_mut().unwrap().limit = Some(-2)),
        v2_only(|it| it.memory.as_mut().unwrap().swap = Some(1)),
        v2_only(|it| it.cpu = Some(Cpu { realtime_runtime: Some(1), ..Cpu::default() })),
        v2_only(|it| {
            it.unified.insert("../x.y".to_owned(), "1".to_owned());
        }),
        v2_only(|it| {
            let page_size = "../2MB".to_owned();
            it.hugepage_limits = vec![HugepageLimit { page_size, limit: 1 }];
        }),
    ];
    assert!(errors.iter().all(|error| error.starts_with("cannot ")), "{errors:?}");
    let huge = HugepageLimit { page_size: "2MB".to_owned(), limit: 1 };
    let resources = Resources { hugepage_limits: vec![huge], ..Resources::default() };
    let error = group(&v1_with_pairs()).creation(&resources).unwrap_err();
    assert!(error.to_string().contains("no such control-group controller"), "{error}");
    for path in ["", "/", "a/../b"] {
        assert!(Group::new(&pure_v2(), Path::new(path)).is_err(), "{path}");
    }
}

/// A child that sleeps, ended with the value.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

/// A group of this test, removed with the value, and the v2 root put back as it was.
struct TestGroup(Group, Option<(PathBuf, String)>);

impl Drop for TestGroup {
    fn drop(&mut self) {
        let _ = self.0.kill(PATIENCE);
        let _ = self.0.remove(PATIENCE);
        let parent: Vec<_> = self.0.dirs.iter().filter_map(|dir| dir.dir.parent()).collect();
        parent.into_iter().for_each(|dir| drop(fs::remove_dir(dir)));
        if let Some((file, before)) = &self.1 {
            let now = fs::read_to_string(file).unwrap_or_default();
            for controller in now.split_whitespace() {
                if !before.split_whitespace().any(|it| it == controller) {
                    // Busy while another test still has a group there: that one puts it back.
                    let _ = fs::write(file, format!("-{controller}"));
                }
            }
        }
    }
}

fn test_group(name: &str) -> Option<TestGroup> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    let layout = Layout::read().unwrap();
    let path = PathBuf::from(format!("gantry-test-{}-{name}", std::process::id())).join("inner");
    let root = layout.v2.as_ref().map(|unified| unified.mount.join("cgroup.subtree_control"));
    static BEFORE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let before = |file: PathBuf| {
        let text = BEFORE.get_or_init(|| fs::read_to_string(&file).unwrap());
        (file, text.clone())
    };
    Some(TestGroup(Group::new(&layout, &path).unwrap(), root.map(before)))
}

/// Runs as root only.
#[test]
fn root_a_group_is_made_limited_frozen_counted_killed_and_removed() {
    let Some(test) = test_group("life") else { return };
    let group = &test.0;
    let limits = Resources {
        pids: Some(Pids { limit: 50 }),
        cpu: Some(Cpu {
            shares: Some(512),
            quota: Some(20_000),
            period: Some(50_000),
            ..Cpu::default()
        }),
        devices: vec![DeviceRule::everything(false), rule(true, DeviceKind::Char, 1, 3, "rwm")],
        ..memory(64 << 20, None)
    };
    let plan = group.creation(&limits).unwrap();
    plan.execute().unwrap();
    plan.execute().unwrap();

    let mut sleeper = Sleeper::start();
    group.add(sleeper.0.id()).unwrap();
    assert!(group.processes().unwrap().contains(&sleeper.0.id()));
    let stats = group.stats().unwrap();
    assert_eq!(stats.pids.unwrap().limit, Some(50));
    assert_eq!(stats.memory.unwrap().limit, Some(64 << 20));
    assert!(stats.cpu.is_some());
    assert_eq!(group.oom_counts().unwrap().unwrap().kills, 0);

    // Raise and lower: each order of the two memory files is wrong once.
    for size in [256 << 20, 32 << 20] {
        let step = memory(size, None);
        group.update(&step).unwrap().execute().unwrap();
        assert_eq!(
            group.stats().unwrap().memory.unwrap().limit,
            Some(u64::try_from(size).unwrap())
        );
    }

    group.set_frozen(true, PATIENCE).unwrap();
    assert!(group.is_frozen().unwrap());
    group.kill(Duration::from_millis(50)).unwrap_or_default();
    let _ = sleeper.0.wait().unwrap();
    group.kill(PATIENCE).unwrap();
    assert!(!group.is_frozen().unwrap() || group.unified().is_some());

    // What a container made inside goes along.
    for dir in &group.dirs {
        fs::create_dir_all(dir.dir.join("made/inside")).unwrap();
    }
    group.remove(PATIENCE).unwrap();
    group.remove(PATIENCE).unwrap();
    assert!(!group.exists());
}

/// Runs as root only.
#[test]
fn root_memory_and_swap_change_in_any_order() {
    let Some(test) = test_group("swap") else { return };
    let group = &test.0;
    group.creation(&memory(64 << 20, Some(128 << 20))).unwrap().execute().unwrap();
    for (limit, swap) in [(256, 512), (32, 32), (100, -1), (40, 80)] {
        let swap = if swap < 0 { -1 } else { swap << 20 };
        group.update(&memory(limit << 20, Some(swap))).unwrap().execute().unwrap();
        let found = group.stats().unwrap().memory.unwrap().limit;
        assert_eq!(found, Some(u64::try_from(limit << 20).unwrap()));
    }
}

/// Runs as root only. Device rules decide about a process in the group, by v1 or by program.
#[test]
fn root_devices_are_allowed_and_denied() {
    let Some(test) = test_group("devices") else { return };
    for use_program in [false, true] {
        let mut group = test.0.clone();
        if use_program {
            // As if there were no v1: only the v2 directory, where there is one.
            group.dirs.retain(|dir| dir.version == Version::V2);
        }
        if group.dirs.is_empty() {
            eprintln!("skipped: no cgroup v2 hierarchy");
            continue;
        }
        let mut rules = vec![DeviceRule::everything(false)];
        for (minor, access) in [(3, "rwm"), (5, "r")] {
            rules.push(rule(true, DeviceKind::Char, 1, minor, access));
        }
        let resources = Resources { devices: rules, ..Resources::default() };
        let plan = group.creation(&resources).unwrap();
        plan.execute().unwrap();
        plan.execute().unwrap();
        let files = group.join_files();
        let script = files.iter().map(|file| format!("echo 0 > {}; ", file.display()));
        let script: String = script.collect();
        let probe = "for d in null zero full; do (: < /dev/$d) 2>&- && echo r$d; \
                     (: > /dev/$d) 2>&- && echo w$d; done; exit 0";
        let output = Command::new("sh").arg("-c").arg(script + probe).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            told.split_whitespace().collect::<Vec<_>>(),
            ["rnull", "wnull", "rzero"],
            "{told}"
        );
        group.remove(PATIENCE).unwrap();
    }
}

/// Runs as root only.
#[test]
fn root_running_out_of_memory_is_noticed_and_counted() {
    let Some(test) = test_group("oom") else { return };
    let group = &test.0;
    group.creation(&memory(8 << 20, None)).unwrap().execute().unwrap();
    if let Some(memory) = group.v1_dir("memory") {
        // Else the process is swapped out rather than killed, where there is swap.
        let _ = fs::write(memory.join("memory.memsw.limit_in_bytes"), "8388608");
    }
    let watch = group.oom_watch().unwrap().unwrap();
    let readable = |milliseconds: i64| {
        let mut fds = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
    };
    assert!(!readable(0));
    let joins: String =
        group.join_files().iter().map(|file| format!("echo 0 > {}; ", file.display())).collect();
    let hungry = "exec head -c 200m /dev/zero | tail -c 150m | wc -c";
    let _ = Command::new("sh").arg("-c").arg(joins + hungry).output().unwrap();
    assert!(readable(900));
    crate::cgroup::drain_oom_watch(&watch);
    assert!(!readable(0));
    assert!(group.oom_counts().unwrap().unwrap().kills > 0);
}
