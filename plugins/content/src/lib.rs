//! Content: the blob store and the metadata database, the truth that no driver owns.
//!
//! # Map
//!
//! - [`blobs`]: files named by their digest, written aside and renamed into place
//! - [`metadata`]: records by table and key in one transactional database
//!
//! # Invariants
//!
//! 1. A blob that can be opened has the digest it is named after, and is on disk.
//! 2. A commit that has returned is on disk; one that failed changed nothing.
//!
//! # Not here
//!
//! Which blobs are still needed: the image store knows what refers to them.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::blobs::Blobs;
use gantry_sdk::kinds::metadata::Metadata;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Context, Descriptor, Init, Phase, Plugin, Provide, Registration, Result};

pub mod blobs;
pub mod metadata;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Blobs::NAME, "local"), Provide::new(Metadata::NAME, "local")],
    ..Descriptor::new("content", Phase::Content)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(Content)) }

struct Content;

#[async_trait]
impl Plugin for Content {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let (blobs, database) = (cx.data_dir("blobs")?, cx.data_dir("metadata")?);
        let (blobs, metadata) = tokio::task::spawn_blocking(move || -> Result<_> {
            Ok((
                blobs::FileBlobs::open(&blobs)?,
                metadata::Database::open(&database.join("gantry.redb"))?,
            ))
        })
        .await??;
        cx.provide::<Blobs>("local", Arc::new(blobs))?;
        cx.provide::<Metadata>("local", Arc::new(metadata))?;
        Ok(Init::Ready)
    }
}
