//! Which storage instance is the default.

use gantry_sdk::{ConfigKey, ConfigView, Error, Result};
use serde::Deserialize;

/// The keys that this plugin honours.
pub const KEYS: &[ConfigKey] = &[ConfigKey::fixed("storage-driver")];

/// The instances that are tried when none is configured, best first.
pub const PREFERRED: [&str; 2] = ["overlay2", "vfs"];

/// The configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Instance of new images and containers; empty for the first usable one of [`PREFERRED`].
    pub storage_driver: String,
}

impl Settings {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the key.
    pub fn parse(view: &ConfigView) -> Result<Self> {
        view.parse()
    }

    /// The default among `ready` instances. A configured one is never silently replaced.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the configured one, or any, is missing.
    pub fn choose(&self, ready: &[String]) -> Result<String> {
        let is_ready = |name: &str| ready.iter().any(|r| r == name);
        if !self.storage_driver.is_empty() {
            return match self.storage_driver.as_str() {
                name if is_ready(name) => Ok(name.to_owned()),
                name => Err(Error::unavailable(format!(
                    "storage driver {name} is not usable here; usable are: {}",
                    ready.join(", ")
                ))),
            };
        }
        PREFERRED
            .into_iter()
            .find(|name| is_ready(name))
            .map(str::to_owned)
            .or_else(|| ready.first().cloned())
            .ok_or_else(|| Error::unavailable("no storage driver is usable here"))
    }
}

/// Every mistake in the configuration.
pub fn check(view: &ConfigView) -> Vec<String> {
    Settings::parse(view).err().map(|e| e.chain()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_driver_is_never_replaced() {
        let ready = ["other".to_owned(), "vfs".to_owned()];
        let choose = |name: &str| Settings { storage_driver: name.into() }.choose(&ready);
        assert_eq!(choose("").unwrap(), "vfs");
        assert_eq!(choose("other").unwrap(), "other");
        assert!(choose("overlay2").unwrap_err().to_string().contains("overlay2"));
    }
}
