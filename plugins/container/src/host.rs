//! The host as it is: what [`HostFacts`] needs, read once at start.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use gantry_sdk::{Error, Result};
use gantry_sys::cgroup::Layout;
use oci_spec::runtime::Capability;

use crate::spec::facts::{Controllers, HostFacts};

const SYSCTLS: [&str; 2] = ["net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start"];

/// Capabilities by number. Source: `linux/capability.h`.
const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Reads the facts.
///
/// # Errors
///
/// `Unavailable` if the host has no usable cgroups.
pub fn facts() -> Result<HostFacts> {
    let layout = Layout::read()
        .map_err(|e| Error::unavailable("cannot use the host's control groups").caused_by(e))?;
    let unified = layout.is_unified();
    let status = text("/proc/self/status");
    Ok(HostFacts {
        hostname: text("/proc/sys/kernel/hostname").trim().to_owned(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        cpuset_cpus: or_zero(&text("/sys/devices/system/cpu/online")),
        cpuset_mems: or_zero(&text("/sys/devices/system/node/online")),
        cgroup_unified: unified,
        controllers: controllers(&layout),
        cgroup_namespaces: Path::new("/proc/self/ns/cgroup").exists(),
        time_namespaces: false, // the reference engine hides them behind a feature flag
        // The bridge driver switches it on when it is needed, or fails saying that it cannot.
        ipv4_forwarding: true,
        seccomp: status.contains("\nSeccomp:"),
        apparmor: crate::apparmor::is_on(),
        apparmor_profile: crate::apparmor::default_profile(),
        recursive_read_only: true,
        capabilities: bounding(&status),
        thermal_paths: thermal_paths(),
        sysctls: existing_sysctls(),
    })
}

/// Whether the host forwards IPv4 packets now.
pub fn forwards_ipv4() -> bool {
    text("/proc/sys/net/ipv4/ip_forward").trim() == "1"
}

/// Whether systemd is taking the machine down. Blocking; false without systemd.
///
/// Source: sd_booted(3), systemctl(1).
pub fn is_shutting_down() -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    let mut ask = Command::new("systemctl");
    ask.arg("is-system-running").stdin(Stdio::null()).stderr(Stdio::null());
    ask.output().is_ok_and(|answer| answer.stdout.trim_ascii() == b"stopping")
}

fn controllers(layout: &Layout) -> Controllers {
    let all = Controllers::all(layout.is_unified());
    let memory = layout.has("memory");
    let cpu = layout.has("cpu");
    let blkio = layout.has("blkio") || layout.has("io");
    let v1_memory = |file: &str| layout.v1_of("memory").is_none_or(|h| h.mount.join(file).exists());
    let v1_blkio = |file: &str| layout.v1_of("blkio").is_none_or(|h| h.mount.join(file).exists());
    Controllers {
        memory,
        swap: memory && v1_memory("memory.memsw.limit_in_bytes"),
        memory_reservation: memory,
        memory_swappiness: all.memory_swappiness && memory && v1_memory("memory.swappiness"),
        oom_kill_disable: all.oom_kill_disable && memory && v1_memory("memory.oom_control"),
        cpu_shares: cpu,
        cpu_cfs: cpu,
        cpu_realtime: false,
        cpuset: layout.has("cpuset"),
        pids: layout.has("pids"),
        blkio_weight: blkio && (v1_blkio("blkio.weight") || v1_blkio("blkio.bfq.weight")),
        blkio_weight_device: blkio
            && (v1_blkio("blkio.weight_device") || v1_blkio("blkio.bfq.weight_device")),
        blkio_throttle: blkio && v1_blkio("blkio.throttle.read_bps_device"),
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn or_zero(set: &str) -> String {
    let set = set.trim();
    if set.is_empty() { "0".into() } else { set.to_owned() }
}

/// What the daemon itself may hand on.
fn bounding(status: &str) -> Vec<Capability> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
    let bits = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let held = |(number, _): &(usize, Capability)| bits >> number & 1 == 1;
    CAPABILITIES.into_iter().enumerate().filter(held).map(|(_, capability)| capability).collect()
}

fn thermal_paths() -> Vec<String> {
    let Ok(cpus) = fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let mut found: Vec<String> = cpus
        .flatten()
        .map(|cpu| cpu.path().join("thermal_throttle"))
        .filter(|path| path.is_dir())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    found.sort();
    found
}

fn existing_sysctls() -> BTreeSet<String> {
    let exists = |name: &&str| Path::new("/proc/sys").join(name.replace('.', "/")).exists();
    SYSCTLS.into_iter().filter(exists).map(str::to_owned).collect()
}
