//! Layers that a retention policy may drop, and how they come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobSource, Droppable};
use gantry_sdk::kinds::registry::{Access, Credentials, Registries};
use gantry_sdk::reference::Reference;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};

use super::Puller;
use super::downloads::{Origin, Remote};
use crate::record::LayerRecord;
use crate::store::Store;

/// The layers of `store` that could be had again: those that a registry is known to have.
///
/// # Errors
///
/// Those of the layer store.
pub async fn droppable(store: &Store, cx: &Ctx) -> Result<Vec<Droppable>> {
    let unpacked: BTreeSet<Digest> =
        store.layers.chain_sizes(cx).await?.into_iter().map(|(id, _)| id).collect();
    let index = store.index();
    let mut found: BTreeMap<Digest, Droppable> = BTreeMap::new();
    for entry in index.stored() {
        let record = &entry.record;
        for (layer, chain) in record.layers.iter().zip(record.chain().ids()) {
            let Some(repository) = store.repositories(&layer.blob).pop() else { continue };
            let is_unpacked = unpacked.contains(&chain);
            let known = found.entry(layer.blob.clone()).or_insert_with(|| Droppable {
                digest: layer.blob.clone(),
                source: format!("{repository}@{}", layer.blob),
                unpacked: true,
                remote: true,
            });
            known.unpacked &= is_unpacked;
        }
    }
    Ok(found.into_values().collect())
}

/// Brings layers back from the repositories that are known to have them, as nobody in particular:
/// credentials are not kept.
#[derive(Debug)]
pub struct Repositories(pub Arc<Puller>);

impl Repositories {
    fn layer(&self, digest: &Digest) -> Option<LayerRecord> {
        let index = self.0.store.index();
        index.stored().flat_map(|e| &e.record.layers).find(|l| l.blob == *digest).cloned()
    }

    async fn from(&self, cx: &Ctx, remote: &Remote, repository: &str) -> Result<()> {
        let store = &self.0.store;
        let name = Reference::parse(repository)?;
        let registries = store.registry.only::<Registries>()?;
        let nobody = Credentials::default();
        let repository = registries.repository(cx, &name, Access::Pull, &nobody).await?;
        let origin = Origin { repository, limit: registries.limits().max_concurrent_downloads };
        let lease = store.blobs.lease(cx).await?;
        self.0.downloads.want(cx, remote, &origin, &lease).done().await
    }
}

#[async_trait]
impl BlobSource for Repositories {
    async fn fetch(&self, cx: &Ctx, digest: &Digest) -> Result<()> {
        let layer = self.layer(digest);
        let layer =
            layer.ok_or_else(|| Error::not_found(format!("no image has layer {digest}")))?;
        let repositories = self.0.store.repositories(digest);
        let remote = Remote { digest: digest.clone(), size: layer.bytes, urls: Vec::new() };
        let mut last = None;
        for repository in repositories.iter().rev() {
            match self.from(cx, &remote, repository).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    last = Some(
                        error.context(format!("cannot fetch layer {digest} from {repository}")),
                    );
                }
            }
        }
        let missing = || Error::not_found(format!("no registry is known to have layer {digest}"));
        Err(match last {
            None => missing(),
            Some(error) if error.kind() == ErrorKind::Unauthorized => {
                error.context("the layer was dropped; pull its image again to log in")
            }
            Some(error) => error,
        })
    }
}
