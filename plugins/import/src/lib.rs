//! Images of an engine that was here before, read from its data root: `gantryd import <data root>`.
//!
//! A data root holds images in one of two ways, or in both. Graph drivers keep layers as
//! directories, and beside them what the archives were made of (`tar-split`), from which each
//! archive is put together again, byte for byte. The containerd image store keeps the blobs as they
//! were pulled. Either way an image becomes an archive stream for the image store, so nothing large
//! is in memory, nor on disk twice.
//!
//! Of graph drivers an image keeps its id and its layers their diff ids; the compressed layers and
//! the manifest it was pulled with are gone, and with them the names by digest. Of the containerd
//! image store everything keeps its digest.
//!
//! # Map
//!
//! - [`source`]: reading beneath a directory
//! - [`graph`] with [`tarsplit`]: graph drivers
//! - [`containerd`] with [`bolt`]: the containerd image store
//! - [`run`] with [`pipe`]: image by image into the image store
//! - [`handlers`], [`wire`]: `/x/import/images`
//! - [`command`]: `gantryd import`, a client of that route
//!
//! # Invariants
//!
//! 1. Nothing beneath the data root is written, not even a time of access where the kernel can help
//!    it: a read-only mount does.
//! 2. Nothing beneath the data root is trusted: every layer and blob is compared with its digest.
//! 3. An image that cannot be read does not stop the others.
//!
//! # Not here
//!
//! Containers and volumes: they are counted, and stay where they are.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::images::Images;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Context, Descriptor, Init, Need, Phase, Plugin, Registration, Result};

pub mod bolt;
pub mod command;
pub mod containerd;
pub mod graph;
pub mod handlers;
pub mod pipe;
pub mod run;
pub mod source;
pub mod tarsplit;
pub mod wire;

static DESCRIPTOR: Descriptor = Descriptor {
    needs: &[Need::Kind(Images::NAME)],
    routes: handlers::ROUTES,
    commands: command::COMMANDS,
    required: false,
    ..Descriptor::new("import", Phase::Image)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(ImportPlugin)) }

struct ImportPlugin;

#[async_trait]
impl Plugin for ImportPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let images = cx.registry.only::<Images>()?;
        let importer = Arc::new(run::Importer::new(images, cx.tasks.clone()));
        cx.route("images", &importer, handlers::images);
        Ok(Init::Ready)
    }
}

#[cfg(test)]
mod tests;
