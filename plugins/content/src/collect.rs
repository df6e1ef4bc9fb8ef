//! Removes what nobody wants, and drops what a policy allows: asks the owners, decides, sweeps.
//!
//! See [`crate::pins`] for why this is safe beside everything else.

use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::kinds::blobs::{Collected, ContentOwner, ContentOwners};
use gantry_sdk::registry::{Kind as _, Registry};
use gantry_sdk::{Ctx, Error, Result};

use crate::dirs::Shared;
use crate::dropped::Dropped;
use crate::plan::{Fate, Item, There, Thing, Why, Wishes, decide};
use crate::settings::Retention;

/// The owners of content, by the name of their slot.
///
/// # Errors
///
/// `Unavailable` if there is none or one is down: what it wants is not known.
fn owners(registry: &Registry) -> Result<Vec<(String, Arc<dyn ContentOwner>)>> {
    for (kind, name, down) in registry.slots() {
        if let Some(why) = down.filter(|_| kind == ContentOwners::NAME) {
            return Err(Error::unavailable(format!(
                "cannot tell which content {name} needs: it is not available: {why}"
            )));
        }
    }
    let owners = registry.all::<ContentOwners>();
    if owners.is_empty() {
        return Err(Error::unavailable("nobody says which content is needed"));
    }
    Ok(owners)
}

async fn ask(cx: &Ctx, registry: &Registry, retention: Retention) -> Result<Wishes> {
    let mut wishes = Wishes::default();
    for (name, owner) in owners(registry)? {
        let failed = |e: Error| e.context(format!("content of {name}"));
        let wanted = owner.wanted(cx).await.map_err(failed)?;
        let droppable = match retention {
            Retention::Keep => Vec::new(),
            _ => owner.droppable(cx).await.map_err(failed)?,
        };
        wishes.add(&name, wanted, droppable, retention);
    }
    Ok(wishes)
}

/// What a collection would do now, partials first, the oldest of them before the others; `old` is
/// for a full disk, see [`decide`].
///
/// # Errors
///
/// Those of the owners.
pub(crate) async fn plan(
    cx: &Ctx,
    shared: &Arc<Shared>,
    registry: &Registry,
    retention: Retention,
    old: Option<Duration>,
) -> Result<Vec<Item>> {
    let wishes = ask(cx, registry, retention).await?;
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || {
        let there = There {
            blobs: shared.dirs.list()?,
            partials: shared.dirs.partials()?,
            dropped: shared.dirs.dropped.list()?,
        };
        let is_pinned = |digest: &_| shared.pins.is_pinned(digest);
        Ok(decide(there, &wishes, retention, is_pinned, old))
    })
    .await?
}

/// Makes a plan and carries it out; answers before the space is free.
///
/// # Errors
///
/// Those of the owners: then nothing is removed.
pub(crate) async fn collect(
    cx: &Ctx,
    shared: &Arc<Shared>,
    registry: &Registry,
    retention: Retention,
) -> Result<Collected> {
    let round = shared.pins.begin(); // before anybody is asked
    let items = plan(cx, shared, registry, retention, None).await?;
    let sweeping = shared.clone();
    let swept = tokio::task::spawn_blocking(move || {
        let swept = sweep(&sweeping, &items);
        drop(round);
        swept
    });
    let swept = swept.await?;
    // Freeing 300 MB takes a tenth of a second, for which nobody needs to wait.
    let clearing = shared.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = clearing.dirs.empty_trash() {
            tracing::warn!(error = %error.chain(), "Removed blobs stay on disk until the next start.");
        }
    });
    swept
}

/// Removes before it drops: what is remembered of dropped blobs needs space itself.
fn sweep(shared: &Shared, items: &[Item]) -> Result<Collected> {
    let mut collected = Collected::default();
    let of = |fate| items.iter().filter(move |item| item.fate == fate);
    for item in of(Fate::Remove).chain(of(Fate::Drop)) {
        if carry_out(shared, item)? {
            collected.blobs += 1;
            collected.bytes += item.bytes;
        }
    }
    Ok(collected)
}

/// Lets one thing go, unless it has been pinned meanwhile; whether that freed something. Blocking.
pub(crate) fn carry_out(shared: &Shared, item: &Item) -> Result<bool> {
    let Item { kind, digest, bytes, why, .. } = item;
    let path = match kind {
        Thing::Blob => shared.dirs.blob(digest),
        Thing::Partial => shared.dirs.partial(digest),
        Thing::Dropped => return shared.dirs.dropped.remove(digest).map(|()| false),
        Thing::Layers => return Ok(false), // those are not ours
    };
    if let Why::Policy(policy, source) = why {
        let (digest, source) = (digest.clone(), source.clone());
        shared.dirs.dropped.put(&Dropped { digest, size: *bytes, source, policy: *policy })?;
    }
    let gone = shared.pins.unless_pinned(digest, || shared.dirs.discard(&path)).transpose()?;
    Ok(gone == Some(true))
}
