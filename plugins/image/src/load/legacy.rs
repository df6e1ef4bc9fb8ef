//! Archives of `docker save` before 1.10: one directory for each layer, with `VERSION`, `json` and
//! `layer.tar`, and a file `repositories`.
//!
//! Such images have no configuration with a list of layers; one is made from the chain of parents.

use std::collections::{BTreeMap, BTreeSet};

use gantry_sdk::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::ingest::Archive;
use super::{Candidate, LayerFile, MAX_IMAGES, decode};
use crate::config::{HistoryEntry, MAX_CONFIG, MAX_LAYERS};
use gantry_sdk::reference::Reference;

const FILE: &str = "repositories";
const MAX_REPOSITORIES: u64 = 4 << 20;

/// What `json` of a layer says, as far as it is understood here.
#[derive(Deserialize, Default)]
#[serde(default)]
struct V1 {
    parent: String,
    created: Option<String>,
    author: String,
    comment: String,
    container_config: CommandOf,
    throwaway: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct CommandOf {
    cmd: Vec<String>,
}

/// The images of an archive that has the file; None if it has not.
///
/// # Errors
///
/// `InvalidArgument` with what is wrong or missing.
pub fn candidates(archive: &mut Archive) -> Result<Option<Vec<Candidate>>> {
    let Some(text) = archive.small(FILE, MAX_REPOSITORIES)? else { return Ok(None) };
    let repositories: BTreeMap<String, BTreeMap<String, String>> =
        decode(&text).map_err(|e| e.context(format!("invalid archive: {FILE}")))?;
    let mut tops: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
    for (name, tags) in repositories {
        for (tag, id) in tags {
            let reference = Reference::from_repo_and_tag(&name, &tag)?
                .ok_or_else(|| Error::invalid("invalid archive: a repository has no name"))?;
            tops.entry(id).or_default().push(reference);
        }
    }
    if tops.len() > MAX_IMAGES {
        return Err(Error::invalid(format!("invalid archive: more than {MAX_IMAGES} images")));
    }
    let image = |(top, tags): (String, Vec<Reference>)| candidate(archive, &top, tags);
    tops.into_iter().map(image).collect::<Result<_>>().map(Some)
}

fn candidate(archive: &mut Archive, top: &str, tags: Vec<Reference>) -> Result<Candidate> {
    let mut lineage = Vec::new(); // top first
    let mut seen = BTreeSet::new();
    let mut next = top.to_owned();
    while !next.is_empty() {
        if !is_layer_id(&next) || !seen.insert(next.clone()) || seen.len() > MAX_LAYERS {
            return Err(Error::invalid(format!("invalid archive: layer {next:.80?} of {top:.80}")));
        }
        let path = format!("{next}/json");
        let missing = || Error::invalid(format!("invalid archive: there is no file {path}"));
        let text = archive.small(&path, MAX_CONFIG)?.ok_or_else(missing)?;
        let layer: V1 = decode(&text).map_err(|e| e.context(format!("invalid {path}")))?;
        let parent = layer.parent.clone();
        lineage.push((next, layer, text));
        next = parent;
    }
    let config = lineage.first().map(|(_, _, text)| text.clone()).unwrap_or_default();
    let mut config: Map<String, Value> = decode(&config)?;
    for field in ["id", "parent", "layer_id", "throwaway", "parent_id", "Size"] {
        config.remove(field);
    }

    let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (id, layer, _) in lineage.into_iter().rev() {
        history.push(HistoryEntry {
            created: layer.created,
            author: layer.author,
            created_by: layer.container_config.cmd.join(" "),
            comment: layer.comment,
            empty_layer: layer.throwaway,
        });
        if layer.throwaway {
            continue;
        }
        let path = format!("{id}/layer.tar");
        let missing = || Error::invalid(format!("invalid archive: there is no layer {path}"));
        let stored = archive.blob(&path)?.ok_or_else(missing)?;
        diff_ids.push(super::layer_record(stored)?.diff_id);
        layers.push(LayerFile::at(path));
    }
    config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": diff_ids}));
    config.insert("history".into(), json!(history));
    let config = serde_json::to_vec(&config)
        .map_err(|e| Error::internal("cannot encode an image configuration", e))?;
    Ok(Candidate { config, layers, tags, ..Candidate::default() })
}

/// 64 digits: anything else could lead anywhere.
fn is_layer_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
