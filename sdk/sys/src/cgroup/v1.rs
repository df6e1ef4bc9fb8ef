//! Limits as files of v1 controllers.

use std::path::{Path, PathBuf};

use super::devices::{DeviceRule, Policy};
use super::plan::{Step, Write};
use super::resources::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};
use crate::error::{Error, Result};

/// Where a group's directory for each controller is; `None` if the machine has no such v1 controller.
pub(super) trait Dirs {
    fn dir(&self, controller: &str) -> Option<&Path>;
}

/// The writes for those resources whose controller is on v1.
///
/// # Errors
///
/// A resource has no controller on this machine, or the two are inconsistent.
pub(super) fn steps(dirs: &dyn Dirs, resources: &Resources) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if let Some(dir) = dirs.dir("devices") {
        devices(dir, &resources.devices, &mut steps)?;
    }
    if let (Some(dir), Some(memory)) = (dirs.dir("memory"), &resources.memory) {
        self::memory(dir, memory, &mut steps)?;
    }
    if let Some(cpu) = &resources.cpu {
        processor(dirs, cpu, &mut steps);
    }
    if let (Some(dir), Some(pids)) = (dirs.dir("pids"), &resources.pids) {
        let limit = if pids.limit > 0 { pids.limit.to_string() } else { "max".to_owned() };
        steps.push(write(dir, "pids.max", limit));
    }
    if let (Some(dir), Some(block_io)) = (dirs.dir("blkio"), &resources.block_io) {
        self::block_io(dir, block_io, &mut steps);
    }
    if let Some(dir) = dirs.dir("hugetlb") {
        for limit in &resources.hugepage_limits {
            let file = format!("hugetlb.{}.limit_in_bytes", page_size(&limit.page_size)?);
            steps.push(write(dir, &file, limit.limit.to_string()));
        }
    }
    Ok(steps)
}

/// A page size that is safe to be a part of a file's name.
pub(super) fn page_size(text: &str) -> Result<&str> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_uppercase());
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && ["KB", "MB", "GB"].contains(&unit) {
        Ok(text)
    } else {
        Err(Error::refused("use huge page size", text, "it is a number followed by KB, MB or GB"))
    }
}

fn write(dir: &Path, file: &str, value: impl Into<String>) -> Step {
    Step::Write(Write::new(dir.join(file), value))
}

/// In order, for the kernel keeps exactly the state that [`Policy`] computes; it only cannot say why
/// it refuses.
fn devices(dir: &Path, rules: &[DeviceRule], steps: &mut Vec<Step>) -> Result<()> {
    Policy::of(rules)?;
    for rule in rules.iter().flat_map(DeviceRule::spread) {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        steps.push(write(dir, file, rule.v1_line()?));
    }
    Ok(())
}

fn memory(dir: &Path, memory: &Memory, steps: &mut Vec<Step>) -> Result<()> {
    check_memory(memory)?;
    let limit = memory.limit.filter(|limit| *limit != 0);
    let swap = memory.swap.filter(|swap| *swap != 0);
    let limit_file = "memory.limit_in_bytes";
    if let (Some(limit), Some(swap)) = (limit, swap) {
        // At no time may the memory limit exceed the one of memory and swap. Raising both needs the
        // second first, lowering both the first first; so the first is tried, and set again after.
        steps.push(Step::Write(Write {
            may_be_early: true,
            ..Write::new(dir.join(limit_file), limit.to_string())
        }));
        steps.push(write(dir, "memory.memsw.limit_in_bytes", swap.to_string()));
        steps.push(write(dir, limit_file, limit.to_string()));
    } else if let Some(limit) = limit {
        steps.push(write(dir, limit_file, limit.to_string()));
    } else if let Some(swap) = swap {
        steps.push(write(dir, "memory.memsw.limit_in_bytes", swap.to_string()));
    }
    if let Some(reservation) = memory.reservation.filter(|it| *it != 0) {
        steps.push(write(dir, "memory.soft_limit_in_bytes", reservation.to_string()));
    }
    if let Some(tcp) = memory.kernel_tcp.filter(|it| *it != 0) {
        steps.push(write(dir, "memory.kmem.tcp.limit_in_bytes", tcp.to_string()));
    }
    if let Some(swappiness) = memory.swappiness {
        steps.push(write(dir, "memory.swappiness", swappiness.to_string()));
    }
    if memory.disable_oom_killer == Some(true) {
        steps.push(write(dir, "memory.oom_control", "1"));
    }
    Ok(())
}

/// What can be said about the numbers without asking the kernel.
pub(super) fn check_memory(memory: &Memory) -> Result<()> {
    let refused = |object: &str, why| Err(Error::refused("set", object, why));
    if memory.swappiness.is_some_and(|it| it > 100) {
        return refused("memory swappiness", "it is 0 to 100");
    }
    let limits = [memory.limit, memory.swap, memory.reservation, memory.kernel_tcp];
    if limits.into_iter().flatten().any(|limit| limit < -1) {
        return refused("memory limit", "it is a number of bytes, or -1 for none");
    }
    match (memory.limit, memory.swap) {
        (Some(limit), Some(swap)) if limit > 0 && swap > 0 && swap < limit => {
            refused("memory and swap limit", "it is less than the memory limit")
        }
        _ => Ok(()),
    }
}

fn processor(dirs: &dyn Dirs, cpu: &Cpu, steps: &mut Vec<Step>) {
    if let Some(dir) = dirs.dir("cpu") {
        if let Some(idle) = cpu.idle {
            steps.push(write(dir, "cpu.idle", idle.to_string()));
        }
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
            steps.push(write(dir, "cpu.shares", shares.to_string()));
        }
        // The period may be too short for the quota that is set now; the other order has the same
        // problem the other way round.
        if let Some(period) = cpu.period.filter(|period| *period != 0) {
            let file = dir.join("cpu.cfs_period_us");
            let early = cpu.quota.is_some();
            steps.push(Step::Write(Write {
                may_be_early: early,
                ..Write::new(file, period.to_string())
            }));
        }
        if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
            steps.push(write(dir, "cpu.cfs_quota_us", quota.max(-1).to_string()));
            if let Some(period) = cpu.period.filter(|period| *period != 0) {
                steps.push(write(dir, "cpu.cfs_period_us", period.to_string()));
            }
        }
        if let Some(burst) = cpu.burst {
            steps.push(write(dir, "cpu.cfs_burst_us", burst.to_string()));
        }
        if let Some(period) = cpu.realtime_period.filter(|period| *period != 0) {
            steps.push(write(dir, "cpu.rt_period_us", period.to_string()));
        }
        if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime != 0) {
            steps.push(write(dir, "cpu.rt_runtime_us", runtime.to_string()));
        }
    }
    if let Some(dir) = dirs.dir("cpuset") {
        for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
            if !value.is_empty() {
                steps.push(write(dir, file, value.clone()));
            }
        }
    }
}

fn block_io(dir: &Path, io: &BlockIo, steps: &mut Vec<Step>) {
    // The weight is the BFQ scheduler's on kernels without CFQ (since 5.0).
    let either = |value: String| {
        let file = |name: &str| Write::new(dir.join(name), value.clone());
        Step::WriteEither(file("blkio.bfq.weight"), file("blkio.weight"))
    };
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        steps.push(either(weight.to_string()));
    }
    for device in &io.weight_device {
        let value = format!("{}:{} {}", device.major, device.minor, device.weight);
        let file = |name: &str| Write::new(dir.join(name), value.clone());
        let (bfq, cfq) = (file("blkio.bfq.weight_device"), file("blkio.weight_device"));
        steps.push(Step::WriteEither(bfq, cfq));
    }
    let throttles: [(&str, &[ThrottleDevice]); 4] = [
        ("read_bps", &io.throttle_read_bps_device),
        ("write_bps", &io.throttle_write_bps_device),
        ("read_iops", &io.throttle_read_iops_device),
        ("write_iops", &io.throttle_write_iops_device),
    ];
    for (what, devices) in throttles {
        let file: PathBuf = dir.join(format!("blkio.throttle.{what}_device"));
        for device in devices {
            let value = format!("{}:{} {}", device.major, device.minor, device.rate);
            steps.push(Step::Write(Write::new(file.clone(), value)));
        }
    }
}
