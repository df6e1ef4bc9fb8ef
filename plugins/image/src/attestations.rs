//! `GET /images/{name}/attestations`: what others state about an image.
//!
//! Builders put statements beside an image: a manifest in the same index that names the image's
//! manifest, whose layers are in-toto statements. An annotation says of each what it is about.

use gantry_api::image::{AttestationStatement, OciDescriptor};
use gantry_sdk::id::Digest;
use gantry_sdk::{Ctx, Error, Result};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::platform::Platform;
use crate::record::{ManifestKind, ManifestRecord};
use crate::store::Store;

/// Annotation of a statement's layer: the URI of what it states.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// Most bytes of a manifest.
const MAX_MANIFEST: u64 = 4 << 20;
/// Most bytes of one statement, and of all in one answer.
const MAX_STATEMENTS: u64 = 64 << 20;

/// Which statements to show.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The image; the host's if none.
    pub platform: Option<Platform>,
    /// What they state; anything if empty.
    pub types: Vec<String>,
    /// Whether to show them, or only that they are there.
    pub content: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Manifest {
    layers: Vec<OciDescriptor>,
}

/// The statements about the image that `name` means; none if there are none.
///
/// # Errors
///
/// `NotFound` if there is no such image, or its index has none for the platform; what reading a
/// statement reports.
pub async fn attestations(
    store: &Store,
    cx: &Ctx,
    name: &str,
    query: &Query,
) -> Result<Vec<AttestationStatement>> {
    let index = store.index();
    let (_, target) = index.find(name)?;
    let Some(target) = target.filter(|target| target.is_index()) else { return Ok(Vec::new()) };
    let wanted = query.platform.clone().unwrap_or_else(Platform::host);
    let images = target.manifests.iter().filter(|m| m.kind == ManifestKind::Image);
    let about = images
        .filter_map(|manifest| Some((wanted.distance(&platform(manifest)?)?, manifest)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, manifest)| &manifest.digest)
        .ok_or_else(|| Error::not_found(format!("no manifest of {name} is for {wanted}")))?;
    let is_about = |m: &&ManifestRecord| {
        m.kind == ManifestKind::Attestation && m.about.as_ref() == Some(about)
    };
    let mut found = Vec::new();
    let mut left = MAX_STATEMENTS;
    for attestation in target.manifests.iter().filter(is_about).filter(|m| m.here) {
        let text = store.blobs.read(cx, &attestation.digest, MAX_MANIFEST).await?;
        let manifest: Manifest = gantry_api::json::from_slice(&text).map_err(|e| {
            Error::invalid(format!("attestation {} cannot be read: {e}", attestation.digest))
        })?;
        for layer in manifest.layers {
            found.extend(statement(store, cx, layer, query, &mut left).await?);
        }
    }
    Ok(found)
}

fn platform(manifest: &ManifestRecord) -> Option<Platform> {
    let platform = manifest.descriptor.platform.as_ref()?;
    Some(Platform::new(&platform.os, &platform.architecture, &platform.variant))
}

/// What a layer states, if it is asked for. `left` bytes may still be read.
async fn statement(
    store: &Store,
    cx: &Ctx,
    descriptor: OciDescriptor,
    query: &Query,
    left: &mut u64,
) -> Result<Option<AttestationStatement>> {
    let Some(predicate_type) = descriptor.annotations.get(PREDICATE_TYPE).cloned() else {
        return Ok(None);
    };
    if !query.types.is_empty() && !query.types.contains(&predicate_type) {
        return Ok(None);
    }
    let mut statement = None;
    if query.content {
        let digest: Digest = descriptor.digest.parse()?;
        let failed = |e: Error| e.context(format!("failed to read attestation statement {digest}"));
        let bytes = store.blobs.read(cx, &digest, *left).await.map_err(failed)?;
        *left -= bytes.len() as u64;
        let text = String::from_utf8(bytes)
            .map_err(|_| failed(Error::invalid("it is not encoded in UTF-8")))?;
        let raw = RawValue::from_string(text).map_err(|e| failed(Error::invalid(e.to_string())))?;
        statement = Some(raw);
    }
    Ok(Some(AttestationStatement { descriptor, predicate_type, statement }))
}
