//! Mount plans: checked as data, then executed with detached mounts.
//!
//! ```text
//! MountPlan + Grants ─▶ check (pure) ─▶ resolve beneath grants ─▶ mount detached ─▶ MountFd
//! ```
//!
//! A driver decides *what* is mounted and never mounts; this is the only place where it happens.
//! Every path is opened beneath a granted directory by the kernel, so neither `..` nor a symbolic link
//! leads out. Every mount is made detached: it is in no mount namespace until somebody attaches it, and
//! ends with its last descriptor, so whatever dies leaves nothing behind. There is nothing to record
//! and nothing to reconcile at start.
//!
//! | file | holds |
//! |---|---|
//! | `check` | whether a plan is well-formed and within its grants |
//! | `options` | which options a file system may be given; what mount(8)'s words mean |
//! | `execute` | carrying a plan out, blocking |
//! | `layers` | overlays, and owners seen through a map |
//! | `host` | mounts that the operator spelled out |
//!
//! Not here: attaching (the runtime does, inside the container's namespace) and propagation (a bind
//! stays in the peer group of its source; who attaches it decides).

mod check;
mod execute;
mod host;
mod layers;
mod options;

use async_trait::async_trait;
use gantry_sdk::context::Ctx;
use gantry_sdk::mounts::{Grants, MountExecutor, MountFd, MountPlan};
use gantry_sdk::{Error, ErrorKind, Result};

/// The kernel's executor of mount plans. Holds nothing: plans do not know of each other.
#[derive(Debug, Default, Clone, Copy)]
pub struct Executor;

#[async_trait]
impl MountExecutor for Executor {
    fn check(&self, plan: &MountPlan, grants: &Grants) -> Result<()> {
        check::check(plan, grants)
    }

    async fn mount(&self, cx: &Ctx, plan: &MountPlan, grants: &Grants) -> Result<MountFd> {
        check::check(plan, grants)?;
        let (plan, grants) = (plan.clone(), grants.clone());
        // A mount can wait for a device or a server as long as it likes. Whoever stops waiting here
        // leaves the thread to end by itself, and the mount it makes ends with the dropped descriptor.
        let work = tokio::task::spawn_blocking(move || execute::execute(&plan, &grants));
        let deadline = async {
            match cx.deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            mount = work => Ok(MountFd::new(mount??)),
            () = deadline => Err(stopped("the mount plan did not finish in time")),
            () = cx.cancelled.cancelled() => Err(stopped("the mount plan was cancelled")),
        }
    }
}

fn stopped(why: &str) -> Error {
    Error::new(ErrorKind::Deadline, why)
}

#[cfg(test)]
mod tests;
