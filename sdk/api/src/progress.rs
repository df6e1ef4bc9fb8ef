//! The stream of pull, push, load, import and build: one message per line.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::common::is_default;

/// One message of a progress stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressMessage {
    /// Output of a build step, or free text.
    #[serde(skip_serializing_if = "is_default")]
    pub stream: String,
    /// What is being done.
    #[serde(skip_serializing_if = "is_default")]
    pub status: String,
    /// How far it is; `{}` for "no figures".
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub progress_detail: Option<ProgressDetail>,
    /// What it is done to: a layer, a tag.
    #[serde(skip_serializing_if = "is_default")]
    pub id: String,
    /// Why the whole request failed.
    #[serde(rename = "errorDetail", skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<ProgressError>,
    /// The message of `error_detail` again, for old clients.
    #[serde(skip_serializing_if = "is_default")]
    pub error: String,
    /// Data for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<Value>,
}

impl ProgressMessage {
    /// Text without figures.
    pub fn status(id: impl Into<String>, status: impl Into<String>) -> Self {
        Self { id: id.into(), status: status.into(), ..Self::default() }
    }

    /// A step with or without figures.
    pub fn progress(
        id: impl Into<String>,
        status: impl Into<String>,
        detail: ProgressDetail,
    ) -> Self {
        Self { progress_detail: Some(detail), ..Self::status(id, status) }
    }

    /// Free text, as `Loaded image: a:latest\n`.
    pub fn stream(text: impl Into<String>) -> Self {
        Self { stream: text.into(), ..Self::default() }
    }

    /// Data for programs.
    pub fn aux(id: impl Into<String>, aux: Value) -> Self {
        Self { id: id.into(), aux: Some(aux), ..Self::default() }
    }

    /// Why the request failed: the last message of its stream.
    pub fn failed(message: impl Into<String>) -> Self {
        let message = message.into();
        let error_detail = Some(ProgressError { code: 0, message: message.clone() });
        Self { error_detail, error: message, ..Self::default() }
    }
}

/// How far a step is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressDetail {
    /// Done.
    #[serde(skip_serializing_if = "is_default")]
    pub current: i64,
    /// Of so many.
    #[serde(skip_serializing_if = "is_default")]
    pub total: i64,
    /// Where it began.
    #[serde(skip_serializing_if = "is_default")]
    pub start: i64,
    /// Whether the figures are not to be shown.
    #[serde(rename = "hidecounts", skip_serializing_if = "is_default")]
    pub hide_counts: bool,
    /// Unit; empty for bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub units: String,
}

/// Why a request failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressError {
    /// Status or exit code; 0 for none.
    #[serde(skip_serializing_if = "is_default")]
    pub code: i64,
    /// For a person to read.
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
}
