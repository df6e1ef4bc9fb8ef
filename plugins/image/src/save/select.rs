//! What `docker save` is asked for: names and platforms become images and what they are saved as.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_api::image::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::reference::{AnyReference, Reference};
use gantry_sdk::{Error, Result};

use super::own_descriptor;
use crate::index::{Entry, Index};
use crate::platform::Platform;
use crate::record::{ManifestKind, ManifestRecord, TargetRecord};

/// Something to save, and the tags it is saved under.
#[derive(Clone, Debug)]
pub struct Selected {
    /// What the archive's index names; None if that is known only from the image's own manifest.
    pub descriptor: Option<OciDescriptor>,
    /// Indexes that go along: the target and those in it.
    pub indexes: Vec<Digest>,
    /// The images, the one that `manifest.json` shows first.
    pub images: Vec<Image>,
    /// Statements about the images, manifests and their blobs.
    pub statements: Vec<ManifestRecord>,
    /// Tagged names.
    pub tags: Vec<Reference>,
}

/// An image to save.
#[derive(Clone, Debug)]
pub struct Image {
    /// The image.
    pub entry: Arc<Entry>,
    /// The manifest to save it with; one is made if none.
    pub manifest: Option<Digest>,
}

/// What a name means.
struct Meant<'a> {
    entry: &'a Arc<Entry>,
    target: Option<&'a Arc<TargetRecord>>,
    tag: Option<Reference>,
}

/// The images that `names` mean: a repository means all its tags. Of an index all images that are
/// here go, or those for `wanted`; for a single platform its image goes without the index.
///
/// # Errors
///
/// `InvalidArgument`; `NotFound`, also if an image is for no platform of `wanted`.
pub fn select<'a>(
    index: &Index,
    names: impl Iterator<Item = &'a str>,
    wanted: &[Platform],
) -> Result<Vec<Selected>> {
    let mut selected: BTreeMap<(Option<String>, Digest), Selected> = BTreeMap::new();
    for name in names {
        for meant in meanings(index, name)? {
            let new = one(index, &meant, wanted)?;
            let Some(first) = new.images.first() else { continue };
            let digest = new.descriptor.as_ref().map(|d| d.digest.clone());
            let key = (digest, first.entry.id.clone());
            let known = selected.entry(key).or_insert(new);
            known.tags.extend(meant.tag.filter(|tag| !known.tags.contains(tag)));
        }
    }
    if selected.is_empty() {
        return Err(Error::invalid("no image names given"));
    }
    Ok(selected.into_values().collect())
}

fn meanings<'a>(index: &'a Index, name: &str) -> Result<Vec<Meant<'a>>> {
    let by_id = || {
        let (entry, target) = index.find(name)?;
        Ok(vec![Meant { entry, target, tag: None }])
    };
    let AnyReference::Named(reference) = AnyReference::parse(name)? else { return by_id() };
    let by_name = |reference: &Reference| {
        let named = index.meaning(reference)?;
        let tag = Some(reference.clone()).filter(|r| !r.is_digested());
        let target = named.target.as_ref().and_then(|target| index.target(target));
        Some(Meant { entry: index.get(&named.image)?, target, tag })
    };
    if reference.is_name_only() {
        let all = index.of_repository(&reference);
        let all: Vec<Meant<'_>> = all.filter_map(|named| by_name(&named.reference)).collect();
        return if all.is_empty() { by_id() } else { Ok(all) };
    }
    let stored = reference.stored();
    match by_name(&stored) {
        Some(meant) => Ok(vec![meant]),
        None if stored.familiar_name() == "sha256" => by_id(),
        None => Err(Error::not_found("reference does not exist")),
    }
}

fn one(index: &Index, meant: &Meant<'_>, wanted: &[Platform]) -> Result<Selected> {
    let missing = || {
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        Error::not_found(format!(
            "no suitable export target found for platform {}",
            wanted.join(", ")
        ))
    };
    let Some(target) = meant.target.filter(|target| target.is_index()) else {
        let has = meant.entry.platform();
        if !wanted.is_empty() && !wanted.iter().any(|w| w.accepts(&has)) {
            return Err(missing());
        }
        return Ok(alone(meant));
    };
    let mut images: Vec<Image> = Vec::new();
    for platform in wanted {
        let entry = index.best_of(target, Some(platform)).ok_or_else(missing)?;
        if !images.iter().any(|known| known.entry.id == entry.id) {
            images.push(of_target(target, entry));
        }
    }
    if wanted.is_empty() {
        // The one that is meant when nobody asks for a platform comes first.
        images.push(of_target(target, meant.entry));
        for entry in index.images_of(target).filter(|entry| entry.id != meant.entry.id) {
            images.push(of_target(target, entry));
        }
    }
    let manifests: Vec<&Digest> = images.iter().filter_map(|i| i.manifest.as_ref()).collect();
    let is_about = |m: &&ManifestRecord| {
        let about = m.about.as_ref().is_some_and(|about| manifests.contains(&about));
        m.here && m.kind != ManifestKind::Image && (about || wanted.is_empty())
    };
    let statements = target.manifests.iter().filter(is_about).cloned().collect();
    if let ([only], [_]) = (images.as_slice(), wanted) {
        let of_image = |m: &&ManifestRecord| Some(&m.digest) == only.manifest.as_ref();
        let descriptor = target.manifests.iter().find(of_image).map(|m| m.descriptor.clone());
        return Ok(Selected {
            descriptor,
            indexes: Vec::new(),
            images,
            statements: Vec::new(),
            tags: Vec::new(),
        });
    }
    let indexes = std::iter::once(&target.digest).chain(&target.indexes).cloned().collect();
    let descriptor = Some(target.descriptor.clone());
    Ok(Selected { descriptor, indexes, images, statements, tags: Vec::new() })
}

fn of_target(target: &TargetRecord, entry: &Arc<Entry>) -> Image {
    let of_image = |m: &&ManifestRecord| m.here && m.image.as_ref() == Some(&entry.id);
    let manifest = target.manifests.iter().find(of_image).map(|m| m.digest.clone());
    Image { entry: entry.clone(), manifest }
}

/// An image that is in no index.
fn alone(meant: &Meant<'_>) -> Selected {
    let entry = meant.entry.clone();
    let image = match meant.target {
        Some(target) => of_target(target, &entry),
        None => Image { manifest: entry.record.manifest.clone(), entry: entry.clone() },
    };
    let descriptor = match meant.target {
        Some(target) => Some(target.descriptor.clone()),
        None => own_descriptor(&entry),
    };
    Selected {
        descriptor,
        indexes: Vec::new(),
        images: vec![image],
        statements: Vec::new(),
        tags: Vec::new(),
    }
}
