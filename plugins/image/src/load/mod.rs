//! `docker load`: archives of four kinds become images.
//!
//! | archive | told by | read by |
//! |---|---|---|
//! | OCI image layout, also as `docker save` writes it | `index.json` | [`oci`] |
//! | `docker save` since 1.10 | `manifest.json` | [`docker`] |
//! | `docker save` before 1.10 | `repositories` | [`legacy`] |
//!
//! All of them end as [`Candidate`]s: a configuration, layers and names, which are checked against
//! each other, unpacked and then committed at once. [`direct`] is for other plugins.

pub mod direct;
pub mod docker;
pub mod ingest;
pub mod legacy;
pub mod oci;
mod report;
pub mod sink;

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_api::image::OciDescriptor;
use gantry_archive::Compression;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer, Hold, LayerProgress};
use gantry_sdk::reference::Reference;
use gantry_sdk::route::BodySender;
use gantry_sdk::{Ctx, Error, Result};

use crate::admit::{Admission, Content, Renamed};
use crate::config::ImageFile;
use crate::index::Entry;
use crate::platform::Platform;
use crate::record::{BlobRecord, LayerRecord, ManifestRecord};
use crate::store::{Store, check_name};
use ingest::Archive;
pub use report::Reporter;
use sink::{Sink, Stored};

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
    /// What its names point at, which other candidates may share.
    pub target: Option<Arc<Target>>,
}

/// An index, or a manifest that is in none, as an archive has it.
#[derive(Debug)]
pub struct Target {
    /// What names it.
    pub descriptor: OciDescriptor,
    /// Indexes: the target if it is one, and those in it.
    pub indexes: Vec<(Digest, Vec<u8>)>,
    /// All manifests of it; none for a target that is a manifest itself.
    pub manifests: Vec<ManifestRecord>,
    /// What the archive has of statements: digest of the manifest, its text, and paths of blobs.
    pub statements: Vec<Statement>,
}

/// A statement about an image, with everything that belongs to it.
#[derive(Debug)]
pub struct Statement {
    /// Digest of its manifest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// Its configuration and layers.
    pub blobs: Vec<LayerFile>,
}

/// Where a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// Path in the archive.
    pub path: String,
    /// What its digest must be, if the archive says so.
    pub blob: Option<Digest>,
    /// Media type, if the archive says so.
    pub media_type: Option<String>,
}

impl LayerFile {
    /// At `path`, of any digest.
    pub fn at(path: String) -> Self {
        Self { path, blob: None, media_type: None }
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
    let listed = docker::candidates(archive)?;
    if let Some(mut found) = oci::candidates(archive, wanted)? {
        // The layout beside a list may lack what the list says.
        for candidate in listed.into_iter().flatten() {
            if let Some(known) = found.iter_mut().find(|known| known.config == candidate.config) {
                let new = candidate.tags.into_iter().filter(|tag| !known.tags.contains(tag));
                let new: Vec<Reference> = new.collect();
                known.tags.extend(new);
                known.parent = known.parent.take().or(candidate.parent);
            } else if wanted.is_empty() {
                found.push(candidate);
            }
        }
        return Ok(found);
    }
    if let Some(found) = listed {
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
/// The first that occurs; the images before it stay. `NotFound` if there is none for a platform of
/// `wanted`.
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
        let (file, platform) = parsed(&candidate)?;
        if !wanted.is_empty() && !wanted.iter().any(|w| w.accepts(&platform)) {
            continue;
        }
        candidate.parent = candidate.parent.filter(|parent| ids.contains(parent));
        let tags = candidate.tags.clone();
        let work = Work {
            // What does not run here is unpacked if somebody wants to run it nevertheless.
            unpack: !wanted.is_empty() || Platform::host().accepts(&platform),
            reporter: (!quiet).then(|| Reporter::new(sender.clone())),
            progress: None,
        };
        let (entry, renamed, back) = admit(store, cx, archive, candidate, file, work).await?;
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
    if untagged.is_empty() && !wanted.is_empty() {
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        return Err(Error::not_found(format!(
            "requested platform(s) ([{}]) not found",
            wanted.join(" ")
        )));
    }
    if !any_tag {
        for text in untagged {
            say(sender, text).await;
        }
    }
    Ok(())
}

/// The configuration of an image that can be used on this kernel.
fn parsed(candidate: &Candidate) -> Result<(ImageFile, Platform)> {
    let file = ImageFile::parse(&candidate.config)?;
    if file.os() != "linux" {
        return Err(Error::invalid(format!("cannot load {} image on linux", file.os())));
    }
    let platform = Platform::new(file.os(), &file.architecture, &file.variant);
    Ok((file, platform))
}

async fn say(sender: &BodySender, text: String) {
    // A client that is gone still gets its image: everything is here already.
    sender.json(&gantry_api::ProgressMessage::stream(text)).await;
}

/// The digest of `bytes`.
pub fn digest_of(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}

/// How an image is admitted.
struct Work {
    unpack: bool,
    reporter: Option<Reporter>,
    /// Hears of unpacking if there is no reporter.
    progress: Option<LayerProgress>,
}

/// Checks one image, unpacks it and commits it with its names.
async fn admit(
    store: &Store,
    cx: &Ctx,
    mut archive: Archive,
    candidate: Candidate,
    file: ImageFile,
    work: Work,
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
    let Candidate { tags, digests, parent, target, .. } = candidate;
    let content = Content { parent, ..stored.content };
    let admission = Admission {
        names: tags.into_iter().chain(digests).collect(),
        target: target.as_ref().map(|target| target.descriptor.clone()),
        manifests: stored.manifests,
        indexes: stored.indexes,
        unpack: work.unpack,
        progress: work.reporter.as_ref().map(Reporter::callback).or(work.progress),
        ..Admission::new(content, file)
    };
    let admitted = store.admit(cx, admission);
    let (entry, renamed) = match &work.reporter {
        Some(reporter) => reporter.during(admitted).await?,
        None => admitted.await?,
    };
    drop(stored.holds);
    Ok((entry, renamed, archive))
}

/// Stores what `candidate` needs and checks it, as it is done before an image becomes known: the
/// number of its layers.
///
/// # Errors
///
/// `InvalidArgument` with what is wrong.
pub fn check(archive: &mut Archive, candidate: &Candidate) -> Result<usize> {
    let (file, _) = parsed(candidate)?;
    store_content(archive, candidate, &file, &BTreeMap::new())
        .map(|stored| stored.content.layers.len())
}

/// What has been stored of a candidate.
struct StoredImage {
    content: Content,
    manifests: Vec<ManifestRecord>,
    indexes: Vec<Digest>,
    /// Keep what was unpacked on the way.
    holds: Vec<Hold>,
}

/// Puts everything an image needs into the blob store, and checks that it is what it is said to be.
fn store_content(
    archive: &mut Archive,
    candidate: &Candidate,
    file: &ImageFile,
    known: &BTreeMap<Digest, LayerRecord>,
) -> Result<StoredImage> {
    let diff_ids = file.diff_ids()?;
    if candidate.layers.len() != diff_ids.len() {
        return Err(Error::invalid(format!(
            "invalid manifest, layers length mismatch: expected {}, got {}",
            candidate.layers.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::with_capacity(diff_ids.len());
    let mut holds = Vec::new();
    let mut chain = Chain::default();
    for (n, (from, diff_id)) in candidate.layers.iter().zip(diff_ids).enumerate() {
        // Chain ids depend on diff ids only; the blob is filled in for form.
        chain.0.push(ChainLayer { diff_id: diff_id.clone(), blob: diff_id.clone() });
        let before = chain.id().and_then(|id| known.get(&id));
        if let Some(mut stored) = archive.blob(&from.path)? {
            holds.extend(stored.hold.take());
            layers.push(checked(n, from, &diff_id, stored)?);
            continue;
        }
        // An archive need not hold what is here.
        match before {
            Some(before) if archive.sink().has(&before.blob)? => layers.push(before.clone()),
            _ => {
                return Err(Error::invalid(format!(
                    "invalid archive: there is no layer {:.120}",
                    from.path
                )));
            }
        }
    }
    let sink = archive.sink();
    let kept = candidate.manifest.as_ref().filter(|_| {
        layers.iter().zip(&candidate.layers).all(|(l, from)| from.blob.as_ref() == Some(&l.blob))
    });
    let manifest = kept.map(|manifest| sink.store(manifest, None)).transpose()?;
    let config = (sink.store(&candidate.config, None)?, candidate.config.len() as u64);
    let content = Content { config, layers, manifest, parent: None };
    let (mut indexes, mut manifests) = (Vec::new(), Vec::new());
    if let Some(target) = candidate.target.as_deref() {
        if content.manifest.is_none() {
            return Err(Error::invalid(
                "invalid archive: its layers are not those of its manifest",
            ));
        }
        for (digest, text) in &target.indexes {
            indexes.push(sink.store(text, Some(digest))?);
        }
        indexes.retain(|index| index.as_str() != target.descriptor.digest);
        manifests.clone_from(&target.manifests);
        for statement in &target.statements {
            store_statement(archive, statement, &mut manifests)?;
        }
    }
    Ok(StoredImage { content, manifests, indexes, holds })
}

/// Stores a statement, and notes that it is here.
fn store_statement(
    archive: &mut Archive,
    statement: &Statement,
    manifests: &mut [ManifestRecord],
) -> Result<()> {
    let Some(record) = manifests.iter_mut().find(|m| m.digest == statement.digest) else {
        return Ok(());
    };
    let mut blobs = Vec::with_capacity(statement.blobs.len());
    for file in &statement.blobs {
        let Some((digest, bytes)) = archive.plain_blob(&file.path)? else { return Ok(()) };
        if let Some(expected) = file.blob.as_ref().filter(|expected| **expected != digest) {
            return Err(Error::invalid(format!(
                "invalid archive: blob {expected} has digest {digest}"
            )));
        }
        blobs.push(BlobRecord { digest, bytes });
    }
    archive.sink().store(&statement.manifest, Some(&statement.digest))?;
    record.here = true;
    record.blobs = blobs;
    Ok(())
}

/// A layer that is what archive and configuration say.
fn checked(n: usize, from: &LayerFile, diff_id: &Digest, stored: Stored) -> Result<LayerRecord> {
    if let Some(expected) = from.blob.as_ref().filter(|e| **e != stored.digest) {
        return Err(Error::invalid(format!(
            "invalid archive: blob {expected} has digest {}",
            stored.digest
        )));
    }
    let mut layer = layer_record(stored)?;
    if layer.diff_id != *diff_id {
        return Err(Error::invalid(format!(
            "invalid diffID for layer {n}: expected {:?}, got {:?}",
            diff_id.as_str(),
            layer.diff_id.as_str()
        )));
    }
    if let Some(media_type) = &from.media_type {
        layer.media_type.clone_from(media_type);
    }
    Ok(layer)
}

/// The record of a layer that is in the blob store.
///
/// # Errors
///
/// `Internal` if nobody has looked at what it is when decompressed.
pub fn layer_record(stored: Stored) -> Result<LayerRecord> {
    let media_type = match stored.compression {
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    };
    let unknown = || {
        let text = format!("the diff id of blob {} is not known", stored.digest);
        Error::new(gantry_sdk::ErrorKind::Internal, text)
    };
    Ok(LayerRecord {
        diff_id: stored.diff_id.clone().ok_or_else(unknown)?,
        blob: stored.digest,
        media_type: media_type.to_owned(),
        bytes: stored.bytes,
        unpacked: stored.diff_bytes,
    })
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
