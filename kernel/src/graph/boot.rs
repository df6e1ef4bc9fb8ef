//! Initialisation: one plugin after the other, each with a deadline, none trusted to come back.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_sdk::context::{Context, Host, Kernel};
use gantry_sdk::events::{Event, EventBus};
use gantry_sdk::guard::panic_text;
use gantry_sdk::mounts::MountExecutor;
use gantry_sdk::registry::Registry;
use gantry_sdk::route::BoundRoutes;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Descriptor, Init, Need, Plugin, Registration};
use tokio_util::sync::CancellationToken;

use super::order::satisfies;
use super::state::{Outcome, Plugins};
use crate::config::Config;
use crate::router::{Router, Target};

/// How long one plugin may take, unless configured: enough for a slow machine that is still booting
/// and loads kernel modules meanwhile.
pub const INIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long all of them together may take, unless one is configured to take longer.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a plugin that was given up may take to notice.
const GIVE_UP: Duration = Duration::from_millis(100);

/// What every plugin is given a share of.
pub struct Services {
    /// The configuration.
    pub config: Config,
    /// Facts about the daemon.
    pub host: Arc<Host>,
    /// What only the kernel knows.
    pub kernel: Arc<dyn Kernel>,
    /// Backends.
    pub registry: Arc<Registry>,
    /// Events.
    pub events: EventBus,
    /// The mount executor.
    pub mounts: Arc<dyn MountExecutor>,
    /// Where routes lead.
    pub router: Arc<Router>,
    /// How plugins are.
    pub plugins: Arc<Plugins>,
    /// The end of every plugin's tasks.
    pub stop: CancellationToken,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("plugins", &self.plugins).finish_non_exhaustive()
    }
}

/// A plugin that has been initialised.
pub struct Running {
    /// What it is.
    pub descriptor: &'static Descriptor,
    /// Its code.
    pub plugin: Arc<dyn Plugin>,
    /// Its background tasks.
    pub tasks: Tasks,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("id", &self.descriptor.id).finish_non_exhaustive()
    }
}

/// A required plugin is not in service. Holds what was started before, to be stopped.
#[derive(Debug)]
pub struct BootFailure {
    /// Plugin and reason, root cause first.
    pub causes: Vec<(&'static str, String)>,
    /// What runs already.
    pub running: Vec<Running>,
}

impl fmt::Display for BootFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self
            .causes
            .iter()
            .map(|(id, why)| format!("required plugin {id} is not in service: {why}"))
            .collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Initialises `order` one by one and leads its routes.
///
/// # Errors
///
/// [`BootFailure`] once it is clear that a required plugin does not come into service.
pub async fn boot(
    order: &[&'static Descriptor],
    registrations: &[&'static Registration],
    services: &Services,
) -> Result<Vec<Running>, Box<BootFailure>> {
    let mut running = Vec::new();
    let whole = Instant::now() + boot_timeout(services);
    for descriptor in order {
        let Some(registration) = registrations.iter().find(|r| r.descriptor.id == descriptor.id)
        else {
            continue;
        };
        let started = Instant::now();
        let (outcome, started_plugin) = start(registration, services, whole).await;
        let took = started.elapsed();
        services.plugins.update(descriptor.id, |state| {
            state.outcome = outcome.clone();
            state.init_time = Some(took);
            state.tainted = matches!(&started_plugin, Started::Abandoned(_));
        });
        log(descriptor, &outcome, took);
        match started_plugin {
            Started::Running(plugin) => running.push(plugin),
            Started::No => withdraw(descriptor, &outcome, services),
            Started::Abandoned(end) => {
                withdraw(descriptor, &outcome, services);
                ignore_late_success(descriptor, &outcome, end, services);
            }
        }
        if let Some(causes) = fatal(descriptor, &outcome, services) {
            return Err(Box::new(BootFailure { causes, running }));
        }
    }
    Ok(running)
}

fn boot_timeout(services: &Services) -> Duration {
    let longest = services.config.plugins.values().filter_map(|s| s.init_timeout).max();
    longest.map_or(BOOT_TIMEOUT, |longest| BOOT_TIMEOUT + longest)
}

enum Started {
    Running(Running),
    /// Given up while its code was running; completes when that ends.
    Abandoned(Pin<Box<dyn Future<Output = ()> + Send>>),
    No,
}

async fn start(
    registration: &'static Registration,
    services: &Services,
    whole: Instant,
) -> (Outcome, Started) {
    let descriptor = registration.descriptor;
    let settings = services.config.plugin(descriptor.id);
    if settings.enabled == Some(false) {
        return (Outcome::Disabled, Started::No);
    }
    if let Some(by) = blocker(descriptor, services) {
        return (Outcome::Blocked { by }, Started::No);
    }
    let budget = settings
        .init_timeout
        .unwrap_or(INIT_TIMEOUT)
        .min(whole.saturating_duration_since(Instant::now()));
    let tasks = Tasks::new(descriptor.id, &services.stop);
    let context = context(descriptor, settings.config, tasks.clone(), services);
    let (outcome, started) =
        initialise(registration, context, tasks.clone(), budget, services).await;
    if !matches!(started, Started::Running(_)) {
        tasks.shut_down(GIVE_UP).await;
    }
    (outcome, started)
}

/// The plugin that keeps this one from starting, if any.
fn blocker(descriptor: &Descriptor, services: &Services) -> Option<&'static str> {
    let states = services.plugins.snapshot();
    descriptor.needs.iter().filter(|need| !matches!(need, Need::Optional(_))).find_map(|need| {
        if satisfies(descriptor, need) {
            return None;
        }
        let mut providers = states.iter().filter(|s| satisfies(s.descriptor, need)).peekable();
        let first = providers.peek().map(|s| s.id)?;
        providers.all(|s| !s.outcome.is_ready()).then_some(first)
    })
}

fn context(
    descriptor: &'static Descriptor,
    own_config: serde_json::Value,
    tasks: Tasks,
    services: &Services,
) -> Context {
    Context {
        id: descriptor.id,
        config: services.config.view(descriptor),
        own_config,
        host: services.host.clone(),
        kernel: services.kernel.clone(),
        registry: services.registry.clone(),
        events: services.events.clone(),
        tasks,
        mounts: services.mounts.clone(),
        routes: BoundRoutes::default(),
    }
}

/// Runs `init` as a task of its own: a panic ends that task, and a hang is left behind.
async fn initialise(
    registration: &'static Registration,
    mut context: Context,
    tasks: Tasks,
    budget: Duration,
    services: &Services,
) -> (Outcome, Started) {
    let descriptor = registration.descriptor;
    let init = async move {
        let plugin: Arc<dyn Plugin> = Arc::from((registration.build)());
        let result = plugin.init(&mut context).await;
        (plugin, context, result)
    };
    let mut handle = tasks.spawn("init", init);
    match tokio::time::timeout(budget, &mut handle).await {
        Ok(Ok((plugin, context, Ok(Init::Ready)))) => match unkept(descriptor, &context) {
            None => {
                services.router.set_targets(descriptor.id, |decl| {
                    context.routes.get(decl.id).map_or_else(
                        || Target::Down("its handler is missing".to_owned()),
                        Target::Handler,
                    )
                });
                (Outcome::Ready, Started::Running(Running { descriptor, plugin, tasks }))
            }
            Some(broken) => (Outcome::Failed(broken), Started::No),
        },
        Ok(Ok((_, _, Ok(Init::Skipped(why))))) => (Outcome::Skipped(why), Started::No),
        Ok(Ok((_, _, Err(error)))) => (Outcome::Failed(error.chain()), Started::No),
        Ok(Err(error)) if error.is_panic() => {
            let what = panic_text(error.into_panic().as_ref()).to_owned();
            (Outcome::Panicked(what), Started::No)
        }
        Ok(Err(_)) => (Outcome::Failed("its start was cancelled".to_owned()), Started::No),
        Err(_) => {
            handle.abort();
            let noticed = tokio::time::timeout(GIVE_UP, &mut handle).await.is_ok();
            let end = async move {
                let _ = handle.await; // whatever it says, it is too late
            };
            let started = if noticed { Started::No } else { Started::Abandoned(Box::pin(end)) };
            (Outcome::TimedOut(budget), started)
        }
    }
}

/// What a plugin declared and did not do.
fn unkept(descriptor: &Descriptor, context: &Context) -> Option<String> {
    let slots = context.registry.slots();
    let missing = descriptor.provides.iter().find(|given| {
        !slots.iter().any(|(kind, name, down)| {
            *kind == given.kind && name == given.instance && down.is_none()
        })
    });
    if let Some(given) = missing {
        return Some(format!("declares {} {} and did not provide it", given.kind, given.instance));
    }
    let bound: Vec<_> = context.routes.ids().collect();
    let unbound = descriptor.routes.iter().find(|route| !bound.contains(&route.id));
    if let Some(route) = unbound {
        return Some(format!("declares route {:?} and did not bind it", route.id));
    }
    let unknown = bound.iter().find(|id| !descriptor.routes.iter().any(|route| route.id == **id));
    unknown.map(|id| format!("binds route {id:?} and does not declare it"))
}

/// Makes visible that a plugin is not there.
fn withdraw(descriptor: &'static Descriptor, outcome: &Outcome, services: &Services) {
    let why = outcome.to_string();
    for given in descriptor.provides {
        services.registry.mark_down(given.kind, given.instance, why.clone());
    }
    services.router.set_targets(descriptor.id, |_| Target::Down(why.clone()));
    if outcome.is_fault() {
        let event = Event::now("plugin", "down", descriptor.id).with("name", descriptor.id);
        services.events.publish(event.with("reason", why));
    }
}

/// Code that was given up may still provide what it was asked for. Once it has ended, its backends
/// are marked down again: nobody may come to rely on half a plugin.
fn ignore_late_success(
    descriptor: &'static Descriptor,
    outcome: &Outcome,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    services: &Services,
) {
    let (registry, why) = (services.registry.clone(), outcome.to_string());
    Tasks::new("kernel", &services.stop).spawn("abandoned-init", async move {
        end.await;
        tracing::warn!(plugin = descriptor.id, "A plugin that was given up has come to an end.");
        for given in descriptor.provides {
            registry.mark_down(given.kind, given.instance, why.clone());
        }
    });
}

/// Why the daemon cannot run, if this outcome means that; the root cause first.
fn fatal(
    descriptor: &'static Descriptor,
    outcome: &Outcome,
    services: &Services,
) -> Option<Vec<(&'static str, String)>> {
    let required = services.plugins.get(descriptor.id).is_some_and(|state| state.required);
    if !required || matches!(outcome, Outcome::Ready | Outcome::Disabled) {
        return None;
    }
    let mut causes = vec![(descriptor.id, outcome.to_string())];
    let mut next = outcome.clone();
    while let Outcome::Blocked { by } = next {
        let Some(state) = services.plugins.get(by) else { break };
        causes.insert(0, (by, state.outcome.to_string()));
        next = state.outcome;
    }
    Some(causes)
}

fn log(descriptor: &Descriptor, outcome: &Outcome, took: Duration) {
    let plugin = descriptor.id;
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    match outcome {
        Outcome::Ready => tracing::debug!(plugin, micros, "Plugin is in service."),
        Outcome::Skipped(reason) => tracing::info!(plugin, reason, "Plugin was skipped."),
        Outcome::Disabled => tracing::info!(plugin, "Plugin is disabled."),
        Outcome::Pending => {}
        fault => tracing::error!(plugin, micros, reason = %fault, "Plugin is not in service."),
    }
}
