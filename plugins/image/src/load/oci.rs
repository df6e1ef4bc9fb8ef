//! What the index of an OCI image layout says.
//!
//! An entry of `index.json` names a manifest or an index, which may hold further indexes. Of an
//! index every image is taken whose content the archive has, or those for the platforms that are
//! wanted. Everything is addressed by digest and compared with it, so an index cannot hold itself;
//! one that holds the same one again and again is read once.
//!
//! Source: OCI image specification, *Image Layout*, *Image Index*, *Image Manifest*; the
//! annotation `io.containerd.image.name` carries a whole reference, as some tools put one into
//! `org.opencontainers.image.ref.name`.

use std::sync::Arc;

use gantry_api::image::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::reference::Reference;
use gantry_sdk::{Error, Result};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::ingest::Archive;
use super::{Candidate, LayerFile, MAX_IMAGES, Statement, Target, decode};
use crate::config::{ImageFile, MAX_CONFIG};
use crate::platform::Platform;
use crate::pull::manifest::{Document, Manifest};
use crate::record::{ManifestKind, ManifestRecord, is_index, is_manifest};

const INDEX: &str = "index.json";
/// Most bytes of an index or manifest.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;
/// Most manifests of one entry, those of all its indexes together.
const MAX_MANIFESTS: usize = 1024;

const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Deserialize, Default)]
#[serde(default)]
struct Layout {
    manifests: Option<Vec<OciDescriptor>>,
}

/// The images of a layout; None if the archive is none. Of an image for several platforms it is
/// those for `wanted`, or else all that are there.
///
/// # Errors
///
/// `InvalidArgument` with what is wrong or missing.
pub fn candidates(archive: &Archive, wanted: &[Platform]) -> Result<Option<Vec<Candidate>>> {
    let Some(text) = archive.small(INDEX, MAX_DOCUMENT)? else { return Ok(None) };
    let index: Layout = decode(&text).map_err(|e| e.context(format!("invalid {INDEX}")))?;
    let top = index.manifests.unwrap_or_default();
    if top.len() > MAX_IMAGES {
        return Err(Error::invalid(format!("invalid archive: more than {MAX_IMAGES} images")));
    }
    let mut found: Vec<Candidate> = Vec::new();
    for descriptor in &top {
        let mut images = Tree::read(archive, descriptor)?.candidates(archive, wanted)?;
        if let (Some(name), Some(first)) = (name(descriptor)?, images.first_mut()) {
            first.digests.push(name.at_digest(&descriptor.digest.parse()?));
            if name.tag().is_some() && !name.is_digested() {
                first.tags.push(name);
            }
        }
        for mut image in images {
            // The same under several names.
            let target = |c: &Candidate| c.target.as_ref().map(|t| t.descriptor.digest.clone());
            let same = |c: &&mut Candidate| c.config == image.config && target(c) == target(&image);
            match found.iter_mut().find(same) {
                Some(known) => {
                    known.tags.append(&mut image.tags);
                    known.digests.append(&mut image.digests);
                }
                None => found.push(image),
            }
        }
        if found.len() > MAX_IMAGES {
            return Err(Error::invalid(format!("invalid archive: more than {MAX_IMAGES} images")));
        }
    }
    Ok(Some(found))
}

/// The name an annotation gives, if one gives more than a tag.
fn name(descriptor: &OciDescriptor) -> Result<Option<Reference>> {
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

/// A small blob of the layout, which must be what its name says; None if it is not there.
fn read(archive: &Archive, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(bytes) = archive.small(&blob_path(digest), limit)? else { return Ok(None) };
    let found = Digest::from_sha256(&Sha256::digest(&bytes).into());
    if found != *digest {
        return Err(Error::invalid(format!("invalid archive: blob {digest} has digest {found}")));
    }
    Ok(Some(bytes))
}

fn missing(digest: &Digest) -> Error {
    Error::invalid(format!("invalid archive: there is no blob {digest}"))
}

fn document(bytes: &[u8], digest: &Digest) -> Result<Document> {
    Document::parse(bytes).map_err(|e| e.context(format!("invalid manifest {digest}")))
}

/// What an entry of the layout leads to.
#[derive(Debug)]
struct Tree {
    descriptor: OciDescriptor,
    indexes: Vec<(Digest, Vec<u8>)>,
    manifests: Vec<Leaf>,
}

/// A manifest, with its text if the archive has it.
#[derive(Debug)]
struct Leaf {
    record: ManifestRecord,
    text: Option<(Vec<u8>, Manifest)>,
}

/// An image that could be loaded.
struct Image<'a> {
    leaf: &'a Leaf,
    text: &'a [u8],
    manifest: &'a Manifest,
    config: Vec<u8>,
    platform: Platform,
}

impl Tree {
    fn read(archive: &Archive, descriptor: &OciDescriptor) -> Result<Self> {
        let mut descriptor = descriptor.clone();
        let digest: Digest = descriptor.digest.parse()?;
        // Names are kept elsewhere.
        descriptor.annotations.retain(|key, _| key != FULL_NAME && key != REF_NAME);
        let mut tree = Self { descriptor, indexes: Vec::new(), manifests: Vec::new() };
        let text = read(archive, &digest, MAX_DOCUMENT)?.ok_or_else(|| missing(&digest))?;
        tree.descriptor.size = crate::record::signed(text.len() as u64);
        match document(&text, &digest)? {
            Document::Index(manifests) => {
                if !is_index(&tree.descriptor.media_type) {
                    tree.descriptor.media_type = "application/vnd.oci.image.index.v1+json".into();
                }
                tree.indexes.push((digest, text));
                tree.descend(archive, manifests, 0)?;
            }
            Document::Manifest(manifest) => {
                if !is_manifest(&tree.descriptor.media_type) {
                    tree.descriptor.media_type = String::new();
                }
                let record = ManifestRecord::new(tree.descriptor.clone())?;
                tree.manifests.push(Leaf { record, text: Some((text, *manifest)) });
            }
        }
        Ok(tree)
    }

    fn descend(
        &mut self,
        archive: &Archive,
        descriptors: Vec<OciDescriptor>,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid("invalid archive: indexes are nested too deeply"));
        }
        for descriptor in descriptors {
            let digest: Digest = descriptor.digest.parse()?;
            if self.manifests.len() >= MAX_MANIFESTS || self.indexes.len() >= MAX_MANIFESTS {
                return Err(Error::invalid(format!(
                    "invalid archive: more than {MAX_MANIFESTS} manifests of one image"
                )));
            }
            if self.indexes.iter().any(|(known, _)| *known == digest)
                || self.manifests.iter().any(|known| known.record.digest == digest)
            {
                continue;
            }
            // Layouts may lack what is for other platforms.
            let text = read(archive, &digest, MAX_DOCUMENT)?;
            let mut leaf = Leaf { record: ManifestRecord::new(descriptor)?, text: None };
            match text {
                Some(text) if is_index(&leaf.record.descriptor.media_type) => {
                    let Document::Index(inner) = document(&text, &digest)? else {
                        return Err(Error::invalid(format!("invalid manifest {digest}: no index")));
                    };
                    self.indexes.push((digest, text));
                    self.descend(archive, inner, depth + 1)?;
                    continue;
                }
                Some(text) if leaf.record.kind == ManifestKind::Image => {
                    let Document::Manifest(manifest) = document(&text, &digest)? else {
                        return Err(Error::invalid(format!("invalid manifest {digest}: an index")));
                    };
                    leaf.text = Some((text, *manifest));
                }
                // What is no image may be anything.
                Some(text) => {
                    if let Ok(Document::Manifest(manifest)) = Document::parse(&text) {
                        leaf.text = Some((text, *manifest));
                    }
                }
                None => {}
            }
            self.manifests.push(leaf);
        }
        Ok(())
    }

    /// The images to load, the best for this host first.
    fn candidates(self, archive: &Archive, wanted: &[Platform]) -> Result<Vec<Candidate>> {
        let mut images = Vec::new();
        let mut lacking = None;
        for leaf in self.manifests.iter().filter(|leaf| leaf.record.kind == ManifestKind::Image) {
            images.extend(image(archive, leaf)?);
            let config = leaf.text.as_ref().map(|(_, manifest)| &manifest.config);
            let config = config.filter(|config| !has(archive, &config.digest));
            lacking = lacking.or(config.map(|config| config.digest.clone()));
        }
        if let Some(lacking) = lacking.filter(|_| images.is_empty() && wanted.is_empty()) {
            return Err(missing(&lacking.parse()?));
        }
        let host = Platform::host();
        images.sort_by_key(|image| host.distance(&image.platform).unwrap_or(u32::MAX));
        let complete =
            |image: &&Image<'_>| image.manifest.layers.iter().all(|l| has(archive, &l.digest));
        let chosen: Vec<&Image<'_>> = if wanted.is_empty() {
            let complete: Vec<&Image<'_>> = images.iter().filter(complete).collect();
            // Its layers may be here; if not, this is the one to complain about.
            if complete.is_empty() { images.first().into_iter().collect() } else { complete }
        } else {
            let mut chosen: Vec<&Image<'_>> = Vec::new();
            for platform in wanted {
                let best = images
                    .iter()
                    .filter_map(|image| Some((platform.distance(&image.platform)?, image)))
                    .min_by_key(|(distance, _)| *distance);
                let new = best.map(|(_, image)| image).filter(|best| {
                    !chosen.iter().any(|known| known.leaf.record.digest == best.leaf.record.digest)
                });
                chosen.extend(new);
            }
            chosen
        };
        let chosen: Vec<Candidate> = chosen.into_iter().map(candidate).collect::<Result<_>>()?;
        let target = Arc::new(self.target(archive, &chosen, wanted.is_empty()));
        let with_target = |candidate| Candidate { target: Some(target.clone()), ..candidate };
        Ok(chosen.into_iter().map(with_target).collect())
    }

    /// What names point at; statements are those about the images that are loaded, or all.
    fn target(self, archive: &Archive, chosen: &[Candidate], all: bool) -> Target {
        let digests: Vec<Digest> = chosen
            .iter()
            .filter_map(|candidate| candidate.manifest.as_deref().map(super::digest_of))
            .collect();
        let mut statements = Vec::new();
        for Leaf { record, text } in &self.manifests {
            let about = record.about.as_ref().is_some_and(|about| digests.contains(about));
            let Some((text, manifest)) = text.as_ref().filter(|_| all || about) else { continue };
            let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
            let files: Vec<LayerFile> = blobs.filter_map(|blob| file(blob).ok()).collect();
            let complete = files.len() == manifest.layers.len() + 1
                && files.iter().all(|file| archive.has(&file.path));
            if record.kind != ManifestKind::Image && complete {
                let (digest, manifest) = (record.digest.clone(), text.clone());
                statements.push(Statement { digest, manifest, blobs: files });
            }
        }
        let is_manifest = self.indexes.is_empty();
        let manifests = self.manifests.into_iter().map(|leaf| leaf.record);
        let manifests = if is_manifest { Vec::new() } else { manifests.collect() };
        Target { descriptor: self.descriptor, indexes: self.indexes, manifests, statements }
    }
}

fn has(archive: &Archive, digest: &str) -> bool {
    digest.parse().is_ok_and(|digest: Digest| archive.has(&blob_path(&digest)))
}

/// None for artifacts that are no images, and for images whose configuration is not there.
fn image<'a>(archive: &Archive, leaf: &'a Leaf) -> Result<Option<Image<'a>>> {
    let Some((text, manifest)) = &leaf.text else { return Ok(None) };
    if manifest.expect_image().is_err() {
        return Ok(None);
    }
    let digest: Digest = manifest.config.digest.parse()?;
    let Some(config) = read(archive, &digest, MAX_CONFIG)? else { return Ok(None) };
    let file = ImageFile::parse(&config)?;
    let platform = Platform::new(file.os(), &file.architecture, &file.variant);
    Ok(Some(Image { leaf, text, manifest, config, platform }))
}

fn file(descriptor: &OciDescriptor) -> Result<LayerFile> {
    let digest: Digest = descriptor.digest.parse()?;
    let media_type = Some(descriptor.media_type.clone()).filter(|text| !text.is_empty());
    Ok(LayerFile { path: blob_path(&digest), blob: Some(digest), media_type })
}

fn candidate(image: &Image<'_>) -> Result<Candidate> {
    Ok(Candidate {
        config: image.config.clone(),
        layers: image.manifest.layers.iter().map(file).collect::<Result<_>>()?,
        manifest: Some(image.text.to_vec()),
        ..Candidate::default()
    })
}
