//! Registries: login, pull, push, search, and the rules for each.
//!
//! # Map
//!
//! - `settings`, `insecure`: the configuration
//! - `shared`, `site`: where a name leads, how far who is there is trusted
//! - `login`, `token`, `answer`: who asks, and what is said to those who are refused
//! - `endpoint`: requests with the right authorization
//! - `repository`: what can be done with a repository
//! - `http`: HTTP within bounds
//! - `routes`, `info`: what clients see
//!
//! # Invariants
//!
//! 1. Credentials go to the registry they were given for and to the token server it names. No mirror and no redirect
//!    to another server gets them, and a registry with TLS cannot send them over a connection without.
//! 2. A refusal ends a login: the same credentials are not tried again without TLS.
//! 3. Nothing that is secret is in an error or in the log.
//! 4. Every answer is bounded: its head, its body, the time between two bytes of it, the number of its pages.
//!
//! # Rules
//!
//! `config` of the section `kernel-plugins.registry` has `registries`: an object from `host`, `host/path` or `*` to `mirrors`
//! (addresses, asked in order before the registry), `insecure`, `blocked` and `ca` (a file of certificates). For each
//! of these the most specific rule that says something counts.
//!
//! # Not here
//!
//! What becomes of manifests and blobs: the image plugin pulls and pushes.

use std::path::PathBuf;
use std::sync::Arc;

use ::http::HeaderValue;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use gantry_sdk::context::Ctx;
use gantry_sdk::kinds::info::Info;
use gantry_sdk::kinds::registry::{
    Access, Credentials, Registries, RegistryClient, Repository, TransferLimits,
};
use gantry_sdk::plugin::mistakes;
use gantry_sdk::reference::Reference;
use gantry_sdk::{
    ApiVersion, ConfigView, Context, Descriptor, Error, ErrorKind, Init, Method, Phase, Plugin,
    Provide, Registration, Result, RouteDecl,
};

mod answer;
mod endpoint;
mod error;
mod http;
mod info;
mod insecure;
mod login;
mod repository;
mod routes;
mod settings;
mod shared;
mod site;
mod token;

use repository::Remote;
use settings::{Rules, Settings};
use shared::{Pace, Shared};
use site::Sites;

/// The name of what is provided.
const INSTANCE: &str = "registry";

const ROUTES: &[RouteDecl] = &[
    RouteDecl::new("auth", Method::Post, "/auth"),
    RouteDecl::new("search", Method::Get, "/images/search"),
    RouteDecl::new("distribution", Method::Get, "/distribution/{name..}/json")
        .since(ApiVersion::v1(30)),
];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new("registries", INSTANCE), Provide::new("info", INSTANCE)],
    routes: ROUTES,
    config: settings::KEYS,
    check_config: settings::check,
    check_section: |section| mistakes(Rules::parse(section)),
    ..Descriptor::new("registry", Phase::Content)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::<RegistryPlugin>::default()) }

#[derive(Default)]
struct RegistryPlugin {
    shared: std::sync::OnceLock<Arc<Shared>>,
}

fn joined(mistakes: Vec<String>) -> Error {
    Error::invalid(mistakes.join("; "))
}

#[async_trait]
impl Plugin for RegistryPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let proxies = Arc::new(settings::proxies(&cx.config).map_err(joined)?);
        let agent = HeaderValue::from_str(&format!("gantry/{}", cx.host.version))
            .map_err(|e| Error::internal("cannot name ourselves to a registry", e))?;
        let certificates = PathBuf::from(http::tls::CERTIFICATES);
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(Settings::parse(&cx.config).map_err(joined)?),
            rules: Rules::parse(&cx.own_config)?,
            sites: Sites::new(agent, proxies, certificates, http::client::Patience::default()),
            tokens: Arc::default(),
            pace: Pace::default(),
        });
        let [http, https, no] = http::proxy::values(&cx.config, |name| std::env::var(name).ok());
        let proxies = [http::proxy::masked(&http), http::proxy::masked(&https), no];
        let rows = info::Rows { shared: shared.clone(), proxies };
        cx.provide::<Info>(INSTANCE, Arc::new(rows))?;
        cx.provide::<Registries>(INSTANCE, Arc::new(Registry(shared.clone())))?;
        cx.route("auth", &shared, routes::auth::auth);
        cx.route("search", &shared, routes::search::search);
        cx.route("distribution", &shared, routes::distribution::inspect);
        let _ = self.shared.set(shared);
        Ok(Init::Ready)
    }

    async fn reload(&self, config: &ConfigView) -> Result<Box<dyn FnOnce() + Send>> {
        let settings = Settings::parse(config).map_err(joined)?;
        let shared = self.shared.get().cloned();
        Ok(Box::new(move || {
            if let Some(shared) = shared {
                shared.settings.store(Arc::new(settings));
                shared.sites.forget();
            }
        }))
    }
}

/// What other plugins see.
struct Registry(Arc<Shared>);

#[async_trait]
impl RegistryClient for Registry {
    async fn repository(
        &self,
        _: &Ctx,
        name: &Reference,
        access: Access,
        credentials: &Credentials,
    ) -> Result<Arc<dyn Repository>> {
        Ok(Arc::new(open(&self.0, name, access, credentials).await?))
    }

    fn limits(&self) -> TransferLimits {
        self.0.settings.load().limits
    }
}

/// A session with the repository of `name`.
async fn open(
    shared: &Arc<Shared>,
    name: &Reference,
    access: Access,
    credentials: &Credentials,
) -> Result<Remote> {
    let sources = shared.endpoints(name, access, credentials).await?;
    Remote::new(shared.clone(), name, access, sources)
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("nobody has {}", name.familiar())))
}

#[cfg(test)]
mod tests;
