//! System routes: `/_ping`, `/version`, `/info`, `/system/df`.
//!
//! # Map
//!
//! - [`ping`], [`version`], [`info`], [`usage`]: one route each
//! - [`host`]: facts about the machine
//!
//! # Not here
//!
//! What other plugins know: they contribute through the kinds `info` and `disk-usage`.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::context::{Host, Kernel};
use gantry_sdk::events::EventBus;
use gantry_sdk::registry::Registry;
use gantry_sdk::{
    Context, Descriptor, Init, Method, Need, Phase, Plugin, Registration, Result, RouteDecl,
};

pub mod host;
pub mod info;
pub mod ping;
pub mod usage;
pub mod version;

const ROUTES: &[RouteDecl] = &[
    RouteDecl::new("ping", Method::Get, "/_ping"),
    RouteDecl::new("ping-head", Method::Head, "/_ping"),
    RouteDecl::new("version", Method::Get, "/version"),
    RouteDecl::new("info", Method::Get, "/info"),
    RouteDecl::new("usage", Method::Get, "/system/df"),
];

static DESCRIPTOR: Descriptor = Descriptor {
    needs: &[Need::Optional("info"), Need::Optional("disk-usage")],
    routes: ROUTES,
    ..Descriptor::new("system", Phase::Api)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(SystemPlugin)) }

struct SystemPlugin;

/// What the handlers need.
pub(crate) struct State {
    pub(crate) host: Arc<Host>,
    pub(crate) kernel: Arc<dyn Kernel>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) events: EventBus,
}

#[async_trait]
impl Plugin for SystemPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let state = Arc::new(State {
            host: cx.host.clone(),
            kernel: cx.kernel.clone(),
            registry: cx.registry.clone(),
            events: cx.events.clone(),
        });
        cx.route("ping", &state, ping::get);
        cx.route("ping-head", &state, ping::head);
        cx.route("version", &state, version::version);
        cx.route("info", &state, info::info);
        cx.route("usage", &state, usage::usage);
        Ok(Init::Ready)
    }
}
