//! What the daemon knows about its host and what it was configured with, as far as it decides
//! about a container.

use std::collections::BTreeSet;

use gantry_sdk::api::Ulimit;
use oci_spec::runtime::Capability;

/// `/dev/shm` of a container that asks for no size, in bytes. Source: the reference engine.
pub const DEFAULT_SHM_SIZE: i64 = 64 << 20;

/// The parent of all containers' cgroups when nobody names another.
pub const DEFAULT_CGROUP_PARENT: &str = "/gantry";

/// Which limits the host's cgroups can enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controllers {
    /// A limit for memory.
    pub memory: bool,
    /// A limit for swap.
    pub swap: bool,
    /// A soft limit for memory.
    pub memory_reservation: bool,
    /// Swappiness (version 1 only).
    pub memory_swappiness: bool,
    /// Switching the out-of-memory killer off (version 1 only).
    pub oom_kill_disable: bool,
    /// CPU weights.
    pub cpu_shares: bool,
    /// CPU quotas.
    pub cpu_cfs: bool,
    /// Real-time quotas (version 1 only, and only in few kernels).
    pub cpu_realtime: bool,
    /// Sets of CPUs and memory nodes.
    pub cpuset: bool,
    /// A limit for the number of processes.
    pub pids: bool,
    /// Block I/O weights.
    pub blkio_weight: bool,
    /// Block I/O weights by device.
    pub blkio_weight_device: bool,
    /// Block I/O limits by device.
    pub blkio_throttle: bool,
}

impl Controllers {
    /// Everything that version 1 or 2 of cgroups can do.
    #[must_use]
    pub const fn all(unified: bool) -> Self {
        Self {
            memory: true,
            swap: true,
            memory_reservation: true,
            memory_swappiness: !unified,
            oom_kill_disable: !unified,
            cpu_shares: true,
            cpu_cfs: true,
            cpu_realtime: false,
            cpuset: true,
            pids: true,
            blkio_weight: true,
            blkio_weight_device: true,
            blkio_throttle: true,
        }
    }
}

/// What the host is and can do.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// The host's name.
    pub hostname: String,
    /// How many CPUs the daemon may use.
    pub cpus: u32,
    /// CPUs that containers may be bound to, as `0-3`.
    pub cpuset_cpus: String,
    /// Memory nodes that containers may be bound to, as `0`.
    pub cpuset_mems: String,
    /// Whether the only hierarchy is version 2.
    pub cgroup_unified: bool,
    /// What cgroups can limit.
    pub controllers: Controllers,
    /// Whether the kernel has cgroup namespaces.
    pub cgroup_namespaces: bool,
    /// Whether kernel and runtime have time namespaces.
    pub time_namespaces: bool,
    /// Whether the host forwards IPv4 packets.
    pub ipv4_forwarding: bool,
    /// Whether the kernel has seccomp filters.
    pub seccomp: bool,
    /// Whether AppArmor is on.
    pub apparmor: bool,
    /// The AppArmor profile of containers that name none; `None` if there is none.
    pub apparmor_profile: Option<String>,
    /// Whether kernel and runtime can make a mount read-only together with all mounts below it.
    pub recursive_read_only: bool,
    /// The capabilities the daemon can hand on.
    pub capabilities: Vec<Capability>,
    /// The `thermal_throttle` directories of the CPUs, which are masked too.
    pub thermal_paths: Vec<String>,
    /// Kernel parameters that exist, of those that a container gets by default.
    pub sysctls: BTreeSet<String>,
}

/// Who arranges the cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The daemon itself, by the file system. Parents are paths.
    #[default]
    Cgroupfs,
    /// systemd. Parents are slices.
    Systemd,
}

/// What the daemon was configured with.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// `default-shm-size`, bytes.
    pub shm_size: i64,
    /// `default-ipc-mode`.
    pub ipc_mode: String,
    /// `default-cgroupns-mode`; empty for the kernel's usual: `private` on version 2, else `host`.
    pub cgroupns_mode: String,
    /// `cgroup-parent`; empty for [`DEFAULT_CGROUP_PARENT`].
    pub cgroup_parent: String,
    /// `exec-opts native.cgroupdriver`.
    pub cgroup_driver: CgroupDriver,
    /// `init`.
    pub init: bool,
    /// `no-new-privileges`.
    pub no_new_privileges: bool,
    /// `default-ulimits`.
    pub ulimits: Vec<Ulimit>,
    /// `default-runtime`.
    pub runtime: String,
    /// All runtimes by name.
    pub runtimes: BTreeSet<String>,
    /// `seccomp-profile`: `builtin`, `unconfined`, or a profile's text.
    pub seccomp_profile: String,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            shm_size: DEFAULT_SHM_SIZE,
            ipc_mode: "private".into(),
            cgroupns_mode: String::new(),
            cgroup_parent: String::new(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            init: false,
            no_new_privileges: false,
            ulimits: Vec::new(),
            runtime: "runc".into(),
            runtimes: BTreeSet::from(["runc".into()]),
            seccomp_profile: "builtin".into(),
        }
    }
}
