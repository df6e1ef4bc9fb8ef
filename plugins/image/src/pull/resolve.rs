//! From a reference to one image: the documents on the way, checked against each other.

use gantry_api::image::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::registry::{RemoteManifest, Repository};
use gantry_sdk::reference::Reference;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};

use super::downloads::Remote;
use super::manifest::{self, Document, Manifest};
use crate::config::{ImageFile, MAX_CONFIG};
use crate::platform::Platform;
use crate::record::signed;

/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

/// An image at a registry.
#[derive(Debug)]
pub struct Resolved {
    /// Indexes, outermost first, then the manifest: descriptors and contents.
    pub documents: Vec<(OciDescriptor, Vec<u8>)>,
    /// What the manifest says.
    pub manifest: Manifest,
    /// The configuration, as written.
    pub config: Vec<u8>,
    /// The same, parsed.
    pub file: ImageFile,
    /// Base first, as many as the manifest's layers.
    pub diff_ids: Vec<Digest>,
}

impl Resolved {
    /// Digest of what the reference names: the outermost document.
    ///
    /// # Errors
    ///
    /// None in practice: the digest was computed here.
    pub fn target(&self) -> Result<&OciDescriptor> {
        let (target, _) = self.documents.first().ok_or_else(|| Error::invalid("no manifest"))?;
        Ok(target)
    }

    /// The blobs of its layers.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`.
    pub fn layers(&self) -> Result<Vec<Remote>> {
        let remote = |descriptor: &OciDescriptor| {
            Ok(Remote {
                digest: manifest::digest(descriptor)?,
                size: manifest::size(descriptor, u64::MAX)?,
                urls: descriptor.urls.clone(),
            })
        };
        self.manifest.layers.iter().map(remote).collect()
    }
}

/// Finds the image that `reference` (a tag or digest) names for `wanted`, or else for this host.
///
/// # Errors
///
/// `NotFound` if there is none, also for the platform; `InvalidArgument` for what makes no sense;
/// those of the registry.
pub async fn resolve(
    cx: &Ctx,
    repository: &dyn Repository,
    name: &Reference,
    wanted: Option<&Platform>,
) -> Result<Resolved> {
    let reference = name.digest().or(name.tag()).unwrap_or("latest");
    let first = repository.manifest(cx, reference).await.map_err(|error| named(error, name))?;
    let host = Platform::host();
    let platform = wanted.unwrap_or(&host);
    let mut documents: Vec<(OciDescriptor, Vec<u8>)> = Vec::new();
    let mut next = first;
    let found = loop {
        let RemoteManifest { media_type, digest, bytes } = next;
        let document = Document::parse(&bytes)?;
        let descriptor = OciDescriptor {
            media_type,
            digest: digest.to_string(),
            size: signed(bytes.len() as u64),
            ..OciDescriptor::default()
        };
        documents.push((descriptor, bytes));
        let manifests = match document {
            Document::Manifest(manifest) => break *manifest,
            Document::Index(manifests) => manifests,
        };
        if documents.len() > MAX_DEPTH {
            return Err(Error::invalid(format!("{name}: its indexes are nested too deeply")));
        }
        let best = manifest::best(&manifests, platform).ok_or_else(|| {
            Error::not_found(format!(
                "no matching manifest for {platform} in the manifest list entries"
            ))
        })?;
        let digest = manifest::digest(best)?;
        let seen = documents.iter().any(|(known, _)| known.digest == digest.as_str());
        if seen {
            return Err(Error::invalid(format!("{name}: an index contains itself")));
        }
        next = repository.manifest(cx, digest.as_str()).await?;
        if signed(next.bytes.len() as u64) != best.size {
            return Err(Error::invalid(format!(
                "manifest {digest} has not the size its index says"
            )));
        }
    };
    found.expect_image()?;
    let config = configuration(cx, repository, &found).await?;
    let file = ImageFile::parse(&config)?;
    let diff_ids = file.diff_ids()?;
    if diff_ids.len() != found.layers.len() {
        let (layers, ids) = (found.layers.len(), diff_ids.len());
        return Err(Error::invalid(format!(
            "invalid manifest: {layers} layers, and a configuration with {ids}"
        )));
    }
    check_platform(name, &file, wanted)?;
    Ok(Resolved { documents, manifest: found, config, file, diff_ids })
}

/// Every manifest of an image's index; those of an inner index that was looked into in its place.
/// Nothing for an image without an index.
///
/// # Errors
///
/// None in practice: all documents were parsed before.
pub fn flattened(image: &Resolved) -> Result<Vec<OciDescriptor>> {
    let mut all: Vec<OciDescriptor> = Vec::new();
    for (own, bytes) in &image.documents {
        let Document::Index(manifests) = Document::parse(bytes)? else { break };
        match all.iter().position(|descriptor| descriptor.digest == own.digest) {
            Some(place) => drop(all.splice(place..=place, manifests)),
            None => all.extend(manifests),
        }
    }
    Ok(all)
}

async fn configuration(
    cx: &Ctx,
    repository: &dyn Repository,
    manifest: &Manifest,
) -> Result<Vec<u8>> {
    let digest = manifest::digest(&manifest.config)?;
    let size = manifest::size(&manifest.config, MAX_CONFIG)?;
    let bytes = repository.small_blob(cx, &digest, size).await?;
    if bytes.len() as u64 != size {
        return Err(Error::invalid(format!("configuration {digest} has not {size} bytes")));
    }
    Ok(bytes)
}

/// An image without an index is what it is; but not if something else was asked for.
fn check_platform(name: &Reference, file: &ImageFile, wanted: Option<&Platform>) -> Result<()> {
    let has = Platform::new(file.os(), &file.architecture, &file.variant);
    if has.os() != "linux" {
        return Err(Error::invalid(format!("cannot use {} image on linux", has.os())));
    }
    match wanted {
        Some(wanted) if !wanted.accepts(&has) => Err(Error::not_found(format!(
            "image with reference {} was found but its platform ({has}) does not match the \
             specified platform ({wanted})",
            name.familiar()
        ))),
        _ => Ok(()),
    }
}

/// What a registry's refusal means for the image that was asked for.
pub fn named(error: Error, name: &Reference) -> Error {
    let text = match error.kind() {
        ErrorKind::NotFound => {
            format!("manifest for {} not found: manifest unknown", name.familiar())
        }
        ErrorKind::Unauthorized | ErrorKind::Forbidden if !error.chain().contains("blocked") => {
            format!(
                "pull access denied for {}, repository does not exist or may require 'docker login'",
                name.familiar_name()
            )
        }
        _ => return error,
    };
    Error::new(ErrorKind::NotFound, text).caused_by(error)
}
