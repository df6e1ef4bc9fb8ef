//! What a container gets that its creator left open. Applied once, at creation, so that inspecting
//! shows it and a later change of the daemon's defaults does not touch it.

use gantry_sdk::Result;
use gantry_sdk::api::{ContainerConfig, HostConfig};

use super::facts::{Defaults, HostFacts};
use super::mode::NetworkMode;

/// How much of its id a container has as its name.
const SHORT_ID: usize = 12;

/// Paths of proc and sys that a container does not see. Source: the reference engine.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths of proc that a container sees and cannot change. Source: the reference engine.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The paths a container does not see by default.
#[must_use]
pub fn default_masked_paths(facts: &HostFacts) -> Vec<String> {
    let fixed = MASKED.iter().map(|path| (*path).to_owned());
    fixed.chain(facts.thermal_paths.iter().cloned()).collect()
}

/// The paths a container cannot change by default.
#[must_use]
pub fn default_readonly_paths() -> Vec<String> {
    READ_ONLY.iter().map(|path| (*path).to_owned()).collect()
}

/// Fills in what was left open. Run after [`super::check_create`].
///
/// # Errors
///
/// `InvalidArgument`: a security option is none.
pub fn adapt(
    config: &mut ContainerConfig,
    host: &mut HostConfig,
    id: &str,
    facts: &HostFacts,
    defaults: &Defaults,
) -> Result<()> {
    if host.network_mode.is_empty() {
        host.network_mode = "default".into();
    }
    if config.hostname.is_empty() {
        config.hostname = match NetworkMode::parse(&host.network_mode) {
            NetworkMode::Host => facts.hostname.clone(),
            _ => id.get(..SHORT_ID).unwrap_or(id).to_owned(),
        };
    }
    if host.restart_policy.name.is_empty() {
        host.restart_policy.name = "no".into();
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if host.shm_size == 0 {
        host.shm_size = defaults.shm_size;
    }
    if host.ipc_mode.is_empty() {
        host.ipc_mode.clone_from(&defaults.ipc_mode);
    }
    if host.cgroupns_mode.is_empty() {
        host.cgroupns_mode = cgroup_namespace(host, facts, defaults).into();
    }
    if host.runtime.is_empty() {
        host.runtime.clone_from(&defaults.runtime);
    }
    if host.oom_kill_disable.is_none() && facts.controllers.oom_kill_disable {
        host.oom_kill_disable = Some(false);
    }
    let security = super::SecurityOptions::parse(
        host.security_opt.as_deref().unwrap_or_default(),
        defaults.no_new_privileges,
    )?;
    if security.unconfined_paths {
        (host.masked_paths, host.readonly_paths) = (Some(Vec::new()), Some(Vec::new()));
    }
    if !host.privileged {
        host.masked_paths.get_or_insert_with(|| default_masked_paths(facts));
        host.readonly_paths.get_or_insert_with(default_readonly_paths);
    }
    Ok(())
}

fn cgroup_namespace<'a>(host: &HostConfig, facts: &HostFacts, defaults: &'a Defaults) -> &'a str {
    if host.privileged && !facts.cgroup_unified {
        return "host";
    }
    match defaults.cgroupns_mode.as_str() {
        "" if facts.cgroup_unified => "private",
        "" => "host",
        mode => mode,
    }
}

/// Whether a small init runs as process 1. It makes no sense where there is one already, in a
/// process namespace of somebody else's.
#[must_use]
pub fn wants_init(host: &HostConfig, defaults: &Defaults) -> bool {
    host.pid_mode.is_empty() && host.init.unwrap_or(defaults.init)
}
