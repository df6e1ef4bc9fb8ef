//! Devices: the nodes and links every container has, its own, and who may use which.

use super::Result;
use gantry_sdk::Error;
use gantry_shim_protocol::{Device, DeviceKind, Stdio};
use gantry_sys::cgroup::{Access, DeviceKind as RuleKind, DeviceRule};
use oci_spec::runtime as oci;

/// Nodes of every container: name, major, minor. Source: OCI runtime specification, "Default
/// Devices".
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Rules of every container, after its own: kind, major, minor, access. As runc has them.
const RULES: [(RuleKind, Option<i64>, Option<i64>, &str); 11] = [
    (RuleKind::Char, None, None, "m"),
    (RuleKind::Block, None, None, "m"),
    (RuleKind::Char, Some(1), Some(3), "rwm"),
    (RuleKind::Char, Some(1), Some(8), "rwm"),
    (RuleKind::Char, Some(1), Some(7), "rwm"),
    (RuleKind::Char, Some(5), Some(0), "rwm"),
    (RuleKind::Char, Some(1), Some(5), "rwm"),
    (RuleKind::Char, Some(1), Some(9), "rwm"),
    // /dev/pts and its multiplexer.
    (RuleKind::Char, Some(136), None, "rwm"),
    (RuleKind::Char, Some(5), Some(2), "rwm"),
    (RuleKind::Char, Some(10), Some(200), "rwm"),
];

/// The rules every container has. On an exclusive list they are exceptions, on an open one nothing.
pub(super) fn default_rules() -> Vec<DeviceRule> {
    let rule =
        |(kind, major, minor, access): (RuleKind, Option<i64>, Option<i64>, &str)| DeviceRule {
            allow: true,
            kind,
            major,
            minor,
            access: access.parse().unwrap_or(Access::ALL),
        };
    RULES.into_iter().map(rule).collect()
}

/// The nodes to make: the default ones, then the specification's, which win.
pub(super) fn nodes(linux: &oci::Linux, stdio: Stdio) -> Result<Vec<Device>> {
    let own: Vec<Device> = linux.devices().iter().flatten().map(node).collect::<Result<_>>()?;
    let defaults = DEFAULT.iter().map(|(name, major, minor)| Device {
        path: format!("/dev/{name}"),
        kind: DeviceKind::Character,
        major: *major,
        minor: *minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    });
    let missing = |device: &Device| !own.iter().any(|it| it.path == device.path);
    let mut all: Vec<Device> = defaults.filter(missing).collect();
    // A terminal is bound over /dev/console, and /dev/ptmx is a link to the container's own.
    let taken = |device: &Device| {
        device.path == "/dev/ptmx" || device.path == "/dev/console" && stdio.terminal.is_some()
    };
    all.extend(own.iter().filter(|device| !taken(device)).cloned());
    Ok(all)
}

fn node(device: &oci::LinuxDevice) -> Result<Device> {
    let refuse = |why: &str| Error::invalid(format!("device {}: {why}", device.path().display()));
    let path = device.path().to_str().filter(|path| path.starts_with('/'));
    let path = path.ok_or_else(|| refuse("its path is not absolute"))?.to_owned();
    let kind = match device.typ() {
        oci::LinuxDeviceType::C | oci::LinuxDeviceType::U => DeviceKind::Character,
        oci::LinuxDeviceType::B => DeviceKind::Block,
        oci::LinuxDeviceType::P => DeviceKind::Fifo,
        oci::LinuxDeviceType::A => return Err(refuse("its type is not a kind of node")),
    };
    let number = |value: i64| match kind {
        DeviceKind::Fifo => Ok(0),
        _ => u32::try_from(value).map_err(|_| refuse("its number is out of range")),
    };
    Ok(Device {
        path,
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        mode: device.file_mode().unwrap_or(0o666),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// The links every container has. Source: OCI runtime specification, "Dev symbolic links".
pub(super) fn links() -> Vec<(String, String)> {
    [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/core", "/proc/kcore"),
        ("/dev/ptmx", "pts/ptmx"),
    ]
    .map(|(name, content)| (name.to_owned(), content.to_owned()))
    .to_vec()
}
