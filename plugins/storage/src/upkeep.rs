//! What happens beside requests: recovery at start, syncing, collection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::storage::{Layer, LayerState, Storage};
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Ctx, ErrorKind, Result};

use crate::store::{Instance, Store};
use crate::unpack::UNPACKING;

/// How long after a layer was unpacked it is synced, together with what came meanwhile.
const SYNC_DELAY: Duration = Duration::from_secs(2);
/// Layers asked for at once.
const PAGE: u32 = 500;

impl Store {
    /// Every layer of an instance, in key order.
    pub(crate) async fn list_all(&self, cx: &Ctx, instance: &Instance) -> Result<Vec<Layer>> {
        let mut layers: Vec<Layer> = Vec::new();
        loop {
            let after = layers.last().map(|layer| layer.key.clone());
            let page = instance.driver.list(cx, after.as_deref(), PAGE).await?;
            if page.is_empty() {
                return Ok(layers);
            }
            layers.extend(page);
        }
    }

    /// Lets the drivers put their own things right, then drops what was being unpacked.
    pub(crate) async fn recover(&self, cx: &Ctx) -> Result<()> {
        for instance in self.all_instances()? {
            match self.recover_instance(cx, &instance).await {
                Err(error) if instance.name != self.default => {
                    // What stands on it says so when it is needed; everything else works.
                    tracing::error!(instance = instance.name, error = %error.chain(), "A storage instance cannot be used.");
                    self.registry.mark_down(Storage::NAME, &instance.name, error.chain());
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    async fn recover_instance(&self, cx: &Ctx, instance: &Instance) -> Result<()> {
        let dropped = instance.driver.recover(cx).await?;
        if !dropped.is_empty() {
            let (name, count) = (&instance.name, dropped.len());
            tracing::warn!(
                instance = name,
                count,
                "Layers that may not have reached the disk are dropped; they are unpacked again when needed."
            );
        }
        for layer in self.list_all(cx, instance).await? {
            if layer.state == LayerState::Active && layer.key.starts_with(UNPACKING) {
                instance.driver.remove(cx, &layer.key).await?;
            }
        }
        Ok(())
    }

    /// Notes that the layer `id` is to be synced by and by.
    pub(crate) fn needs_sync(&self, instance: &str, id: &Digest) {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        unsynced.insert(instance.to_owned(), id.clone());
        self.sync_wanted.notify_one();
    }

    pub(crate) fn spawn_syncer(self: &Arc<Self>) {
        let store = self.clone();
        let stop = self.tasks.stopping().clone();
        self.tasks.spawn("sync-layers", async move {
            while stop.run_until_cancelled(store.sync_wanted.notified()).await.is_some() {
                // What is not synced in time is unpacked again after a power cut: no harm in waiting.
                let _ = stop.run_until_cancelled(tokio::time::sleep(SYNC_DELAY)).await;
                store.sync_all().await;
            }
        });
    }

    async fn sync_all(&self) {
        let unsynced =
            std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        let cx = Ctx::background();
        for (name, id) in unsynced {
            let synced = match self.instance(Some(&name)) {
                Ok(instance) => instance.driver.sync(&cx, id.as_str()).await,
                Err(error) => Err(error),
            };
            match synced {
                Ok(()) => {}
                // Removed meanwhile; a later layer brings the others along.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(instance = name, error = %error.chain(), "Unpacked layers are not on disk.");
                }
            }
        }
    }

    /// Bytes of the layer on top of chain `id`; 0 if it is nowhere.
    pub(crate) async fn layer_size(&self, cx: &Ctx, id: &Digest) -> Result<u64> {
        if let Some(bytes) = self.records.size(id) {
            return Ok(bytes);
        }
        for instance in self.all_instances()? {
            if instance.has(cx, id).await? {
                let (bytes, _) = instance.driver.usage(cx, id.as_str()).await?;
                self.records.note_size(id, bytes);
                return Ok(bytes);
            }
        }
        Ok(0)
    }

    /// Removes the unpacked layers that neither `keep`, a lease nor a container needs. Goes on when
    /// nobody waits any more: a removal that is forgotten half-way would look like a layer.
    pub(crate) async fn collect(self: &Arc<Self>, keep: BTreeSet<Digest>) -> Result<()> {
        let store = self.clone();
        let collecting =
            self.tasks.spawn("collect-layers", async move { store.collect_layers(keep).await });
        collecting.await?
    }

    async fn collect_layers(&self, mut keep: BTreeSet<Digest>) -> Result<()> {
        let cx = &Ctx::background();
        let _one_at_a_time = self.collecting.lock().await;
        let collection = self.pins.collect();
        keep.extend(collection.kept());
        let (mut gone, mut left) = (BTreeSet::new(), BTreeSet::new());
        for instance in self.all_instances()? {
            let layers = self.list_all(cx, &instance).await?;
            for key in removable(&layers, &keep) {
                let Ok(id) = key.parse::<Digest>() else { continue };
                let Some(_mark) = collection.mark(&id) else { continue };
                match instance.driver.remove(cx, &key).await {
                    Ok(()) => drop(gone.insert(id)),
                    // Somebody has begun to use it since we looked.
                    Err(error) if error.kind() == ErrorKind::Busy => drop(left.insert(id)),
                    Err(error) => return Err(error),
                }
            }
            let still = self.list_all(cx, &instance).await?;
            left.extend(still.into_iter().filter_map(|layer| layer.key.parse().ok()));
        }
        // A container's layer may need its chain's record after all layers are lost.
        self.records.forget(cx, &gone.difference(&left).cloned().collect()).await
    }

    /// Drops container layers that nobody knows; returns their keys.
    pub(crate) async fn drop_unknown(&self, cx: &Ctx, known: &[String]) -> Result<Vec<String>> {
        let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
        let mut dropped = Vec::new();
        for instance in self.all_instances()? {
            for layer in self.list_all(cx, &instance).await? {
                let is_ours =
                    layer.state == LayerState::Active && !layer.key.starts_with(UNPACKING);
                if is_ours && !known.contains(layer.key.as_str()) {
                    instance.driver.remove(cx, &layer.key).await?;
                    dropped.push(layer.key);
                }
            }
        }
        Ok(dropped)
    }
}

/// The committed layers that nothing needs, topmost first, so that each is free when its turn comes.
pub(crate) fn removable(layers: &[Layer], keep: &BTreeSet<Digest>) -> Vec<String> {
    let parents: BTreeMap<&str, Option<&str>> =
        layers.iter().map(|layer| (layer.key.as_str(), layer.parent.as_deref())).collect();
    let mut needed = BTreeSet::new();
    for layer in layers {
        let is_kept = match layer.key.parse::<Digest>() {
            Ok(id) => keep.contains(&id) || layer.state == LayerState::Active,
            Err(_) => true,
        };
        let mut at = is_kept.then_some(layer.key.as_str());
        while let Some(key) = at {
            if !needed.insert(key) {
                break;
            }
            at = parents.get(key).copied().flatten();
        }
    }
    let depth = |key: &str| {
        let mut depth = 0;
        let mut at = parents.get(key).copied().flatten();
        while let Some(parent) = at.filter(|_| depth < layers.len()) {
            depth += 1;
            at = parents.get(parent).copied().flatten();
        }
        depth
    };
    let mut free: Vec<&str> = parents.keys().copied().filter(|key| !needed.contains(key)).collect();
    free.sort_by_key(|key| std::cmp::Reverse(depth(key)));
    free.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_something_needed_stays() {
        let id = |c: char| format!("sha256:{}", c.to_string().repeat(64));
        let layer = |key: String, parent: Option<String>, state| Layer { key, parent, state };
        let layers = [
            layer(id('a'), None, LayerState::Committed),
            layer(id('b'), Some(id('a')), LayerState::Committed),
            layer(id('c'), Some(id('b')), LayerState::Committed),
            layer(id('d'), Some(id('c')), LayerState::Committed),
            layer("container".to_owned(), Some(id('b')), LayerState::Active),
        ];
        let keep = BTreeSet::from([id('a').parse::<Digest>().unwrap()]);
        assert_eq!(removable(&layers, &keep), [id('d'), id('c')]);
        assert_eq!(removable(&layers[..4], &BTreeSet::new()), [id('d'), id('c'), id('b'), id('a')]);
    }
}
