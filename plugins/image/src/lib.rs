//! Images: store, load, save, import, tag, history, removal; the `/images` routes.
//!
//! An image is a configuration blob, the layers it names and the references that name it. The
//! content is in the blob store, the records are in the metadata database, unpacked layers belong
//! to the layer store; this crate knows what refers to what.
//!
//! # Map
//!
//! - [`platform`], [`config`]: text that is parsed once
//! - [`record`], [`index`], [`store`]: the truth, the view of it, and what may change it when
//! - [`admit`]: how content becomes an image
//! - [`handlers`]: request → one call → response
//! - [`load`], [`import`] with [`changes`], [`save`]: archives; [`commit`]: from containers
//! - [`pull`], [`push`] with [`slots`]: registries
//! - [`list`], [`inspect`], [`attestations`]: what is here, with [`manifests`] and [`disk`] for
//!   what of it; [`remove`]: what goes; [`upkeep`]: what goes later
//! - [`sources`]: rows of `/info` and `/system/df`
//!
//! # Invariants
//!
//! 1. A record's blobs are on disk before the record is.
//! 2. A name means one image; taking it over from another image is one commit.
//! 3. Content is removed only if no record refers to it and no lease keeps it; whoever brings or
//!    reads content holds a lease, and nobody waits for anybody.
//! 4. The layers of an image stay as long as a container uses it, whatever was forced.
//!
//! # Not here
//!
//! How registries are talked to: the registry client. Unpacking: the layer store.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use gantry_sdk::kinds::blobs::{BlobSources, Blobs, ContentOwners};
use gantry_sdk::kinds::images::Images;
use gantry_sdk::kinds::info::{DiskUsage, Info};
use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::kinds::metadata::Metadata;
use gantry_sdk::kinds::registry::Registries;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{
    ApiVersion, Context, Ctx, Descriptor, Init, Method, Need, Phase, Plugin, Provide, Registration,
    Result, RouteDecl, Shape,
};

pub mod admit;
pub mod attestations;
pub mod changes;
pub mod commit;
pub mod config;
pub mod disk;
pub mod handlers;
pub mod import;
pub mod index;
pub mod inspect;
pub mod list;
pub mod load;
pub mod manifests;
pub mod platform;
pub mod pull;
pub mod push;
pub mod record;
pub mod remove;
pub mod save;
pub mod slots;
pub mod sources;
pub mod store;
pub mod upkeep;

use pull::Puller;
use pull::downloads::Downloads;
use pull::source::Repositories;
use pull::unfinished::Unfinished;
use push::Pusher;
use slots::Slots;
use sources::Sources;
use store::{Parts, Store};

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[
        Provide::new(Images::NAME, "local"),
        Provide::new(ContentOwners::NAME, "image"),
        Provide::new(ContentOwners::NAME, "image-pulls"),
        Provide::new(BlobSources::NAME, "image-registries"),
        Provide::new(Info::NAME, "image"),
        Provide::new(DiskUsage::NAME, "image"),
    ],
    needs: &[
        Need::Kind(Blobs::NAME),
        Need::Kind(Metadata::NAME),
        Need::Kind(Layers::NAME),
        Need::Optional(Registries::NAME),
    ],
    routes: &[
        RouteDecl::new("list", Method::Get, "/images/json"),
        RouteDecl::new("inspect", Method::Get, "/images/{name..}/json"),
        // Of API 1.55; nothing else of that version is needed for it.
        RouteDecl::new("attestations", Method::Get, "/images/{name..}/attestations"),
        RouteDecl::new("history", Method::Get, "/images/{name..}/history"),
        RouteDecl::new("tag", Method::Post, "/images/{name..}/tag"),
        RouteDecl::new("save-one", Method::Get, "/images/{name..}/get").shaped(Shape::Stream),
        RouteDecl::new("save", Method::Get, "/images/get").shaped(Shape::Stream),
        RouteDecl::new("remove", Method::Delete, "/images/{name..}"),
        RouteDecl::new("prune", Method::Post, "/images/prune").since(ApiVersion::v1(25)),
        RouteDecl::new("create", Method::Post, "/images/create").shaped(Shape::Stream),
        RouteDecl::new("push", Method::Post, "/images/{name..}/push").shaped(Shape::Stream),
        RouteDecl::new("load", Method::Post, "/images/load").shaped(Shape::Stream),
    ],
    ..Descriptor::new("image", Phase::Image)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(ImagePlugin::default())) }

#[derive(Default)]
struct ImagePlugin(OnceLock<Arc<Store>>);

#[async_trait]
impl Plugin for ImagePlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let parts = Parts {
            blobs: cx.registry.only::<Blobs>()?,
            metadata: cx.registry.only::<Metadata>()?,
            layers: cx.registry.only::<Layers>()?,
            registry: cx.registry.clone(),
            events: cx.events.clone(),
            tasks: cx.tasks.clone(),
        };
        let store = Arc::new(Store::open(&Ctx::background(), parts).await?);
        cx.provide::<Images>("local", store.clone())?;
        cx.provide::<ContentOwners>("image", store.clone())?;
        let sources = Arc::new(Sources(store.clone()));
        cx.provide::<Info>("image", sources.clone())?;
        cx.provide::<DiskUsage>("image", sources)?;

        cx.route("list", &store, handlers::list);
        cx.route("inspect", &store, handlers::inspect);
        cx.route("attestations", &store, handlers::attestations);
        cx.route("history", &store, handlers::history);
        cx.route("tag", &store, handlers::tag);
        cx.route("save-one", &store, handlers::save);
        cx.route("save", &store, handlers::save);
        cx.route("remove", &store, handlers::remove);
        cx.route("prune", &store, handlers::prune);
        let unfinished = Unfinished::open(&Ctx::background(), store.metadata.clone()).await?;
        let unfinished = Arc::new(unfinished);
        cx.provide::<ContentOwners>("image-pulls", unfinished.clone())?;
        let downloads = Arc::new(Downloads::new(store.blobs.clone(), cx.tasks.clone()));
        let puller = Arc::new(Puller { store: store.clone(), downloads, unfinished });
        cx.provide::<BlobSources>("image-registries", Arc::new(Repositories(puller.clone())))?;
        cx.route("create", &puller, pull::create);
        let (uploads, packing) = (Slots::default(), Slots::default());
        let pusher = Arc::new(Pusher { store: store.clone(), uploads, packing });
        cx.route("push", &pusher, push::push);
        cx.route("load", &store, handlers::load);
        let _ = self.0.set(store);
        Ok(Init::Ready)
    }

    /// Only now the users of images can say that they are.
    async fn started(&self) -> Result<()> {
        if let Some(store) = self.0.get() {
            store.tasks.spawn("image-upkeep", upkeep::upkeep(store.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
