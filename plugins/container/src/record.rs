//! What is kept of a container on disk.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_sdk::api::container::{ContainerConfig, HostConfig};
use gantry_sdk::api::network::EndpointSettings;
use gantry_sdk::id::{ContainerId, Digest};
use gantry_sdk::kinds::layers::{Chain, ContainerLayer};
use gantry_sdk::kinds::networks::SandboxStatus;
use gantry_sdk::kinds::runtime::Exit;
use gantry_sdk::{Labels, Result};
use serde::{Deserialize, Serialize};

use crate::state::State;

/// The table of the metadata database.
pub const TABLE: &str = "containers";
/// Format of [`Record`]; a newer one is refused, older ones are read for ever.
pub const FORMAT: u32 = 1;

/// A container as created, and what must survive the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`] at the time of writing.
    pub format: u32,
    /// Identity.
    pub id: ContainerId,
    /// Name without slash; unique.
    pub name: String,
    /// When it was created.
    pub created: SystemTime,
    /// Image as the user wrote it.
    pub image: String,
    /// Digest of the image's configuration.
    pub image_id: Digest,
    /// `linux/amd64`.
    pub platform: String,
    /// The image's layers.
    pub chain: Chain,
    /// Merged with the image's configuration.
    pub config: ContainerConfig,
    /// With defaults filled in.
    pub host: HostConfig,
    /// Networks by name, as asked for.
    pub endpoints: BTreeMap<String, EndpointSettings>,
    /// Its writable layer.
    pub layer: ContainerLayer,
    /// What is mounted into it, in order of destination depth.
    pub mounts: Vec<MountRecord>,
    /// Log driver instance.
    pub log_driver: String,
    /// Log options, defaults merged.
    pub log_options: Labels,
    /// Runtime instance.
    pub runtime: String,
    /// Where its life stood.
    pub life: Life,
}

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// A path of the host.
    Bind {
        /// Absolute.
        path: String,
    },
    /// A volume.
    Volume {
        /// Its name.
        name: String,
        /// Its driver instance.
        driver: String,
        /// Path on the host as clients see it.
        mountpoint: String,
        /// A path within it; empty for all of it.
        subpath: String,
        /// Whether it was made for this container and nobody named it.
        anonymous: bool,
    },
    /// Memory.
    Tmpfs {
        /// Mount options, `size=…,mode=…`.
        options: String,
    },
}

/// Something mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Source.
    pub source: MountSource,
    /// Absolute path inside.
    pub destination: String,
    /// Options as the user wrote them (`ro,z`).
    pub mode: String,
    /// Read-only.
    pub read_only: bool,
    /// Propagation; empty for the default.
    pub propagation: String,
    /// Bind without the mounts below the source.
    pub non_recursive: bool,
    /// Read-only stops at the mount itself.
    pub read_only_non_recursive: bool,
    /// It is an error if read-only cannot reach the mounts below.
    pub read_only_force_recursive: bool,
}

/// The part of the state that survives the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// When it was started last.
    pub started: Option<SystemTime>,
    /// How it ended last.
    pub exit: Option<Exit>,
    /// Why it could not be started; empty if it could.
    pub error: String,
    /// Whether it was running, or about to be restarted, when this was written.
    pub active: bool,
    /// Whether a client stopped it, which `unless-stopped` respects.
    pub stopped_by_hand: bool,
    /// How often its restart policy has started it since a client did.
    pub restarts: u32,
    /// Whether removal has begun.
    pub removing: bool,
    /// Its network while it runs.
    pub sandbox: Option<SandboxStatus>,
}

impl Record {
    /// Reads a record of any format up to [`FORMAT`].
    ///
    /// # Errors
    ///
    /// `Internal` naming the key.
    pub fn decode(key: &str, bytes: &[u8]) -> Result<Self> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| {
            gantry_sdk::Error::internal(format!("cannot read the record of container {key}"), e)
        })?;
        if record.format > FORMAT {
            return Err(gantry_sdk::Error::new(
                gantry_sdk::ErrorKind::Internal,
                format!(
                    "container {key} was written by a newer version (format {})",
                    record.format
                ),
            ));
        }
        Ok(record)
    }

    /// The state that the record alone implies: nothing runs.
    pub fn state_at_rest(&self) -> State {
        match (&self.life.exit, self.life.started) {
            _ if self.life.removing => State::Dead,
            (Some(exit), Some(_)) => State::Exited { exit: exit.clone() },
            // Also one that never could be started.
            _ => State::Created,
        }
    }

    /// Whether the container is removed when it ends.
    pub const fn auto_remove(&self) -> bool {
        self.host.auto_remove
    }

    /// The names of its volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.mounts.iter().filter_map(|m| match &m.source {
            MountSource::Volume { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }
}
