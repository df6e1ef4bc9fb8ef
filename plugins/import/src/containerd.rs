//! What a containerd image store has: blobs as they were pulled, and a database of names.
//!
//! | path | holds |
//! |---|---|
//! | `io.containerd.content.v1.content/blobs/sha256/<hex>` | blobs |
//! | `io.containerd.metadata.v1.bolt/meta.db` | `v1/<namespace>/images/<name>/target/{digest,mediatype}` |
//!
//! The engine's own containerd has its root in `containerd/daemon` beneath the data root; that of the
//! system has its own, `/var/lib/containerd`.
//!
//! Source: `core/metadata/buckets.go` and `plugins/content/local` of containerd.

use std::collections::BTreeMap;

use gantry_archive::{Entry, Kind, Writer};
use gantry_sdk::id::Digest;
use gantry_sdk::reference::Reference;
use gantry_sdk::{Error, Result};
use serde::Deserialize;
use serde_json::json;

use crate::bolt::{Bolt, Bucket, Value};
use crate::pipe::PipeWriter;
use crate::run::{member, unwritten};
use crate::source::Directory;

const ROOTS: &[&str] = &["", "containerd/daemon/", "containerd/"];
const DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.db";
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// Images without a name are kept under one that begins so.
const DANGLING: &str = "moby-dangling@";
/// Most bytes of an index or manifest.
const MAX_DOCUMENT: usize = 4 << 20;
/// Indexes within indexes.
const MAX_DEPTH: u32 = 4;
/// Most blobs of one image.
const MAX_BLOBS: usize = 16 << 10;

/// What one or more names point at.
#[derive(Clone, Debug)]
pub struct Target {
    /// Digest of an index or manifest.
    pub digest: Digest,
    /// Its names.
    pub names: Vec<Reference>,
    /// Bytes of what is there of it.
    pub bytes: u64,
    media_type: String,
    blobs: BTreeMap<Digest, u64>,
    root: Directory,
    at: &'static str,
}

/// What a data root has of a containerd image store.
#[derive(Debug, Default)]
pub struct Found {
    /// Its images.
    pub images: Vec<Target>,
    /// Images that cannot be read: digest, names, why.
    pub broken: Vec<(String, Vec<String>, String)>,
    /// What was left out.
    pub notes: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
}

/// Looks for images of `namespace` beneath `root`.
///
/// # Errors
///
/// `InvalidArgument` for a damaged database; those of reading.
pub fn find(root: &Directory, namespace: &str) -> Result<Found> {
    let mut found = Found::default();
    for at in ROOTS {
        let Some(file) = root.find(&format!("{at}{DATABASE}"))? else { continue };
        let database = Bolt::open(file)?;
        let named = names(&database, namespace, &mut found)?;
        for (digest, (media_type, names)) in named {
            let mut target = Target {
                digest,
                names,
                bytes: 0,
                media_type,
                blobs: BTreeMap::new(),
                root: root.clone(),
                at,
            };
            match target.walk(&target.digest.clone(), 0) {
                Ok(()) => {
                    target.bytes = target.blobs.values().sum();
                    found.images.push(target);
                }
                Err(error) => {
                    let names = target.names.iter().map(Reference::familiar).collect();
                    found.broken.push((target.digest.to_string(), names, error.chain()));
                }
            }
        }
    }
    Ok(found)
}

/// Media types and names by target.
fn names(
    database: &Bolt,
    namespace: &str,
    found: &mut Found,
) -> Result<BTreeMap<Digest, (String, Vec<Reference>)>> {
    let mut named = BTreeMap::<Digest, (String, Vec<Reference>)>::new();
    let Some(v1) = database.bucket(&database.root(), "v1")? else { return Ok(named) };
    for (key, value) in database.entries(&v1)? {
        let Value::Bucket(space) = value else { continue };
        let Some(images) = database.bucket(&space, "images")? else { continue };
        let images = database.entries(&images)?;
        if key != namespace.as_bytes() {
            if !images.is_empty() {
                let (count, name) = (images.len(), key.escape_ascii());
                found.notes.push(format!(
                    "{count} images of the namespace {name} are left out; ask for them by --namespace"
                ));
            }
            continue;
        }
        for (name, image) in images {
            let Value::Bucket(image) = image else { continue };
            let name = String::from_utf8_lossy(&name).into_owned();
            let Some((digest, media_type)) = target(database, &image)? else {
                found.notes.push(format!("the image {name:.200?} is left out: it has no target"));
                continue;
            };
            let (_, names) = named.entry(digest).or_insert_with(|| (media_type, Vec::new()));
            if name.starts_with(DANGLING) {
                continue;
            }
            match Reference::parse(&name) {
                Ok(reference) => names.push(reference),
                Err(_) => {
                    let why = "it is no valid one";
                    found.notes.push(format!("the name {name:.200?} is left out: {why}"));
                }
            }
        }
    }
    Ok(named)
}

fn target(database: &Bolt, image: &Bucket) -> Result<Option<(Digest, String)>> {
    let Some(target) = database.bucket(image, "target")? else { return Ok(None) };
    let mut texts = BTreeMap::new();
    for (key, value) in database.entries(&target)? {
        if let Value::Bytes(value) = value {
            texts.insert(key, String::from_utf8_lossy(&value).into_owned());
        }
    }
    let digest = texts.get(b"digest".as_slice()).and_then(|text| text.parse().ok());
    let media_type = texts.remove(b"mediatype".as_slice()).unwrap_or_default();
    Ok(digest.map(|digest| (digest, media_type)))
}

impl Target {
    fn blob_path(&self, digest: &Digest) -> String {
        format!("{}{BLOBS}/{}", self.at, digest.hex())
    }

    /// Notes a blob if it is there.
    fn note(&mut self, digest: &Digest) -> Result<bool> {
        if self.blobs.contains_key(digest) {
            return Ok(true);
        }
        if self.blobs.len() >= MAX_BLOBS {
            return Err(Error::invalid(format!("more than {MAX_BLOBS} blobs of one image")));
        }
        let path = self.blob_path(digest);
        let Some(file) = self.root.find(&path)? else { return Ok(false) };
        let size = file.metadata().map_err(|e| Error::io("read", &path, e))?.len();
        self.blobs.insert(digest.clone(), size);
        Ok(true)
    }

    /// Notes everything that is there of a manifest or index.
    fn walk(&mut self, digest: &Digest, depth: u32) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid("indexes are nested too deeply"));
        }
        if self.blobs.contains_key(digest) {
            return Ok(());
        }
        if !self.note(digest)? {
            // What is for other platforms need not be there.
            let missing = || Error::invalid(format!("there is no blob {digest}"));
            return if depth > 0 { Ok(()) } else { Err(missing()) };
        }
        let text = self.root.small(&self.blob_path(digest), MAX_DOCUMENT)?.unwrap_or_default();
        let document: Document = serde_json::from_slice(&text).map_err(|e| {
            Error::invalid(format!("cannot understand the manifest {digest}")).caused_by(e)
        })?;
        for below in document.manifests.unwrap_or_default() {
            self.walk(&below.digest, depth + 1)?;
        }
        for blob in document.config.into_iter().chain(document.layers.unwrap_or_default()) {
            self.note(&blob.digest)?;
        }
        Ok(())
    }

    /// Writes it as an OCI image layout. The digests of what is written are for the reader to
    /// compare.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub fn write(&self, out: PipeWriter) -> Result<()> {
        let mut out = Writer::new(out);
        member(&mut out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let size = self.blobs.get(&self.digest).copied().unwrap_or_default();
        let entry = |annotations| {
            json!({
                "mediaType": self.media_type, "digest": self.digest.as_str(), "size": size,
                "annotations": annotations,
            })
        };
        let mut manifests: Vec<_> = (self.names.iter())
            .map(|name| entry(json!({ "io.containerd.image.name": name.to_string() })))
            .collect();
        if manifests.is_empty() {
            manifests.push(entry(json!({})));
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        member(&mut out, "index.json", index.to_string().as_bytes())?;
        for (digest, size) in &self.blobs {
            let path = self.blob_path(digest);
            let missing = || Error::invalid(format!("blob {digest} is gone"));
            let mut file = self.root.find(&path)?.ok_or_else(missing)?;
            let name = format!("blobs/sha256/{}", digest.hex());
            let entry = Entry { size: *size, ..Entry::new(Kind::File, name, 0o644) };
            out.append(&entry, &mut file).map_err(unwritten)?;
        }
        let out = out.finish().map_err(unwritten)?;
        out.finish().map_err(|e| Error::io("hand over", "an image", e))
    }
}
