//! What a container runs: the portable part of its configuration.

use serde::{Deserialize, Serialize};

use crate::common::{NameSet, StringMap, is_default};
use crate::json::text_or_list;

/// The part of a container's configuration that does not depend on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Host name inside the container.
    pub hostname: String,
    /// Domain name inside the container.
    pub domainname: String,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: String,
    /// Whether the creating client attaches to standard input.
    pub attach_stdin: bool,
    /// Whether the creating client attaches to standard output.
    pub attach_stdout: bool,
    /// Whether the creating client attaches to standard error.
    pub attach_stderr: bool,
    /// Ports offered, as `80/tcp`.
    #[serde(skip_serializing_if = "empty")]
    pub exposed_ports: Option<NameSet>,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Whether standard input is kept open.
    pub open_stdin: bool,
    /// Whether standard input is closed once the first attached client has gone.
    pub stdin_once: bool,
    /// `NAME=value`; `NAME` alone removes a variable of the image.
    pub env: Option<Vec<String>>,
    /// Arguments of the entry point, or the command when there is none. Text counts as a list of one.
    #[serde(deserialize_with = "text_or_list")]
    pub cmd: Option<Vec<String>>,
    /// How to find out whether the container is healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    /// The command is one escaped line (Windows only).
    #[serde(skip_serializing_if = "is_default")]
    pub args_escaped: bool,
    /// The image, as the client wrote it.
    pub image: String,
    /// Paths that get an anonymous volume.
    pub volumes: Option<NameSet>,
    /// Directory the command starts in.
    pub working_dir: String,
    /// The entry point. Text counts as a list of one.
    #[serde(deserialize_with = "text_or_list")]
    pub entrypoint: Option<Vec<String>>,
    /// Whether the container has no network.
    #[serde(skip_serializing_if = "is_default")]
    pub network_disabled: bool,
    /// Hardware address for the whole container; requests before API 1.52, see
    /// [`crate::version::request`]. Answers from 1.52 on do not have it.
    #[serde(skip_serializing_if = "is_default")]
    pub mac_address: String,
    /// Build instructions for images made from this one.
    #[serde(skip_serializing_if = "none_or_empty")]
    pub on_build: Option<Vec<String>>,
    /// Labels.
    pub labels: Option<StringMap>,
    /// Signal that asks the container to stop.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: String,
    /// Seconds from the stop signal to the kill; negative for "wait for ever".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Shell for the shell form of build instructions.
    #[serde(skip_serializing_if = "none_or_empty", deserialize_with = "text_or_list")]
    pub shell: Option<Vec<String>>,
}

fn empty(set: &Option<NameSet>) -> bool {
    set.as_ref().is_none_or(NameSet::is_empty)
}

pub(crate) fn none_or_empty<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// How to find out whether a container is healthy. Zero and empty mean "as the image says".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthConfig {
    /// Empty: inherit. `["NONE"]`: off. `["CMD", …]`: run it. `["CMD-SHELL", line]`: run it in a shell.
    #[serde(skip_serializing_if = "none_or_empty")]
    pub test: Option<Vec<String>>,
    /// Nanoseconds between probes.
    #[serde(skip_serializing_if = "is_default")]
    pub interval: i64,
    /// Nanoseconds until a probe counts as hung.
    #[serde(skip_serializing_if = "is_default")]
    pub timeout: i64,
    /// Nanoseconds after the start during which failures do not count.
    #[serde(skip_serializing_if = "is_default")]
    pub start_period: i64,
    /// Nanoseconds between probes during the start period (API 1.44).
    #[serde(skip_serializing_if = "is_default")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(skip_serializing_if = "is_default")]
    pub retries: i64,
}
