//! What graph drivers have left: images by the digest of their configuration, layers as directories.
//!
//! | path beneath `image/<driver>` | holds |
//! |---|---|
//! | `repositories.json` | names, by repository |
//! | `imagedb/content/sha256/<id>` | a configuration |
//! | `layerdb/sha256/<chain id>/` | `diff` (id), `cache-id` (where the directory is), `size`, `tar-split.json.gz` |
//!
//! Source: packages `image`, `layer` and `daemon/graphdriver` of moby.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use gantry_archive::{Entry, HashRead, Kind, Writer};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer};
use gantry_sdk::reference::Reference;
use gantry_sdk::{Error, Result};
use gantry_sys::path::Links;
use serde::Deserialize;
use sha2::Digest as _;

use crate::pipe::PipeWriter;
use crate::run::{member, unwritten};
use crate::source::Directory;
use crate::tarsplit::{Assembly, Pieces, changed_files};

/// Where drivers keep the directory of a layer: before and after its name.
const DRIVERS: &[(&str, &str, &str)] = &[
    ("overlay2", "overlay2", "diff"),
    ("fuse-overlayfs", "fuse-overlayfs", "diff"),
    ("aufs", "aufs/diff", ""),
    ("btrfs", "btrfs/subvolumes", ""),
    ("vfs", "vfs/dir", ""),
];
/// Most bytes of a configuration.
const MAX_CONFIG: usize = 8 << 20;
/// Most bytes of the list of names.
const MAX_NAMES: usize = 64 << 20;
/// Changed files that are named.
const NAMED: usize = 5;

/// An image of a graph driver.
#[derive(Clone, Debug)]
pub struct GraphImage {
    /// Digest of its configuration.
    pub id: Digest,
    /// Its names with tags.
    pub tags: Vec<Reference>,
    /// Bytes of its files, about.
    pub bytes: u64,
    driver: usize,
    root: Directory,
    chain: Chain,
}

/// What a data root has of graph drivers.
#[derive(Debug, Default)]
pub struct Found {
    /// Its images.
    pub images: Vec<GraphImage>,
    /// Images that cannot be read: id, names, why.
    pub broken: Vec<(String, Vec<String>, String)>,
    /// Names by digest.
    pub digests: u64,
    /// What was left out.
    pub notes: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Repositories {
    #[serde(rename = "Repositories")]
    names: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Deserialize, Default)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

/// Looks for images of all graph drivers beneath `root`.
///
/// # Errors
///
/// Those of reading; an image that cannot be read is none.
pub fn find(root: &Directory) -> Result<Found> {
    let mut found = Found::default();
    for name in root.names("image")? {
        let ids = root.names(&format!("image/{name}/imagedb/content/sha256"))?;
        if ids.is_empty() {
            continue;
        }
        let Some(driver) = DRIVERS.iter().position(|(known, ..)| *known == name) else {
            let count = ids.len();
            found.notes.push(format!(
                "{count} images of the storage driver {name} are left out: their layers are no directories"
            ));
            continue;
        };
        let mut names = names(root, &name, &mut found)?;
        for hex in ids {
            let Ok(id) = format!("sha256:{hex}").parse::<Digest>() else { continue };
            let tags = names.remove(&id).unwrap_or_default();
            match look(root, driver, &id) {
                Ok((chain, bytes)) => {
                    let root = root.clone();
                    found.images.push(GraphImage { id, tags, bytes, driver, root, chain });
                }
                Err(error) => {
                    let tags = tags.iter().map(Reference::familiar).collect();
                    found.broken.push((id.to_string(), tags, error.chain()));
                }
            }
        }
        let lost = names.values().map(Vec::len).sum::<usize>();
        if lost > 0 {
            found.notes.push(format!("{lost} names of images that are not there are left out"));
        }
    }
    Ok(found)
}

/// Names with tags by image.
fn names(
    root: &Directory,
    driver: &str,
    found: &mut Found,
) -> Result<BTreeMap<Digest, Vec<Reference>>> {
    let path = format!("image/{driver}/repositories.json");
    let mut names = BTreeMap::<Digest, Vec<Reference>>::new();
    let Some(text) = root.small(&path, MAX_NAMES)? else { return Ok(names) };
    let repositories: Repositories = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid(format!("cannot understand {path}")).caused_by(e))?;
    for (name, id) in repositories.names.into_values().flatten() {
        match (Reference::parse(&name), id.parse::<Digest>()) {
            // The manifest that it is the digest of is nowhere.
            (Ok(reference), Ok(_)) if reference.is_digested() => found.digests += 1,
            (Ok(reference), Ok(id)) if reference.tag().is_some() => {
                names.entry(id).or_default().push(reference);
            }
            _ => found.notes.push(format!("the name {name:.200?} is left out: it is no valid one")),
        }
    }
    Ok(names)
}

fn config(root: &Directory, driver: usize, id: &Digest) -> Result<Vec<u8>> {
    let path = format!("image/{}/imagedb/content/sha256/{}", DRIVERS[driver].0, id.hex());
    let missing = || Error::invalid(format!("there is no configuration {id}"));
    let text = root.small(&path, MAX_CONFIG)?.ok_or_else(missing)?;
    let real = Digest::from_sha256(&sha2::Sha256::digest(&text).into());
    if real != *id {
        return Err(Error::invalid(format!("the configuration {id} has digest {real}")));
    }
    Ok(text)
}

/// The layers of an image, all of which are there, and about how many bytes they have.
fn look(root: &Directory, driver: usize, id: &Digest) -> Result<(Chain, u64)> {
    let config: Config = serde_json::from_slice(&config(root, driver, id)?)
        .map_err(|e| Error::invalid("cannot understand its configuration").caused_by(e))?;
    let diff_ids = config.rootfs.diff_ids.unwrap_or_default();
    let layer = |diff_id: Digest| ChainLayer { blob: diff_id.clone(), diff_id };
    let chain = Chain(diff_ids.into_iter().map(layer).collect());
    let mut bytes = 0u64;
    for (chain_id, layer) in chain.ids().iter().zip(&chain.0) {
        let at = layer_path(driver, chain_id);
        let diff = root.line(&format!("{at}/diff"))?;
        if diff != layer.diff_id.as_str() {
            return Err(Error::invalid(format!("layer {chain_id} has diff id {diff:.80}")));
        }
        if root.find(&format!("{at}/tar-split.json.gz"))?.is_none() {
            return Err(Error::invalid(format!(
                "layer {} has no tar-split.json.gz: its archive cannot be put together again",
                layer.diff_id
            )));
        }
        let size = root.line(&format!("{at}/size"))?.parse::<u64>().unwrap_or(0);
        bytes = bytes.saturating_add(size);
    }
    Ok((chain, bytes))
}

fn layer_path(driver: usize, chain_id: &Digest) -> String {
    format!("image/{}/layerdb/sha256/{}", DRIVERS[driver].0, chain_id.hex())
}

impl GraphImage {
    /// The chain ids of its layers.
    pub fn chain_ids(&self) -> Vec<Digest> {
        self.chain.ids()
    }

    /// Writes it as `docker save` would, without the layers whose chain ids are in `known`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for layers that are not what they are said to be; those of reading.
    pub fn write(&self, out: PipeWriter, known: &BTreeSet<Digest>) -> Result<()> {
        let mut out = Writer::new(out);
        let config = config(&self.root, self.driver, &self.id)?;
        member(&mut out, "config.json", &config)?;
        let mut paths = Vec::new();
        for (n, (chain_id, layer)) in self.chain.ids().iter().zip(&self.chain.0).enumerate() {
            let path = format!("{n}/layer.tar");
            if !known.contains(chain_id) {
                self.layer(&mut out, &path, chain_id, &layer.diff_id)
                    .map_err(|e| e.context(format!("layer {}", layer.diff_id)))?;
            }
            paths.push(path);
        }
        let tags: Vec<String> = self.tags.iter().map(ToString::to_string).collect();
        let list = serde_json::json!([{
            "Config": "config.json", "RepoTags": tags, "Layers": paths,
        }]);
        member(&mut out, "manifest.json", list.to_string().as_bytes())?;
        let out = out.finish().map_err(unwritten)?;
        out.finish().map_err(|e| Error::io("hand over", "an image", e))
    }

    fn layer(
        &self,
        out: &mut Writer<PipeWriter>,
        path: &str,
        chain_id: &Digest,
        diff_id: &Digest,
    ) -> Result<()> {
        let at = layer_path(self.driver, chain_id);
        let cache_id = self.root.line(&format!("{at}/cache-id"))?;
        if cache_id.is_empty() || cache_id.starts_with('.') || cache_id.contains('/') {
            return Err(Error::invalid(format!("{cache_id:.80?} is no name of a directory")));
        }
        let (_, before, after) = DRIVERS[self.driver];
        let place = format!("{before}/{cache_id}/{after}");
        let place = place.trim_end_matches('/');
        let files = self.root.below(place)?;
        let files = files.ok_or_else(|| Error::invalid(format!("there is no {place}")))?;
        // Links that the layer made lead about in it, as they do for a process in the container.
        let open = |name: &[u8]| files.file(&inside(name), Links::InRoot);
        let pieces = || {
            let list = self.root.find(&format!("{at}/tar-split.json.gz"))?;
            let list = list.ok_or_else(|| Error::invalid("tar-split.json.gz is gone"))?;
            Ok::<_, Error>(Pieces::new(list))
        };
        let unreadable = |e| Error::invalid("cannot read tar-split.json.gz").caused_by(e);
        let size = pieces()?.total().map_err(unreadable)?;
        let mut archive = HashRead::new(Assembly::new(pieces()?, open));
        let entry = Entry { size, ..Entry::new(Kind::File, path, 0o644) };
        out.append(&entry, &mut archive).map_err(unwritten)?;
        if archive.read(&mut [0]).map_err(unreadable)? != 0 {
            return Err(Error::invalid("tar-split.json.gz has changed meanwhile"));
        }
        let (digest, _) = archive.hasher.finish();
        if digest == diff_id.as_str() {
            return Ok(());
        }
        let changed = changed_files(pieces()?, open, NAMED).map_err(unreadable)?;
        let why = match changed.as_slice() {
            [] => String::new(),
            changed => format!("; these files have changed: {}", changed.join(", ")),
        };
        Err(Error::invalid(format!("its archive has digest {digest}{why}")))
    }
}

/// A name of an archive as a path in the layer's directory.
fn inside(name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    name.strip_prefix("/").unwrap_or(name).to_owned()
}
