//! Layers that are plain archives are compressed before they are pushed: once, since the image's
//! record names the result from then on, and the next push sends the same manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, BlobWriter, Lease};
use gantry_sdk::{Ctx, Error, Result};
use tokio_util::sync::CancellationToken;

use crate::index::Entry;
use crate::record::{ImageRecord, LayerRecord};
use crate::store::{Store, put_image};

/// Smaller ones are sent as they are.
const WORTHWHILE: u64 = 64 << 10;
/// What one thread compresses at once, as a gzip member of its own (RFC 1952, 2.2): readers of
/// gzip take the members one after another as one stream.
const PIECE: usize = 2 << 20;
/// Threads, and with them the memory for pieces, are bounded.
const MOST_THREADS: usize = 8;
/// What the pushed layers are. Gzip, because every registry and every client knows it.
const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Compresses the layers of the image that are plain archives, if nothing depends on their being
/// so: the image came without a manifest, and no registry has them. `doing` hears of each before
/// it is begun. What is written is kept by `lease`.
///
/// # Errors
///
/// `Internal` for a blob that is damaged; those of the stores.
pub(crate) async fn pack(
    store: &Store,
    cx: &Ctx,
    entry: &Entry,
    lease: &Lease,
    doing: impl Fn(&LayerRecord),
) -> Result<()> {
    let mut packed: BTreeMap<Digest, BlobInfo> = BTreeMap::new();
    for layer in plain_layers(store, &entry.record) {
        lease.pin(&layer.blob);
        if packed.contains_key(&layer.blob) {
            continue;
        }
        doing(layer);
        let file = store.blobs.open(cx, &layer.blob).await?;
        let writer = store.blobs.writer(cx, lease).await?;
        let (digest, gone) = (layer.diff_id.clone(), CancellationToken::new());
        let guard = gone.clone().drop_guard();
        let work = move || compress(file, writer, &digest, &gone);
        packed.insert(layer.blob.clone(), tokio::task::spawn_blocking(work).await??);
        drop(guard);
    }
    if packed.is_empty() {
        return Ok(());
    }
    record(store, cx, &packed).await
}

fn plain_layers<'a>(
    store: &'a Store,
    record: &'a ImageRecord,
) -> impl Iterator<Item = &'a LayerRecord> {
    let is_own = record.manifest.is_none();
    record.layers.iter().filter(move |layer| {
        let is_plain = layer.blob == layer.diff_id && layer.bytes > WORTHWHILE;
        is_own && is_plain && store.repositories(&layer.blob).is_empty()
    })
}

/// Every image that names one of the plain blobs, and came without a manifest, names the compressed
/// one instead.
async fn record(store: &Store, cx: &Ctx, packed: &BTreeMap<Digest, BlobInfo>) -> Result<()> {
    let concerned = |entry: &&Arc<Entry>| {
        let mut layers = entry.record.layers.iter();
        entry.record.manifest.is_none() && layers.any(|layer| packed.contains_key(&layer.blob))
    };
    let mut used = Vec::new();
    for entry in store.index().stored().filter(concerned) {
        if !store.users(cx, &entry.id).await?.is_empty() {
            used.push(entry.id.clone());
        }
    }
    store
        .change(cx, |index| {
            let entries: Vec<Arc<Entry>> = index.stored().filter(concerned).cloned().collect();
            let mut changes = Vec::with_capacity(entries.len());
            for entry in entries {
                let mut entry = Entry::clone(&entry);
                let is_used = used.contains(&entry.id);
                replace(&mut entry.record, packed, is_used);
                changes.push(put_image(&entry)?);
                index.put(entry);
            }
            Ok((changes, ()))
        })
        .await?;
    store.mark_litter();
    Ok(())
}

fn replace(record: &mut ImageRecord, packed: &BTreeMap<Digest, BlobInfo>, is_used: bool) {
    for layer in &mut record.layers {
        let Some(info) = packed.get(&layer.blob) else { continue };
        let plain = std::mem::replace(&mut layer.blob, info.digest.clone());
        MEDIA_TYPE.clone_into(&mut layer.media_type);
        layer.bytes = info.size;
        // Containers remember their layers by these blobs.
        if is_used && !record.replaced.contains(&plain) {
            record.replaced.push(plain);
        }
    }
}

/// Compresses `file`, whose content must have the digest `expected`, on all cores. Blocking.
fn compress(
    mut file: File,
    mut blob: Box<dyn BlobWriter>,
    expected: &Digest,
    gone: &CancellationToken,
) -> Result<BlobInfo> {
    let failed = |e: io::Error| Error::io("compress", format!("blob {expected}"), e);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let mut pieces = vec![Vec::with_capacity(PIECE); threads];
    let mut plain = gantry_archive::Hasher::default();
    loop {
        if gone.is_cancelled() {
            return Err(Error::new(gantry_sdk::ErrorKind::Deadline, "the client is gone"));
        }
        for piece in &mut pieces {
            piece.clear();
            (&mut file).take(PIECE as u64).read_to_end(piece).map_err(failed)?;
        }
        if pieces[0].is_empty() {
            break;
        }
        let members = std::thread::scope(|scope| {
            let full = pieces.iter().filter(|piece| !piece.is_empty());
            let work = full.clone().map(|piece| scope.spawn(|| member(piece))).collect::<Vec<_>>();
            full.for_each(|piece| plain.update(piece)); // meanwhile
            work.into_iter()
                .map(|work| work.join().unwrap_or_else(|_| Err(io::Error::other("a panic"))))
                .collect::<io::Result<Vec<_>>>()
        });
        for member in members.map_err(failed)? {
            blob.write_all(&member).map_err(failed)?;
        }
    }
    let (found, _) = plain.finish();
    if found != expected.as_str() {
        let text = format!("blob {expected} is damaged: its content is {found}");
        return Err(Error::new(gantry_sdk::ErrorKind::Internal, text));
    }
    blob.commit(None)
}

fn member(piece: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(piece.len() / 2), Compression::fast());
    encoder.write_all(piece)?;
    encoder.finish()
}
