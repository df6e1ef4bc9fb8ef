//! `GET /events`.

use serde::{Deserialize, Serialize};

use crate::common::{StringMap, is_default};

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventMessage {
    /// Legacy name of the action (before API 1.52; set by [`crate::version::shape_event`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Legacy id of the actor (before API 1.52; set by [`crate::version::shape_event`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Legacy image of the container (before API 1.52; set by [`crate::version::shape_event`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Kind of object: `container`, `image`, `volume`, `network`, `daemon`, `plugin`, `builder`, …
    #[serde(rename = "Type")]
    pub kind: String,
    /// What happened, as `start` or `exec_create: sh`.
    #[serde(rename = "Action")]
    pub action: String,
    /// The object.
    #[serde(rename = "Actor")]
    pub actor: EventActor,
    /// `local` or `swarm`.
    #[serde(skip_serializing_if = "is_default")]
    pub scope: String,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "is_default")]
    pub time: i64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano", skip_serializing_if = "is_default")]
    pub time_nano: i64,
}

/// The object an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventActor {
    /// Id, or the name of objects without one.
    #[serde(rename = "ID")]
    pub id: String,
    /// What else is known: `name`, `image`, `exitCode`, labels, …
    #[serde(rename = "Attributes")]
    pub attributes: StringMap,
}
