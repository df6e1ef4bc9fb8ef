//! What `manifest.json` of an archive says: images as lists of paths.

use gantry_sdk::{Error, Result};
use serde::Deserialize;

use super::ingest::Archive;
use super::{Candidate, LayerFile, MAX_IMAGES, decode};
use crate::config::{MAX_CONFIG, MAX_LAYERS};
use gantry_sdk::reference::Reference;

/// The file's name.
pub const FILE: &str = "manifest.json";
/// Most bytes of it.
const MAX_MANIFEST: u64 = 8 << 20;

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Item {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
    parent: String,
}

/// The images of an archive that has the file; None if it has not.
///
/// # Errors
///
/// `InvalidArgument` with what is wrong or missing.
pub fn candidates(archive: &Archive) -> Result<Option<Vec<Candidate>>> {
    let Some(text) = archive.small(FILE, MAX_MANIFEST)? else { return Ok(None) };
    let failed = |e: Error| e.context(format!("invalid archive: failed to decode {FILE}"));
    let items: Option<Vec<Item>> = decode(&text).map_err(failed)?;
    let items = items.ok_or_else(|| {
        Error::invalid("invalid manifest, manifest cannot be null (but can be [])")
    })?;
    if items.len() > MAX_IMAGES {
        return Err(Error::invalid(format!("invalid archive: more than {MAX_IMAGES} images")));
    }
    items.into_iter().map(|item| candidate(archive, item)).collect::<Result<_>>().map(Some)
}

fn candidate(archive: &Archive, item: Item) -> Result<Candidate> {
    let config = archive.small(&item.config, MAX_CONFIG)?.ok_or_else(|| {
        Error::invalid(format!("invalid archive: there is no file {:.120}", item.config))
    })?;
    if item.layers.len() > MAX_LAYERS {
        return Err(Error::invalid(format!("invalid manifest: more than {MAX_LAYERS} layers")));
    }
    let tags = item.repo_tags.iter().map(|text| tag(text)).collect::<Result<_>>()?;
    let layers = item.layers.into_iter().map(LayerFile::at).collect();
    Ok(Candidate { config, layers, tags, parent: item.parent.parse().ok(), ..Candidate::default() })
}

fn tag(text: &str) -> Result<Reference> {
    let reference = Reference::parse(text)?;
    if reference.tag().is_none() || reference.is_digested() {
        return Err(Error::invalid(format!("invalid tag {text:?}")));
    }
    Ok(reference)
}
