//! Mounting volumes for their users.
//!
//! A directory is bound anew for each user. What the operator spelled out (a device, a share, a
//! tmpfs) is mounted once, and each user gets a clone of that mount: only so do all see the same
//! tmpfs. The store keeps the mount while it has users; it is in no mount namespace, so it ends with
//! them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::events::Event;
use gantry_sdk::id::ContainerId;
use gantry_sdk::kinds::volume::Volume;
use gantry_sdk::mounts::{MountFd, MountPlan, Step};
use gantry_sdk::{Ctx, Error, Result};
use gantry_sys::mount::SharedMount;

use crate::record::Record;
use crate::store::{Store, no_such_volume};

/// How long a mount may take: a server may not answer.
const MOUNT_BUDGET: Duration = Duration::from_secs(120);

/// A volume that somebody uses.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) users: BTreeSet<String>,
    /// The mount they share.
    shared: Option<Arc<SharedMount>>,
}

/// Mounts the volume for `user`, detached.
pub(crate) async fn publish(store: &Store, cx: &Ctx, name: &str, user: &str) -> Result<MountFd> {
    let _turn = store.names.turn(name).await;
    let record = store.record(name).ok_or_else(|| no_such_volume(name))?;
    let driver = store.driver(&record.driver)?;
    let plan = driver.publish(cx, name, user).await.map_err(|e| failed(name, e))?;
    match mount(store, cx, &record, &plan).await {
        Ok((mount, shared)) => {
            let new = {
                let mut state = store.state();
                let published = state.published.entry(name.to_owned()).or_default();
                published.shared = shared;
                published.users.insert(user.to_owned())
            };
            if new {
                report(store, "mount", &record, user);
            }
            Ok(mount)
        }
        Err(error) => {
            // A user it had before keeps its publication.
            let known = store.state().published.get(name).is_some_and(|p| p.users.contains(user));
            if !known && let Err(error) = driver.unpublish(cx, name, user).await {
                tracing::warn!(volume = name, error = %error.chain(), "Cannot give back a volume.");
            }
            Err(failed(name, error))
        }
    }
}

/// Ends a publication; an unknown one is told to the driver, which may remember it.
pub(crate) async fn unpublish(store: &Store, cx: &Ctx, name: &str, user: &str) -> Result<()> {
    let _turn = store.names.turn(name).await;
    let Some(record) = store.record(name) else { return Ok(()) };
    let (known, unused) = end(store, name, user);
    // The last descriptor unmounts, which may wait for a device.
    tokio::task::spawn_blocking(move || drop(unused)).await?;
    if known {
        report(store, "unmount", &record, user);
    }
    tell(store, cx, &record, user).await
}

/// Takes `user` out: whether it was there, and what nobody needs any more.
fn end(store: &Store, name: &str, user: &str) -> (bool, Option<Published>) {
    let mut state = store.state();
    let Some(published) = state.published.get_mut(name) else { return (false, None) };
    let known = published.users.remove(user);
    let unused = published.users.is_empty();
    (known, if unused { state.published.remove(name) } else { None })
}

async fn tell(store: &Store, cx: &Ctx, record: &Record, user: &str) -> Result<()> {
    let driver = store.driver(&record.driver)?;
    driver.unpublish(cx, &record.name, user).await.map_err(|e| failed(&record.name, e))
}

fn failed(name: &str, error: Error) -> Error {
    error.context(format!("cannot mount volume {name}"))
}

/// The mount for one user, and what the mounts of the others are copied from if there is such.
async fn mount(
    store: &Store,
    cx: &Ctx,
    record: &Record,
    plan: &MountPlan,
) -> Result<(MountFd, Option<Arc<SharedMount>>)> {
    let shared = store.state().published.get(&record.name).and_then(|p| p.shared.clone());
    if let Some(shared) = shared {
        return Ok((copy(&shared).await?, Some(shared)));
    }
    let grants = store.registry.grants::<Volume>(&record.driver);
    let mount = store.mounts.mount(&cx.within(MOUNT_BUDGET), plan, &grants).await?;
    if !is_shared(plan) {
        return Ok((mount, None));
    }
    // The first user gets a copy too: what is attached in a container cannot be copied any more.
    let keep = move || SharedMount::new(&mount).map(Arc::new).map_err(cannot_share);
    let shared = tokio::task::spawn_blocking(keep).await??;
    Ok((copy(&shared).await?, Some(shared)))
}

async fn copy(shared: &Arc<SharedMount>) -> Result<MountFd> {
    let shared = shared.clone();
    let work = move || shared.copy().map(MountFd::new).map_err(cannot_share);
    tokio::task::spawn_blocking(work).await?
}

fn cannot_share(error: gantry_sys::Error) -> Error {
    Error::internal("cannot share the mount of a volume", error)
}

fn root(plan: &MountPlan) -> Option<&Step> {
    plan.steps.get(usize::from(plan.root))
}

fn is_shared(plan: &MountPlan) -> bool {
    matches!(root(plan), Some(Step::Host { .. } | Step::Tmpfs { .. } | Step::Fs { .. }))
}

/// Clients hear of mounts for containers only, not of the store's own users.
fn report(store: &Store, action: &str, record: &Record, user: &str) {
    if user.parse::<ContainerId>().is_ok() {
        let event = Event::now("volume", action, &record.name);
        store.events.publish(event.with("driver", &record.driver).with("container", user));
    }
}
