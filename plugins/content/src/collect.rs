//! Removes what nobody wants: asks the owners, then sweeps.
//!
//! See [`crate::pins`] for why this is safe beside everything else.

use std::collections::HashSet;
use std::sync::Arc;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{Collected, ContentOwner, ContentOwners};
use gantry_sdk::registry::{Kind as _, Registry};
use gantry_sdk::{Ctx, Error, Result};

use crate::dirs::Shared;

/// The owners of content, by the name of the plugin.
///
/// # Errors
///
/// `Unavailable` if there is none or one is down: what it wants is not known.
pub(crate) fn owners(registry: &Registry) -> Result<Vec<(String, Arc<dyn ContentOwner>)>> {
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

/// Removes every blob and partial that is neither wanted nor pinned.
///
/// # Errors
///
/// Those of the owners: then nothing is removed.
pub(crate) async fn collect(cx: &Ctx, shared: &Arc<Shared>, registry: &Registry) -> Result<Collected> {
    let round = shared.pins.begin(); // before anybody is asked
    let mut wanted = HashSet::new();
    for (name, owner) in owners(registry)? {
        wanted.extend(owner.wanted(cx).await.map_err(|e| e.context(format!("content of {name}")))?);
    }
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || {
        let swept = sweep(&shared, &wanted);
        drop(round);
        let emptied = shared.dirs.empty_trash();
        swept.and_then(|collected| emptied.map(|()| collected))
    })
    .await?
}

fn sweep(shared: &Shared, wanted: &HashSet<Digest>) -> Result<Collected> {
    let dirs = &shared.dirs;
    let mut collected = Collected::default();
    let blobs = dirs.list()?.into_iter().map(|info| (dirs.blob(&info.digest), info));
    let partials = dirs.partials()?.into_iter().map(|info| (dirs.partial(&info.digest), info));
    for (path, info) in blobs.chain(partials).filter(|(_, info)| !wanted.contains(&info.digest)) {
        let gone = shared.pins.unless_pinned(&info.digest, || dirs.discard(&path)).transpose()?;
        if gone == Some(true) {
            collected.blobs += 1;
            collected.bytes += info.size;
        }
    }
    Ok(collected)
}
