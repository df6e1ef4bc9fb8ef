//! What is kept of a volume, whatever its driver.

use gantry_api::Volume as ApiVolume;
use gantry_sdk::Labels;
use gantry_sdk::kinds::volume::{Scope, VolumeInfo};
use serde::{Deserialize, Serialize};

/// Marks volumes that nobody named.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// A record of the metadata database, keyed by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name.
    pub name: String,
    /// Driver instance.
    pub driver: String,
    /// Options of the driver; none if it was made without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Labels>,
    /// Labels; none if it was made without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// When it was made, RFC 3339; empty if it was found at the driver.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created: String,
}

impl Record {
    /// A volume that a driver has and this daemon did not make.
    pub fn found(name: &str, driver: &str) -> Self {
        Self { name: name.to_owned(), driver: driver.to_owned(), ..Self::default() }
    }

    /// Whether nobody gave it a name.
    pub fn is_anonymous(&self) -> bool {
        self.labels.as_ref().is_some_and(|labels| labels.contains_key(ANONYMOUS))
    }

    /// Whether it was made with options of its driver.
    pub fn has_options(&self) -> bool {
        self.options.as_ref().is_some_and(|options| !options.is_empty())
    }

    /// As clients see it. Without `info` the driver did not answer: what only it knows is empty.
    pub fn to_api(&self, info: Option<&VolumeInfo>, scope: Scope) -> ApiVolume {
        let created = info.map(|info| info.created.as_str()).filter(|text| !text.is_empty());
        ApiVolume {
            created_at: created.unwrap_or(&self.created).to_owned(),
            driver: self.driver.clone(),
            labels: self.labels.clone(),
            mountpoint: info.map(|info| info.mountpoint.clone()).unwrap_or_default(),
            name: self.name.clone(),
            options: self.options.clone(),
            scope: match scope {
                Scope::Local => "local",
                Scope::Global => "global",
            }
            .to_owned(),
            status: info
                .into_iter()
                .flat_map(|info| &info.status)
                .map(|(key, value)| (key.clone(), value.clone().into()))
                .collect(),
            usage_data: None,
        }
    }
}
