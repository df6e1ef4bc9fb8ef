//! From what a client asks for to what a runtime is told: the container's specification.
//!
//! Everything here is a function of its arguments. What has to be looked up on the host is asked
//! through [`HostView`], what belongs to other plugins (volumes, images, networks, seccomp) is given
//! ready. Decisions, defaults and messages are the reference engine's.
//!
//! # Map
//!
//! In the order a container meets them:
//!
//! - [`check`]: whether a request makes sense, with warnings; [`limits`] for its resources
//! - [`command`]: image and user configuration merged; command, environment, directory
//! - [`mod@adapt`]: defaults filled in, once, at creation
//! - [`mounts`]: binds, mounts, tmpfs and volumes as one checked list
//! - [`user`]: names looked up in the container's own files
//! - [`mod@build`]: the specification; [`exec`]: further processes
//! - [`capability`], [`security`], [`mode`], [`signal`], [`sysctl`], [`resources`]: the parts
//!
//! # Invariants
//!
//! 1. The same arguments give the same specification.
//! 2. An option is honoured, refused in words, or discarded with a warning; never ignored.
//! 3. Nothing a client writes leaves the container's namespaces: parameters, cgroup, mounts.
//!
//! # Not here
//!
//! Running anything, and restart policies beyond their syntax.

pub mod adapt;
pub mod build;
pub mod capability;
pub mod check;
pub mod command;
pub mod exec;
pub mod facts;
pub mod limits;
pub mod mode;
pub mod mounts;
pub mod path;
pub mod resources;
pub mod security;
pub mod signal;
pub mod sysctl;
pub mod user;
pub mod view;

#[cfg(test)]
mod tests;

pub use adapt::{adapt, wants_init};
pub use build::{Built, Input, Joined, MountSource, ReadyMount, build};
pub use check::{Checks, check_create};
pub use exec::{check_exec, exec_process, seccomp_of};
pub use facts::{CgroupDriver, Controllers, Defaults, HostFacts};
pub use mounts::{MountKind, WantedMount};
pub use security::{SeccompProfile, SecurityOptions};
pub use user::User;
pub use view::{HostView, SystemView};
