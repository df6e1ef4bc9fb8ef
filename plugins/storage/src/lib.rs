//! The layer store: images' chains of layers, unpacked by a storage instance on demand, and the
//! writable layers of containers.
//!
//! # Map
//!
//! - [`store`]: the kind `layers` over every storage instance
//! - [`unpack`]: from a blob to a committed layer
//! - [`flight`]: one at a time for each name
//! - [`settings`]: which instance is the default
//!
//! # Invariants
//!
//! 1. A committed layer is complete: it is unpacked under another key and renamed.
//! 2. Images belong to no instance: a chain that is missing is made again from its blobs.
//! 3. A container's layer stays on the instance it was made on.
//!
//! # Not here
//!
//! Where directories lie and how they are stacked: the drivers (`overlay2`, `vfs`, …) say so as mount
//! plans, and the kernel mounts.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::info::Info;
use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Context, Descriptor, Init, Need, Phase, Plugin, Provide, Registration, Result};

pub mod flight;
pub mod settings;
pub mod store;
pub mod unpack;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Layers::NAME, "local"), Provide::new(Info::NAME, "storage")],
    needs: &[Need::Kind("blobs"), Need::Kind("storage")],
    config: settings::KEYS,
    check_config: settings::check,
    ..Descriptor::new("storage", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(StoragePlugin)) }

struct StoragePlugin;

#[async_trait]
impl Plugin for StoragePlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let settings = settings::Settings::parse(&cx.config)?;
        let store = Arc::new(store::Store::open(cx, &settings).await?);
        cx.provide::<Layers>("local", store.clone())?;
        cx.provide::<Info>("storage", store)?;
        Ok(Init::Ready)
    }
}
