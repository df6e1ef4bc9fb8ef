//! What a plugin is given: directories, configuration, backends, events, tasks, mounts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::ConfigView;
use crate::events::EventBus;
use crate::mounts::{Grants, MountExecutor};
use crate::registry::{Kind, Registry};
use crate::route::{BoundRoutes, Request, Response};
use crate::tasks::Tasks;
use crate::{Error, Result};

/// The context of one call to a backend.
#[derive(Clone, Debug)]
pub struct Ctx {
    /// When the caller stops waiting; none leaves it to the kind's own budget.
    pub deadline: Option<Instant>,
    /// The same for every attempt at one operation, which makes retries recognisable.
    pub op_id: u128,
    /// Who asked, for logs and policies: a request id or a task's name.
    pub caller: Option<Arc<str>>,
    /// Cancelled when nobody wants the result any more.
    pub cancelled: CancellationToken,
}

impl Ctx {
    /// Work of the daemon itself.
    pub fn background() -> Self {
        Self {
            deadline: None,
            op_id: rand::random(),
            caller: None,
            cancelled: CancellationToken::new(),
        }
    }

    /// The same call with at most `budget` from now.
    #[must_use]
    pub fn within(&self, budget: Duration) -> Self {
        let at = Instant::now() + budget;
        Self { deadline: Some(self.deadline.map_or(at, |d| d.min(at))), ..self.clone() }
    }
}

/// Facts about the daemon that several plugins show or need. Fixed after start, but for the lists
/// behind [`Kernel`].
#[derive(Clone, Debug)]
pub struct Host {
    /// Product version.
    pub version: &'static str,
    /// Source revision, or `unknown`.
    pub revision: &'static str,
    /// The truth on disk.
    pub data_root: PathBuf,
    /// Run-time state, lost at reboot.
    pub exec_root: PathBuf,
    /// Stable identity of this data root.
    pub id: String,
    /// Whether experimental routes are on.
    pub experimental: bool,
    /// Oldest API version served.
    pub min_api: gantry_api::ApiVersion,
    /// When the daemon started.
    pub started: Instant,
}

/// Facts about plugins and requests that only the kernel has. For `/info` and introspection.
pub trait Kernel: Send + Sync {
    /// Whether debug mode is on now.
    fn debug(&self) -> bool;
    /// One line for each degraded plugin.
    fn warnings(&self) -> Vec<String>;
    /// Labels of the daemon, `key=value`, as they are now.
    fn labels(&self) -> Vec<String>;
    /// The addresses served, as configured.
    fn listeners(&self) -> Vec<String>;
    /// Names of the background tasks that run, by plugin.
    fn tasks(&self) -> Vec<(String, Vec<&'static str>)>;
    /// The value that a configuration key has now, after flags, file and reloads.
    fn config(&self, key: &str) -> Option<serde_json::Value>;
}

/// Given to [`Plugin::init`](crate::Plugin::init); what a plugin wants to keep, it clones.
pub struct Context {
    /// The plugin's id.
    pub id: &'static str,
    /// Its keys of the daemon's configuration.
    pub config: ConfigView,
    /// Its own section of `kernel-plugins`, or null.
    pub own_config: serde_json::Value,
    /// Facts about the daemon.
    pub host: Arc<Host>,
    /// What only the kernel knows.
    pub kernel: Arc<dyn Kernel>,
    /// Backends of plugins that are ready; grows until the start is complete.
    pub registry: Arc<Registry>,
    /// The event bus.
    pub events: EventBus,
    /// Spawns tasks that end with the plugin.
    pub tasks: Tasks,
    /// Executes mount plans.
    pub mounts: Arc<dyn MountExecutor>,
    /// Handlers bound so far; read by the kernel after `init`.
    pub routes: BoundRoutes,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Context {
    /// A directory of the data root, created with mode 0710 if it is missing.
    ///
    /// # Errors
    ///
    /// `Internal` or `NoSpace` with the path.
    pub fn data_dir(&self, name: &str) -> Result<PathBuf> {
        private_dir(&self.host.data_root.join(name))
    }

    /// A directory of the exec root, created with mode 0710 if it is missing.
    ///
    /// # Errors
    ///
    /// `Internal` or `NoSpace` with the path.
    pub fn run_dir(&self, name: &str) -> Result<PathBuf> {
        private_dir(&self.host.exec_root.join(name))
    }

    /// Makes `object` available as `instance` of kind `K`.
    ///
    /// # Errors
    ///
    /// `Exists` if that slot is filled.
    pub fn provide<K: Kind>(&self, instance: &str, object: Arc<K::Dyn>) -> Result<()> {
        self.registry.provide::<K>(instance, object, Grants::default(), false)
    }

    /// As [`provide`](Self::provide), for a driver that returns mount plans.
    ///
    /// # Errors
    ///
    /// `Exists` if that slot is filled.
    pub fn provide_driver<K: Kind>(
        &self,
        instance: &str,
        object: Arc<K::Dyn>,
        grants: Grants,
    ) -> Result<()> {
        self.registry.provide::<K>(instance, object, grants, false)
    }

    /// Binds the declared route `id` to `handler`, called with a clone of `state`.
    pub fn route<S, F, Fut>(&mut self, id: &'static str, state: &Arc<S>, handler: F)
    where
        S: Send + Sync + 'static,
        F: Fn(Arc<S>, Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response>> + Send + 'static,
    {
        self.routes.bind(id, state, handler);
    }
}

fn private_dir(path: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o710)
        .create(path)
        .map_err(|e| Error::io("create", path.display(), e))?;
    Ok(path.to_owned())
}
