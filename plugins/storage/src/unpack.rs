//! Chains of layers from their blobs into a storage instance.
//!
//! Where the driver can, all missing layers of a chain are unpacked at once, each alone; they are
//! put upon each other from the base up. A layer whose meaning depends on those below is unpacked
//! again when they are there. Everywhere else a layer waits for the one below.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::try_join_all;
use gantry_archive::ArchiveError;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer, LayerProgress};
use gantry_sdk::kinds::storage::LayerForm;
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::flights::{Pilot, Seat};
use crate::pour::{Poured, Sight, begin_merged, end_merged, explain, pour, settle};
use crate::source::{Source, Stoppable};
use crate::store::{Instance, Store};

/// How the keys of layers begin that are being made; see [`Store::recover`].
pub(crate) const UNPACKING: &str = "unpack-";
/// Layers unpacked at once from blobs that are still arriving. They wait more than they work, and
/// must not keep others from working.
const ARRIVING: usize = 3;

/// Who may unpack now, over all calls.
pub(crate) struct Lanes {
    /// For blobs that are here: as many as there are processors.
    here: Semaphore,
    /// For blobs that are arriving.
    arriving: Semaphore,
    /// Numbers for the keys of layers that are being made.
    next: AtomicU64,
}

impl Default for Lanes {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            here: Semaphore::new(processors),
            arriving: Semaphore::new(ARRIVING),
            next: AtomicU64::new(0),
        }
    }
}

/// One layer that an instance lacks.
struct Job {
    id: Digest,
    parent: Option<Digest>,
    work: Work,
}

enum Work {
    /// One layer of the chain becomes one of the driver's.
    Layer(ChainLayer),
    /// Several become one, because the driver cannot stack that many: these, over a copy of what the
    /// chain `over` holds.
    Merged { over: Option<Digest>, layers: Vec<ChainLayer> },
}

/// An active layer, complete or to be settled.
pub(crate) struct Draft {
    pub(crate) key: String,
    pub(crate) poured: Poured,
}

impl Store {
    /// Unpacks what is missing of `chain`. Dropping the future calls off what nobody else waits for.
    pub(crate) async fn unpack_chain(
        self: &Arc<Self>,
        cx: &Ctx,
        instance: &Instance,
        chain: &Chain,
        progress: Option<LayerProgress>,
    ) -> Result<()> {
        let ids = chain.ids();
        let Some(top) = ids.last() else { return Ok(()) };
        let kept = self.pins.pin(ids.clone());
        kept.settled().await;
        if !instance.has(cx, top).await? {
            let mut seats: Vec<Seat> = Vec::new();
            for job in jobs(cx, instance, chain, &ids).await? {
                let below = seats.last().cloned();
                seats.push(self.board(instance, job, below, progress.clone()));
            }
            try_join_all(seats.iter().map(Seat::landed)).await?;
        }
        self.records.note_chain(cx, chain).await
    }

    /// Starts making a layer, or joins whoever has started it.
    fn board(
        self: &Arc<Self>,
        instance: &Instance,
        job: Job,
        below: Option<Seat>,
        progress: Option<LayerProgress>,
    ) -> Seat {
        let key = (instance.name.clone(), job.id.clone());
        let stop = self.tasks.stopping();
        let (seat, pilot) = self.flights.board(key, &self.pins, stop, progress);
        if let Some(pilot) = pilot {
            let (store, instance) = (self.clone(), instance.clone());
            self.tasks.spawn("unpack-layer", async move {
                let outcome = store.fly(&instance, &job, below, &pilot).await;
                pilot.land(outcome);
            });
        }
        seat
    }

    async fn fly(
        &self,
        instance: &Instance,
        job: &Job,
        below: Option<Seat>,
        pilot: &Pilot,
    ) -> Result<()> {
        let cx = &Ctx::background();
        if instance.has(cx, &job.id).await? {
            return Ok(());
        }
        let below = Below { seat: below, pilot };
        let (key, bytes) = match &job.work {
            Work::Layer(layer) => {
                let parent = job.parent.as_ref();
                let draft = self.make_layer(cx, instance, layer, parent, &below).await?;
                (draft.key, draft.poured.file_bytes)
            }
            Work::Merged { over, layers } => {
                below.landed().await?;
                self.make_merged(cx, instance, over.as_ref(), layers, pilot).await?
            }
        };
        match instance.driver.commit(cx, &key, job.id.as_str()).await {
            Ok(_) => {}
            Err(error) => {
                self.scrap(cx, instance, &key).await;
                // Somebody else's work is as good as ours.
                if error.kind() != ErrorKind::Exists || !instance.has(cx, &job.id).await? {
                    return Err(error);
                }
            }
        }
        self.records.note_size(&job.id, bytes);
        self.needs_sync(&instance.name, &job.id);
        Ok(())
    }

    /// A layer on its parent, ready to be committed.
    async fn make_layer(
        &self,
        cx: &Ctx,
        instance: &Instance,
        layer: &ChainLayer,
        parent: Option<&Digest>,
        below: &Below<'_>,
    ) -> Result<Draft> {
        let failed = |error: Error| error.context(format!("cannot unpack layer {}", layer.diff_id));
        let Some(parent) = parent else {
            return match self.take_staged(instance, layer, below.pilot) {
                Some(draft) => Ok(draft),
                None => {
                    let poured = self.draft(cx, instance, layer, None, Sight::Bottom, below.pilot);
                    poured.await.and_then(|made| made.map_err(explain)).map_err(failed)
                }
            };
        };
        let alone = if instance.info.parallel_unpack {
            self.make_alone(cx, instance, layer, below.pilot).await.map_err(failed)?
        } else {
            None
        };
        let landed = below.landed().await;
        if let Some(draft) = alone {
            let settled = match landed {
                Ok(()) => self.settle(cx, instance, &draft, parent).await.map_err(failed),
                Err(error) => Err(error),
            };
            if let Ok(true) = settled {
                return Ok(draft);
            }
            self.scrap(cx, instance, &draft.key).await;
            settled?;
        } else {
            landed?;
        }
        let sight = if instance.info.form == LayerForm::MergedTree {
            Sight::Over
        } else {
            let plan = instance.driver.plan(cx, parent.as_str()).await.map_err(failed)?;
            Sight::Below(self.mount_plan(cx, instance, &plan).await.map_err(failed)?)
        };
        let made = self.draft(cx, instance, layer, Some(parent), sight, below.pilot).await;
        made.and_then(|made| made.map_err(explain)).map_err(failed)
    }

    /// A layer that has been unpacked already, and waits for a chain to take it.
    fn take_staged(&self, instance: &Instance, layer: &ChainLayer, pilot: &Pilot) -> Option<Draft> {
        let draft = self.staged.take(&instance.name, &layer.diff_id)?;
        let bytes = draft.poured.stream.bytes;
        pilot.listeners().tell(&layer.diff_id, bytes, bytes);
        Some(draft)
    }

    /// A layer without its parent; none if that cannot be.
    async fn make_alone(
        &self,
        cx: &Ctx,
        instance: &Instance,
        layer: &ChainLayer,
        pilot: &Pilot,
    ) -> Result<Option<Draft>> {
        if let Some(draft) = self.take_staged(instance, layer, pilot) {
            return Ok(Some(draft));
        }
        match self.draft(cx, instance, layer, None, Sight::Alone, pilot).await? {
            Ok(draft) => Ok(Some(draft)),
            Err(ArchiveError::NeedsBelow { entry }) => {
                let diff_id = &layer.diff_id;
                tracing::debug!(%diff_id, entry, "A layer waits for those below.");
                Ok(None)
            }
            Err(error) => Err(explain(error)),
        }
    }

    /// Puts a layer that was made alone onto its parent. False: it must be made again.
    async fn settle(
        &self,
        cx: &Ctx,
        instance: &Instance,
        draft: &Draft,
        parent: &Digest,
    ) -> Result<bool> {
        let driver = &instance.driver;
        driver.rebase(cx, &draft.key, Some(parent.as_str())).await?;
        if draft.poured.top_given && draft.poured.implied.is_empty() {
            return Ok(true);
        }
        let plan = driver.unpack_plan(cx, &draft.key).await?;
        let target = self.mount_plan(cx, instance, &plan).await?;
        let plan = driver.plan(cx, parent.as_str()).await?;
        let below = self.mount_plan(cx, instance, &plan).await?;
        let (form, poured) = (instance.info.form, draft.poured.clone());
        let work = move || settle(&target, form, &below, &poured);
        match tokio::task::spawn_blocking(work).await? {
            Ok(()) => Ok(true),
            Err(ArchiveError::NeedsBelow { .. }) => Ok(false),
            Err(error) => Err(explain(error)),
        }
    }

    /// A new active layer on `parent`, filled from a blob. Nothing is left of one that fails.
    async fn draft(
        &self,
        cx: &Ctx,
        instance: &Instance,
        layer: &ChainLayer,
        parent: Option<&Digest>,
        sight: Sight,
        pilot: &Pilot,
    ) -> Result<Result<Draft, ArchiveError>> {
        let key = self.prepare_draft(cx, instance, parent).await?;
        let filled = self.fill(cx, instance, &key, layer, sight, pilot).await;
        if !matches!(filled, Ok(Ok(_))) {
            self.scrap(cx, instance, &key).await;
        }
        Ok(filled?.map(|poured| Draft { key, poured }))
    }

    pub(crate) async fn prepare_draft(
        &self,
        cx: &Ctx,
        instance: &Instance,
        parent: Option<&Digest>,
    ) -> Result<String> {
        let key = format!("{UNPACKING}{}", self.lanes.next.fetch_add(1, Ordering::Relaxed));
        let parent = parent.map(Digest::as_str);
        instance.driver.prepare(cx, &key, parent, &Labels::new()).await?;
        Ok(key)
    }

    /// Removes a layer that came to nothing.
    pub(crate) async fn scrap(&self, cx: &Ctx, instance: &Instance, key: &str) {
        if let Err(error) = instance.driver.remove(cx, key).await {
            tracing::warn!(key, error = %error.chain(), "A half unpacked layer stays until the next start.");
        }
    }

    /// Moves the bytes of one layer and compares its digest.
    async fn fill(
        &self,
        cx: &Ctx,
        instance: &Instance,
        key: &str,
        layer: &ChainLayer,
        sight: Sight,
        pilot: &Pilot,
    ) -> Result<Result<Poured, ArchiveError>> {
        let (_permit, total) = self.permit(cx, layer, pilot).await?;
        let plan = instance.driver.unpack_plan(cx, key).await?;
        let target = self.mount_plan(cx, instance, &plan).await?;
        let inner = self.blobs.follow(cx, &layer.blob).await?;
        let blob = Stoppable { inner, stop: pilot.cancel().clone() };
        let diff_id = layer.diff_id.clone();
        let source = Source::new(blob, diff_id, total, pilot.listeners().clone());
        let form = instance.info.form;
        let work = move || pour(source, &target, form, &sight);
        let poured = tokio::task::spawn_blocking(work).await?;
        match &poured {
            Ok(poured) if poured.stream.diff_id != layer.diff_id.as_str() => {
                let (found, expected) = (&poured.stream.diff_id, &layer.diff_id);
                Err(Error::invalid(format!("its content is {found}, not {expected}")))
            }
            _ => Ok(poured),
        }
    }

    /// Waits for a turn; also the size of the blob, 0 if it is not known.
    async fn permit(
        &self,
        cx: &Ctx,
        layer: &ChainLayer,
        pilot: &Pilot,
    ) -> Result<(SemaphorePermit<'_>, u64)> {
        let (lane, total) = match self.blobs.stat(cx, &layer.blob).await {
            Ok(info) => (&self.lanes.here, info.size),
            Err(error) if error.kind() == ErrorKind::NotFound => (&self.lanes.arriving, 0),
            Err(error) => return Err(error),
        };
        match pilot.cancel().run_until_cancelled(lane.acquire()).await {
            Some(Ok(permit)) => Ok((permit, total)),
            _ => Err(called_off()),
        }
    }

    /// Several layers as one, on nothing; also its bytes.
    async fn make_merged(
        &self,
        cx: &Ctx,
        instance: &Instance,
        over: Option<&Digest>,
        layers: &[ChainLayer],
        pilot: &Pilot,
    ) -> Result<(String, u64)> {
        let key = self.prepare_draft(cx, instance, None).await?;
        match self.merge(cx, instance, &key, over, layers, pilot).await {
            Ok(bytes) => Ok((key, bytes)),
            Err(error) => {
                self.scrap(cx, instance, &key).await;
                Err(error.context(format!("cannot merge {} layers into one", layers.len())))
            }
        }
    }

    async fn merge(
        &self,
        cx: &Ctx,
        instance: &Instance,
        key: &str,
        over: Option<&Digest>,
        layers: &[ChainLayer],
        pilot: &Pilot,
    ) -> Result<u64> {
        let (driver, form) = (&instance.driver, instance.info.form);
        let plan = driver.unpack_plan(cx, key).await?;
        let target = self.mount_plan(cx, instance, &plan).await?;
        if let Some(over) = over {
            let to = target.clone();
            let plan = driver.plan(cx, over.as_str()).await?;
            let from = self.mount_plan(cx, instance, &plan).await?;
            let work = move || begin_merged(&to, form, &from);
            tokio::task::spawn_blocking(work).await?.map_err(explain)?;
        }
        for layer in layers {
            let failed = |error: Error| error.context(format!("layer {}", layer.diff_id));
            let poured = self.fill(cx, instance, key, layer, Sight::Over, pilot).await;
            poured.and_then(|poured| poured.map_err(explain)).map_err(failed)?;
        }
        tokio::task::spawn_blocking(move || end_merged(&target, form)).await?.map_err(explain)?;
        driver.usage(cx, key).await.map(|(bytes, _)| bytes)
    }
}

/// The layer below one that is being made.
struct Below<'a> {
    /// None if it is there.
    seat: Option<Seat>,
    pilot: &'a Pilot,
}

impl Below<'_> {
    /// Waits until it is there.
    async fn landed(&self) -> Result<()> {
        let Some(seat) = &self.seat else { return Ok(()) };
        let landed = self.pilot.cancel().run_until_cancelled(seat.landed()).await;
        landed.unwrap_or_else(|| Err(called_off()))
    }
}

fn called_off() -> Error {
    Error::unavailable("unpacking was called off: nobody waits for it, or the daemon is stopping")
}

/// What is to be made so that `instance` has `chain`, the lowest first.
async fn jobs(cx: &Ctx, instance: &Instance, chain: &Chain, ids: &[Digest]) -> Result<Vec<Job>> {
    let mut first = ids.len();
    while let Some(below) = first.checked_sub(1)
        && !instance.has(cx, &ids[below]).await?
    {
        first = below;
    }
    let limit = instance.info.max_depth as usize;
    let parent = |at: usize| at.checked_sub(1).map(|below| ids[below].clone());
    let mut jobs = Vec::new();
    if ids.len() > limit {
        let there = match parent(first) {
            Some(top) => depth(cx, instance, &top).await?,
            None => 0,
        };
        if let Some(last) = merge_up_to(there, first, ids.len(), limit) {
            let layers = chain.0[first..=last].to_vec();
            let work = Work::Merged { over: parent(first), layers };
            jobs.push(Job { id: ids[last].clone(), parent: None, work });
            first = last + 1;
        }
    }
    jobs.extend((first..ids.len()).map(|at| Job {
        id: ids[at].clone(),
        parent: parent(at),
        work: Work::Layer(chain.0[at].clone()),
    }));
    Ok(jobs)
}

/// Layers of an instance up to and with `id`.
async fn depth(cx: &Ctx, instance: &Instance, id: &Digest) -> Result<usize> {
    let mut depth = 1;
    let mut layer = instance.driver.stat(cx, id.as_str()).await?;
    while let Some(parent) = layer.parent {
        depth += 1;
        layer = instance.driver.stat(cx, &parent).await?;
    }
    Ok(depth)
}

/// Which of `count` layers, of which the first `missing` are there in `there` of the driver's, is
/// the last that must go into a merged one. Leaves room for images built upon this one.
fn merge_up_to(there: usize, missing: usize, count: usize, limit: usize) -> Option<usize> {
    let is_too_deep = there + (count - missing) > limit;
    is_too_deep.then(|| missing.max((count - 1).saturating_sub(limit / 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_deep_is_merged_with_room_to_spare() {
        let cases = [
            ("fits", (0, 0, 499, 499), None),
            ("fits because much is merged already", (10, 400, 600, 499), None),
            ("nothing is there", (0, 0, 600, 499), Some(350)),
            ("a part is there", (100, 100, 600, 499), Some(350)),
            ("all but the top is there", (499, 499, 500, 499), Some(499)),
            ("no stack at all", (0, 0, 3, 1), Some(2)),
        ];
        for (what, (there, missing, count, limit), expected) in cases {
            assert_eq!(merge_up_to(there, missing, count, limit), expected, "{what}");
            if let Some(last) = expected {
                assert!(count - last <= limit, "{what}");
            }
        }
    }
}
