//! `docker save`: images as an OCI layout with a `manifest.json` beside it.
//!
//! Blobs go out as they are stored, so digests and sizes are known before the first byte and
//! nothing is written to disk on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use gantry_api::image::OciDescriptor;
use gantry_archive::{Entry as Member, Kind, Time, Writer};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::BlobStore;
use gantry_sdk::route::BodySender;
use gantry_sdk::{Ctx, Error, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::index::{Entry, Index};
use crate::platform::Platform;
use crate::record::signed;
use crate::store::Store;
use gantry_sdk::reference::{AnyReference, Reference};

/// Media type of manifests.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Bytes handed to the connection at once.
const CHUNK: usize = 128 << 10;
/// Most bytes of a manifest that was kept.
const MAX_MANIFEST: u64 = 4 << 20;

/// An image to save, and the tags it is saved under.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The image.
    pub entry: Arc<Entry>,
    /// Tagged names.
    pub tags: Vec<Reference>,
}

/// The images that `names` mean: a repository means all its tags.
///
/// # Errors
///
/// `InvalidArgument`; `NotFound`, also if an image is for no platform of `wanted`.
pub fn select<'a>(
    index: &Index,
    names: impl Iterator<Item = &'a str>,
    wanted: &[Platform],
) -> Result<Vec<Selected>> {
    let mut selected: BTreeMap<Digest, Selected> = BTreeMap::new();
    for name in names {
        for (id, tag) in meant(index, name)? {
            let missing = || Error::not_found(format!("No such image: {name}"));
            let entry = index.get(&id).ok_or_else(missing)?.clone();
            let file = &entry.file;
            let has = Platform::new(file.os(), &file.architecture, &file.variant);
            if !wanted.is_empty() && !wanted.iter().any(|w| w.accepts(&has)) {
                let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
                return Err(Error::not_found(format!(
                    "no suitable export target found for platform {}",
                    wanted.join(", ")
                )));
            }
            let known = selected.entry(id).or_insert_with(|| Selected { entry, tags: Vec::new() });
            known.tags.extend(tag.filter(|tag| !known.tags.contains(tag)));
        }
    }
    if selected.is_empty() {
        return Err(Error::invalid("no image names given"));
    }
    Ok(selected.into_values().collect())
}

fn meant(index: &Index, name: &str) -> Result<Vec<(Digest, Option<Reference>)>> {
    let by_id = || Ok(vec![(index.resolve(name, None)?.id.clone(), None)]);
    let AnyReference::Named(reference) = AnyReference::parse(name)? else { return by_id() };
    if reference.is_name_only() {
        let of_repository: Vec<_> = index
            .of_repository(&reference)
            .map(|named| {
                let tag = Some(named.reference.clone()).filter(|r| !r.is_digested());
                (named.image.clone(), tag)
            })
            .collect();
        return if of_repository.is_empty() { by_id() } else { Ok(of_repository) };
    }
    let stored = reference.stored();
    match index.named(&stored) {
        Some(id) => Ok(vec![(id.clone(), Some(stored).filter(|r| !r.is_digested()))]),
        None if stored.familiar_name() == "sha256" => by_id(),
        None => Err(Error::not_found("reference does not exist")),
    }
}

/// Writes the archive to `sender`; breaks it off if content is missing.
pub async fn save(store: Arc<Store>, cx: Ctx, selected: Vec<Selected>, sender: BodySender) {
    let blobs = store.blobs.clone();
    let to_report = selected.clone();
    let out = sender.clone();
    let written = tokio::task::spawn_blocking(move || {
        let out = ToBody { sender: out, buffer: Vec::with_capacity(CHUNK) };
        Session { blobs, cx, writer: Writer::new(out), done: BTreeSet::new() }.run(&selected)
    });
    match written.await.map_err(Error::from).and_then(|result| result) {
        Ok(()) => {
            for Selected { entry, .. } in to_report {
                store.report("save", &entry, entry.id.to_string());
            }
        }
        Err(error) => {
            sender.abort(error).await;
        }
    }
}

struct Session {
    blobs: Arc<dyn BlobStore>,
    cx: Ctx,
    writer: Writer<ToBody>,
    /// Blobs that are in the archive already: layers are shared.
    done: BTreeSet<Digest>,
}

impl Session {
    fn run(mut self, selected: &[Selected]) -> Result<()> {
        self.directory("blobs/")?;
        self.directory("blobs/sha256/")?;
        let ids: BTreeSet<&Digest> = selected.iter().map(|s| &s.entry.id).collect();
        let (mut manifests, mut items) = (Vec::new(), Vec::new());
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for Selected { entry, tags } in selected {
            for layer in &entry.record.layers {
                self.blob(&layer.blob, entry)?;
            }
            self.blob(&entry.id, entry)?;
            let descriptor = self.manifest(entry)?;
            if tags.is_empty() {
                manifests.push(descriptor.clone());
            }
            for reference in tags {
                manifests.push(named(&descriptor, reference));
                if let (Some(tag), Some(top)) = (reference.tag(), entry.record.layers.last()) {
                    let of_name = repositories.entry(reference.familiar_name()).or_default();
                    of_name.insert(tag.to_owned(), top.blob.hex().to_owned());
                }
            }
            items.push(item(entry, tags, &ids));
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        });
        self.file("index.json", index.to_string().as_bytes())?;
        self.file("manifest.json", json!(items).to_string().as_bytes())?;
        self.file("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
        if !repositories.is_empty() {
            self.file("repositories", json!(repositories).to_string().as_bytes())?;
        }
        self.writer.finish().map(drop).map_err(failed)
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        let member = Member::new(Kind::Directory, name, 0o755);
        self.writer.append(&member, &mut io::empty()).map_err(failed)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut member = Member::new(Kind::File, name, 0o644);
        member.size = bytes.len() as u64;
        self.writer.append(&member, &mut &*bytes).map_err(failed)
    }

    /// A blob of the store.
    fn blob(&mut self, digest: &Digest, entry: &Entry) -> Result<()> {
        if !self.done.insert(digest.clone()) {
            return Ok(());
        }
        let runtime = tokio::runtime::Handle::current();
        let mut file = runtime.block_on(self.blobs.open(&self.cx, digest))?;
        let size = file.metadata().map_err(|e| Error::io("stat", format!("blob {digest}"), e))?;
        let mut member = Member::new(Kind::File, path(digest), 0o644);
        member.size = size.len();
        member.mtime = Time { seconds: entry.created_seconds(), nanos: 0 };
        self.writer.append(&member, &mut (&mut file as &mut dyn Read)).map_err(failed)
    }

    /// The manifest it came with, or one of our own; returns its descriptor.
    fn manifest(&mut self, entry: &Entry) -> Result<OciDescriptor> {
        let bytes = match &entry.record.manifest {
            Some(digest) => {
                let runtime = tokio::runtime::Handle::current();
                runtime.block_on(self.blobs.read(&self.cx, digest, MAX_MANIFEST))?
            }
            None => own_manifest(entry).to_string().into_bytes(),
        };
        let digest = Digest::from_sha256(&Sha256::digest(&bytes).into());
        if self.done.insert(digest.clone()) {
            self.file(&path(&digest), &bytes)?;
        }
        let media_type = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|manifest| manifest["mediaType"].as_str().map(str::to_owned))
            .unwrap_or_else(|| MANIFEST.to_owned());
        Ok(OciDescriptor {
            media_type,
            digest: digest.to_string(),
            size: signed(bytes.len() as u64),
            ..OciDescriptor::default()
        })
    }
}

/// A manifest for an image that came without one; the same each time.
pub fn own_manifest(entry: &Entry) -> Value {
    let layers: Vec<Value> = entry
        .record
        .layers
        .iter()
        .map(|l| json!({"mediaType": l.media_type, "digest": l.blob, "size": l.bytes}))
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": entry.id, "size": entry.record.config_bytes},
        "layers": layers,
    })
}

fn named(descriptor: &OciDescriptor, reference: &Reference) -> OciDescriptor {
    let mut named = descriptor.clone();
    named.annotations.insert("io.containerd.image.name".to_owned(), reference.to_string());
    let tag = reference.tag().unwrap_or_default().to_owned();
    named.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
    named
}

/// The image's item of `manifest.json`.
fn item(entry: &Entry, tags: &[Reference], ids: &BTreeSet<&Digest>) -> Value {
    let layers = &entry.record.layers;
    let sources: BTreeMap<&Digest, Value> = layers
        .iter()
        .map(|l| {
            let source = json!({"mediaType": l.media_type, "size": l.bytes, "digest": l.blob});
            (&l.diff_id, source)
        })
        .collect();
    let tags: Vec<String> = tags.iter().map(Reference::familiar).collect();
    let mut item = json!({
        "Config": path(&entry.id),
        "RepoTags": (!tags.is_empty()).then_some(tags),
        "Layers": layers.iter().map(|l| path(&l.blob)).collect::<Vec<_>>(),
        "LayerSources": sources,
    });
    if let Some(parent) = entry.record.parent.as_ref().filter(|parent| ids.contains(parent)) {
        item["Parent"] = json!(parent);
    }
    item
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn failed(error: gantry_archive::ArchiveError) -> Error {
    Error::internal("cannot write the archive", error)
}

/// A response's body as a sink for a blocking thread.
struct ToBody {
    sender: BodySender,
    buffer: Vec<u8>,
}

impl ToBody {
    fn send(&mut self) -> io::Result<()> {
        let bytes = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        if bytes.is_empty() || self.sender.blocking_send(Bytes::from(bytes)) {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"))
        }
    }
}

impl Write for ToBody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
