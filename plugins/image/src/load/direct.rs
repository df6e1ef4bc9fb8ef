//! Archives that other plugins bring, as streams.

use std::io::Read;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::Loaded;
use gantry_sdk::kinds::layers::LayerProgress;
use gantry_sdk::{Ctx, Result};

use super::ingest::Archive;
use super::sink::Sink;
use super::{Candidate, Work, admit, candidates, digest_of, parsed};
use crate::platform::Platform;
use crate::store::Store;

/// Reads an archive from `source` and makes images of all that is in it.
///
/// # Errors
///
/// `InvalidArgument` for an archive that is damaged or incomplete; those of the stores. The images
/// before the one that fails stay.
pub async fn load(
    store: &Store,
    cx: &Ctx,
    source: Box<dyn Read + Send>,
    progress: Option<LayerProgress>,
) -> Result<Vec<Loaded>> {
    let lease = store.blobs.lease(cx).await?;
    let sink = Sink::new(store, lease.clone(), cx);
    let read = tokio::task::spawn_blocking(move || {
        let mut archive = Archive::read(source, sink)?;
        let found = candidates(&mut archive, &[])?;
        Ok::<_, gantry_sdk::Error>((archive, found))
    });
    let loaded = match read.await? {
        Ok((archive, found)) => admit_each(store, cx, archive, found, progress).await,
        Err(error) => Err(error),
    };
    drop(lease);
    // Members of no use, or all of them.
    store.litter(cx).await;
    loaded
}

async fn admit_each(
    store: &Store,
    cx: &Ctx,
    mut archive: Archive,
    found: Vec<Candidate>,
    progress: Option<LayerProgress>,
) -> Result<Vec<Loaded>> {
    let ids: Vec<Digest> = found.iter().map(|candidate| digest_of(&candidate.config)).collect();
    let mut loaded = Vec::with_capacity(ids.len());
    for mut candidate in found {
        let (file, platform) = parsed(&candidate)?;
        candidate.parent = candidate.parent.filter(|parent| ids.contains(parent));
        let tags = candidate.tags.iter().map(|tag| tag.familiar()).collect();
        let work = Work {
            unpack: Platform::host().accepts(&platform),
            reporter: None,
            progress: progress.clone(),
        };
        let (entry, renamed, back) = admit(store, cx, archive, candidate, file, work).await?;
        archive = back;
        store.report("load", &entry, entry.id.to_string());
        loaded.push(Loaded { id: entry.id.clone(), tags, renamed });
    }
    Ok(loaded)
}
