//! Content: the blob store and the metadata database, the truth that no driver owns.
//!
//! # Map
//!
//! - [`blobs`]: the blob store; `dirs`: where it keeps what
//! - `ingest`: blobs on their way in; `follow`: reading them meanwhile
//! - `pins`, `collect`: what must stay, and removing the rest
//! - [`metadata`]: records by table and key in one transactional database
//!
//! # Invariants
//!
//! 1. A blob that can be opened has the digest it is named after, and is on disk.
//! 2. A commit that has returned is on disk; one that failed changed nothing.
//! 3. One writer at a time for a digest that is known beforehand.
//! 4. Nothing is collected that an owner wants or a lease pins, nor while an owner does not answer.
//!
//! # Not here
//!
//! Which blobs are still needed: their owners know what refers to them.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use gantry_sdk::kinds::blobs::Blobs;
use gantry_sdk::kinds::metadata::Metadata;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Context, Descriptor, Init, Phase, Plugin, Provide, Registration, Result};

pub mod blobs;
mod collect;
mod dirs;
mod follow;
mod ingest;
pub mod metadata;
mod pins;

use blobs::FileBlobs;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Blobs::NAME, "local"), Provide::new(Metadata::NAME, "local")],
    ..Descriptor::new("content", Phase::Content)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(Content::default())) }

#[derive(Default)]
struct Content(OnceLock<Arc<FileBlobs>>);

#[async_trait]
impl Plugin for Content {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let (blobs, database) = (cx.data_dir("blobs")?, cx.data_dir("metadata")?);
        let registry = cx.registry.clone();
        let (blobs, metadata) = tokio::task::spawn_blocking(move || -> Result<_> {
            Ok((
                Arc::new(FileBlobs::open(&blobs, registry)?),
                metadata::Database::open(&database.join("gantry.redb"))?,
            ))
        })
        .await??;
        cx.provide::<Blobs>("local", blobs.clone())?;
        let _ = self.0.set(blobs);
        cx.provide::<Metadata>("local", Arc::new(metadata))?;
        Ok(Init::Ready)
    }

    /// Only now every owner of content can say what it wants.
    async fn started(&self) -> Result<()> {
        if let Some(blobs) = self.0.get() {
            blobs.owners_complete();
        }
        Ok(())
    }
}
