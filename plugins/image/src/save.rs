//! `docker save`: images as an OCI layout with a `manifest.json` beside it.
//!
//! Blobs go out as they are stored, so digests and sizes are known before the first byte, nothing
//! is written to disk on the way, and nothing is hashed again.

pub mod select;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::Arc;

use gantry_api::image::OciDescriptor;
use gantry_archive::{Entry as Member, Kind, Time, Writer};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobStore, Lease};
use gantry_sdk::reference::Reference;
use gantry_sdk::route::{BodySender, BodyWriter};
use gantry_sdk::{Ctx, Error, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::index::Entry;
use crate::pull::manifest::{Document, Manifest};
use crate::record::signed;
use crate::store::Store;
pub use select::{Selected, select};

/// Media type of manifests.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Bytes handed to the connection at once.
const PIECE: usize = 1 << 20;
/// Most bytes of a manifest that was kept.
const MAX_MANIFEST: u64 = 4 << 20;

/// Pins everything that will be saved, so that nobody removes it meanwhile.
pub fn pin(lease: &Lease, selected: &[Selected]) {
    for item in selected {
        item.indexes.iter().for_each(|index| lease.pin(index));
        for image in &item.images {
            let blobs = std::iter::once(&image.entry.id).chain(image.entry.record.blobs());
            blobs.chain(&image.manifest).for_each(|blob| lease.pin(blob));
        }
        for statement in &item.statements {
            lease.pin(&statement.digest);
            statement.blobs.iter().for_each(|blob| lease.pin(&blob.digest));
        }
    }
}

/// Writes the archive to `sender`; breaks it off if content is missing.
pub async fn save(store: Arc<Store>, cx: Ctx, selected: Vec<Selected>, sender: BodySender) {
    let blobs = store.blobs.clone();
    let out = sender.clone();
    let (saved, of_work) = (selected.clone(), cx.clone());
    let written = tokio::task::spawn_blocking(move || {
        let writer = Writer::new(BodyWriter::new(out, PIECE));
        Session { blobs, cx: of_work, writer, done: BTreeSet::new() }.run(&selected)
    });
    match written.await.map_err(Error::from).and_then(|result| result) {
        Ok(()) => {
            for entry in saved.iter().filter_map(|s| Some(&s.images.first()?.entry)) {
                store.report("save", entry, entry.id.to_string());
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
    writer: Writer<BodyWriter>,
    /// Blobs that are in the archive already: layers are shared.
    done: BTreeSet<Digest>,
}

impl Session {
    fn run(mut self, selected: &[Selected]) -> Result<()> {
        self.directory("blobs/")?;
        self.directory("blobs/sha256/")?;
        let ids: BTreeSet<&Digest> =
            selected.iter().flat_map(|s| &s.images).map(|image| &image.entry.id).collect();
        let (mut manifests, mut items) = (Vec::new(), Vec::new());
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for Selected { descriptor, indexes, images, statements, tags } in selected {
            let mut shown = None;
            for image in images {
                let saved = self.image(image)?;
                shown.get_or_insert((saved, &image.entry));
            }
            for digest in indexes {
                self.blob(digest, 0)?;
            }
            for statement in statements {
                statement.blobs.iter().try_for_each(|blob| self.blob(&blob.digest, 0))?;
                self.blob(&statement.digest, 0)?;
            }
            let Some(((own, manifest), entry)) = shown else { continue };
            let descriptor = descriptor.as_ref().unwrap_or(&own);
            if tags.is_empty() {
                manifests.push(without_name(descriptor));
            }
            for reference in tags {
                manifests.push(named(descriptor, reference));
                if let (Some(tag), Some(top)) = (reference.tag(), manifest.layers.last()) {
                    let of_name = repositories.entry(reference.familiar_name()).or_default();
                    let top = top.digest.trim_start_matches("sha256:");
                    of_name.insert(tag.to_owned(), top.to_owned());
                }
            }
            items.push(item(entry, &manifest, tags, &ids));
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

    /// Layers, configuration and manifest of an image; the manifest and its descriptor.
    fn image(&mut self, image: &select::Image) -> Result<(OciDescriptor, Manifest)> {
        let entry = &image.entry;
        let bytes = match &image.manifest {
            Some(digest) => {
                let runtime = tokio::runtime::Handle::current();
                runtime.block_on(self.blobs.read(&self.cx, digest, MAX_MANIFEST))?
            }
            None => own_manifest(entry).to_string().into_bytes(),
        };
        let Document::Manifest(manifest) = Document::parse(&bytes)? else {
            let id = &entry.id;
            return Err(Error::invalid(format!("the manifest of image {id} is an index")));
        };
        let created = entry.created_seconds();
        for layer in &manifest.layers {
            self.layer(layer, created)?;
        }
        self.blob(&entry.id, created)?;
        let digest = Digest::from_sha256(&Sha256::digest(&bytes).into());
        if self.done.insert(digest.clone()) {
            self.file(&path(digest.hex()), &bytes)?;
        }
        Ok((descriptor_of(&digest, &bytes), *manifest))
    }

    /// A layer; one that may not be distributed is left out if it is not here.
    fn layer(&mut self, layer: &OciDescriptor, created: i64) -> Result<()> {
        let digest: Digest = layer.digest.parse()?;
        if crate::pull::manifest::is_foreign(&layer.media_type) {
            let runtime = tokio::runtime::Handle::current();
            if runtime.block_on(self.blobs.stat(&self.cx, &digest)).is_err() {
                return Ok(());
            }
        }
        self.blob(&digest, created)
    }

    /// A blob of the store.
    fn blob(&mut self, digest: &Digest, created: i64) -> Result<()> {
        if !self.done.insert(digest.clone()) {
            return Ok(());
        }
        let runtime = tokio::runtime::Handle::current();
        let mut file = runtime.block_on(self.blobs.open(&self.cx, digest))?;
        let size = file.metadata().map_err(|e| Error::io("stat", format!("blob {digest}"), e))?;
        let mut member = Member::new(Kind::File, path(digest.hex()), 0o644);
        member.size = size.len();
        member.mtime = Time { seconds: created, nanos: 0 };
        self.writer.append(&member, &mut (&mut file as &mut dyn Read)).map_err(failed)
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

/// The descriptor of that manifest; None for an image that came with one.
pub fn own_descriptor(entry: &Entry) -> Option<OciDescriptor> {
    if entry.record.manifest.is_some() {
        return None;
    }
    let bytes = own_manifest(entry).to_string().into_bytes();
    Some(descriptor_of(&Digest::from_sha256(&Sha256::digest(&bytes).into()), &bytes))
}

fn descriptor_of(digest: &Digest, bytes: &[u8]) -> OciDescriptor {
    let media_type = serde_json::from_slice::<Value>(bytes)
        .ok()
        .and_then(|manifest| manifest["mediaType"].as_str().map(str::to_owned))
        .unwrap_or_else(|| MANIFEST.to_owned());
    OciDescriptor {
        media_type,
        digest: digest.to_string(),
        size: signed(bytes.len() as u64),
        ..OciDescriptor::default()
    }
}

const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn named(descriptor: &OciDescriptor, reference: &Reference) -> OciDescriptor {
    let mut named = descriptor.clone();
    named.annotations.insert(FULL_NAME.to_owned(), reference.to_string());
    let tag = reference.tag().unwrap_or_default().to_owned();
    named.annotations.insert(REF_NAME.to_owned(), tag);
    named
}

/// A name that the descriptor has from elsewhere was not asked for.
fn without_name(descriptor: &OciDescriptor) -> OciDescriptor {
    let mut nameless = descriptor.clone();
    nameless.annotations.retain(|key, _| key != FULL_NAME && key != REF_NAME);
    nameless
}

/// The image's item of `manifest.json`.
fn item(entry: &Entry, manifest: &Manifest, tags: &[Reference], ids: &BTreeSet<&Digest>) -> Value {
    let hex = |descriptor: &OciDescriptor| path(descriptor.digest.trim_start_matches("sha256:"));
    let sources: BTreeMap<&str, Value> = entry
        .file
        .rootfs
        .diff_ids
        .iter()
        .zip(&manifest.layers)
        .map(|(diff_id, l)| {
            let source = json!({"mediaType": l.media_type, "size": l.size, "digest": l.digest});
            (diff_id.as_str(), source)
        })
        .collect();
    let tags: Vec<String> = tags.iter().map(Reference::familiar).collect();
    let mut item = json!({
        "Config": path(entry.id.hex()),
        "RepoTags": (!tags.is_empty()).then_some(tags),
        "Layers": manifest.layers.iter().map(hex).collect::<Vec<_>>(),
        "LayerSources": sources,
    });
    if let Some(parent) = entry.record.parent.as_ref().filter(|parent| ids.contains(parent)) {
        item["Parent"] = json!(parent);
    }
    item
}

fn path(hex: &str) -> String {
    format!("blobs/sha256/{hex}")
}

fn failed(error: gantry_archive::ArchiveError) -> Error {
    Error::internal("cannot write the archive", error)
}
