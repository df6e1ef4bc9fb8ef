//! What images take on disk, and what of it they share.
//!
//! An image takes its blobs, as long as they are kept, and its layers unpacked, where they are.
//! Both are counted as they are on disk, each once: what is shown as an image's own is what its
//! removal frees.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gantry_sdk::id::Digest;
use gantry_sdk::{Ctx, Result};

use crate::index::{Entry, Index};
use crate::record::TargetRecord;
use crate::store::Store;

/// A layer store that does not answer costs figures, not the list.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is on disk right now.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Bytes of unpacked layers by chain id.
    layers: BTreeMap<Digest, u64>,
    /// Bytes of blobs.
    blobs: BTreeMap<Digest, u64>,
}

impl Disk {
    /// Asks the stores; what the layer store does not say is taken from records.
    ///
    /// # Errors
    ///
    /// Those of the blob store.
    pub async fn look(store: &Store, cx: &Ctx) -> Result<Self> {
        let blobs = store.blobs.list(cx).await?;
        let blobs = blobs.into_iter().map(|blob| (blob.digest, blob.size)).collect();
        let cx = cx.within(PATIENCE);
        let asked = tokio::time::timeout(PATIENCE, store.layers.chain_sizes(&cx)).await;
        let layers = match asked {
            Ok(Ok(sizes)) => sizes.into_iter().collect(),
            Ok(Err(_)) | Err(_) => {
                let known = store.index().known_layers().into_iter();
                known.map(|(id, layer)| (id, layer.unpacked)).collect()
            }
        };
        Ok(Self { layers, blobs })
    }

    /// Bytes of a blob; None if it is not here.
    pub fn blob(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).copied()
    }

    /// Bytes of an image's layers, unpacked.
    pub fn unpacked(&self, entry: &Entry) -> u64 {
        let ids = entry.record.chain().ids();
        ids.iter().filter_map(|id| self.layers.get(id)).sum()
    }

    /// Bytes of everything, whether an image needs it or not.
    pub fn total(&self) -> u64 {
        self.layers.values().chain(self.blobs.values()).sum()
    }

    /// Bytes of all that `parts` name, each counted once.
    pub fn bytes(&self, parts: &BTreeSet<Part>) -> u64 {
        parts.iter().map(|part| self.part(part)).sum()
    }

    fn part(&self, part: &Part) -> u64 {
        let (known, digest) = match part {
            Part::Layer(id) => (&self.layers, id),
            Part::Blob(digest) => (&self.blobs, digest),
        };
        known.get(digest).copied().unwrap_or_default()
    }
}

/// Something on disk that images need.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// An unpacked layer, by chain id.
    Layer(Digest),
    /// A blob.
    Blob(Digest),
}

/// What one image needs.
pub fn parts_of(entry: &Entry) -> BTreeSet<Part> {
    let layers = entry.record.chain().ids().into_iter().map(Part::Layer);
    let blobs = std::iter::once(&entry.id).chain(entry.record.blobs());
    layers.chain(blobs.cloned().map(Part::Blob)).collect()
}

/// What the line of an image stands for: its images, and of its targets what is not of other lines.
pub fn parts_of_line(index: &Index, id: &Digest) -> BTreeSet<Part> {
    let line = index.line(id);
    let mut parts: BTreeSet<Part> = line.iter().flat_map(|entry| parts_of(entry)).collect();
    for target in index.line_targets(id) {
        parts.extend(target_blobs(target, &line).cloned().map(Part::Blob));
    }
    parts
}

/// The blobs of a target but for those of images that are not in `line`.
fn target_blobs<'a>(
    target: &'a TargetRecord,
    line: &'a [&std::sync::Arc<Entry>],
) -> impl Iterator<Item = &'a Digest> {
    let of_line = |image: &Digest| line.iter().any(|entry| entry.id == *image);
    let ours = target
        .manifests
        .iter()
        .filter(move |m| m.here && m.image.as_ref().is_none_or(of_line))
        .flat_map(|m| std::iter::once(&m.digest).chain(m.blobs.iter().map(|blob| &blob.digest)));
    std::iter::once(&target.digest).chain(&target.indexes).chain(ours)
}

/// What all images need, also those that only wait for their containers to go.
pub fn parts_of_all(index: &Index) -> BTreeSet<Part> {
    let mut parts: BTreeSet<Part> = index.stored().flat_map(|entry| parts_of(entry)).collect();
    parts.extend(index.targets().flat_map(|t| t.blobs()).cloned().map(Part::Blob));
    parts
}

/// How many of several sets hold a part.
pub fn uses<'a>(sets: impl Iterator<Item = &'a BTreeSet<Part>>) -> BTreeMap<&'a Part, usize> {
    let mut uses = BTreeMap::new();
    for part in sets.flatten() {
        *uses.entry(part).or_default() += 1;
    }
    uses
}
