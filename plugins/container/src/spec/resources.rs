//! Limits and devices in the form of the runtime specification.

use gantry_sdk::api::{DeviceMapping, HostConfig, ThrottleDevice, Ulimit};
use gantry_sdk::{Error, Result};
use oci_spec::runtime as oci;

use super::view::{DeviceNode, HostView, NodeKind};

/// The devices that every container may use: full, null, urandom, random, tty, console; and fuse,
/// which it may not. (Zero, ptmx and the pseudo-terminals are the runtime's.) Source: the reference
/// engine.
const DEVICE_RULES: [(bool, i64, i64); 7] = [
    (true, 1, 5),
    (true, 1, 3),
    (true, 1, 9),
    (true, 1, 8),
    (true, 5, 0),
    (true, 5, 1),
    (false, 10, 229),
];

/// The period of a quota given in CPUs, microseconds.
const PERIOD: i64 = 100_000;

/// Limits of memory, CPU, processes and block I/O, without devices.
///
/// # Errors
///
/// `InvalidArgument`: a device that is none.
pub fn limits(host: &HostConfig, view: &dyn HostView) -> Result<oci::LinuxResources> {
    let mut resources = empty();
    resources.set_memory(memory(host));
    resources.set_cpu(cpu(host));
    resources.set_pids(pids(host));
    resources.set_block_io(block_io(host, view)?);
    Ok(resources)
}

fn empty() -> oci::LinuxResources {
    let mut resources = oci::LinuxResources::default();
    resources.set_devices(None);
    resources
}

fn memory(host: &HostConfig) -> Option<oci::LinuxMemory> {
    let positive = |value: i64| (value > 0).then_some(value);
    let mut memory = oci::LinuxMemory::default();
    memory
        .set_limit(positive(host.memory))
        .set_reservation(positive(host.memory_reservation))
        .set_swap(positive(host.memory_swap))
        .set_swappiness(host.memory_swappiness.and_then(|value| u64::try_from(value).ok()))
        .set_disable_oom_killer(host.oom_kill_disable);
    (memory != oci::LinuxMemory::default()).then_some(memory)
}

fn cpu(host: &HostConfig) -> Option<oci::LinuxCpu> {
    let set = |value: i64| (value != 0).then_some(value);
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let (period, quota) = if host.nano_cpus > 0 {
        let quota = i128::from(host.nano_cpus) * i128::from(PERIOD) / 1_000_000_000;
        (unsigned(PERIOD), i64::try_from(quota).ok())
    } else {
        (unsigned(host.cpu_period), set(host.cpu_quota))
    };
    let mut cpu = oci::LinuxCpu::default();
    cpu.set_shares(unsigned(host.cpu_shares))
        .set_period(period)
        .set_quota(quota)
        .set_realtime_period(unsigned(host.cpu_realtime_period))
        .set_realtime_runtime(set(host.cpu_realtime_runtime))
        .set_cpus(text(&host.cpuset_cpus))
        .set_mems(text(&host.cpuset_mems));
    (cpu != oci::LinuxCpu::default()).then_some(cpu)
}

fn pids(host: &HostConfig) -> Option<oci::LinuxPids> {
    host.pids_limit.map(|limit| {
        let mut pids = oci::LinuxPids::default();
        pids.set_limit(if limit > 0 { limit } else { -1 });
        pids
    })
}

fn block_io(host: &HostConfig, view: &dyn HostView) -> Result<Option<oci::LinuxBlockIo>> {
    let mut weights = Vec::new();
    for wanted in host.blkio_weight_device.iter().flatten() {
        let (major, minor) = block_device(&wanted.path, view)?;
        let device = oci::LinuxWeightDeviceBuilder::default()
            .major(major)
            .minor(minor)
            .weight(wanted.weight)
            .build();
        weights.push(device.map_err(incomplete)?);
    }
    let throttled = |list: &Option<Vec<ThrottleDevice>>| -> Result<_> {
        let mut devices = Vec::new();
        for wanted in list.iter().flatten() {
            let (major, minor) = block_device(&wanted.path, view)?;
            let device = oci::LinuxThrottleDeviceBuilder::default()
                .major(major)
                .minor(minor)
                .rate(wanted.rate)
                .build();
            devices.push(device.map_err(incomplete)?);
        }
        Ok((!devices.is_empty()).then_some(devices))
    };
    let mut io = oci::LinuxBlockIo::default();
    io.set_weight((host.blkio_weight != 0).then_some(host.blkio_weight))
        .set_weight_device((!weights.is_empty()).then_some(weights))
        .set_throttle_read_bps_device(throttled(&host.blkio_device_read_bps)?)
        .set_throttle_write_bps_device(throttled(&host.blkio_device_write_bps)?)
        .set_throttle_read_iops_device(throttled(&host.blkio_device_read_iops)?)
        .set_throttle_write_iops_device(throttled(&host.blkio_device_write_iops)?);
    Ok((io != oci::LinuxBlockIo::default()).then_some(io))
}

/// Builders check that nothing is missing, and nothing is.
fn incomplete(error: oci_spec::OciSpecError) -> Error {
    Error::internal("cannot complete the specification", error)
}

fn block_device(path: &str, view: &dyn HostView) -> Result<(i64, i64)> {
    match &view.devices(path)?.nodes[..] {
        [node] if node.kind == NodeKind::Block => Ok((node.major, node.minor)),
        _ => Err(Error::invalid(format!("{path} is not a block device"))),
    }
}

/// Device nodes made in the container, and what its device cgroup allows.
#[derive(Debug, Default)]
pub struct Devices {
    /// Nodes.
    pub nodes: Vec<oci::LinuxDevice>,
    /// Rules in order; the first denies everything.
    pub rules: Vec<oci::LinuxDeviceCgroup>,
}

/// The devices of a container.
///
/// # Errors
///
/// `InvalidArgument`: a device that is none, a rule that is none, or a request for a device driver.
pub fn devices(host: &HostConfig, view: &dyn HostView) -> Result<Devices> {
    if let Some(request) = host.device_requests.iter().flatten().next() {
        return Err(Error::invalid(format!(
            "could not select device driver {:?} with capabilities: {}",
            request.driver,
            brackets(request.capabilities.as_deref().unwrap_or_default())
        )));
    }
    let mut devices = Devices { rules: default_rules(), ..Devices::default() };
    let mappings = host.devices.as_deref().unwrap_or_default();
    if host.privileged {
        devices.nodes.extend(view.all_devices()?.into_iter().map(|node| {
            let path = node.path.clone();
            to_oci(&node, path)
        }));
        // Those at their own place are there already.
        for mapping in mappings.iter().filter(|m| m.path_on_host != m.path_in_container) {
            devices.nodes.extend(mapped(mapping, view)?.into_iter().map(|(device, _)| device));
        }
        devices.rules.push(rule(true, None, None, None, "rwm"));
        return Ok(devices);
    }
    for mapping in mappings {
        check_permissions(mapping)?;
        for (device, kind) in mapped(mapping, view)? {
            let (major, minor) = (device.major(), device.minor());
            let access = &mapping.cgroup_permissions;
            devices.rules.push(rule(true, Some(kind), Some(major), Some(minor), access));
            devices.nodes.push(device);
        }
    }
    for text in host.device_cgroup_rules.iter().flatten() {
        devices.rules.push(parse_rule(text)?);
    }
    Ok(devices)
}

/// As Go prints a list of lists, which is how the reference's message shows it.
fn brackets(lists: &[Vec<String>]) -> String {
    let inner: Vec<_> = lists.iter().map(|list| format!("[{}]", list.join(" "))).collect();
    format!("[{}]", inner.join(" "))
}

fn default_rules() -> Vec<oci::LinuxDeviceCgroup> {
    let mut rules = vec![rule(false, None, None, None, "rwm")];
    let char_device = Some(oci::LinuxDeviceType::C);
    rules
        .extend(DEVICE_RULES.map(|(allow, major, minor)| {
            rule(allow, char_device, Some(major), Some(minor), "rwm")
        }));
    rules
}

fn rule(
    allow: bool,
    kind: Option<oci::LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> oci::LinuxDeviceCgroup {
    let mut rule = oci::LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

fn check_permissions(mapping: &DeviceMapping) -> Result<()> {
    let letters = &mapping.cgroup_permissions;
    if (1..=3).contains(&letters.len()) && letters.chars().all(|c| "rwm".contains(c)) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "invalid cgroup permissions {letters:?} of device {}: use letters of rwm",
        mapping.path_on_host
    )))
}

type MappedDevice = (oci::LinuxDevice, oci::LinuxDeviceType);

fn mapped(mapping: &DeviceMapping, view: &dyn HostView) -> Result<Vec<MappedDevice>> {
    let inside = std::path::Path::new(&mapping.path_in_container);
    if !inside.is_absolute() {
        return Err(Error::invalid(format!("'{}' is not an absolute path", inside.display())));
    }
    let found = view.devices(&mapping.path_on_host)?;
    let to_mapped = |node: &DeviceNode| {
        // In a directory of devices, their names below it stay.
        let below = node.path.strip_prefix(&found.root).unwrap_or(&node.path);
        let is_itself = below.as_os_str().is_empty();
        let path = if is_itself { inside.to_owned() } else { inside.join(below) };
        (to_oci(node, path), oci_kind(node.kind))
    };
    Ok(found.nodes.iter().map(to_mapped).collect())
}

const fn oci_kind(kind: NodeKind) -> oci::LinuxDeviceType {
    match kind {
        NodeKind::Block => oci::LinuxDeviceType::B,
        NodeKind::Char => oci::LinuxDeviceType::C,
        NodeKind::Pipe => oci::LinuxDeviceType::P,
    }
}

fn to_oci(node: &DeviceNode, path: std::path::PathBuf) -> oci::LinuxDevice {
    let mut device = oci::LinuxDevice::default();
    device
        .set_path(path)
        .set_typ(oci_kind(node.kind))
        .set_major(node.major)
        .set_minor(node.minor)
        .set_file_mode(Some(node.mode))
        .set_uid(Some(node.uid))
        .set_gid(Some(node.gid));
    device
}

/// Reads a rule as `c 42:* rwm`.
///
/// # Errors
///
/// `InvalidArgument`: not one.
pub fn parse_rule(text: &str) -> Result<oci::LinuxDeviceCgroup> {
    read_rule(text)
        .ok_or_else(|| Error::invalid(format!("invalid device cgroup rule format: '{text}'")))
}

fn read_rule(text: &str) -> Option<oci::LinuxDeviceCgroup> {
    let mut words = text.split(' ');
    let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
    let kind = match kind {
        "a" => oci::LinuxDeviceType::A,
        "b" => oci::LinuxDeviceType::B,
        "c" => oci::LinuxDeviceType::C,
        _ => return None,
    };
    let number = |text: &str| match text {
        "*" => Some(-1),
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse::<i64>().ok(),
        _ => None,
    };
    let (major, minor) = numbers.split_once(':')?;
    let (major, minor) = (number(major)?, number(minor)?);
    let is_access = (1..=3).contains(&access.len()) && access.chars().all(|c| "rwm".contains(c));
    (is_access && words.next().is_none())
        .then(|| rule(true, Some(kind), Some(major), Some(minor), access))
}

/// Resource limits of the process: the container's, then the daemon's for what is left.
///
/// # Errors
///
/// `InvalidArgument`: no such limit, or a soft one above the hard one.
pub fn rlimits(own: &[Ulimit], defaults: &[Ulimit]) -> Result<Vec<oci::PosixRlimit>> {
    let open = defaults.iter().filter(|limit| own.iter().all(|known| known.name != limit.name));
    own.iter().chain(open).map(rlimit).collect()
}

fn rlimit(limit: &Ulimit) -> Result<oci::PosixRlimit> {
    use oci::PosixRlimitType as Type;
    let kind = match limit.name.as_str() {
        "core" => Type::RlimitCore,
        "cpu" => Type::RlimitCpu,
        "data" => Type::RlimitData,
        "fsize" => Type::RlimitFsize,
        "locks" => Type::RlimitLocks,
        "memlock" => Type::RlimitMemlock,
        "msgqueue" => Type::RlimitMsgqueue,
        "nice" => Type::RlimitNice,
        "nofile" => Type::RlimitNofile,
        "nproc" => Type::RlimitNproc,
        "rss" => Type::RlimitRss,
        "rtprio" => Type::RlimitRtprio,
        "rttime" => Type::RlimitRttime,
        "sigpending" => Type::RlimitSigpending,
        "stack" => Type::RlimitStack,
        "as" => Type::RlimitAs,
        name => return Err(Error::invalid(format!("invalid ulimit type: {name}"))),
    };
    // Two's complement turns -1 into RLIM_INFINITY.
    let (soft, hard) = (limit.soft.cast_unsigned(), limit.hard.cast_unsigned());
    if soft > hard {
        return Err(Error::invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            limit.soft, limit.hard
        )));
    }
    let result = oci::PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build();
    result.map_err(incomplete)
}
