//! `GET /containers/json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{StringMap, is_default};
use crate::container::MountPoint;
use crate::image::OciDescriptor;
use crate::network::EndpointSettings;

/// One line of `ps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummary {
    /// Id.
    pub id: String,
    /// Names, each with a leading slash.
    pub names: Vec<String>,
    /// The image as the client wrote it; its id once that name means another image.
    pub image: String,
    /// Id of the image.
    #[serde(rename = "ImageID")]
    pub image_id: String,
    /// The manifest it was made from (API 1.48).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_manifest_descriptor: Option<OciDescriptor>,
    /// Program and arguments in one line.
    pub command: String,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// Ports.
    pub ports: Vec<PortSummary>,
    /// Bytes in the writable layer, if asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub size_rw: i64,
    /// Bytes in all layers, if asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub size_root_fs: i64,
    /// Labels.
    pub labels: StringMap,
    /// As [`crate::ContainerState::status`].
    pub state: String,
    /// For people: `Up 2 hours (healthy)`.
    pub status: String,
    /// The part of the host configuration that lists show.
    pub host_config: SummaryHostConfig,
    /// Health (API 1.52).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSummary>,
    /// Networks.
    pub network_settings: Option<SummaryNetworkSettings>,
    /// Mounts.
    pub mounts: Vec<MountPoint>,
}

/// The part of the host configuration that lists show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SummaryHostConfig {
    /// As [`crate::HostConfig::network_mode`].
    #[serde(skip_serializing_if = "is_default")]
    pub network_mode: String,
    /// As [`crate::HostConfig::annotations`] (API 1.46).
    #[serde(skip_serializing_if = "is_default")]
    pub annotations: StringMap,
}

/// Health in one word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthSummary {
    /// `none`, `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: i64,
}

/// Networks in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SummaryNetworkSettings {
    /// One entry per network, by name.
    pub networks: BTreeMap<String, EndpointSettings>,
}

/// One port in a list; a port published on two addresses is listed twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortSummary {
    /// Host address; left out if not published.
    #[serde(rename = "IP", skip_serializing_if = "is_default")]
    pub ip: String,
    /// Port in the container.
    pub private_port: u16,
    /// Port on the host; left out if not published.
    #[serde(skip_serializing_if = "is_default")]
    pub public_port: u16,
    /// `tcp`, `udp` or `sctp`.
    #[serde(rename = "Type")]
    pub kind: String,
}
