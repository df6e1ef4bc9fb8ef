//! Runtimes: what turns a specification into a process and stays with it.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use oci_spec::runtime as oci;
use serde::{Deserialize, Serialize};

use crate::kinds::logs::LogSink;
use crate::kinds::networks::SandboxNs;
use crate::mounts::MountFd;
use crate::{Labels, Result, kind};

/// How a process is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// A pseudo-terminal.
    pub tty: bool,
    /// Standard input is open; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Standard input is closed when the first attached client closes its side.
    pub stdin_once: bool,
    /// Rows and columns of the terminal; 0 leaves the kernel's default.
    pub size: (u16, u16),
}

/// A client's stream for a process's input and output.
///
/// Output of a terminal is raw; other output is framed: 8 bytes `[1|2, 0, 0, 0, length BE32]`, then
/// data (Docker Engine API, "Stream format"). What is read from the stream goes to standard input
/// if `stdin` is set; its end of file ends that client's input. The stream is shut down for writing
/// when the process has ended and everything was written.
#[derive(Debug)]
pub struct Attach {
    /// The shim's end.
    pub stream: UnixStream,
    /// Feed standard input from it.
    pub stdin: bool,
    /// Copy standard output to it.
    pub stdout: bool,
    /// Copy standard error to it.
    pub stderr: bool,
}

/// Everything a container needs to start.
#[derive(Debug)]
pub struct Launch {
    /// Container id.
    pub id: String,
    /// A directory of its own below the exec root, created by the caller; the shim's socket and
    /// exit record live in it.
    pub run_dir: PathBuf,
    /// The specification; its `root.path` is ignored in favour of `root`.
    pub spec: Arc<oci::Spec>,
    /// The mounted file system.
    pub root: MountFd,
    /// Sources of bind mounts, by index in the specification's mounts: attached instead of being
    /// looked up by path.
    pub mounts: BTreeMap<usize, MountFd>,
    /// Network namespace to join.
    pub netns: SandboxNs,
    /// Connection of the first process.
    pub stdio: Stdio,
    /// Where output goes.
    pub log: LogSink,
    /// Run a small init as process 1 that forwards signals and reaps.
    pub init: bool,
    /// Clients that are attached from the first byte on.
    pub attach: Vec<Attach>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// Whether the kernel's out-of-memory killer ended it.
    pub oom: bool,
    /// When.
    pub at: SystemTime,
}

/// Another process in a running container.
#[derive(Debug)]
pub struct ExecLaunch {
    /// Exec id.
    pub id: String,
    /// The process; its capabilities, user and environment are complete.
    pub process: oci::Process,
    /// The container's seccomp profile applies to it too (none: unconfined).
    pub seccomp: Option<oci::LinuxSeccomp>,
    /// Connection.
    pub stdio: Stdio,
    /// The client.
    pub attach: Option<Attach>,
}

/// A process in a container's namespaces beside the first one.
#[async_trait]
pub trait ExecProcess: Send + Sync {
    /// Its number on the host.
    fn pid(&self) -> i32;
    /// Completes when it has ended.
    async fn wait(&self) -> Result<Exit>;
    /// Changes the terminal's size.
    async fn resize(&self, rows: u16, columns: u16) -> Result<()>;
    /// Sends a signal to it.
    async fn signal(&self, signal: i32) -> Result<()>;
}

/// A container that was launched. Its shim goes on when this object, or the daemon, is gone.
#[async_trait]
pub trait ContainerProcess: Send + Sync {
    /// Number of the first process on the host.
    fn pid(&self) -> i32;

    /// Completes when the first process has ended and its exit is on record. May be called often.
    async fn wait(&self) -> Result<Exit>;

    /// Sends `signal` to the first process, or to every process (`all`).
    ///
    /// # Errors
    ///
    /// `NotFound` if it has ended.
    async fn signal(&self, signal: i32, all: bool) -> Result<()>;

    /// Attaches a client.
    async fn attach(&self, attach: Attach) -> Result<()>;

    /// Changes the terminal's size.
    async fn resize(&self, rows: u16, columns: u16) -> Result<()>;

    /// Runs another process.
    ///
    /// # Errors
    ///
    /// `NotFound` if the executable does not exist, `Forbidden` if it may not be run: the text is the
    /// reference's (`exec: "x": executable file not found in $PATH`).
    async fn exec(&self, exec: ExecLaunch) -> Result<Arc<dyn ExecProcess>>;

    /// Freezes all processes.
    async fn pause(&self) -> Result<()>;

    /// Thaws them.
    async fn resume(&self) -> Result<()>;

    /// After the end: removes cgroups, the shim and the run directory. Repeating it is no error.
    async fn delete(&self) -> Result<()>;
}

/// What is left of a container after a restart of the daemon.
pub enum Recovered {
    /// It runs.
    Running(Arc<dyn ContainerProcess>),
    /// It ended; its exit is on record. `delete` still has to be called.
    Exited(Exit, Arc<dyn ContainerProcess>),
    /// There is no trace of it: the machine was restarted, or the shim was killed.
    Gone,
}

impl std::fmt::Debug for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running(process) => write!(f, "Running({})", process.pid()),
            Self::Exited(exit, _) => write!(f, "Exited({exit:?})"),
            Self::Gone => f.write_str("Gone"),
        }
    }
}

/// Facts about a runtime for `/info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// The binary; empty for the built-in core.
    pub path: String,
    /// Version text.
    pub version: String,
    /// Further rows.
    pub status: Labels,
}

kind! {
    /// Starts containers.
    pub trait Runtime: Runtimes = "runtime" (1, 0), budget Some(std::time::Duration::from_secs(120)) => {
        /// Prepares the container and starts its first process. All or nothing: after an error no
        /// process, mount or cgroup is left.
        ///
        /// # Errors
        ///
        /// `NotFound`: the executable does not exist. `Forbidden`: it may not be run.
        /// `InvalidArgument`: the specification asks for something that cannot be. The message
        /// begins like the reference's: `failed to create task for container: …`.
        async fn launch(&self, cx: &Ctx, launch: Launch) -> Result<Arc<dyn ContainerProcess>>;

        /// Finds a container again by its run directory.
        async fn recover(&self, cx: &Ctx, id: &str, run_dir: &Path) -> Result<Recovered>;

        plain {
            /// Facts about this runtime.
            fn describe(&self) -> RuntimeInfo;
        }
    }
}
