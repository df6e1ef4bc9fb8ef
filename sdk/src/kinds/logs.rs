//! Log drivers.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{Labels, Result, kind};

/// Whose log it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogTarget {
    /// Container id.
    pub container: String,
    /// Container name, without slash.
    pub name: String,
    /// Image reference and id.
    pub image: String,
    /// Container labels.
    pub labels: Labels,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// `--log-opt`, merged over the daemon's defaults.
    pub options: Labels,
    /// A directory of the container's own, for files.
    pub dir: PathBuf,
}

/// What the container's shim does with the output. Data, so that logging goes on without the
/// daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogSink {
    /// Nothing is kept.
    None,
    /// One JSON object per line, as the reference engine's `json-file` writes it.
    JsonFile {
        /// The file; rotated ones get `.1`, `.2`, ….
        path: PathBuf,
        /// Rotate at this many bytes; 0 never rotates.
        max_size: u64,
        /// Files to keep, the current one included.
        max_files: u32,
        /// Whether rotated files are gzipped.
        compress: bool,
        /// JSON object for the `attrs` member; none leaves it out.
        attrs: Option<String>,
        /// Bytes that may wait in memory before output is dropped; none blocks the container
        /// instead (`mode=blocking`).
        ring: Option<u64>,
    },
}

/// Which lines to read.
#[derive(Clone, Debug)]
pub struct ReadLogs {
    /// Not before.
    pub since: Option<SystemTime>,
    /// Not after.
    pub until: Option<SystemTime>,
    /// Only the last lines; none for all.
    pub tail: Option<u64>,
    /// Go on with new lines until this token is cancelled, then drain what is left; none reads what
    /// is there.
    pub follow: Option<CancellationToken>,
    /// Lines of standard output.
    pub stdout: bool,
    /// Lines of standard error.
    pub stderr: bool,
}

/// One line, or part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub at: SystemTime,
    /// Whether it was written to standard error.
    pub stderr: bool,
    /// Content with its newline; a part of a longer line has none.
    pub data: Vec<u8>,
    /// Extra attributes, for `--details`.
    pub attrs: Labels,
}

/// Lines as they are read; an error ends the stream.
pub type LogStream = mpsc::Receiver<Result<LogLine>>;

kind! {
    /// Decides where a container's output goes and reads it back.
    pub trait LogDriver: Log = "log" (1, 0), budget Some(Duration::from_secs(10)) => {
        /// Whether the options make sense. Called when a container is created.
        ///
        /// # Errors
        ///
        /// `InvalidArgument` naming the option.
        async fn validate(&self, cx: &Ctx, options: &Labels) -> Result<()>;

        /// What the shim does with the output of `target`. Called at each start.
        async fn open(&self, cx: &Ctx, target: &LogTarget) -> Result<LogSink>;

        /// Reads back.
        ///
        /// # Errors
        ///
        /// `Unsupported` if the driver cannot read.
        async fn read(&self, cx: &Ctx, target: &LogTarget, wanted: ReadLogs) -> Result<LogStream>;

        /// Removes what is left of a log; a missing one is no error.
        async fn remove(&self, cx: &Ctx, target: &LogTarget) -> Result<()>;

        /// The path that `docker inspect` shows as `LogPath`; empty if there is none.
        async fn path(&self, cx: &Ctx, target: &LogTarget) -> Result<String>;
    }
}
