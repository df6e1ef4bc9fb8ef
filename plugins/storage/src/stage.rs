//! Archives that come before anybody knows what they stand on.
//!
//! They are unpacked on the way, each into an active layer without a parent, and wait in a table for
//! the first chain that has their diff id. What no chain has taken goes with its hold, and at the next
//! start.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_archive::{ArchiveError, Chunks, Passed, decompressed};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::Staged;
use gantry_sdk::{Ctx, Result};
use tokio::sync::Notify;

use crate::pour::{Poured, explain, pour_to_end};
use crate::source::Stoppable;
use crate::store::{Instance, Store};
use crate::unpack::Draft;

/// Layers that wait for a chain.
#[derive(Default)]
pub(crate) struct Staging {
    table: Mutex<Table>,
    /// Told when something is to be thrown away.
    discarded: Notify,
}

#[derive(Default)]
struct Table {
    /// By instance, diff id, and the driver's key.
    waiting: BTreeMap<Place, Poured>,
    /// Instance and key of what nobody took.
    discarded: Vec<(String, String)>,
}

type Place = (String, Digest, String);

impl Staging {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(self: &Arc<Self>, place: Place, poured: Poured) -> StagedLayer {
        self.table().waiting.insert(place.clone(), poured);
        StagedLayer { staging: self.clone(), place }
    }

    /// A layer with that diff id, which from now on belongs to the caller.
    pub(crate) fn take(&self, instance: &str, diff_id: &Digest) -> Option<Draft> {
        let mut table = self.table();
        let from = (instance.to_owned(), diff_id.clone(), String::new());
        let (place, _) = table.waiting.range(from..).next()?;
        if place.0 != instance || place.1 != *diff_id {
            return None;
        }
        let place = place.clone();
        let poured = table.waiting.remove(&place)?;
        Some(Draft { key: place.2, poured })
    }

    /// Waits for layers that nobody took: instances and keys.
    pub(crate) async fn discarded(&self) -> Vec<(String, String)> {
        loop {
            let discarded = std::mem::take(&mut self.table().discarded);
            if !discarded.is_empty() {
                return discarded;
            }
            self.discarded.notified().await;
        }
    }
}

/// Keeps a staged layer until it is dropped, or a chain takes it.
struct StagedLayer {
    staging: Arc<Staging>,
    place: Place,
}

impl Drop for StagedLayer {
    fn drop(&mut self) {
        let mut table = self.staging.table();
        if table.waiting.remove(&self.place).is_some() {
            table.discarded.push((self.place.0.clone(), self.place.2.clone()));
            self.staging.discarded.notify_one();
        }
    }
}

impl Store {
    /// See [`LayerStore::stage`](gantry_sdk::kinds::layers::LayerStore::stage). Dropping the future
    /// ends reading.
    pub(crate) async fn stage_layer(
        self: &Arc<Self>,
        instance: Instance,
        source: Box<dyn Read + Send>,
    ) -> Result<Staged> {
        let stop = self.tasks.stopping().child_token();
        let _stops = stop.clone().drop_guard();
        let source = Stoppable { inner: source, stop };
        if !instance.info.parallel_unpack {
            let ((), stream) = tokio::task::spawn_blocking(move || decompressed(source, drain))
                .await?
                .map_err(explain)?;
            return staged(stream, Arc::new(()));
        }
        // A task, so that what it has made is cleared away whoever stops waiting.
        let store = self.clone();
        self.tasks
            .spawn("stage-layer", async move { store.stage_into(instance, source).await })
            .await?
    }

    async fn stage_into(
        &self,
        instance: Instance,
        source: impl Read + Send + 'static,
    ) -> Result<Staged> {
        let cx = &Ctx::background();
        let key = self.prepare_draft(cx, &instance, None).await?;
        match self.fill_staged(cx, &instance, &key, source).await {
            Ok((stream, Some(poured))) => {
                let diff_id = stream.diff_id.parse()?;
                let place = (instance.name.clone(), diff_id, key);
                staged(stream, Arc::new(self.staged.put(place, poured)))
            }
            Ok((stream, None)) => {
                self.scrap(cx, &instance, &key).await;
                staged(stream, Arc::new(()))
            }
            Err(error) => {
                self.scrap(cx, &instance, &key).await;
                Err(error.context("cannot unpack a layer"))
            }
        }
    }

    /// None beside the stream: the layer cannot be unpacked before what is below it.
    async fn fill_staged(
        &self,
        cx: &Ctx,
        instance: &Instance,
        key: &str,
        source: impl Read + Send + 'static,
    ) -> Result<(Passed, Option<Poured>)> {
        let plan = instance.driver.unpack_plan(cx, key).await?;
        let target = self.mount_plan(cx, instance, &plan).await?;
        let form = instance.info.form;
        let work = move || pour_to_end(source, &target, form);
        let (poured, stream) = tokio::task::spawn_blocking(work).await?.map_err(explain)?;
        match poured {
            Ok(poured) => Ok((stream, Some(poured))),
            Err(ArchiveError::NeedsBelow { .. }) => Ok((stream, None)),
            Err(error) => Err(explain(error)),
        }
    }

    /// Starts the task that throws away what was staged for nothing.
    pub(crate) fn spawn_discarder(self: &Arc<Self>) {
        let store = self.clone();
        let stop = self.tasks.stopping().clone();
        self.tasks.spawn("discard-staged-layers", async move {
            while let Some(keys) = stop.run_until_cancelled(store.staged.discarded()).await {
                for (name, key) in keys {
                    if let Ok(instance) = store.instance(Some(&name)) {
                        store.scrap(&Ctx::background(), &instance, &key).await;
                    }
                }
            }
        });
    }
}

fn drain(chunks: &mut Chunks) -> Result<(), ArchiveError> {
    std::io::copy(chunks, &mut std::io::sink()).map(drop).map_err(ArchiveError::Read)
}

fn staged(stream: Passed, hold: gantry_sdk::kinds::layers::Hold) -> Result<Staged> {
    Ok(Staged {
        diff_id: stream.diff_id.parse()?,
        blob: stream.digest.unwrap_or_default().parse()?,
        bytes: stream.bytes,
        compression: stream.compression.name().to_owned(),
        unpacked: stream.diff_bytes,
        hold,
    })
}
