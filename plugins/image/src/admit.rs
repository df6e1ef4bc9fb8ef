//! An image whose content is in the blob store becomes known: unpacked, then recorded with its
//! names and with what these point at, all in one commit.
//!
//! Whoever brings content (an archive, a registry, a container) writes the blobs under a lease,
//! hands over an [`Admission`] and lets the lease go when [`Store::admit`] has returned. Of an
//! index several images may be here: each one is admitted with the same target, and what the
//! earlier ones left there is kept.

use std::sync::Arc;

use gantry_api::image::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::Lease;
use gantry_sdk::kinds::layers::{Chain, LayerProgress};
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use jiff::Timestamp;

use crate::config::ImageFile;
use crate::index::Entry;
use crate::record::{
    BlobRecord, ImageRecord, LayerRecord, ManifestRecord, TargetRecord, chain, is_index,
};
use crate::store::{Store, check_name, put_image, put_reference};
use gantry_sdk::reference::Reference;

/// References taken over from other images: the name and the image that had it.
pub type Renamed = Vec<(String, Digest)>;

/// An image whose content is in the blob store.
#[derive(Clone, Debug)]
pub struct Content {
    /// Digest and bytes of the configuration.
    pub config: (Digest, u64),
    /// Its layers, base first. What a layer takes unpacked may be 0: it is measured when the image
    /// is unpacked.
    pub layers: Vec<LayerRecord>,
    /// The manifest it came with; it names exactly these layers.
    pub manifest: Option<Digest>,
    /// The image it was built on.
    pub parent: Option<Digest>,
}

/// An image that is to become known.
pub struct Admission {
    /// What is in the blob store.
    pub content: Content,
    /// The configuration, parsed.
    pub file: ImageFile,
    /// What the names point at: the index or the manifest that the registry or the archive had
    /// under the name, whose bytes are in the blob store. None for an image without a manifest.
    pub target: Option<OciDescriptor>,
    /// If the target is an index: every manifest in it, those of inner indexes in place, whether
    /// it is here or not. That of `content` is filled in by [`Store::admit`]; statements
    /// (attestations) whose blobs were brought too are marked by the caller (`here`, `blobs`).
    pub manifests: Vec<ManifestRecord>,
    /// Indexes inside the target whose bytes are in the blob store.
    pub indexes: Vec<Digest>,
    /// Names to give: with tags (`name:tag`) and with digests (`name@<digest of the target>`).
    pub names: Vec<Reference>,
    /// Whether it is unpacked now; otherwise when a container is made from it.
    pub unpack: bool,
    /// Hears of unpacking.
    pub progress: Option<LayerProgress>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission")
            .field("id", &self.content.config.0)
            .field("target", &self.target)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Admission {
    /// An image without target and names, to be unpacked now.
    pub fn new(content: Content, file: ImageFile) -> Self {
        Self {
            content,
            file,
            target: None,
            manifests: Vec::new(),
            indexes: Vec::new(),
            names: Vec::new(),
            unpack: true,
            progress: None,
        }
    }

    /// The target's record, in which the manifest of this image is marked as being here.
    fn target_record(&mut self) -> Result<Option<TargetRecord>> {
        let Some(descriptor) = self.target.take() else { return Ok(None) };
        let mut target = TargetRecord::new(descriptor)?;
        target.indexes = std::mem::take(&mut self.indexes);
        target.manifests = std::mem::take(&mut self.manifests);
        if target.manifests.is_empty() && !is_index(&target.descriptor.media_type) {
            target.manifests.push(ManifestRecord::new(target.descriptor.clone())?);
        }
        let content = &self.content;
        let own =
            target.manifests.iter_mut().find(|m| Some(&m.digest) == content.manifest.as_ref());
        let own = own.ok_or_else(|| {
            let id = &content.config.0;
            let text = format!("the manifest of image {id} is not part of {}", target.digest);
            Error::new(ErrorKind::Internal, text)
        })?;
        own.image = Some(content.config.0.clone());
        own.here = true;
        let layers = content.layers.iter().map(|l| (l.blob.clone(), l.bytes));
        let blobs = std::iter::once(content.config.clone()).chain(layers);
        own.blobs = blobs.map(|(digest, bytes)| BlobRecord { digest, bytes }).collect();
        Ok(Some(target))
    }
}

impl Store {
    /// Makes an image known: unpacks it (unless that is left for later), then commits its record,
    /// its target and its names at once. An image or target that is known already is kept and
    /// added to.
    ///
    /// Returns the image, and the names that meant another image before. No event is published.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for the name `sha256`; those of the layer store and of the database.
    pub async fn admit(&self, cx: &Ctx, mut admission: Admission) -> Result<(Arc<Entry>, Renamed)> {
        for name in &admission.names {
            check_name(name)?;
        }
        let target = admission.target_record()?;
        let Admission { content, file, names, unpack, progress, .. } = admission;
        // Part of the content may have been here before, and be on its way out.
        let lease = self.blobs.lease(cx).await?;
        let config = std::iter::once(&content.config.0).chain(&content.manifest);
        config.chain(content.layers.iter().map(|l| &l.blob)).for_each(|blob| lease.pin(blob));
        let mut layers = self.same_or_known(cx, &content, &lease).await?;
        let links = chain(&layers);
        let hold = self.layers.lease(cx, &links).await?;
        if unpack && !layers.is_empty() {
            self.layers.unpack(cx, &links, None, progress).await?;
            self.measure(cx, &links, &mut layers).await?;
        }
        let (id, config_bytes) = content.config;
        let record = ImageRecord {
            layers,
            config_bytes,
            manifest: content.manifest,
            parent: content.parent,
            loaded: Timestamp::now(),
            last_tagged: None,
            replaced: Vec::new(),
            retired: false,
        };
        let admitted = self.change(cx, |index| {
            let mut entry = Entry::new(id.clone(), record, file);
            if let Some(before) = index.get(&id) {
                keep(&mut entry.record, &before.record);
            }
            let mut changes = vec![put_image(&entry)?];
            index.put(entry);
            let digest = target.as_ref().map(|target| target.digest.clone());
            if let Some(mut target) = target {
                if let Some(known) = index.target(&target.digest) {
                    target.merge(known);
                }
                index.put_target(target);
            }
            let mut renamed = Vec::new();
            for name in &names {
                let before = index.tag(name, digest.as_ref(), &id);
                changes.push(put_reference(name, digest.as_ref(), &id)?);
                let other =
                    before.filter(|b| b.image != id && (b.target.is_none() || b.target != digest));
                renamed.extend(other.map(|before| (name.familiar(), before.image)));
            }
            let entry = index
                .get(&id)
                .cloned()
                .ok_or_else(|| Error::new(ErrorKind::Internal, format!("image {id} is gone")))?;
            Ok((changes, (entry, renamed)))
        });
        let admitted = admitted.await?;
        self.keep_for_now(hold);
        Ok(admitted)
    }

    /// The layers to record: without a manifest those that are here already, if they are; with one
    /// those that it names.
    async fn same_or_known(
        &self,
        cx: &Ctx,
        content: &Content,
        lease: &Lease,
    ) -> Result<Vec<LayerRecord>> {
        let index = self.index();
        let mut layers = content.layers.clone();
        let Some(before) = index.get(&content.config.0) else { return Ok(layers) };
        for (layer, known) in layers.iter_mut().zip(&before.record.layers) {
            layer.unpacked = layer.unpacked.max(known.unpacked);
        }
        if content.manifest.is_none() {
            for blob in before.record.blobs() {
                lease.pin(blob);
                if self.blobs.stat(cx, blob).await.is_err() {
                    return Ok(layers);
                }
            }
            layers.clone_from(&before.record.layers);
        }
        Ok(layers)
    }

    /// Fills in what each layer takes unpacked: what its stack takes more than the one below.
    async fn measure(&self, cx: &Ctx, chain: &Chain, layers: &mut [LayerRecord]) -> Result<()> {
        let (mut stack, mut below) = (Chain::default(), 0);
        for (layer, link) in layers.iter_mut().zip(&chain.0) {
            stack.0.push(link.clone());
            let bytes = self.layers.chain_usage(cx, &stack).await?;
            layer.unpacked = bytes.saturating_sub(below);
            below = bytes;
        }
        Ok(())
    }
}

/// What a known image keeps when it comes again.
fn keep(record: &mut ImageRecord, before: &ImageRecord) {
    record.last_tagged = before.last_tagged;
    record.loaded = before.loaded;
    record.replaced.clone_from(&before.replaced);
    record.parent = record.parent.take().or_else(|| before.parent.clone());
    if record.manifest.is_none() && record.layers == before.layers {
        record.manifest.clone_from(&before.manifest);
    }
}
