//! Frees space when the disk is full, if the operator wants that.
//!
//! It looks at the file system of the data root every [interval](Watermarks::interval). Above the high
//! watermark it lets go, until the low one is reached, in this order:
//!
//! 1. beginnings of blobs to which nothing was added for [so long](Watermarks::partials_after), the
//!    oldest first, wanted or not: a download that goes on some day begins anew
//! 2. blobs and partials that nobody wants
//! 3. blobs that the retention policy allows to drop
//! 4. unpacked layers of images that no container uses and whose blobs are all here, the largest
//!    first: they are unpacked again when they are needed
//!
//! Nothing that is pinned goes, and nothing that could not be had again. [`Governor::explain`] says
//! for everything why it would go or stay, whether the governor is on or not.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::BlobStore;
use gantry_sdk::kinds::images::{ImageUsers, Images};
use gantry_sdk::kinds::layers::{Chain, Layers};
use gantry_sdk::registry::Registry;
use gantry_sdk::{Ctx, Error, Result};
use serde::Serialize;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::blobs::FileBlobs;
use crate::plan::{Fate, Item, Thing, Why};
use crate::settings::{Retention, Watermarks};

/// Watches the disk.
#[derive(Debug)]
pub struct Governor {
    /// The store that it relieves.
    pub blobs: Arc<FileBlobs>,
    /// Where images, their users and their layers are found.
    pub registry: Arc<Registry>,
    /// A directory of the file system to watch.
    pub root: PathBuf,
    /// None if it is off.
    pub marks: Option<Watermarks>,
    /// The store's policy, for the explanation.
    pub retention: Retention,
}

/// How full the disk is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// What could be used; what is reserved for root is no part of it.
    pub total: u64,
    /// What is used.
    pub used: u64,
}

impl Usage {
    /// Bytes to free to get down to `mark`.
    fn above(self, mark: u64) -> u64 {
        self.used.saturating_sub(mark)
    }
}

/// Why everything is kept or would go.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// Whether the governor runs.
    pub enabled: bool,
    /// Its watermarks, or what they would be.
    pub watermarks: Watermarks,
    /// The retention policy.
    pub retention: Retention,
    /// The disk.
    pub disk: Usage,
    /// Bytes it would free now: down to the low watermark if the disk is fuller than the high one.
    pub to_free: u64,
    /// Everything, in the order in which it would go; freeing stops when enough is free.
    pub items: Vec<Item>,
}

/// The unpacked layers of an image.
struct Unpacked {
    chain: Chain,
    item: Item,
}

impl Governor {
    /// How full the disk is.
    ///
    /// # Errors
    ///
    /// `Internal` with the path.
    pub fn usage(&self) -> Result<Usage> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(|e| Error::io("look at the space of", self.root.display(), e.into()))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Usage { total: bytes(used.saturating_add(stat.f_bavail)), used: bytes(used) })
    }

    /// Looks again and again until `stop`.
    pub async fn watch(self: Arc<Self>, marks: Watermarks, stop: CancellationToken) {
        let mut tick = tokio::time::interval(marks.interval.0);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut was_full = false;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            match self.relieve(&Ctx::background(), marks).await {
                Ok(still_full) if still_full && !was_full => {
                    tracing::warn!(
                        root = %self.root.display(),
                        "The disk is fuller than the high watermark, and nothing more can go."
                    );
                    was_full = true;
                }
                Ok(still_full) => was_full = still_full,
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "Cannot free space on the disk.");
                }
            }
        }
    }

    /// Frees space if the disk is fuller than the high watermark; whether it still is.
    ///
    /// # Errors
    ///
    /// Those of the owners of content and of the disk. What has gone before stays away.
    pub async fn relieve(&self, cx: &Ctx, marks: Watermarks) -> Result<bool> {
        let usage = self.settled_usage(cx).await?;
        let (high, low) = (marks.high.of(usage.total), marks.low.of(usage.total));
        if usage.used <= high {
            return Ok(false);
        }
        tracing::info!(used = usage.used, total = usage.total, "The disk is full: freeing space.");
        for item in self.blobs.explain(cx, Some(marks.partials_after.0)).await? {
            if self.usage()?.used <= low {
                return Ok(false);
            }
            if matches!(item.why, Why::Old(_)) {
                self.blobs.forgo(item).await?;
            }
        }
        if self.usage()?.used > low {
            self.blobs.collect(cx).await?;
            self.blobs.clear().await?;
        }
        let left = self.usage()?.above(low);
        if left > 0 {
            self.evict(cx, left).await?;
        }
        Ok(self.settled_usage(cx).await?.used > high)
    }

    /// The usage when everything that is being removed will be gone.
    async fn settled_usage(&self, cx: &Ctx) -> Result<Usage> {
        let removing = match self.registry.only::<Layers>() {
            Ok(layers) => layers.removing(cx).await?,
            Err(_) => 0,
        };
        let usage = self.usage()?;
        Ok(Usage { used: usage.above(removing), ..usage })
    }

    /// Lets unpacked layers go until about `bytes` are free: layers that images share are counted
    /// for each, so a further round may be needed.
    async fn evict(&self, cx: &Ctx, bytes: u64) -> Result<()> {
        let Ok(layers) = self.registry.only::<Layers>() else { return Ok(()) };
        let (keep, freed) = spare(self.unpacked(cx).await?, bytes);
        if freed > 0 {
            layers.collect(cx, &keep).await?;
        }
        Ok(())
    }

    /// The unpacked layers of every image, the largest first.
    async fn unpacked(&self, cx: &Ctx) -> Result<Vec<Unpacked>> {
        let (Ok(images), Ok(layers)) =
            (self.registry.only::<Images>(), self.registry.only::<Layers>())
        else {
            return Ok(Vec::new());
        };
        let here: HashSet<Digest> =
            self.blobs.list(cx).await?.into_iter().map(|info| info.digest).collect();
        let mut found = Vec::new();
        for image in images.list(cx).await? {
            let Some(digest) = image.chain.id() else { continue };
            let mut users = Vec::new();
            for (_, source) in self.registry.all::<ImageUsers>() {
                users.extend(source.users(cx, &image.id).await?.into_iter().map(|u| u.container));
            }
            let (fate, why) = if !users.is_empty() {
                (Fate::Keep, Why::Used(users))
            } else if image.chain.0.iter().all(|layer| here.contains(&layer.blob)) {
                (Fate::Drop, Why::Unpacked)
            } else {
                (Fate::Keep, Why::Irreplaceable)
            };
            let bytes = layers.chain_usage(cx, &image.chain).await?;
            let item = Item { kind: Thing::Layers, digest, bytes, fate, why };
            found.push(Unpacked { chain: image.chain, item });
        }
        found.sort_by_key(|it| std::cmp::Reverse(it.item.bytes));
        Ok(found)
    }

    /// Why everything is kept or would go if the disk were full.
    ///
    /// # Errors
    ///
    /// Those of the owners of content and of the disk.
    pub async fn explain(&self, cx: &Ctx) -> Result<Explanation> {
        let watermarks = self.marks.unwrap_or_default();
        let disk = self.settled_usage(cx).await?;
        let is_full = disk.used > watermarks.high.of(disk.total);
        let mut items = self.blobs.explain(cx, Some(watermarks.partials_after.0)).await?;
        items.extend(self.unpacked(cx).await?.into_iter().map(|it| it.item));
        items.sort_by_key(step); // stable: the order within a step stays
        Ok(Explanation {
            enabled: self.marks.is_some(),
            watermarks,
            retention: self.retention,
            disk,
            to_free: if is_full { disk.above(watermarks.low.of(disk.total)) } else { 0 },
            items,
        })
    }
}

/// Lets the first that may go have their turn until `bytes` are free: the chains that stay, and the
/// bytes of the others.
fn spare(unpacked: Vec<Unpacked>, bytes: u64) -> (Vec<Chain>, u64) {
    let mut freed = 0;
    let mut keep = Vec::new();
    for Unpacked { chain, item } in unpacked {
        if item.fate == Fate::Keep || freed >= bytes {
            keep.push(chain);
        } else {
            freed += item.bytes;
        }
    }
    (keep, freed)
}

/// When it goes; what stays comes last.
fn step(item: &Item) -> u8 {
    match (item.fate, &item.why, item.kind) {
        (Fate::Keep, ..) => 5,
        (_, Why::Old(_), _) => 1,
        (Fate::Remove, ..) => 2,
        (Fate::Drop, _, Thing::Layers) => 4,
        (Fate::Drop, ..) => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::kinds::layers::ChainLayer;

    #[test]
    fn no_more_layers_go_than_needed_and_none_that_are_used() {
        let digest = |n: u8| Digest::from_sha256(&[n; 32]);
        let unpacked = |n, bytes, fate| {
            let chain = Chain(vec![ChainLayer { diff_id: digest(n), blob: digest(n) }]);
            let (kind, why) = (Thing::Layers, Why::Unpacked);
            Unpacked { chain, item: Item { kind, digest: digest(n), bytes, fate, why } }
        };
        let images = || {
            vec![
                unpacked(1, 50, Fate::Keep),
                unpacked(2, 30, Fate::Drop),
                unpacked(3, 20, Fate::Drop),
                unpacked(4, 10, Fate::Drop),
            ]
        };
        for (bytes, kept, freed) in [
            (0, vec![1, 2, 3, 4], 0),
            (30, vec![1, 3, 4], 30),
            (31, vec![1, 4], 50),
            (99, vec![1], 60),
        ] {
            let (keep, sum) = spare(images(), bytes);
            let keep: Vec<_> = keep.into_iter().map(|chain| chain.0[0].blob.clone()).collect();
            assert_eq!((keep, sum), (kept.into_iter().map(digest).collect(), freed), "{bytes}");
        }
    }
}
