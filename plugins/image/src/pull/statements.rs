//! Statements about an image in its index: provenance, bills of materials. They are small and come
//! along with the image; a registry that does not have them takes nothing from it.

use gantry_api::image::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::registry::Repository;
use gantry_sdk::{Ctx, Error, Result};

use super::manifest::{self, Document};
use super::resolve::{Resolved, flattened};
use crate::record::{BlobRecord, ManifestKind, ManifestRecord};

/// Most manifests with statements about one image.
const MAX_MANIFESTS: usize = 8;
/// Most bytes of one statement, and of all of them together.
const MAX_BYTES: u64 = 4 << 20;
const MAX_TOTAL: u64 = 16 << 20;

/// A manifest with statements, and all that it names.
#[derive(Debug)]
pub struct Statement {
    /// Its digest.
    pub manifest: Digest,
    /// What it names.
    pub blobs: Vec<BlobRecord>,
    /// It and what it names.
    pub contents: Vec<(Digest, Vec<u8>)>,
}

/// The statements about `image`; without those that cannot be had.
pub async fn fetch(cx: &Ctx, repository: &dyn Repository, image: &Resolved) -> Vec<Statement> {
    let mut found = Vec::new();
    let Some((own, _)) = image.documents.last() else { return found };
    let mut left = MAX_TOTAL;
    for descriptor in flattened(image).unwrap_or_default() {
        let Ok(record) = ManifestRecord::new(descriptor) else { continue };
        let is_about = record.about.as_ref().is_some_and(|about| about.as_str() == own.digest);
        if record.kind != ManifestKind::Attestation || !is_about || found.len() == MAX_MANIFESTS {
            continue;
        }
        match one(cx, repository, &record.digest, &mut left).await {
            Ok(statement) => found.push(statement),
            Err(error) => {
                let digest = &record.digest;
                tracing::debug!(%digest, error = %error.chain(), "A statement is left out.");
            }
        }
    }
    found
}

async fn one(
    cx: &Ctx,
    repository: &dyn Repository,
    digest: &Digest,
    left: &mut u64,
) -> Result<Statement> {
    let remote = repository.manifest(cx, digest.as_str()).await?;
    let Document::Manifest(document) = Document::parse(&remote.bytes)? else {
        return Err(Error::invalid("an index in place of a statement"));
    };
    let mut statement = Statement {
        manifest: digest.clone(),
        blobs: Vec::new(),
        contents: vec![(digest.clone(), remote.bytes)],
    };
    for descriptor in std::iter::once(&document.config).chain(&document.layers) {
        let bytes = content(cx, repository, descriptor, left).await?;
        let digest = manifest::digest(descriptor)?;
        statement.blobs.push(BlobRecord { digest: digest.clone(), bytes: bytes.len() as u64 });
        statement.contents.push((digest, bytes));
    }
    Ok(statement)
}

async fn content(
    cx: &Ctx,
    repository: &dyn Repository,
    descriptor: &OciDescriptor,
    left: &mut u64,
) -> Result<Vec<u8>> {
    let size = manifest::size(descriptor, MAX_BYTES)?;
    *left = left
        .checked_sub(size)
        .ok_or_else(|| Error::invalid("there is too much to say about the image"))?;
    repository.small_blob(cx, &manifest::digest(descriptor)?, size).await
}
