//! A few plugins without a daemon: no listeners, no lock, a data root that is given.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use gantry_sdk::command::{Started, Workbench};
use gantry_sdk::context::Host;
use gantry_sdk::events::EventBus;
use gantry_sdk::mounts::MountExecutor;
use gantry_sdk::registry::Registry;
use gantry_sdk::{Descriptor, Error, ErrorKind, Need, Registration, Result};
use tokio_util::sync::CancellationToken;

use super::root;
use super::view::View;
use crate::config::{Config, PluginSections};
use crate::graph::boot::{Services, boot};
use crate::graph::order::satisfies;
use crate::graph::{Plugins, order};
use crate::router::Router;

/// Starts plugins of this build for commands.
#[derive(Debug)]
pub struct Bench<M> {
    plugins: Vec<&'static Registration>,
    config: Config,
    version: (&'static str, &'static str),
    mounts: Arc<M>,
}

impl<M: MountExecutor> Bench<M> {
    /// A bench for `plugins`, which get nothing of `config` but what has no default.
    pub fn new(
        plugins: Vec<&'static Registration>,
        config: Config,
        version: (&'static str, &'static str),
        mounts: M,
    ) -> Self {
        // Sections of plugins name directories that a running daemon has in use.
        let config = Config {
            values: std::collections::BTreeMap::new(),
            plugins: PluginSections::default(),
            ..config
        };
        Self { plugins, config, version, mounts: Arc::new(mounts) }
    }

    /// Whoever provides what is asked for, and whoever they need.
    fn chosen(&self, kind: &str, instance: &str) -> Vec<&'static Descriptor> {
        let all = || self.plugins.iter().map(|plugin| plugin.descriptor);
        let is_it = |d: &Descriptor| {
            d.provides.iter().any(|given| given.kind == kind && given.instance == instance)
        };
        let mut chosen: Vec<&'static Descriptor> = all().filter(|d| is_it(d)).collect();
        let mut next = 0;
        while let Some(descriptor) = chosen.get(next).copied() {
            next += 1;
            for need in descriptor.needs.iter().filter(|need| !matches!(need, Need::Optional(_))) {
                let missing = all().filter(|d| satisfies(d, need));
                let missing: Vec<_> =
                    missing.filter(|d| !chosen.iter().any(|c| c.id == d.id)).collect();
                chosen.extend(missing);
            }
        }
        chosen
    }
}

#[async_trait]
impl<M: MountExecutor + 'static> Workbench for Bench<M> {
    async fn start(&self, kind: &str, instance: &str, data_root: &Path) -> Result<Started> {
        let chosen = self.chosen(kind, instance);
        if chosen.is_empty() {
            return Err(Error::not_found(format!("no plugin provides {kind} {instance}")));
        }
        let broken = |what: String| Error::new(ErrorKind::Internal, what);
        let in_order = order(&chosen).map_err(|errors| broken(format!("{errors:?}")))?;
        let router = Router::new(&in_order, &[]).map_err(|errors| broken(errors.join("; ")))?;
        std::fs::create_dir_all(data_root)
            .map_err(|e| Error::io("make", data_root.display(), e))?;
        let host = Host {
            version: self.version.0,
            revision: self.version.1,
            data_root: data_root.to_owned(),
            exec_root: data_root.join("run"),
            id: root::engine_id(data_root).map_err(|e| broken(e.to_string()))?,
            experimental: false,
            min_api: self.config.kernel.min_api,
            started: Instant::now(),
        };
        let (registry, stop) = (Arc::new(Registry::default()), CancellationToken::new());
        // Who cannot be used says why when it is asked for, so nobody is required.
        let plugins = Arc::new(Plugins::new(&in_order, |_| false));
        let mounts: Arc<dyn MountExecutor> = self.mounts.clone();
        let services = Services {
            config: self.config.clone(),
            host: Arc::new(host),
            kernel: Arc::new(View::new(self.config.clone(), plugins.clone())),
            registry: registry.clone(),
            events: EventBus::default(),
            mounts,
            router: Arc::new(router),
            plugins,
            stop: stop.clone(),
        };
        let guard = stop.drop_guard();
        let running = boot(&in_order, &self.plugins, &services).await;
        let running = running.map_err(|failure| broken(failure.to_string()))?;
        Ok(Started { registry, keep: Box::new((guard, running)) })
    }

    fn mounts(&self) -> Arc<dyn MountExecutor> {
        self.mounts.clone()
    }
}
