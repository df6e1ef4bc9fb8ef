//! Control groups, v1, v2 and mixtures.
//!
//! What is to be done is first worked out as data, a [`Plan`], by pure functions; the plan is then
//! executed here or, since it serialises, by another process. So the rules of two generations of
//! files can be tested without either.
//!
//! ```text
//! mountinfo, /proc/self/cgroup ─▶ Layout ─┐
//!                                path ────┴▶ Group ─┐
//!                                 Resources ────────┴▶ Plan ─▶ execute
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `layout` | which hierarchies there are |
//! | `resources` | limits, shaped as in the OCI runtime specification |
//! | `plan` | the steps, and carrying them out |
//! | `v1`, `v2` | limits as files |
//! | `devices` | device rules: their meaning, and the program that enforces them on v2 |
//! | `bpf` | loading and attaching that program |
//! | `group` | an existing group: processes, freezing, killing, removal |
//! | `stats` | usage and out-of-memory counters |
//!
//! Source: cgroups(7); the kernel's `admin-guide/cgroup-v1/` and `admin-guide/cgroup-v2.rst`.

mod bpf;
mod devices;
mod group;
mod layout;
mod plan;
mod resources;
mod stats;
mod v1;
mod v2;

pub use devices::{Access, DeviceKind, DeviceRule};
pub use group::{Group, GroupDir, Version};
pub use layout::{Hierarchy, Layout, Unified};
pub use plan::{Plan, Step, Write};
pub use resources::{
    BlockIo, Cpu, HugepageLimit, Memory, Pids, Resources, ThrottleDevice, WeightDevice,
};
pub use stats::{
    BlockIoEntry, BlockIoStats, CpuStats, MemoryStats, OomCounts, PidsStats, Stats, drain_oom_watch,
};
pub use v2::{io_weight, weight_of_shares};
