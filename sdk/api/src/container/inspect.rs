//! `GET /containers/{id}/json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{StringMap, is_default};
use crate::container::{ContainerConfig, HostConfig, MountPoint, PortMap};
use crate::image::OciDescriptor;
use crate::network::EndpointSettings;

/// Everything about one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerInspect {
    /// Id.
    pub id: String,
    /// When it was made.
    pub created: String,
    /// The program.
    pub path: String,
    /// Its arguments. `null` only for a container without any.
    pub args: Option<Vec<String>>,
    /// What it is doing.
    pub state: Option<ContainerState>,
    /// Id of the image.
    pub image: String,
    /// The resolver's configuration on the host.
    pub resolv_conf_path: String,
    /// The host name file on the host.
    pub hostname_path: String,
    /// The hosts file on the host.
    pub hosts_path: String,
    /// The log file on the host, if the driver has one.
    pub log_path: String,
    /// Name, with a leading slash.
    pub name: String,
    /// Restarts by policy.
    pub restart_count: i64,
    /// Storage driver.
    pub driver: String,
    /// Operating system.
    pub platform: String,
    /// SELinux label of its mounts.
    pub mount_label: String,
    /// SELinux label of its process.
    pub process_label: String,
    /// AppArmor profile.
    pub app_armor_profile: String,
    /// Commands running in it; `null` when there are none.
    #[serde(rename = "ExecIDs")]
    pub exec_ids: Option<Vec<String>>,
    /// What it gets from the host.
    pub host_config: Option<HostConfig>,
    /// Where a layer driver keeps its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph_driver: Option<DriverData>,
    /// Where a snapshotter keeps its files (API 1.52; shown as `GraphDriver` before).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Bytes in the writable layer, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<i64>,
    /// Bytes in all layers, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<i64>,
    /// Its mounts.
    pub mounts: Vec<MountPoint>,
    /// What it runs.
    pub config: Option<ContainerConfig>,
    /// Its place in the networks.
    pub network_settings: Option<NetworkSettings>,
    /// The manifest it was made from (API 1.48).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_manifest_descriptor: Option<OciDescriptor>,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub status: String,
    /// Has a process; true while paused or restarting too.
    pub running: bool,
    /// Frozen.
    pub paused: bool,
    /// Between two runs by its restart policy.
    pub restarting: bool,
    /// Ended by the out-of-memory killer.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Could not be removed.
    pub dead: bool,
    /// Process id on the host; 0 for none.
    pub pid: i64,
    /// Exit code of the last run.
    pub exit_code: i64,
    /// Why the last start failed.
    pub error: String,
    /// When the last run began.
    pub started_at: String,
    /// When the last run ended.
    pub finished_at: String,
    /// Health, with a health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// Health of a container and its last probes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    /// `none`, `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: i64,
    /// The last probes, oldest first.
    pub log: Vec<HealthcheckResult>,
}

/// One probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthcheckResult {
    /// When it began.
    pub start: String,
    /// When it ended.
    pub end: String,
    /// 0 healthy, 1 unhealthy, -1 the probe itself failed.
    pub exit_code: i64,
    /// What it printed.
    pub output: String,
}

/// A container's place in the networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// Id of the network namespace.
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    /// Path of the network namespace.
    pub sandbox_key: String,
    /// Ports, published or only exposed.
    pub ports: PortMap,
    /// One entry per network, by name.
    pub networks: BTreeMap<String, EndpointSettings>,
}

/// What a layer driver says about a container or an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverData {
    /// Driver-specific paths.
    pub data: Option<StringMap>,
    /// The driver.
    pub name: String,
}

/// Storage of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Storage {
    /// Of its root file system.
    #[serde(rename = "RootFS", skip_serializing_if = "Option::is_none")]
    pub root_fs: Option<RootFsStorage>,
}

/// Storage of a root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootFsStorage {
    /// The snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<RootFsSnapshot>,
}

/// A snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootFsSnapshot {
    /// The snapshotter.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
}
