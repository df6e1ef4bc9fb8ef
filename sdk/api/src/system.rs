//! `GET /version`, `GET /info`, `GET /system/df`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::build::BuildCacheRecord;
use crate::common::{StringMap, is_default};
use crate::container::ContainerSummary;
use crate::image::ImageSummary;
use crate::registry::RegistryServiceConfig;
use crate::volume::Volume;

/// The answer to `GET /version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VersionResponse {
    /// The product.
    pub platform: PlatformInfo,
    /// Version of the engine.
    pub version: String,
    /// Newest API version.
    pub api_version: String,
    /// Oldest API version.
    #[serde(rename = "MinAPIVersion", skip_serializing_if = "is_default")]
    pub min_api_version: String,
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub arch: String,
    /// The parts.
    #[serde(skip_serializing_if = "is_default")]
    pub components: Vec<ComponentVersion>,
    /// Commit it was built from.
    #[serde(skip_serializing_if = "is_default")]
    pub git_commit: String,
    /// Version of the Go compiler; not set by us.
    #[serde(skip_serializing_if = "is_default")]
    pub go_version: String,
    /// Kernel.
    #[serde(skip_serializing_if = "is_default")]
    pub kernel_version: String,
    /// Whether experimental features are on.
    #[serde(skip_serializing_if = "is_default")]
    pub experimental: bool,
    /// When it was built.
    #[serde(skip_serializing_if = "is_default")]
    pub build_time: String,
}

/// The product.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlatformInfo {
    /// Name.
    pub name: String,
}

/// A part of the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ComponentVersion {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// More.
    #[serde(skip_serializing_if = "is_default")]
    pub details: StringMap,
}

/// The answer to `GET /info`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SystemInfo {
    /// Id of the daemon.
    #[serde(rename = "ID")]
    pub id: String,
    /// Containers.
    pub containers: i64,
    /// Running containers.
    pub containers_running: i64,
    /// Paused containers.
    pub containers_paused: i64,
    /// Other containers.
    pub containers_stopped: i64,
    /// Images.
    pub images: i64,
    /// Storage driver.
    pub driver: String,
    /// What the storage driver says, in pairs.
    pub driver_status: Vec<[String; 2]>,
    /// Drivers by kind.
    pub plugins: PluginsInfo,
    /// Kernel: memory limits.
    pub memory_limit: bool,
    /// Kernel: swap limits.
    pub swap_limit: bool,
    /// Kernel: CPU periods.
    pub cpu_cfs_period: bool,
    /// Kernel: CPU quotas.
    pub cpu_cfs_quota: bool,
    /// Kernel: CPU weights.
    #[serde(rename = "CPUShares")]
    pub cpu_shares: bool,
    /// Kernel: CPU sets.
    #[serde(rename = "CPUSet")]
    pub cpu_set: bool,
    /// Kernel: process limits.
    pub pids_limit: bool,
    /// Kernel: IPv4 forwarding.
    #[serde(rename = "IPv4Forwarding")]
    pub ipv4_forwarding: bool,
    /// Whether debugging is on.
    pub debug: bool,
    /// Open files of the daemon.
    #[serde(rename = "NFd")]
    pub n_fd: i64,
    /// Kernel: out-of-memory killer can be turned off.
    pub oom_kill_disable: bool,
    /// Tasks of the daemon.
    #[serde(rename = "NGoroutines")]
    pub n_goroutines: i64,
    /// Time now.
    pub system_time: String,
    /// Default log driver.
    pub logging_driver: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// `1` or `2`.
    #[serde(skip_serializing_if = "is_default")]
    pub cgroup_version: String,
    /// Clients that listen to events.
    #[serde(rename = "NEventsListener")]
    pub n_events_listener: i64,
    /// Kernel.
    pub kernel_version: String,
    /// Operating system, for people.
    pub operating_system: String,
    /// Version of the operating system.
    #[serde(rename = "OSVersion")]
    pub os_version: String,
    /// `linux`.
    #[serde(rename = "OSType")]
    pub os_type: String,
    /// `x86_64`, `aarch64`, …
    pub architecture: String,
    /// Default registry.
    pub index_server_address: String,
    /// Registries.
    pub registry_config: Option<RegistryServiceConfig>,
    /// Processors.
    #[serde(rename = "NCPU")]
    pub n_cpu: i64,
    /// Bytes.
    pub mem_total: i64,
    /// Generic resources of the node, as written; `null` for none.
    pub generic_resources: Option<Vec<Value>>,
    /// Where everything is kept.
    pub docker_root_dir: String,
    /// Proxy for HTTP.
    pub http_proxy: String,
    /// Proxy for HTTPS.
    pub https_proxy: String,
    /// Hosts without a proxy.
    pub no_proxy: String,
    /// Name of the host.
    pub name: String,
    /// Labels of the daemon.
    pub labels: Vec<String>,
    /// Whether experimental features are on.
    pub experimental_build: bool,
    /// Version of the engine.
    pub server_version: String,
    /// Runtimes by name.
    pub runtimes: BTreeMap<String, RuntimeInfo>,
    /// The runtime used unless told otherwise.
    pub default_runtime: String,
    /// Cluster.
    pub swarm: SwarmInfo,
    /// Whether containers outlive the daemon.
    pub live_restore_enabled: bool,
    /// Isolation (Windows).
    pub isolation: String,
    /// The small init.
    pub init_binary: String,
    /// Version of containerd; empty without one.
    pub containerd_commit: Commit,
    /// Version of the runtime.
    pub runc_commit: Commit,
    /// Version of the small init.
    pub init_commit: Commit,
    /// `name=seccomp,profile=builtin`, …
    pub security_options: Vec<String>,
    /// Licence.
    #[serde(skip_serializing_if = "is_default")]
    pub product_license: String,
    /// Pools that networks take their subnets from.
    #[serde(skip_serializing_if = "is_default")]
    pub default_address_pools: Vec<AddressPool>,
    /// Firewall (API 1.49).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall_backend: Option<FirewallInfo>,
    /// Where CDI specifications are looked for (API 1.44).
    #[serde(rename = "CDISpecDirs")]
    pub cdi_spec_dirs: Vec<String>,
    /// Devices found (API 1.50).
    #[serde(skip_serializing_if = "is_default")]
    pub discovered_devices: Vec<DiscoveredDevice>,
    /// Node resource interface (API 1.53).
    #[serde(rename = "NRI", skip_serializing_if = "Option::is_none")]
    pub nri: Option<NriInfo>,
    /// What a user should know about this host; `null` for nothing.
    pub warnings: Option<Vec<String>>,
}

/// Drivers by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginsInfo {
    /// Volumes.
    pub volume: Vec<String>,
    /// Networks.
    pub network: Vec<String>,
    /// Authorization; `null` for none.
    pub authorization: Option<Vec<String>>,
    /// Logs.
    pub log: Vec<String>,
}

/// A runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeInfo {
    /// Program.
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    /// Its arguments.
    #[serde(rename = "runtimeArgs", skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    /// Type, for runtimes that are not a program.
    #[serde(rename = "runtimeType", skip_serializing_if = "is_default")]
    pub kind: String,
    /// Options of that type.
    #[serde(skip_serializing_if = "is_default")]
    pub options: BTreeMap<String, Value>,
    /// What the runtime says about itself (API 1.44).
    #[serde(skip_serializing_if = "is_default")]
    pub status: StringMap,
}

/// A version by commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Commit {
    /// Commit or version.
    #[serde(rename = "ID")]
    pub id: String,
}

/// A pool that networks take their subnets from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AddressPool {
    /// The pool, with prefix length.
    pub base: String,
    /// Prefix length of each subnet.
    pub size: i64,
}

/// Firewall.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FirewallInfo {
    /// `nftables` or `iptables`.
    pub driver: String,
    /// More, in pairs.
    #[serde(skip_serializing_if = "is_default")]
    pub info: Vec<[String; 2]>,
}

/// A device found by a device driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiscoveredDevice {
    /// Driver.
    pub source: String,
    /// Id.
    #[serde(rename = "ID")]
    pub id: String,
}

/// Node resource interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NriInfo {
    /// In pairs.
    #[serde(skip_serializing_if = "is_default")]
    pub info: Vec<[String; 2]>,
}

/// This node's place in a cluster. The default is "in none".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SwarmInfo {
    /// Id of the node.
    #[serde(rename = "NodeID")]
    pub node_id: String,
    /// Address of the node.
    pub node_addr: String,
    /// `inactive`, `pending`, `active`, `error` or `locked`.
    pub local_node_state: String,
    /// Whether it is a manager.
    pub control_available: bool,
    /// Why it is in `error`.
    pub error: String,
    /// Managers; `null` without a cluster.
    pub remote_managers: Option<Vec<SwarmPeer>>,
    /// Nodes.
    #[serde(skip_serializing_if = "is_default")]
    pub nodes: i64,
    /// Managers.
    #[serde(skip_serializing_if = "is_default")]
    pub managers: i64,
}

impl Default for SwarmInfo {
    fn default() -> Self {
        Self {
            node_id: String::new(),
            node_addr: String::new(),
            local_node_state: "inactive".to_owned(),
            control_available: false,
            error: String::new(),
            remote_managers: None,
            nodes: 0,
            managers: 0,
        }
    }
}

/// A manager of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SwarmPeer {
    /// Id.
    #[serde(rename = "NodeID")]
    pub node_id: String,
    /// Address.
    pub addr: String,
}

/// The answer to `GET /system/df`, in the form of API 1.52; a kind not asked for is left out.
///
/// The lists are always filled: the form before 1.52 is made of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiskUsage {
    /// Images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_usage: Option<ImagesDiskUsage>,
    /// Containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_usage: Option<ContainersDiskUsage>,
    /// Volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_usage: Option<VolumesDiskUsage>,
    /// Build cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_cache_usage: Option<BuildCacheDiskUsage>,
}

/// Disk use of one kind of object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, bound(deserialize = "T: Deserialize<'de>"))]
pub struct UsageOf<T> {
    /// How many are in use.
    #[serde(skip_serializing_if = "is_default")]
    pub active_count: i64,
    /// All of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<T>,
    /// Bytes that pruning would free.
    #[serde(skip_serializing_if = "is_default")]
    pub reclaimable: i64,
    /// How many there are.
    #[serde(skip_serializing_if = "is_default")]
    pub total_count: i64,
    /// Bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub total_size: i64,
}

impl<T> Default for UsageOf<T> {
    fn default() -> Self {
        Self { active_count: 0, items: Vec::new(), reclaimable: 0, total_count: 0, total_size: 0 }
    }
}

/// Disk use of images.
pub type ImagesDiskUsage = UsageOf<ImageSummary>;
/// Disk use of containers.
pub type ContainersDiskUsage = UsageOf<ContainerSummary>;
/// Disk use of volumes.
pub type VolumesDiskUsage = UsageOf<Volume>;
/// Disk use of the build cache.
pub type BuildCacheDiskUsage = UsageOf<BuildCacheRecord>;
