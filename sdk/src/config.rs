//! A plugin's view of the daemon's configuration: the keys it claimed, nothing else.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The merged values (flags over file) of the keys that a plugin claimed, under their
/// `daemon.json` names. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ConfigView(Arc<Map<String, Value>>);

impl ConfigView {
    /// A view of exactly `values`.
    pub fn new(values: Map<String, Value>) -> Self {
        Self(Arc::new(values))
    }

    /// Decodes the view. Use `#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the key.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(Value::Object((*self.0).clone()))
            .map_err(|e| Error::invalid("invalid configuration").caused_by(e))
    }

    /// One value as written.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }
}
