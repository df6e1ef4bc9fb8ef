//! Starts everything in order, and ends it backwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_sdk::Descriptor;
use gantry_sdk::context::Host;
use gantry_sdk::events::EventBus;
use gantry_sdk::mounts::MountExecutor;
use gantry_sdk::registry::Registry;
use gantry_sdk::tasks::Tasks;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::logging::LogControl;
use super::reload::{ReloadError, Reloader};
use super::root::{self, PidFile, RootError, RootLock};
use super::view::View;
use crate::config::reload::Changes;
use crate::config::{Config, Environment, Flags};
use crate::graph::Plugins;
use crate::graph::boot::{BootFailure, Running, Services, boot};
use crate::graph::stop::{bounded, stop};
use crate::http::Limits;
use crate::http::api::{Api, ApiEndpoint};
use crate::http::conn::{Endpoint, Serving};
use crate::introspection::Introspection;
use crate::listen::bind::BindError;
use crate::listen::{Listener, Listeners, accept};
use crate::metrics::{Metrics, MetricsEndpoint};
use crate::plan::Plan;

/// How long streams without an end may take to notice that the daemon ends.
const STREAM_GRACE: Duration = Duration::from_millis(500);
/// How long a plugin may take to stop beyond what containers are given.
const STOP_MARGIN: Duration = Duration::from_secs(60);

/// Everything a start is made from.
pub struct Setup {
    /// The command line.
    pub flags: Flags,
    /// The environment.
    pub environment: Environment,
    /// The checked configuration.
    pub config: Config,
    /// The resolved plugins and routes.
    pub plan: Plan,
    /// Executes mount plans.
    pub mounts: Arc<dyn MountExecutor>,
    /// What bounds connections.
    pub limits: Limits,
    /// Product version and source revision.
    pub version: (&'static str, &'static str),
    /// When the process began.
    pub started: Instant,
    /// Changes the log level.
    pub log: Option<LogControl>,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The metrics listener.
    #[error("cannot serve metrics on {addr}")]
    Metrics {
        /// Its address.
        addr: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A socket could not be handed to the runtime.
    #[error("cannot accept on a listener")]
    Accept(#[source] std::io::Error),
    /// A required plugin.
    #[error("{0}")]
    Plugins(Box<BootFailure>),
}

impl StartError {
    /// The exit code of the process: 3 for a required plugin, 1 otherwise.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Plugins(_) => 3,
            _ => 1,
        }
    }
}

/// A daemon that serves.
#[derive(Debug)]
pub struct Daemon {
    flags: Flags,
    environment: Environment,
    descriptors: Vec<&'static Descriptor>,
    running: Vec<Running>,
    view: Arc<View>,
    api: Arc<Api>,
    log: Option<LogControl>,
    /// The event bus.
    pub events: EventBus,
    /// Backends.
    pub registry: Arc<Registry>,
    /// How plugins are.
    pub plugins: Arc<Plugins>,
    /// Facts about the daemon.
    pub host: Arc<Host>,
    connections: Tasks,
    background: Tasks,
    draining: CancellationToken,
    /// Dropped last: sockets, pid file, lock.
    held: Held,
}

#[derive(Debug)]
struct Held {
    _listeners: Listeners,
    _pidfile: Option<PidFile>,
    _lock: RootLock,
}

impl Daemon {
    /// Starts: lock, listeners, plugins by order, then accepts.
    ///
    /// # Errors
    ///
    /// What is in the way; whatever was started before is stopped again.
    pub async fn start(setup: Setup) -> Result<Self, StartError> {
        let Setup { flags, environment, config, plan, mounts, limits, version, started, log } =
            setup;
        let kernel = config.kernel.clone();
        let lock = RootLock::take(&kernel.data_root, &kernel.exec_root)?;
        let pidfile = kernel.pidfile.as_deref().map(PidFile::write).transpose()?;
        let mut listeners = Listeners::bind(&kernel)?;
        let metrics_socket = bind_metrics(&kernel.metrics_addr)?;

        let stop_all = CancellationToken::new();
        let plugins = Arc::new(Plugins::new(&plan.order, |descriptor| {
            config.plugin(descriptor.id).required.unwrap_or(descriptor.required)
        }));
        let host = Arc::new(Host {
            version: version.0,
            revision: version.1,
            data_root: kernel.data_root.clone(),
            exec_root: kernel.exec_root.clone(),
            id: root::engine_id(&kernel.data_root)?,
            experimental: kernel.experimental,
            min_api: kernel.min_api,
            started,
        });
        let router = Arc::new(plan.router);
        let registry = Arc::new(Registry::default());
        let events = EventBus::default();
        let view = Arc::new(View::new(config.clone(), plugins.clone()));
        let introspection =
            Introspection::new(plugins.clone(), registry.clone(), &router, view.clone());
        introspection.serve(&router);
        let services = Services {
            config,
            host: host.clone(),
            kernel: view.clone(),
            registry: registry.clone(),
            events: events.clone(),
            mounts,
            router: router.clone(),
            plugins: plugins.clone(),
            stop: stop_all.clone(),
        };
        let running = match boot(&plan.order, &plan.registrations, &services).await {
            Ok(running) => running,
            Err(mut failure) => {
                let started = std::mem::take(&mut failure.running);
                stop(started, Some(STOP_MARGIN), &CancellationToken::new()).await;
                return Err(StartError::Plugins(failure));
            }
        };

        let sockets = std::mem::take(&mut listeners.sockets);
        let metrics = Arc::new(Metrics::default());
        let api = Arc::new(Api::new(
            router,
            kernel.min_api,
            version.0,
            kernel.experimental,
            &limits,
            metrics.clone(),
        ));
        let daemon = Self {
            flags,
            environment,
            descriptors: plan.order,
            running,
            view,
            api: api.clone(),
            log,
            events,
            registry: registry.clone(),
            plugins: plugins.clone(),
            host,
            connections: Tasks::new("connections", &stop_all),
            background: Tasks::new("kernel", &stop_all),
            draining: CancellationToken::new(),
            held: Held { _listeners: listeners, _pidfile: pidfile, _lock: lock },
        };
        daemon.watch_tasks();
        daemon.accept(sockets, Arc::new(ApiEndpoint(api)), limits)?;
        if let Some(socket) = metrics_socket {
            let endpoint = Arc::new(MetricsEndpoint { metrics, plugins, registry });
            daemon.accept(vec![socket], endpoint, limits)?;
        }
        daemon.announce();
        Ok(daemon)
    }

    fn watch_tasks(&self) {
        self.view.watch_tasks("kernel", self.background.clone());
        self.view.watch_tasks("connections", self.connections.clone());
        for plugin in &self.running {
            self.view.watch_tasks(plugin.descriptor.id, plugin.tasks.clone());
        }
    }

    fn accept(
        &self,
        sockets: Vec<Listener>,
        endpoint: Arc<dyn Endpoint>,
        limits: Limits,
    ) -> Result<(), StartError> {
        let serving = Serving {
            endpoint,
            limits,
            tasks: self.connections.clone(),
            draining: self.draining.clone(),
        };
        let room = Arc::new(Semaphore::new(limits.connections));
        sockets
            .into_iter()
            .try_for_each(|socket| accept(socket, &serving, &self.connections, &room))
            .map_err(StartError::Accept)
    }

    /// Tells the service manager and the plugins that requests are being accepted.
    fn announce(&self) {
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "Cannot tell the service manager that the daemon is ready.");
        }
        let states = self.plugins.snapshot();
        let ready = states.iter().filter(|state| state.outcome.is_ready()).count();
        let millis = u64::try_from(self.host.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            listeners = ?self.listeners(), ready, plugins = states.len(), millis,
            "Daemon is ready.",
        );
        for Running { descriptor, plugin, tasks } in &self.running {
            let (id, plugin) = (descriptor.id, plugin.clone());
            tasks.spawn("started", async move {
                if let Err(error) = plugin.started().await {
                    let error = error.chain();
                    tracing::error!(plugin = id, error, "Plugin could not take up its work.");
                }
            });
        }
    }

    /// The addresses served.
    #[must_use]
    pub fn listeners(&self) -> Vec<String> {
        gantry_sdk::context::Kernel::listeners(&*self.view)
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.view.config_now()
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    ///
    /// Why nothing changed.
    pub async fn reload(&self) -> Result<Changes, ReloadError> {
        let reloader = Reloader {
            flags: &self.flags,
            environment: &self.environment,
            descriptors: &self.descriptors,
            running: &self.running,
            view: &self.view,
            log: self.log.as_ref(),
            events: &self.events,
            id: &self.host.id,
        };
        reloader.reload().await
    }

    /// Writes all background tasks to the log.
    pub fn dump(&self) {
        for (owner, tasks) in gantry_sdk::context::Kernel::tasks(&*self.view) {
            tracing::info!(owner, count = tasks.len(), ?tasks, "Background tasks.");
        }
        for state in self.plugins.snapshot() {
            tracing::info!(plugin = state.id, state = state.outcome.word(), "Plugin.");
        }
        for stats in self.registry.stats() {
            tracing::info!(
                backend = stats.backend,
                calls = stats.calls,
                faults = stats.faults,
                inflight = stats.inflight,
                "Backend.",
            );
        }
    }

    /// Ends the daemon in steps, each bounded; `hurry` cuts all of them short. Returns the plugins
    /// that did not stop.
    pub async fn shut_down(self, hurry: &CancellationToken) -> Vec<&'static str> {
        let grace = self.config().kernel.shutdown_timeout;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]); // it may be gone
        tracing::info!("Shutting down.");
        // 1. No new work: listeners close, connections take no further request.
        self.draining.cancel();
        // 2. Requests that end by themselves do so.
        bounded(grace, hurry, self.api.settled()).await;
        // 3. Streams without an end are cut off.
        bounded(Some(STREAM_GRACE), hurry, self.connections_closed()).await;
        self.connections.shut_down(STREAM_GRACE).await;
        // 4. Plugins, backwards. Containers are stopped in here, so there is room beyond the grace.
        let late = stop(self.running, grace.map(|grace| grace + STOP_MARGIN), hurry).await;
        self.background.shut_down(STREAM_GRACE).await;
        tracing::info!("Daemon has stopped.");
        drop(self.held);
        late
    }

    async fn connections_closed(&self) {
        while self.connections.running().contains(&"connection") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn bind_metrics(addr: &Option<std::net::SocketAddr>) -> Result<Option<Listener>, StartError> {
    let Some(addr) = *addr else { return Ok(None) };
    std::net::TcpListener::bind(addr)
        .map(|socket| Some(Listener::Tcp(socket, None)))
        .map_err(|source| StartError::Metrics { addr, source })
}
