//! Whether the limits of a container make sense, and which of them this host can enforce.

use std::collections::BTreeSet;

use gantry_sdk::api::HostConfig;
use gantry_sdk::{Error, Result};

use super::facts::HostFacts;

/// The smallest memory limit in bytes: less leaves no room to start. Source: the reference engine.
const MIN_MEMORY: i64 = 6 << 20;
/// The highest number in a set of CPUs or memory nodes.
const MAX_CPU: u32 = 8192;
/// A CPU in the unit of `NanoCpus`.
const NANO: i64 = 1_000_000_000;

/// Checks the limits and takes out what the host cannot enforce. Returns a warning for each of
/// those, which the client shows.
///
/// `is_update`: the limits of an existing container change, and zero means "as it is".
///
/// # Errors
///
/// `InvalidArgument`, with the reference's words.
pub fn check(host: &mut HostConfig, facts: &HostFacts, is_update: bool) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    memory(host, facts, is_update, &mut warnings)?;
    out_of_memory(host, facts, &mut warnings);
    cpu_time(host, facts, &mut warnings)?;
    real_time(host, facts)?;
    cpu_sets(host, facts, &mut warnings)?;
    block_io(host, facts, &mut warnings)?;
    Ok(warnings)
}

fn refuse(message: impl Into<String>) -> Result<()> {
    Err(Error::invalid(message))
}

fn memory(
    host: &mut HostConfig,
    facts: &HostFacts,
    is_update: bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let can = facts.controllers;
    if host.memory_swappiness == Some(-1) {
        host.memory_swappiness = None; // the kernel's choice, in an old client's words
    }
    if host.memory != 0 && host.memory < MIN_MEMORY {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && !can.memory {
        warnings.push(
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. \
             Limitation discarded."
                .into(),
        );
        (host.memory, host.memory_swap) = (0, -1);
    }
    if host.memory > 0 && host.memory_swap != -1 && !can.swap {
        warnings.push(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. \
             Memory limited without swap."
                .into(),
        );
        host.memory_swap = -1;
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 && !is_update {
        return refuse(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        );
    }
    if host.memory_swappiness.is_some() && !can.memory_swappiness {
        warnings.push(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not \
             mounted. Memory swappiness discarded."
                .into(),
        );
        host.memory_swappiness = None;
    }
    if let Some(swappiness) = host.memory_swappiness
        && !(0..=100).contains(&swappiness)
    {
        return refuse(format!(
            "Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        ));
    }
    reservation(host, facts, warnings)
}

fn reservation(host: &mut HostConfig, facts: &HostFacts, warnings: &mut Vec<String>) -> Result<()> {
    if host.memory_reservation > 0 && !facts.controllers.memory_reservation {
        warnings.push(
            "Your kernel does not support memory soft limit capabilities or the cgroup is not \
             mounted. Limitation discarded."
                .into(),
        );
        host.memory_reservation = 0;
    }
    if host.memory_reservation < 0 {
        return refuse(format!("invalid memory reservation: {}", host.memory_reservation));
    }
    if (1..MIN_MEMORY).contains(&host.memory_reservation) {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if host.memory > 0 && host.memory < host.memory_reservation {
        return refuse(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        );
    }
    Ok(())
}

fn out_of_memory(host: &mut HostConfig, facts: &HostFacts, warnings: &mut Vec<String>) {
    if !facts.controllers.oom_kill_disable {
        if host.oom_kill_disable == Some(true) {
            warnings.push(
                "Your kernel does not support OomKillDisable. OomKillDisable discarded.".into(),
            );
        }
        host.oom_kill_disable = None;
    }
    if host.oom_kill_disable == Some(true) && host.memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result \
             in the system running out of resources."
                .into(),
        );
    }
    if !facts.controllers.pids {
        if host.pids_limit.is_some_and(|limit| limit > 0) {
            warnings.push(
                "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. \
                 PIDs limit discarded."
                    .into(),
            );
        }
        host.pids_limit = None;
    }
}

fn cpu_time(host: &mut HostConfig, facts: &HostFacts, warnings: &mut Vec<String>) -> Result<()> {
    let can = facts.controllers;
    if host.nano_cpus > 0 && host.cpu_period > 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if host.nano_cpus > 0 && host.cpu_quota > 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
    }
    if host.nano_cpus > 0 && !can.cpu_cfs {
        return refuse(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the \
             cgroup is not mounted",
        );
    }
    let cpus = i64::from(facts.cpus);
    if host.nano_cpus < 0 || host.nano_cpus > cpus * NANO {
        return refuse(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        ));
    }
    if host.cpu_shares < 0 {
        return refuse(format!(
            "invalid CPU shares ({}): value must be a positive integer",
            host.cpu_shares
        ));
    }
    if host.cpu_shares > 0 && !can.cpu_shares {
        warnings.push(
            "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded."
                .into(),
        );
        host.cpu_shares = 0;
    }
    if (host.cpu_period != 0 || host.cpu_quota != 0) && !can.cpu_cfs {
        warnings.push(
            "Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.".into(),
        );
        (host.cpu_period, host.cpu_quota) = (0, 0);
    }
    if host.cpu_period != 0 && !(1000..=1_000_000).contains(&host.cpu_period) {
        return refuse(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    if (1..1000).contains(&host.cpu_quota) {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if host.cpu_percent > 0 {
        warnings.push("linux does not support CPU percent. Percent discarded.".into());
        host.cpu_percent = 0;
    }
    if host.cpu_count > 0 {
        warnings.push("linux does not support CPU count. Count discarded.".into());
        host.cpu_count = 0;
    }
    Ok(())
}

fn real_time(host: &HostConfig, facts: &HostFacts) -> Result<()> {
    let (period, runtime) = (host.cpu_realtime_period, host.cpu_realtime_runtime);
    if (period != 0 || runtime != 0) && !facts.controllers.cpu_realtime {
        return refuse("kernel does not support CPU real-time scheduler");
    }
    if period < 0 || (period != 0 && runtime > period) {
        return refuse("cpu real-time runtime cannot be higher than cpu real-time period");
    }
    Ok(())
}

fn cpu_sets(host: &mut HostConfig, facts: &HostFacts, warnings: &mut Vec<String>) -> Result<()> {
    if host.cpuset_cpus.is_empty() && host.cpuset_mems.is_empty() {
        return Ok(());
    }
    if !facts.controllers.cpuset {
        warnings.push(
            "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded."
                .into(),
        );
        host.cpuset_cpus.clear();
        host.cpuset_mems.clear();
        return Ok(());
    }
    let sets = [
        ("CPUs", "cpus", &host.cpuset_cpus, &facts.cpuset_cpus),
        ("memory nodes", "mems", &host.cpuset_mems, &facts.cpuset_mems),
    ];
    for (things, name, wanted, available) in sets {
        let set = parse_set(wanted).ok_or_else(|| {
            Error::invalid(format!(
                "Invalid value {wanted} for cpuset {name}: invalid format: {wanted}"
            ))
        })?;
        let has = parse_set(available).unwrap_or_default();
        if !set.is_subset(&has) {
            return refuse(format!(
                "Requested {things} are not available - requested {wanted}, available: {available}"
            ));
        }
    }
    Ok(())
}

/// Reads a set as `0-2,4`; `None` if it is none or has a number above 8192.
#[must_use]
pub fn parse_set(text: &str) -> Option<BTreeSet<u32>> {
    let number = |part: &str| part.trim().parse::<u32>().ok().filter(|number| *number <= MAX_CPU);
    let mut set = BTreeSet::new();
    if text.is_empty() {
        return Some(set);
    }
    for part in text.split(',') {
        match part.split_once('-') {
            None => {
                set.insert(number(part)?);
            }
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to {
                    return None;
                }
                set.extend(from..=to);
            }
        }
    }
    Some(set)
}

fn block_io(host: &mut HostConfig, facts: &HostFacts, warnings: &mut Vec<String>) -> Result<()> {
    let can = facts.controllers;
    if host.blkio_weight > 0 && !can.blkio_weight {
        warnings.push(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight \
             discarded."
                .into(),
        );
        host.blkio_weight = 0;
    }
    if host.blkio_weight > 0 && !(10..=1000).contains(&host.blkio_weight) {
        return refuse("Range of blkio weight is from 10 to 1000");
    }
    if host.io_maximum_bandwidth != 0 || host.io_maximum_iops != 0 {
        return refuse(
            "Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps",
        );
    }
    if discard(&mut host.blkio_weight_device, can.blkio_weight_device) {
        warnings.push(
            "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. \
             Weight-device discarded."
                .into(),
        );
    }
    if let Some(device) = host.blkio_weight_device.iter().flatten().find(|d| d.weight > 1000) {
        return refuse(format!("invalid weight for device: {}:{}", device.path, device.weight));
    }
    let lists = [
        (&mut host.blkio_device_read_bps, "BPS Block I/O read", "Block I/O BPS read"),
        (&mut host.blkio_device_write_bps, "BPS Block I/O write", "Block I/O BPS write"),
        (&mut host.blkio_device_read_iops, "IOPS Block read", "Block I/O IOPS read"),
        (&mut host.blkio_device_write_iops, "IOPS Block write", "Block I/O IOPS write"),
    ];
    for (list, what, limit) in lists {
        if discard(list, can.blkio_throttle) {
            warnings.push(format!(
                "Your kernel does not support {what} limit or the cgroup is not mounted. {limit} \
                 limit discarded."
            ));
        }
    }
    Ok(())
}

/// Empties a list that cannot be enforced; `true` if something was lost.
fn discard<T>(list: &mut Option<Vec<T>>, can: bool) -> bool {
    let is_lost = !can && list.as_ref().is_some_and(|list| !list.is_empty());
    if is_lost {
        *list = None;
    }
    is_lost
}
