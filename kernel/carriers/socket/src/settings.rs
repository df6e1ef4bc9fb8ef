//! Which directories are looked at.

use std::path::PathBuf;

use gantry_sdk::{Error, Result};
use serde::Deserialize;

/// The section `carrier.socket` of `kernel-plugins`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Where sockets are: `<name>.sock` or `<name>/<name>.sock`.
    pub sockets: PathBuf,
    /// Where addresses are: `<name>.spec`, `<name>.json`, or one of them in a directory `<name>`.
    /// The first directory that has a name decides.
    pub specs: Vec<PathBuf>,
}

impl Default for Settings {
    /// The directories of the reference engine.
    fn default() -> Self {
        Self {
            sockets: "/run/docker/plugins".into(),
            specs: vec!["/etc/docker/plugins".into(), "/usr/lib/docker/plugins".into()],
        }
    }
}

impl Settings {
    /// Reads the section; null is the default.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for an unknown key, a wrong type or a relative path.
    pub fn parse(section: &serde_json::Value) -> Result<Self> {
        if section.is_null() {
            return Ok(Self::default());
        }
        let settings: Self = serde_json::from_value(section.clone()).map_err(|e| {
            Error::invalid("cannot read the settings of carrier.socket").caused_by(e)
        })?;
        let relative =
            settings.specs.iter().chain([&settings.sockets]).find(|path| !path.is_absolute());
        match relative {
            Some(path) => Err(Error::invalid(format!("{} is not absolute", path.display()))),
            None => Ok(settings),
        }
    }
}
