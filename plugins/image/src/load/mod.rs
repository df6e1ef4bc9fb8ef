//! `docker load`: archives of four kinds become images.
//!
//! | archive | told by | read by |
//! |---|---|---|
//! | `docker save` since 1.10, with or without an OCI layout beside | `manifest.json` | [`docker`] |
//! | OCI image layout | `index.json` | [`oci`] |
//! | `docker save` before 1.10 | `repositories` | [`legacy`] |
//!
//! All of them end as [`Candidate`]s: a configuration, layers and names, which are checked against
//! each other, unpacked and then committed at once.

pub mod docker;
pub mod ingest;
pub mod legacy;
pub mod oci;
mod report;

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_archive::Compression;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer};
use gantry_sdk::route::BodySender;
use gantry_sdk::{Ctx, Error, Result};

use crate::admit::{Admission, Content, Renamed};
use crate::config::ImageFile;
use crate::index::Entry;
use crate::platform::Platform;
use crate::record::LayerRecord;
use crate::store::{Store, check_name};
use gantry_sdk::reference::Reference;
use ingest::{Archive, Sink, Stored};
pub use report::Reporter;

/// Most images of one archive.
pub const MAX_IMAGES: usize = 1024;

/// An image as an archive describes it.
#[derive(Debug, Default)]
pub struct Candidate {
    /// The configuration, as written.
    pub config: Vec<u8>,
    /// Base first.
    pub layers: Vec<LayerFile>,
    /// Names with tags.
    pub tags: Vec<Reference>,
    /// Names with digests.
    pub digests: Vec<Reference>,
    /// The image it was built on.
    pub parent: Option<Digest>,
    /// The manifest it came with.
    pub manifest: Option<Vec<u8>>,
}

/// Where a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// Path in the archive.
    pub path: String,
    /// What its digest must be, if the archive says so.
    pub blob: Option<Digest>,
}

impl LayerFile {
    /// At `path`, of any digest.
    pub fn at(path: String) -> Self {
        Self { path, blob: None }
    }
}

/// A document of an archive.
///
/// # Errors
///
/// `InvalidArgument`.
pub fn decode<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T> {
    gantry_api::json::from_slice(text).map_err(|e| Error::invalid(e.to_string()))
}

/// The images that an archive holds.
///
/// # Errors
///
/// `InvalidArgument` with what is wrong or missing.
pub fn candidates(archive: &mut Archive, wanted: &[Platform]) -> Result<Vec<Candidate>> {
    if let Some(found) = docker::candidates(archive)? {
        return Ok(found);
    }
    if let Some(found) = oci::candidates(archive, wanted)? {
        return Ok(found);
    }
    legacy::candidates(archive)?.ok_or_else(|| {
        Error::invalid(format!("invalid archive: does not contain a {}", docker::FILE))
    })
}

/// Loads candidates one after the other and says so to `sender`.
///
/// # Errors
///
/// The first that occurs; the images before it stay.
pub async fn admit_all(
    store: &Store,
    cx: &Ctx,
    archive: Archive,
    candidates: Vec<Candidate>,
    wanted: &[Platform],
    sender: &BodySender,
    quiet: bool,
) -> Result<()> {
    let ids: Vec<Digest> = candidates.iter().map(|c| digest_of(&c.config)).collect();
    let mut archive = archive;
    let mut untagged = Vec::new();
    let mut any_tag = false;
    for mut candidate in candidates {
        let file = ImageFile::parse(&candidate.config)?;
        let platform = Platform::new(file.os(), &file.architecture, &file.variant);
        if file.os() != "linux" {
            return Err(Error::invalid(format!("cannot load {} image on linux", file.os())));
        }
        if !wanted.is_empty() && !wanted.iter().any(|w| w.accepts(&platform)) {
            continue;
        }
        candidate.parent = candidate.parent.filter(|parent| ids.contains(parent));
        let reporter = (!quiet).then(|| Reporter::new(sender.clone()));
        let tags = candidate.tags.clone();
        let (entry, renamed, back) = admit(store, cx, archive, candidate, file, reporter).await?;
        archive = back;
        for (name, old) in renamed {
            let text = format!(
                "The image {name} already exists, renaming the old one with ID {old} to empty string\n"
            );
            say(sender, text).await;
        }
        for tag in &tags {
            say(sender, format!("Loaded image: {}\n", tag.familiar())).await;
        }
        any_tag |= !tags.is_empty();
        untagged.push(format!("Loaded image ID: {}\n", entry.id));
        store.report("load", &entry, entry.id.to_string());
    }
    if !any_tag {
        for text in untagged {
            say(sender, text).await;
        }
    }
    Ok(())
}

async fn say(sender: &BodySender, text: String) {
    // A client that is gone still gets its image: everything is here already.
    sender.json(&gantry_api::ProgressMessage::stream(text)).await;
}

/// The digest of a small document.
pub fn digest_of(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}

/// Checks one image, unpacks it and commits it with its names.
async fn admit(
    store: &Store,
    cx: &Ctx,
    mut archive: Archive,
    candidate: Candidate,
    file: ImageFile,
    reporter: Option<Reporter>,
) -> Result<(Arc<Entry>, Renamed, Archive)> {
    for reference in &candidate.tags {
        check_name(reference)?;
    }
    let known = store.index().known_layers();
    let (stored, candidate, file, archive) = tokio::task::spawn_blocking(move || {
        let stored = store_content(&mut archive, &candidate, &file, &known)?;
        Ok::<_, Error>((stored, candidate, file, archive))
    })
    .await??;
    let Candidate { tags, digests, parent, .. } = candidate;
    let content = Content { parent, ..stored };
    let admission = Admission {
        names: tags.into_iter().chain(digests).collect(),
        progress: reporter.as_ref().map(Reporter::callback),
        ..Admission::new(content, file)
    };
    let admitted = store.admit(cx, admission);
    let (entry, renamed) = match &reporter {
        Some(reporter) => reporter.during(admitted).await?,
        None => admitted.await?,
    };
    Ok((entry, renamed, archive))
}

/// Puts everything an image needs into the blob store, and checks that it is what it is said to be.
fn store_content(
    archive: &mut Archive,
    candidate: &Candidate,
    file: &ImageFile,
    known: &BTreeMap<Digest, LayerRecord>,
) -> Result<Content> {
    let diff_ids = file.diff_ids()?;
    if candidate.layers.len() != diff_ids.len() {
        return Err(Error::invalid(format!(
            "invalid manifest, layers length mismatch: expected {}, got {}",
            candidate.layers.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::with_capacity(diff_ids.len());
    let mut chain = Chain::default();
    for (n, (from, diff_id)) in candidate.layers.iter().zip(diff_ids).enumerate() {
        // Chain ids depend on diff ids only; the blob is filled in for form.
        chain.0.push(ChainLayer { diff_id: diff_id.clone(), blob: diff_id.clone() });
        let id = chain.id();
        let before = id.as_ref().and_then(|id| known.get(id));
        let layer = match (archive.blob(&from.path)?, before) {
            (Some(stored), _) => checked(n, from, diff_id, stored)?,
            // An archive need not hold what is here.
            (None, Some(before)) => before.clone(),
            (None, None) => {
                return Err(Error::invalid(format!(
                    "invalid archive: there is no layer {:.120}",
                    from.path
                )));
            }
        };
        layers.push(layer);
    }
    let sink = archive.sink();
    let kept = candidate.manifest.as_ref().filter(|_| {
        layers.iter().zip(&candidate.layers).all(|(l, from)| from.blob.as_ref() == Some(&l.blob))
    });
    let manifest = kept.map(|manifest| sink.store(manifest, None)).transpose()?;
    let config = (sink.store(&candidate.config, None)?, candidate.config.len() as u64);
    Ok(Content { config, layers, manifest, parent: None })
}

/// A layer that is what archive and configuration say.
fn checked(n: usize, from: &LayerFile, diff_id: Digest, stored: Stored) -> Result<LayerRecord> {
    if let Some(expected) = from.blob.as_ref().filter(|e| **e != stored.digest) {
        return Err(Error::invalid(format!(
            "invalid archive: blob {expected} has digest {}",
            stored.digest
        )));
    }
    if stored.diff_id != diff_id {
        return Err(Error::invalid(format!(
            "invalid diffID for layer {n}: expected {:?}, got {:?}",
            diff_id.as_str(),
            stored.diff_id.as_str()
        )));
    }
    Ok(layer_record(stored))
}

/// The record of a layer that is in the blob store.
pub fn layer_record(stored: Stored) -> LayerRecord {
    let media_type = match stored.compression {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        // In no specification, after the pattern of the others.
        Compression::Xz => "application/vnd.oci.image.layer.v1.tar+xz",
        Compression::Bzip2 => "application/vnd.oci.image.layer.v1.tar+bzip2",
    };
    LayerRecord {
        diff_id: stored.diff_id,
        blob: stored.digest,
        media_type: media_type.to_owned(),
        bytes: stored.bytes,
        unpacked: 0,
    }
}

/// A new image from a configuration of our own and blobs that are here.
///
/// # Errors
///
/// Those of the blob store; `Internal` if the configuration cannot be encoded.
pub fn own_content(sink: &Sink, file: &ImageFile, layers: Vec<LayerRecord>) -> Result<Content> {
    let config = serde_json::to_vec(file)
        .map_err(|e| Error::internal("cannot encode an image configuration", e))?;
    let bytes = config.len() as u64;
    Ok(Content {
        config: (sink.store(&config, None)?, bytes),
        layers,
        manifest: None,
        parent: None,
    })
}
