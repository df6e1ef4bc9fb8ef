//! Managed plugins.

use serde::{Deserialize, Serialize};

use crate::common::is_default;

/// A managed plugin: a line of `GET /plugins`, the answer to `GET /plugins/{name}/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ManagedPlugin {
    /// What its image says.
    pub config: PluginConfig,
    /// Whether it is running.
    pub enabled: bool,
    /// Id.
    #[serde(skip_serializing_if = "is_default")]
    pub id: String,
    /// Name.
    pub name: String,
    /// Where it was pulled from.
    #[serde(skip_serializing_if = "is_default")]
    pub plugin_reference: String,
    /// What its user chose.
    pub settings: PluginSettings,
}

/// What the image of a plugin says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginConfig {
    /// Arguments.
    pub args: PluginArgs,
    /// Description.
    pub description: String,
    /// Where to read more.
    pub documentation: String,
    /// The program.
    pub entrypoint: Option<Vec<String>>,
    /// Variables.
    pub env: Option<Vec<PluginEnv>>,
    /// What it offers, and where.
    pub interface: PluginInterface,
    /// Whether it shares the host's IPC.
    pub ipc_host: bool,
    /// What it needs of Linux.
    pub linux: PluginLinuxConfig,
    /// Mounts.
    pub mounts: Option<Vec<PluginMount>>,
    /// Network.
    pub network: PluginNetwork,
    /// Whether it shares the host's processes.
    pub pid_host: bool,
    /// Path whose mounts are seen by the host.
    pub propagated_mount: String,
    /// User.
    pub user: PluginUser,
    /// Directory it starts in.
    pub work_dir: String,
    /// Layers.
    #[serde(rename = "rootfs", skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<PluginRootFs>,
}

/// Arguments of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginArgs {
    /// Description.
    pub description: String,
    /// Name.
    pub name: String,
    /// What the user may set.
    pub settable: Option<Vec<String>>,
    /// The arguments.
    pub value: Option<Vec<String>>,
}

/// A variable of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginEnv {
    /// Description.
    pub description: String,
    /// Name.
    pub name: String,
    /// What the user may set.
    pub settable: Option<Vec<String>>,
    /// Value.
    pub value: Option<String>,
}

/// What a plugin offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginInterface {
    /// Protocol; empty for the plain one.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol_scheme: String,
    /// Name of its socket.
    pub socket: String,
    /// As `docker.volumedriver/1.0`.
    pub types: Option<Vec<String>>,
}

/// What a plugin needs of Linux.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginLinuxConfig {
    /// All devices.
    pub allow_all_devices: bool,
    /// Capabilities.
    pub capabilities: Option<Vec<String>>,
    /// Devices.
    pub devices: Option<Vec<PluginDevice>>,
}

/// A device of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginDevice {
    /// Description.
    pub description: String,
    /// Name.
    pub name: String,
    /// Device file.
    pub path: Option<String>,
    /// What the user may set.
    pub settable: Option<Vec<String>>,
}

/// A mount of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginMount {
    /// Description.
    pub description: String,
    /// Path in the plugin.
    pub destination: String,
    /// Name.
    pub name: String,
    /// Mount options.
    pub options: Option<Vec<String>>,
    /// What the user may set.
    pub settable: Option<Vec<String>>,
    /// Path on the host.
    pub source: Option<String>,
    /// File system type.
    #[serde(rename = "Type")]
    pub kind: String,
}

/// Network of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginNetwork {
    /// `host`, `none` or `bridge`.
    #[serde(rename = "Type")]
    pub kind: String,
}

/// User of a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", default)]
pub struct PluginUser {
    /// Group id.
    #[serde(skip_serializing_if = "is_default")]
    pub gid: u32,
    /// User id.
    #[serde(skip_serializing_if = "is_default")]
    pub uid: u32,
}

/// Layers of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PluginRootFs {
    /// Digests of the uncompressed layers.
    pub diff_ids: Option<Vec<String>>,
    /// `layers`.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: String,
}

/// What the user of a plugin chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginSettings {
    /// Arguments.
    pub args: Option<Vec<String>>,
    /// Devices.
    pub devices: Option<Vec<PluginDevice>>,
    /// Variables.
    pub env: Option<Vec<String>>,
    /// Mounts.
    pub mounts: Option<Vec<PluginMount>>,
}

/// A right a plugin asks for: a line of `GET /plugins/privileges`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginPrivilege {
    /// `network`, `mount`, `device`, `capabilities`, …
    pub name: String,
    /// What it means.
    pub description: String,
    /// What is asked for.
    pub value: Option<Vec<String>>,
}
