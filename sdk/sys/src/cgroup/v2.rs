//! Limits as files of the v2 hierarchy.

use std::path::Path;

use super::devices::{DeviceRule, Policy};
use super::plan::{Step, Write};
use super::resources::{BlockIo, Cpu, Memory, Resources};
use super::v1::{check_memory, page_size};
use crate::error::{Error, Result};

/// The writes for those resources whose controller is on v2.
///
/// `has` says which controllers v2 has; `with_devices` whether device rules are enforced here (they
/// are, unless v1 has the controller).
pub(super) fn steps(
    dir: &Path,
    has: &dyn Fn(&str) -> bool,
    with_devices: bool,
    resources: &Resources,
) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if with_devices && !resources.devices.is_empty() {
        steps.push(devices(dir, &resources.devices)?);
    }
    if let Some(memory) = resources.memory.as_ref().filter(|_| has("memory")) {
        self::memory(dir, memory, &mut steps)?;
    }
    if let Some(cpu) = &resources.cpu {
        processor(dir, has, cpu, &mut steps)?;
    }
    if let Some(pids) = resources.pids.as_ref().filter(|_| has("pids")) {
        let limit = if pids.limit > 0 { pids.limit.to_string() } else { "max".to_owned() };
        steps.push(write(dir, "pids.max", limit));
    }
    if let Some(block_io) = resources.block_io.as_ref().filter(|_| has("io")) {
        self::block_io(dir, block_io, &mut steps)?;
    }
    if has("hugetlb") {
        for limit in &resources.hugepage_limits {
            let size = page_size(&limit.page_size)?;
            steps.push(write(dir, &format!("hugetlb.{size}.max"), limit.limit.to_string()));
        }
    }
    for (file, value) in &resources.unified {
        steps.push(write(dir, unified_name(file)?, value.clone()));
    }
    Ok(steps)
}

fn write(dir: &Path, file: &str, value: impl Into<String>) -> Step {
    Step::Write(Write::new(dir.join(file), value))
}

fn devices(dir: &Path, rules: &[DeviceRule]) -> Result<Step> {
    let program = Policy::of(rules)?.program();
    Ok(Step::Devices { dir: dir.to_owned(), program })
}

/// A name that can only be a control file of the group itself.
fn unified_name(name: &str) -> Result<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_plain = name.bytes().all(plain) && !name.starts_with('.') && name.contains('.');
    // Membership is not a limit.
    let is_limit = !matches!(name, "cgroup.procs" | "cgroup.threads" | "cgroup.kill");
    if is_plain && is_limit {
        Ok(name)
    } else {
        Err(Error::refused("set", name, "it is not the name of a control-group limit"))
    }
}

/// A number of bytes as v2 writes it.
fn bytes_or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn memory(dir: &Path, memory: &Memory, steps: &mut Vec<Step>) -> Result<()> {
    check_memory(memory)?;
    let unsupported = |what: &str| Err(Error::refused("set", what, "cgroup v2 has no such limit"));
    if memory.swappiness.is_some() {
        return unsupported("memory swappiness");
    }
    if memory.disable_oom_killer == Some(true) {
        return unsupported("memory without out-of-memory killer");
    }
    if memory.kernel_tcp.is_some_and(|it| it != 0) {
        return unsupported("kernel TCP memory");
    }
    if let Some(swap) = swap_max(memory)? {
        steps.push(write(dir, "memory.swap.max", swap));
    }
    if let Some(limit) = memory.limit.filter(|it| *it != 0) {
        steps.push(write(dir, "memory.max", bytes_or_max(limit)));
    }
    if let Some(reservation) = memory.reservation.filter(|it| *it != 0) {
        steps.push(write(dir, "memory.low", bytes_or_max(reservation)));
    }
    Ok(())
}

/// v2 limits swap alone, the specification memory and swap together.
fn swap_max(memory: &Memory) -> Result<Option<String>> {
    let limit = memory.limit.unwrap_or(0);
    match memory.swap.unwrap_or(0) {
        // Memory without limit takes swap along.
        0 if limit == -1 => Ok(Some("max".to_owned())),
        0 => Ok(None),
        -1 => Ok(Some("max".to_owned())),
        _ if limit <= 0 => {
            Err(Error::refused("set", "memory and swap limit", "there is no memory limit"))
        }
        swap => Ok(Some((swap - limit).to_string())),
    }
}

/// The v2 weight (1 to 10000) of v1 shares (2 to 262144): the ends meet, and between them the scale is
/// linear, as in runc up to 1.3.
pub fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The v2 `io.weight` (1 to 10000) of a v1 weight (10 to 1000), linear.
pub fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

fn processor(
    dir: &Path,
    has: &dyn Fn(&str) -> bool,
    cpu: &Cpu,
    steps: &mut Vec<Step>,
) -> Result<()> {
    if has("cpu") {
        if cpu.realtime_runtime.is_some_and(|it| it != 0)
            || cpu.realtime_period.is_some_and(|it| it != 0)
        {
            return Err(Error::refused("set", "real-time runtime", "cgroup v2 has no such limit"));
        }
        if let Some(idle) = cpu.idle {
            steps.push(write(dir, "cpu.idle", idle.to_string()));
        }
        // An idle group has no weight, and the kernel refuses to set one.
        if let Some(shares) = cpu.shares.filter(|it| *it != 0 && cpu.idle != Some(1)) {
            steps.push(write(dir, "cpu.weight", weight_of_shares(shares).to_string()));
        }
        let quota = cpu.quota.filter(|quota| *quota != 0);
        let period = cpu.period.filter(|period| *period != 0);
        if quota.is_some() || period.is_some() {
            let quota = quota.map_or("max".to_owned(), bytes_or_max);
            // The kernel's own default period, so that a quota alone does not keep an older one.
            let period = period.unwrap_or(100_000);
            steps.push(write(dir, "cpu.max", format!("{quota} {period}")));
        }
        if let Some(burst) = cpu.burst {
            steps.push(write(dir, "cpu.max.burst", burst.to_string()));
        }
    }
    if has("cpuset") {
        for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
            if !value.is_empty() {
                steps.push(write(dir, file, value.clone()));
            }
        }
    }
    Ok(())
}

fn block_io(dir: &Path, io: &BlockIo, steps: &mut Vec<Step>) -> Result<()> {
    // BFQ's own file takes the v1 scale; `io.weight` is the cost model's, on the v2 scale.
    let either = |bfq: String, io: String| {
        let file = |name: &str, value| Write::new(dir.join(name), value);
        Step::WriteEither(file("io.bfq.weight", bfq), file("io.weight", io))
    };
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        steps.push(either(weight.to_string(), format!("default {}", io_weight(weight))));
    }
    for device in &io.weight_device {
        let numbers = format!("{}:{}", device.major, device.minor);
        let bfq = format!("{numbers} {}", device.weight);
        steps.push(either(bfq, format!("{numbers} {}", io_weight(device.weight))));
    }
    let throttles = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for device in devices {
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            let value = format!("{}:{} {key}={rate}", device.major, device.minor);
            steps.push(write(dir, "io.max", value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_meet_at_the_ends_and_at_the_usual_value() {
        let cases = [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)];
        for (shares, weight) in cases {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        for (v1, v2) in [(10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight(v1), v2, "{v1}");
        }
    }

    #[test]
    fn swap_is_what_exceeds_memory() {
        let cases = [
            (Some(100), Some(300), Ok(Some("200"))),
            (Some(100), Some(100), Ok(Some("0"))),
            (Some(100), Some(-1), Ok(Some("max"))),
            (Some(100), None, Ok(None)),
            (Some(-1), None, Ok(Some("max"))),
            (None, Some(300), Err(())),
            (Some(-1), Some(300), Err(())),
        ];
        for (limit, swap, expected) in cases {
            let memory = Memory { limit, swap, ..Memory::default() };
            let answer = swap_max(&memory).map_err(|_| ());
            assert_eq!(answer, expected.map(|it| it.map(str::to_owned)), "{limit:?} {swap:?}");
        }
    }

    #[test]
    fn only_limits_of_the_group_itself_are_taken_as_they_are() {
        for (name, ok) in [
            ("memory.high", true),
            ("hugetlb.2MB.rsvd.max", true),
            ("../memory.max", false),
            ("a/b.c", false),
            ("cgroup.procs", false),
            (".hidden", false),
            ("memory", false),
        ] {
            assert_eq!(unified_name(name).is_ok(), ok, "{name}");
        }
    }
}
