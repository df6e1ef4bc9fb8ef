//! API versions, and the difference between them.
//!
//! Handlers build the newest form of an object and know no version. [`shape`] turns it into the
//! form a client of an older version expects, one step per version that changed the object, newest
//! first. What differs between versions is in [`steps`], and in [`request`] for request bodies.
//!
//! A list is shaped without a tree of values where it is long and asked for often:
//! [`shape_containers`], [`shape_event`].

pub mod request;
pub mod steps;

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::Value;

use crate::container::ContainerSummary;
use crate::events::EventMessage;

/// A version of the API, as `1.44`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiVersion {
    major: u16,
    minor: u16,
}

impl ApiVersion {
    /// The oldest version served.
    pub const MIN: Self = Self::v1(24);
    /// The newest version served: what a path without a version means.
    pub const MAX: Self = Self::v1(54);

    /// Version 1.`minor`.
    pub const fn v1(minor: u16) -> Self {
        Self { major: 1, minor }
    }

    /// Whether this version is served.
    pub fn is_served(self) -> bool {
        (Self::MIN..=Self::MAX).contains(&self)
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Debug for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid API version {0:?}: expected two numbers, as 1.24")]
pub struct VersionError(String);

impl FromStr for ApiVersion {
    type Err = VersionError;

    /// Two numbers with a dot, or one for "dot zero".
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let number = |part: &str| {
            let digits = (1..=5).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse::<u16>().ok()).flatten()
        };
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        match (number(major), number(minor)) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => Err(VersionError(text.chars().take(64).collect())),
        }
    }
}

/// The objects whose form depends on the version, by the answer they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// `GET /containers/{id}/json`.
    ContainerInspect,
    /// `GET /containers/json`.
    ContainerList,
    /// `GET /images/{name}/json`.
    ImageInspect,
    /// `GET /images/json`.
    ImageList,
    /// `GET /info`.
    Info,
    /// `GET /version`.
    Version,
    /// `GET /system/df`: from 1.52 both the old form and the new one.
    DiskUsage,
    /// `GET /system/df?verbose=1`: from 1.52 only the new form. Before, the query means nothing.
    DiskUsageVerbose,
    /// `GET /volumes/{name}` and the answer to its creation.
    Volume,
    /// `GET /volumes`.
    VolumeList,
    /// `GET /networks/{id}`.
    Network,
    /// `GET /networks`.
    NetworkList,
    /// One message of `GET /events`.
    Event,
    /// `GET /containers/{id}/stats`.
    Stats,
}

/// The form `value` has in `version`. `value` is in the newest form.
pub fn shape(kind: ObjectKind, version: ApiVersion, mut value: Value) -> Value {
    for step in steps::STEPS.iter().filter(|step| step.kind == kind) {
        if version < step.since {
            (step.down)(&mut value);
        } else if let Some(keep) = step.keep {
            keep(&mut value);
        }
    }
    value
}

/// Whether [`shape`] may change such an object; if not, it can be serialised as it is.
pub fn needs_shape(kind: ObjectKind, version: ApiVersion) -> bool {
    steps::STEPS
        .iter()
        .any(|step| step.kind == kind && (version < step.since || step.keep.is_some()))
}

/// Serialises an object in the form of `version`.
///
/// Goes through a tree of values if a step applies; for long lists of containers
/// [`shape_containers`] and a plain serialisation are cheaper.
///
/// # Errors
///
/// What the serialiser reports; none for the types of this crate.
pub fn to_json<T: Serialize + ?Sized>(
    kind: ObjectKind,
    version: ApiVersion,
    object: &T,
) -> serde_json::Result<Vec<u8>> {
    if needs_shape(kind, version) {
        serde_json::to_vec(&shape(kind, version, serde_json::to_value(object)?))
    } else {
        serde_json::to_vec(object)
    }
}

/// [`shape`] for [`ObjectKind::ContainerList`], in place.
pub fn shape_containers(version: ApiVersion, list: &mut [ContainerSummary]) {
    if version >= ApiVersion::v1(52) {
        return;
    }
    for container in list {
        container.health = None;
        if version < ApiVersion::v1(48) {
            container.image_manifest_descriptor = None;
        }
        if version < ApiVersion::v1(46) {
            container.host_config.annotations.clear();
        }
    }
}

/// [`shape`] for [`ObjectKind::Event`], in place.
pub fn shape_event(version: ApiVersion, event: &mut EventMessage) {
    if version >= ApiVersion::v1(52) || !matches!(event.kind.as_str(), "container" | "image") {
        return;
    }
    event.id = Some(event.actor.id.clone());
    event.status = Some(event.action.clone());
    if event.kind == "container" {
        event.from = Some(event.actor.attributes.get("image").cloned().unwrap_or_default());
    }
}

/// Whether a client of `version` gets this event at all: images made by builds are told from 1.46.
pub fn sees_event(version: ApiVersion, event: &EventMessage) -> bool {
    version >= ApiVersion::v1(46) || event.kind != "image" || event.action != "create"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_two_numbers_and_ordered_as_such() {
        let cases = [
            ("1.24", Some(ApiVersion::v1(24))),
            ("1.9", Some(ApiVersion::v1(9))),
            ("1", Some(ApiVersion::v1(0))),
            ("", None),
            (".", None),
            ("1.", None),
            (".24", None),
            ("1.2.3", None),
            ("+1.24", None),
            ("1.-4", None),
            ("1.99999", None),
            ("1.000024", None),
            ("v1.24", None),
        ];
        for (text, version) in cases {
            assert_eq!(text.parse().ok(), version, "{text}");
        }
        assert!(ApiVersion::v1(9) < ApiVersion::v1(24));
        assert!("2.0".parse::<ApiVersion>().unwrap() > ApiVersion::MAX);
        assert_eq!(ApiVersion::MIN.to_string(), "1.24");
        assert!(ApiVersion::MIN.is_served() && ApiVersion::MAX.is_served());
        assert!(!ApiVersion::v1(23).is_served() && !ApiVersion::v1(55).is_served());
    }

    #[test]
    fn errors_do_not_repeat_long_input() {
        let error = "9".repeat(10_000).parse::<ApiVersion>().unwrap_err();
        assert!(error.to_string().len() < 200);
    }
}
