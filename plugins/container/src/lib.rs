//! Containers and execs: routes, life cycle, attach, logs.
//!
//! A container is a record on disk, a writable layer, and at most one live process that belongs to a
//! shim. This crate decides about its life and brings the other plugins together to start it.
//!
//! # Map
//!
//! - [`handlers`]: request → one call → response
//! - [`engine`]: the table of containers and what all share; [`handle`]: the way to one of them
//! - `task`: the task that owns one container; [`state`]: its life cycle as a pure machine
//! - [`create`], [`launch`], [`remove`], [`restart`]: the work
//! - [`record`]: what is kept on disk; [`recover`]: finding it again
//! - [`spec`]: from configuration to OCI specification, pure
//! - [`show`]: the wire types
//!
//! # Invariants
//!
//! 1. Every change to a container happens on its task.
//! 2. A container is on disk before a client hears "created", and gone from disk before "removed".
//! 3. An exit is on record before it is announced.
//!
//! # Not here
//!
//! Mounting, namespaces and cgroups (runtime), layers, volumes and networks (their stores).

use std::sync::{Arc, OnceLock, PoisonError};

use async_trait::async_trait;
use gantry_sdk::kinds::containers::Containers;
use gantry_sdk::kinds::images::ImageUsers;
use gantry_sdk::kinds::info::{DiskUsage, Info};
use gantry_sdk::kinds::layer_users::LayerUsers;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{
    ConfigView, Context, Descriptor, Init, Need, Phase, Plugin, Provide, Registration, Result,
};

pub mod apparmor;
pub mod create;
pub mod engine;
pub mod exec;
mod exec_process;
pub mod frame;
pub mod handle;
pub mod handlers;
pub mod host;
pub mod journal;
pub mod launch;
pub mod names;
pub mod ports;
pub mod record;
pub mod recover;
pub mod remove;
pub mod restart;
pub mod seccomp;
pub mod services;
pub mod settings;
pub mod show;
pub mod spec;
pub mod state;
pub mod stream;
mod task;
mod waiting;

use engine::Engine;
use services::Service;
use settings::Settings;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[
        Provide::new(Containers::NAME, "local"),
        Provide::new(ImageUsers::NAME, "container"),
        Provide::new(LayerUsers::NAME, "container"),
        Provide::new(Info::NAME, "container"),
        Provide::new(DiskUsage::NAME, "container"),
    ],
    needs: &[
        Need::Kind("metadata"),
        Need::Kind("layers"),
        Need::Kind("images"),
        Need::Optional("volumes"),
        Need::Kind("networks"),
        Need::Kind("log"),
        Need::Kind("runtime"),
    ],
    routes: handlers::ROUTES,
    config: settings::KEYS,
    check_config: settings::check,
    ..Descriptor::new("container", Phase::Container)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(ContainerPlugin::default())) }

#[derive(Default)]
struct ContainerPlugin(OnceLock<Arc<Engine>>);

#[async_trait]
impl Plugin for ContainerPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let mut settings = Settings::parse(&cx.config)?;
        settings.meet_backends(&cx.registry)?;
        let engine = Arc::new(Engine::new(cx, settings)?);
        recover::recover(&engine).await?;
        let service = Arc::new(Service(engine.clone()));
        cx.provide::<Containers>("local", service.clone())?;
        cx.provide::<ImageUsers>("container", service.clone())?;
        cx.provide::<LayerUsers>("container", service.clone())?;
        cx.provide::<Info>("container", service.clone())?;
        cx.provide::<DiskUsage>("container", service)?;
        handlers::bind(cx, &engine);
        let _ = self.0.set(engine);
        Ok(Init::Ready)
    }

    async fn started(&self) -> Result<()> {
        if let Some(engine) = self.0.get() {
            recover::auto_start(engine);
        }
        Ok(())
    }

    async fn reload(&self, config: &ConfigView) -> Result<Box<dyn FnOnce() + Send>> {
        let mut settings = Settings::parse(config)?;
        let engine = self.0.get().cloned();
        if let Some(engine) = &engine {
            settings.meet_backends(&engine.registry)?;
        }
        let settings = Arc::new(settings);
        Ok(Box::new(move || {
            if let Some(engine) = engine {
                *engine.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
            }
        }))
    }

    async fn stop(&self) -> Result<()> {
        let Some(engine) = self.0.get() else { return Ok(()) };
        // Otherwise containers go on: their shims do not notice.
        if !engine.settings().live_restore || recover::machine_goes_down().await {
            recover::stop_all(engine).await;
        }
        Ok(())
    }
}
