//! Requests, replies and events.

use crate::{Console, LaunchHead, Stdio};
use serde::{Deserialize, Serialize};

/// What the daemon asks of a shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// First message of every connection. Answered with [`Reply::Hello`].
    Hello {
        /// The sender's [`crate::VERSION`].
        version: u16,
    },
    /// Sets the container up, once. Descriptors: the memfd with the [`crate::Launch`], then those
    /// the launch refers to (index 0 is the first after the memfd). Answered with [`Reply::Ready`]
    /// or, when `start` is set, with [`Reply::Started`].
    Launch {
        /// What to start.
        head: Box<LaunchHead>,
        /// Whether the program runs at once, without waiting for [`Request::Start`].
        start: bool,
    },
    /// Lets the first program run. Answered with [`Reply::Started`] once its exec succeeded.
    Start,
    /// Asks for everything known. Answered with [`Reply::State`].
    State,
    /// Signals the first process, or every process of the container.
    Kill {
        /// Signal number.
        signal: i32,
        /// Whether all processes are meant.
        all: bool,
    },
    /// Sets the size of the container's terminal.
    Resize(Console),
    /// Attaches a stream socket (descriptor 0). Output goes to it as it is with a terminal, in
    /// frames of `[1 or 2, 0, 0, 0, length (big endian, 32 bits)]` without.
    Attach(Streams),
    /// Closes the container's input.
    CloseStdin,
    /// Runs another program in the container. Descriptors: a memfd with a [`crate::Process`], then
    /// a stream socket when `attach` is set. Answered with [`Reply::Started`].
    Exec(Box<ExecHead>),
    /// Sets the size of an exec's terminal.
    ExecResize {
        /// Which.
        id: String,
        /// The size.
        size: Console,
    },
    /// Signals an exec.
    ExecKill {
        /// Which.
        id: String,
        /// Signal number.
        signal: i32,
    },
    /// Freezes every process of the container.
    Pause,
    /// Thaws them.
    Resume,
    /// Removes what the shim made outside its process (cgroups, the socket) and ends it. Refused
    /// while the container runs, except that with `force` it is killed first.
    Delete {
        /// Whether a running container is killed.
        force: bool,
    },
}

/// Which streams a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// What it sends is the program's input.
    pub stdin: bool,
    /// It gets standard output.
    pub stdout: bool,
    /// It gets standard error.
    pub stderr: bool,
}

/// The part of an exec the shim acts on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecHead {
    /// A name for it, unique within the container; part of a file name.
    pub id: String,
    /// Its streams.
    pub stdio: Stdio,
    /// Which of them the socket beside this message carries; `None`: no socket, all of it is lost.
    pub attach: Option<Streams>,
    /// Value for `/proc/<pid>/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
}

/// What a shim says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServerMessage {
    /// The answer to the request with this message's number.
    Reply(Result<Reply, Failure>),
    /// Something happened; the number is 0.
    Event(Event),
}

/// How a request went well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The other side's version and what it holds.
    Hello {
        /// The shim's [`crate::VERSION`].
        version: u16,
        /// What it holds.
        state: StateReport,
    },
    /// Done, nothing to tell.
    Done,
    /// Everything is set up; the first process waits.
    Ready {
        /// Its number in the shim's PID namespace.
        pid: i32,
    },
    /// The program runs.
    Started {
        /// Its number in the shim's PID namespace.
        pid: i32,
    },
    /// Everything known.
    State(StateReport),
}

/// How far a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing was launched yet.
    Empty,
    /// Set-up is under way.
    Creating,
    /// Set up; the program waits for its start.
    Created,
    /// The program runs.
    Running,
    /// The program is frozen.
    Paused,
    /// The program has ended.
    Exited,
}

/// Everything a shim knows about its container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReport {
    /// The container's id; empty before the launch.
    pub id: String,
    /// How far it is.
    pub phase: Phase,
    /// The first process.
    pub pid: Option<i32>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Execs that run, with their processes.
    pub execs: Vec<(String, i32)>,
    /// Lines that could not be kept in the log.
    pub log_dropped: u64,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code; 128 plus the number for a signal.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container for want of memory.
    pub oom: bool,
    /// When, in nanoseconds since the epoch.
    pub at: u64,
}

/// What a shim tells without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The container's program has ended; the exit is on disk.
    Exited(Exit),
    /// An exec has ended; the exit is on disk.
    ExecExited {
        /// Which.
        id: String,
        /// How.
        exit: Exit,
    },
}

/// How a request failed. Nothing is left behind of what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What was being done.
    pub stage: Stage,
    /// The kernel's answer; 0 when it was not the kernel.
    pub errno: i32,
    /// The whole story in words.
    pub message: String,
}

/// What was being done when something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The message itself: unknown, or out of place.
    Protocol,
    /// Making, filling or joining cgroups.
    Cgroup,
    /// Making or joining namespaces.
    Namespace,
    /// Mounts, devices, masks.
    Mount,
    /// The terminal.
    Terminal,
    /// Kernel parameters and names.
    Sysctl,
    /// User, capabilities, limits, seccomp, labels.
    Identity,
    /// The working directory.
    Cwd,
    /// Finding the program, or the exec itself.
    Exec,
    /// Reading, writing, or keeping a file.
    Io,
    /// The container is not in the state that was needed.
    State,
    /// An external runtime said no.
    External,
}
