//! What a shim is to start, as data.

use crate::Streams;
use gantry_sys::cgroup;
use serde::{Deserialize, Serialize};

/// Index into the descriptors that travel beside a message.
pub type FdIndex = u16;

/// The part of a launch the shim itself acts on and keeps.
///
/// Descriptor 0 beside it is a memfd with a [`Launch`] (native), or with nothing when an external
/// runtime does the work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchHead {
    /// The container's id.
    pub id: String,
    /// Namespaces the first process gets.
    pub namespaces: Namespaces,
    /// Identity maps, when a new user namespace is asked for: users, then groups.
    pub id_maps: Option<(Vec<IdMap>, Vec<IdMap>)>,
    /// The container's control group; without directories when an external runtime keeps it.
    pub group: cgroup::Group,
    /// What makes and limits the group.
    pub plan: cgroup::Plan,
    /// Value for `/proc/<pid>/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// The streams of the first process.
    pub stdio: Stdio,
    /// Where the output is kept.
    pub log: LogSink,
    /// Whether a tiny init runs as process 1, reaps orphans and forwards signals to the program.
    pub init: bool,
    /// Clients that are attached from the first byte on.
    pub attach: Vec<(Streams, FdIndex)>,
    /// The runtime program to use instead of the shim's own core.
    pub external: Option<External>,
}

/// Which namespaces, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Every namespace that is not the host's.
    pub list: Vec<(Namespace, NamespaceMode)>,
}

impl Namespaces {
    /// How `kind` is asked for; `None` is the host's.
    #[must_use]
    pub fn get(&self, kind: Namespace) -> Option<NamespaceMode> {
        self.list.iter().find(|(have, _)| *have == kind).map(|(_, mode)| *mode)
    }

    /// Whether `kind` is to be new.
    #[must_use]
    pub fn is_new(&self, kind: Namespace) -> bool {
        self.get(kind) == Some(NamespaceMode::New)
    }
}

/// Kinds of namespace. Source: namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// Users and groups.
    User,
    /// Mounts. Always new.
    Mount,
    /// Host and domain name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Processes.
    Pid,
    /// Network.
    Network,
    /// The cgroup tree's root.
    Cgroup,
}

/// Where a namespace comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Made for the container.
    New,
    /// Joined: a descriptor of `/proc/<pid>/ns/<kind>`.
    Join(FdIndex),
}

/// One line of `uid_map` or `gid_map`. Source: user_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The streams of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// A terminal for all three, with this size; otherwise pipes.
    pub terminal: Option<Console>,
    /// Whether input is kept open for clients; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Whether input ends when the first client that gave any goes away.
    pub stdin_once: bool,
}

/// Size of a terminal. Zero leaves it to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Where the shim keeps the container's output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogSink {
    /// Nowhere: only to attached clients.
    #[default]
    None,
    /// A file of one JSON object per line, as the `json-file` driver has it.
    JsonFile {
        /// The file. Rotated ones get `.1`, `.2`, … appended, and `.gz` when compressed.
        path: String,
        /// Bytes after which the file is rotated; 0 is never.
        max_size: u64,
        /// How many files there may be, the current one included; at least 1.
        max_files: u32,
        /// Whether rotated files are compressed with gzip.
        compress: bool,
        /// A JSON object that goes into each line as `attrs`; empty for none.
        attrs: String,
        /// Whether output may wait for the file.
        mode: LogMode,
    },
}

/// Whether output may wait for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogMode {
    /// Output waits for the file. A failing file does not block: its lines are counted and dropped.
    #[default]
    Blocking,
    /// Output goes through a buffer of this many bytes; what finds it full is counted and dropped.
    NonBlocking {
        /// Bytes of the buffer.
        buffer: u64,
    },
}

/// Everything the new process does to itself before it becomes the container's first program.
///
/// Travels in a memfd and is read by that process only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// The root file system.
    pub rootfs: Rootfs,
    /// What is mounted, in order.
    pub mounts: Vec<Mount>,
    /// Device nodes to make.
    pub devices: Vec<Device>,
    /// Symbolic links to make where nothing is: name, then content.
    pub links: Vec<(String, String)>,
    /// Paths that are covered: by an empty directory or by `/dev/null`. Missing ones are skipped.
    pub masked: Vec<String>,
    /// Paths that become read-only. Missing ones are skipped.
    pub readonly: Vec<String>,
    /// Kernel parameters: dotted name, value.
    pub sysctls: Vec<(String, String)>,
    /// Host name, set in a new UTS namespace.
    pub hostname: Option<String>,
    /// Domain name, set in a new UTS namespace.
    pub domainname: Option<String>,
    /// The first program.
    pub process: Process,
}

/// The root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// A detached mount.
    pub mount: FdIndex,
    /// How events travel between it and its copies.
    pub propagation: Propagation,
    /// Whether it becomes read-only once everything is in place.
    pub readonly: bool,
}

/// How mount events travel. Source: mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the manual's own words")]
pub enum Propagation {
    Private,
    PrivateRecursive,
    Shared,
    SharedRecursive,
    Slave,
    SlaveRecursive,
    Unbindable,
    UnbindableRecursive,
}

impl Propagation {
    /// Whether it applies to everything beneath, too.
    #[must_use]
    pub const fn is_recursive(self) -> bool {
        matches!(
            self,
            Self::PrivateRecursive
                | Self::SharedRecursive
                | Self::SlaveRecursive
                | Self::UnbindableRecursive
        )
    }
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container. Links are followed inside the container's root only.
    pub target: String,
    /// What the target is made as when it is missing.
    pub target_kind: TargetKind,
    /// What is mounted.
    pub source: MountSource,
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear, on attached trees.
    pub clear: u64,
    /// `MOUNT_ATTR_*` bits to set on everything beneath, too.
    pub set_recursive: u64,
    /// Propagation to give it.
    pub propagation: Option<Propagation>,
}

/// What a mount's target is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum TargetKind {
    Directory,
    File,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A detached mount made by the daemon: volumes, binds, files.
    Tree(FdIndex),
    /// A new instance of a file system, with options. A `None` value is a flag.
    New {
        /// Which.
        kind: MountKind,
        /// What `mountinfo` shows as source.
        source: String,
        /// Options of the file system.
        options: Vec<(String, Option<String>)>,
    },
    /// The container's view of the cgroup tree, whatever versions the host has.
    Cgroups,
}

/// File systems the shim makes itself. Others come as [`MountSource::Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum MountKind {
    Proc,
    Sysfs,
    Tmpfs,
    Devpts,
    Mqueue,
}

impl MountKind {
    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proc => "proc",
            Self::Sysfs => "sysfs",
            Self::Tmpfs => "tmpfs",
            Self::Devpts => "devpts",
            Self::Mqueue => "mqueue",
        }
    }
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path inside the container.
    pub path: String,
    /// Kind of node.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kinds of device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

/// A program and who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program's name and its arguments. A name without a slash is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
    /// Working directory inside the container; made when missing.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File creation mask; 0022 when not given.
    pub umask: Option<u32>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Capabilities; all kept as they are when not given.
    pub capabilities: Option<Capabilities>,
    /// Whether exec may gain privileges no more.
    pub no_new_privs: bool,
    /// Compiled seccomp BPF; empty for none.
    pub seccomp: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*` to load it with.
    pub seccomp_flags: u32,
    /// AppArmor profile.
    pub apparmor: Option<String>,
    /// SELinux label.
    pub selinux: Option<String>,
}

/// One resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft value; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard value.
    pub hard: u64,
}

/// Capability sets, bit n for capability n. Source: capabilities(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the manual's own words")]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// A runtime program with runc's command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Path of the program.
    pub binary: String,
    /// Arguments before the subcommand.
    pub args: Vec<String>,
    /// State directory (`--root`).
    pub root: String,
    /// Bundle directory, with `config.json`.
    pub bundle: String,
    /// The run directory's path.
    pub run_dir: String,
    /// Mounts to put in place first, in a mount namespace of the shim's own: descriptor, path.
    pub mounts: Vec<(FdIndex, String)>,
    /// Paths to take out of that namespace first (crun refuses a hybrid `unified`).
    pub unmount: Vec<String>,
}
