//! Commands run in a container.

use serde::{Deserialize, Serialize};

use crate::common::is_default;
use crate::json::text_or_list;

/// The body of `POST /containers/{id}/exec`. The answer is an [`crate::IdResponse`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecCreateRequest {
    /// As [`crate::ContainerConfig::user`]; empty for the container's.
    pub user: String,
    /// All capabilities.
    pub privileged: bool,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// First size of the terminal: height, width (API 1.42).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<[u64; 2]>,
    /// Attach standard input.
    pub attach_stdin: bool,
    /// Attach standard error.
    pub attach_stderr: bool,
    /// Attach standard output.
    pub attach_stdout: bool,
    /// Accepted for old clients; what counts is the field of the start request.
    #[serde(skip_serializing_if = "is_default")]
    pub detach: bool,
    /// Keys that detach, as `ctrl-p,ctrl-q`.
    pub detach_keys: String,
    /// `NAME=value`, besides the container's.
    pub env: Option<Vec<String>>,
    /// Directory it starts in; empty for the container's.
    pub working_dir: String,
    /// Program and arguments. Text counts as a list of one.
    #[serde(deserialize_with = "text_or_list")]
    pub cmd: Option<Vec<String>>,
}

/// The body of `POST /exec/{id}/start`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecStartRequest {
    /// Whether the client does not attach.
    pub detach: bool,
    /// Whether the stream is a terminal; must agree with the create request.
    pub tty: bool,
    /// First size of the terminal: height, width (API 1.42).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<[u64; 2]>,
}

/// The answer to `GET /exec/{id}/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecInspect {
    /// Id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Whether it is running.
    pub running: bool,
    /// Exit code; `null` until it has ended.
    pub exit_code: Option<i64>,
    /// What it runs.
    pub process_config: ExecProcessConfig,
    /// Whether standard input is attached.
    pub open_stdin: bool,
    /// Whether standard error is attached.
    pub open_stderr: bool,
    /// Whether standard output is attached.
    pub open_stdout: bool,
    /// Whether it may be forgotten.
    pub can_remove: bool,
    /// The container.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// Keys that detach, base64 of the bytes; `null` for none given.
    pub detach_keys: Option<String>,
    /// Process id on the host; 0 before the start.
    pub pid: i64,
}

/// What an exec runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecProcessConfig {
    /// Whether it has a terminal.
    pub tty: bool,
    /// The program.
    pub entrypoint: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// All capabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileged: Option<bool>,
    /// The user.
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
}
