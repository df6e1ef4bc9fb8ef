//! What several resources share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The zero time, as clients expect to see "never happened".
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Text by text: labels, options, attributes.
pub type StringMap = BTreeMap<String, String>;

/// A set of names: each is a key whose value is an empty object.
pub type NameSet = BTreeMap<String, Empty>;

/// `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// The body of every answer with an error status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorResponse {
    /// What went wrong, for a person to read.
    pub message: String,
}

/// An answer that is only the id of what was made (exec create, commit).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IdResponse {
    /// The id.
    pub id: String,
}

/// For `skip_serializing_if`: whether a field holds what its type starts with.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
