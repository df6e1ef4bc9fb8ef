//! What of an image is here, as clients show it: `Descriptor`, `Manifests` and `Identity`.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_api::image::{
    ImageIdentity, ManifestAttestationData, ManifestImageData, ManifestSize, ManifestSummary,
    ManifestUnpackedSize, OciDescriptor, OciPlatform, PullIdentity,
};
use gantry_sdk::id::Digest;

use crate::disk::Disk;
use crate::index::{Entry, Index};
use crate::record::{BlobRecord, ManifestKind, ManifestRecord, TargetRecord, signed};
use crate::save::own_descriptor;
use crate::store::Store;

/// Containers by the image they use.
pub type Users = BTreeMap<Digest, Vec<String>>;

/// The descriptor of what an image is meant by: its target, or the manifest that a saved archive
/// would have.
pub fn descriptor(entry: &Entry, target: Option<&Arc<TargetRecord>>) -> Option<OciDescriptor> {
    target.map_or_else(|| own_descriptor(entry), |target| Some(target.descriptor.clone()))
}

/// The descriptor of one image's manifest within a target.
pub fn manifest_descriptor(
    entry: &Entry,
    target: Option<&Arc<TargetRecord>>,
) -> Option<OciDescriptor> {
    let of_image = |m: &&ManifestRecord| m.image.as_ref() == Some(&entry.id);
    let manifest = target.and_then(|target| target.manifests.iter().find(of_image));
    manifest.map_or_else(|| own_descriptor(entry), |manifest| Some(manifest.descriptor.clone()))
}

/// One item for every manifest of an image's target.
///
/// `identity`: with the repositories each image is known from.
pub fn summaries(
    store: &Store,
    index: &Index,
    disk: &Disk,
    entry: &Entry,
    users: &Users,
    identity: bool,
) -> Vec<ManifestSummary> {
    let target = index.target_of(&entry.id);
    let own = target.is_none().then(|| alone(entry)).flatten();
    let manifests = match target {
        Some(target) => target.manifests.as_slice(),
        None => own.as_slice(),
    };
    let known_as = target.and_then(|target| identity_of(store, &target.digest));
    let summary = |manifest: &ManifestRecord| {
        let mut summary = summary(index, disk, manifest, users);
        if let Some(image) = summary.image_data.as_mut().filter(|_| identity && manifest.here) {
            image.identity = known_as.clone().or_else(|| identity_of(store, &manifest.digest));
        }
        summary
    };
    manifests.iter().map(summary).collect()
}

/// An image without a target as if it had one.
fn alone(entry: &Entry) -> Option<ManifestRecord> {
    let mut manifest = ManifestRecord::new(own_descriptor(entry)?).ok()?;
    let layers = entry.record.layers.iter().map(|layer| (layer.blob.clone(), layer.bytes));
    let blobs = std::iter::once((entry.id.clone(), entry.record.config_bytes)).chain(layers);
    manifest.blobs = blobs.map(|(digest, bytes)| BlobRecord { digest, bytes }).collect();
    manifest.image = Some(entry.id.clone());
    manifest.here = true;
    Some(manifest)
}

fn summary(
    index: &Index,
    disk: &Disk,
    manifest: &ManifestRecord,
    users: &Users,
) -> ManifestSummary {
    let own = disk.blob(&manifest.digest);
    let blobs: Vec<Option<u64>> = manifest.blobs.iter().map(|b| disk.blob(&b.digest)).collect();
    let content: u64 = blobs.iter().flatten().chain(&own).sum();
    let entry = manifest.image.as_ref().and_then(|image| index.get(image));
    let unpacked = entry.map_or(0, |entry| disk.unpacked(entry));
    let image_data = (manifest.kind == ManifestKind::Image).then(|| ManifestImageData {
        platform: platform(manifest, entry.map(AsRef::as_ref)),
        size: ManifestUnpackedSize { unpacked: signed(unpacked) },
        containers: entry.and_then(|e| users.get(&e.id)).cloned().unwrap_or_default(),
        identity: None,
    });
    let about = manifest.about.as_ref().filter(|_| manifest.kind == ManifestKind::Attestation);
    ManifestSummary {
        id: manifest.descriptor.digest.clone(),
        descriptor: manifest.descriptor.clone(),
        available: manifest.here && blobs.iter().all(Option::is_some),
        size: ManifestSize { content: signed(content), total: signed(content + unpacked) },
        kind: match manifest.kind {
            ManifestKind::Image => "image",
            ManifestKind::Attestation => "attestation",
            ManifestKind::Unknown => "unknown",
        }
        .to_owned(),
        image_data,
        attestation_data: about.map(|about| ManifestAttestationData { about: about.to_string() }),
    }
}

/// What the index says, or else what the configuration says.
fn platform(manifest: &ManifestRecord, entry: Option<&Entry>) -> OciPlatform {
    if let Some(platform) = &manifest.descriptor.platform {
        return platform.clone();
    }
    let of_file = |entry: &Entry| OciPlatform {
        architecture: entry.file.architecture.clone(),
        os: entry.file.os().to_owned(),
        os_version: entry.file.os_version.clone(),
        variant: entry.file.variant.clone(),
        ..OciPlatform::default()
    };
    entry.map(of_file).unwrap_or_default()
}

/// The repositories that an index or manifest was pulled from or pushed to; None for none.
pub fn identity_of(store: &Store, digest: &Digest) -> Option<ImageIdentity> {
    let names = store.repositories(digest).into_iter();
    let pull: Vec<PullIdentity> = names.map(|repository| PullIdentity { repository }).collect();
    (!pull.is_empty()).then_some(ImageIdentity { pull })
}
