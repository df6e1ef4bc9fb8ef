//! What a container gets from the host it runs on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{StringMap, is_default};
use crate::container::{Mount, none_or_empty};
use crate::json::text_or_list;

/// Host ports by container port (`80/tcp`). A port without an entry list is exposed, not published.
pub type PortMap = BTreeMap<String, Option<Vec<PortBinding>>>;

/// The part of a container's configuration that depends on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `source:destination[:options]`; the source is a path or a volume name.
    pub binds: Option<Vec<String>>,
    /// File the client writes the id into.
    #[serde(rename = "ContainerIDFile")]
    pub container_id_file: String,
    /// Where the output goes.
    pub log_config: LogConfig,
    /// `default`, `bridge`, `host`, `none`, `container:<id>` or a network's name or id.
    pub network_mode: String,
    /// Published ports.
    pub port_bindings: Option<PortMap>,
    /// What happens when the process ends.
    pub restart_policy: RestartPolicy,
    /// Whether the container is removed when its process ends.
    pub auto_remove: bool,
    /// Driver for volumes that name none.
    pub volume_driver: String,
    /// Containers whose mounts are taken over, `name[:ro|rw]`.
    pub volumes_from: Option<Vec<String>>,
    /// First size of the terminal: height, width.
    pub console_size: [u64; 2],
    /// Free-form data handed to the runtime (API 1.43).
    #[serde(skip_serializing_if = "no_entries")]
    pub annotations: Option<StringMap>,
    /// Capabilities added to the default set.
    #[serde(deserialize_with = "text_or_list")]
    pub cap_add: Option<Vec<String>>,
    /// Capabilities removed from the default set.
    #[serde(deserialize_with = "text_or_list")]
    pub cap_drop: Option<Vec<String>>,
    /// Cgroup namespace: empty, `private` or `host`.
    pub cgroupns_mode: String,
    /// Name servers.
    pub dns: Option<Vec<String>>,
    /// Resolver options.
    pub dns_options: Option<Vec<String>>,
    /// Search domains.
    pub dns_search: Option<Vec<String>>,
    /// Lines for the hosts file, `name:address`.
    pub extra_hosts: Option<Vec<String>>,
    /// Groups the process gets besides its own.
    pub group_add: Option<Vec<String>>,
    /// IPC namespace: empty, `none`, `private`, `shareable`, `host`, `container:<id>`.
    pub ipc_mode: String,
    /// Cgroup to share: empty or `container:<id>`.
    pub cgroup: String,
    /// Legacy links, `container:alias`.
    pub links: Option<Vec<String>>,
    /// Out-of-memory preference, -1000 to 1000.
    pub oom_score_adj: i64,
    /// PID namespace: empty, `host`, `container:<id>`.
    pub pid_mode: String,
    /// All capabilities, all devices, no confinement.
    pub privileged: bool,
    /// Whether each exposed port gets a host port.
    pub publish_all_ports: bool,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// Security options: `no-new-privileges`, `seccomp=…`, `apparmor=…`, `label=…`, …
    pub security_opt: Option<Vec<String>>,
    /// Options for the storage driver.
    #[serde(skip_serializing_if = "no_entries")]
    pub storage_opt: Option<StringMap>,
    /// Temporary file systems, options by path.
    #[serde(skip_serializing_if = "no_entries")]
    pub tmpfs: Option<StringMap>,
    /// UTS namespace: empty or `host`.
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    /// User namespace: empty or `host`.
    pub userns_mode: String,
    /// Size of `/dev/shm` in bytes; 0 for the daemon's default.
    pub shm_size: i64,
    /// Kernel parameters of the container's namespaces.
    #[serde(skip_serializing_if = "no_entries")]
    pub sysctls: Option<StringMap>,
    /// Runtime by name; empty for the daemon's default.
    #[serde(skip_serializing_if = "is_default")]
    pub runtime: String,
    /// Isolation technology (Windows; `default` or empty elsewhere).
    pub isolation: String,
    /// CPU weight; 0 for the default.
    pub cpu_shares: i64,
    /// Memory limit in bytes; 0 for none.
    pub memory: i64,
    /// CPU time in billionths of a CPU; 0 for no limit.
    pub nano_cpus: i64,
    /// Parent cgroup; empty for the daemon's default.
    pub cgroup_parent: String,
    /// Block I/O weight, 10 to 1000; 0 for none.
    pub blkio_weight: u16,
    /// Block I/O weights by device.
    pub blkio_weight_device: Option<Vec<WeightDevice>>,
    /// Bytes read per second, by device.
    pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
    /// Bytes written per second, by device.
    pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
    /// Reads per second, by device.
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
    /// Writes per second, by device.
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
    /// Length of a CPU period in microseconds.
    pub cpu_period: i64,
    /// CPU time per period in microseconds.
    pub cpu_quota: i64,
    /// Length of a real-time period in microseconds.
    pub cpu_realtime_period: i64,
    /// Real-time CPU time per period in microseconds.
    pub cpu_realtime_runtime: i64,
    /// CPUs, as `0-2,4`.
    pub cpuset_cpus: String,
    /// Memory nodes, as `0-1`.
    pub cpuset_mems: String,
    /// Devices of the host.
    pub devices: Option<Vec<DeviceMapping>>,
    /// Rules for the device cgroup, as `c 42:* rmw`.
    pub device_cgroup_rules: Option<Vec<String>>,
    /// Devices asked for by capability.
    pub device_requests: Option<Vec<DeviceRequest>>,
    /// Soft memory limit in bytes.
    pub memory_reservation: i64,
    /// Memory and swap together in bytes; -1 for unlimited swap, 0 for twice the memory.
    pub memory_swap: i64,
    /// 0 to 100; -1 or none for the kernel's choice.
    pub memory_swappiness: Option<i64>,
    /// Whether the out-of-memory killer is off.
    pub oom_kill_disable: Option<bool>,
    /// Most processes; none, 0 or -1 for unlimited.
    pub pids_limit: Option<i64>,
    /// Resource limits of the process.
    pub ulimits: Option<Vec<Ulimit>>,
    /// Number of CPUs (Windows).
    pub cpu_count: i64,
    /// Share of the CPUs (Windows).
    pub cpu_percent: i64,
    /// Most I/O operations per second (Windows).
    #[serde(rename = "IOMaximumIOps")]
    pub io_maximum_iops: u64,
    /// Most bytes per second (Windows).
    #[serde(rename = "IOMaximumBandwidth")]
    pub io_maximum_bandwidth: u64,
    /// Mounts.
    #[serde(skip_serializing_if = "none_or_empty")]
    pub mounts: Option<Vec<Mount>>,
    /// Paths hidden from the container; none for the default list.
    pub masked_paths: Option<Vec<String>>,
    /// Paths that are read-only in the container; none for the default list.
    pub readonly_paths: Option<Vec<String>>,
    /// Whether a small init runs as process 1; none for the daemon's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
}

fn no_entries(map: &Option<StringMap>) -> bool {
    map.as_ref().is_none_or(StringMap::is_empty)
}

/// Where the output of a container goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogConfig {
    /// Log driver; empty for the daemon's default.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Options of the driver.
    pub config: Option<StringMap>,
}

/// What happens when the process of a container ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// Empty, `no`, `always`, `on-failure` or `unless-stopped`.
    pub name: String,
    /// Most restarts; only with `on-failure`, 0 for no limit.
    pub maximum_retry_count: i64,
}

/// One address and port of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortBinding {
    /// Address; empty for all.
    #[serde(rename = "HostIp")]
    pub host_ip: String,
    /// Port, a range `8000-8010`, or empty for any.
    #[serde(rename = "HostPort")]
    pub host_port: String,
}

/// Block I/O weight of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WeightDevice {
    /// Device file.
    pub path: String,
    /// 10 to 1000.
    pub weight: u16,
}

/// Block I/O limit of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ThrottleDevice {
    /// Device file.
    pub path: String,
    /// Bytes or operations per second.
    pub rate: u64,
}

/// A device of the host in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceMapping {
    /// Device file or directory on the host.
    pub path_on_host: String,
    /// Where it appears.
    pub path_in_container: String,
    /// Letters of `rwm`.
    pub cgroup_permissions: String,
}

/// A wish for devices, met by a device driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceRequest {
    /// Driver (`nvidia`, `cdi`, …); empty for any that fits.
    pub driver: String,
    /// How many; -1 for all.
    pub count: i64,
    /// Or which.
    #[serde(rename = "DeviceIDs")]
    pub device_ids: Option<Vec<String>>,
    /// Any of these sets of capabilities.
    pub capabilities: Option<Vec<Vec<String>>>,
    /// Options of the driver.
    pub options: Option<StringMap>,
}

/// A resource limit (setrlimit(2)); -1 for unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// The ceiling.
    pub hard: i64,
    /// The value in force.
    pub soft: i64,
}
