//! What the index of an OCI image layout says.
//!
//! Source: OCI image specification, *Image Layout*, *Image Index*, *Image Manifest*; the
//! annotation `io.containerd.image.name` carries a whole reference, as some tools put one into
//! `org.opencontainers.image.ref.name`.

use std::collections::BTreeMap;

use gantry_api::image::OciPlatform;
use gantry_sdk::id::Digest;
use gantry_sdk::{Error, Result};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::ingest::Archive;
use super::{Candidate, LayerFile, MAX_IMAGES, decode};
use crate::config::{MAX_CONFIG, MAX_LAYERS};
use crate::platform::Platform;
use gantry_sdk::reference::Reference;

const INDEX: &str = "index.json";
/// Most bytes of an index or manifest.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const ATTESTATION: &str = "vnd.docker.reference.type";

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct Descriptor {
    media_type: String,
    digest: String,
    annotations: BTreeMap<String, String>,
    platform: Option<OciPlatform>,
}

/// An index or a manifest: which one, its media type or its members tell.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
}

/// The images of a layout; None if the archive is none. Of an image for several platforms it is
/// the one for `wanted`, or else for this host.
///
/// # Errors
///
/// `InvalidArgument` with what is wrong or missing.
pub fn candidates(archive: &Archive, wanted: &[Platform]) -> Result<Option<Vec<Candidate>>> {
    let Some(text) = archive.small(INDEX, MAX_DOCUMENT)? else { return Ok(None) };
    let index: Document = decode(&text).map_err(|e| e.context(format!("invalid {INDEX}")))?;
    let top = index.manifests.unwrap_or_default();
    if top.len() > MAX_IMAGES {
        return Err(Error::invalid(format!("invalid archive: more than {MAX_IMAGES} images")));
    }
    let mut found: Vec<Candidate> = Vec::new();
    for descriptor in &top {
        if is_attestation(descriptor) {
            continue;
        }
        let Some((manifest, document)) = descend(archive, descriptor, wanted, 0)? else { continue };
        let Some(mut candidate) = candidate(archive, manifest, &document)? else { continue };
        if let Some(name) = name(descriptor)? {
            candidate.digests.push(name.at_digest(&descriptor.digest.parse()?));
            if name.tag().is_some() && !name.is_digested() {
                candidate.tags.push(name);
            }
        }
        // The same image under several names.
        match found.iter_mut().find(|c| c.config == candidate.config) {
            Some(known) => {
                known.tags.append(&mut candidate.tags);
                known.digests.append(&mut candidate.digests);
            }
            None => found.push(candidate),
        }
    }
    Ok(Some(found))
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key(ATTESTATION)
        || descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown")
}

/// The name an annotation gives, if one gives more than a tag.
fn name(descriptor: &Descriptor) -> Result<Option<Reference>> {
    let annotation = |key| descriptor.annotations.get(key).filter(|text| !text.is_empty());
    let text = match (annotation(FULL_NAME), annotation(REF_NAME)) {
        (Some(name), _) => name,
        (None, Some(name)) if name.contains(['/', ':']) => name,
        _ => return Ok(None),
    };
    let reference = Reference::parse(text)?;
    Ok(Some(reference.or_latest()))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A small blob of the layout, which must be what its name says.
fn read(archive: &Archive, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
    let digest: Digest = descriptor.digest.parse()?;
    let missing = || Error::invalid(format!("invalid archive: there is no blob {digest}"));
    let bytes = archive.small(&blob_path(&digest), limit)?.ok_or_else(missing)?;
    let found = Digest::from_sha256(&Sha256::digest(&bytes).into());
    if found != digest {
        return Err(Error::invalid(format!("invalid archive: blob {digest} has digest {found}")));
    }
    Ok(bytes)
}

/// The manifest that a descriptor leads to. None if there is none for a platform that is wanted.
fn descend(
    archive: &Archive,
    descriptor: &Descriptor,
    wanted: &[Platform],
    depth: usize,
) -> Result<Option<(Vec<u8>, Document)>> {
    if depth > MAX_DEPTH {
        return Err(Error::invalid("invalid archive: indexes are nested too deeply"));
    }
    let bytes = read(archive, descriptor, MAX_DOCUMENT)?;
    let failed = |e: Error| e.context(format!("invalid manifest {}", descriptor.digest));
    let document: Document = decode(&bytes).map_err(failed)?;
    let Some(manifests) = &document.manifests else { return Ok(Some((bytes, document))) };

    // Layouts may lack the content of other platforms.
    let here = |d: &&Descriptor| {
        !is_attestation(d)
            && d.digest.parse().is_ok_and(|digest: Digest| archive.has(&blob_path(&digest)))
    };
    let present: Vec<&Descriptor> = manifests.iter().filter(here).collect();
    let host = [Platform::host()];
    let wanted_or_host = if wanted.is_empty() { &host } else { wanted };
    let fits = |platform: &Platform| {
        present.iter().copied().find(|d| {
            d.platform.as_ref().is_none_or(|p| {
                platform.accepts(&Platform::new(&p.os, &p.architecture, &p.variant))
            })
        })
    };
    let chosen = wanted_or_host.iter().find_map(fits);
    let chosen = chosen.or_else(|| present.first().copied().filter(|_| wanted.is_empty()));
    chosen.map_or(Ok(None), |next| descend(archive, next, wanted, depth + 1))
}

/// None for artifacts that are no images.
fn candidate(
    archive: &Archive,
    manifest: Vec<u8>,
    document: &Document,
) -> Result<Option<Candidate>> {
    let Some(config) = &document.config else {
        return Err(Error::invalid("invalid archive: a manifest names no configuration"));
    };
    let image_config = [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    ];
    if !image_config.contains(&config.media_type.as_str()) {
        return Ok(None);
    }
    if document.layers.len() > MAX_LAYERS {
        return Err(Error::invalid(format!("invalid manifest: more than {MAX_LAYERS} layers")));
    }
    let layer = |descriptor: &Descriptor| {
        let digest: Digest = descriptor.digest.parse()?;
        Ok(LayerFile { path: blob_path(&digest), blob: Some(digest) })
    };
    Ok(Some(Candidate {
        config: read(archive, config, MAX_CONFIG)?,
        layers: document.layers.iter().map(layer).collect::<Result<_>>()?,
        manifest: Some(manifest),
        ..Candidate::default()
    }))
}
