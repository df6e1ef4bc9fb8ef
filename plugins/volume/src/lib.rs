//! Named volumes: the `/volumes` routes and the store behind them.
//!
//! A volume outlives the containers that mount it. This crate owns the table of names and knows who
//! uses which; the bytes belong to a driver, found by name.
//!
//! # Map
//!
//! - [`handlers`]: request → one call of the store → response
//! - [`store`]: names, records, holds; everything that changes a volume
//! - `publish`: mounting volumes for their users
//! - [`list`]: the volumes of all drivers
//! - [`prune`]: how much they take, and removing unused ones
//! - [`record`]: what is kept of a volume
//! - [`names`]: one change of a volume at a time
//!
//! # Invariants
//!
//! 1. A name belongs to one driver for its whole life.
//! 2. A volume that is held or mounted is never removed, with or without `force`.
//! 3. A record is on disk before a caller hears "created".
//! 4. That a driver does not know a volume, or is not there, never costs the volume its record.
//!
//! # Not here
//!
//! Which containers hold which volumes: the container store says it at each start of the daemon.
//! Updating volumes (`PUT /volumes/{name}`): only cluster volumes can be updated.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::info::DiskUsage;
use gantry_sdk::kinds::metadata::Metadata;
use gantry_sdk::kinds::volume::Volume;
use gantry_sdk::kinds::volumes::Volumes;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{
    ApiVersion, Context, Descriptor, Init, Method, Need, Phase, Plugin, Provide, Registration,
    Result, RouteDecl,
};

pub mod handlers;
pub mod list;
pub mod names;
pub mod prune;
pub(crate) mod publish;
pub mod record;
pub mod store;

use store::Store;

const ROUTES: &[RouteDecl] = &[
    RouteDecl::new("list", Method::Get, "/volumes"),
    RouteDecl::new("inspect", Method::Get, "/volumes/{name}"),
    RouteDecl::new("create", Method::Post, "/volumes/create"),
    RouteDecl::new("prune", Method::Post, "/volumes/prune").since(ApiVersion::v1(25)),
    RouteDecl::new("remove", Method::Delete, "/volumes/{name}"),
];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Volumes::NAME, "local"), Provide::new(DiskUsage::NAME, "volume")],
    needs: &[Need::Kind(Volume::NAME), Need::Kind(Metadata::NAME)],
    routes: ROUTES,
    ..Descriptor::new("volumes", Phase::Volume)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(VolumesPlugin)) }

struct VolumesPlugin;

#[async_trait]
impl Plugin for VolumesPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let metadata = cx.registry.only::<Metadata>()?;
        let (registry, mounts) = (cx.registry.clone(), cx.mounts.clone());
        let store = Arc::new(Store::open(registry, metadata, mounts, cx.events.clone()).await?);
        cx.provide::<Volumes>("local", store.clone())?;
        cx.provide::<DiskUsage>("volume", Arc::new(prune::Usage(store.clone())))?;
        cx.route("list", &store, handlers::list);
        cx.route("inspect", &store, handlers::inspect);
        cx.route("create", &store, handlers::create);
        cx.route("prune", &store, handlers::prune);
        cx.route("remove", &store, handlers::remove);
        Ok(Init::Ready)
    }
}

#[cfg(test)]
mod tests;
