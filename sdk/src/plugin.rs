//! What a plugin is: a static descriptor and an implementation that is built from it.

use async_trait::async_trait;

use crate::Result;
use crate::command::Command;
use crate::config::ConfigView;
use crate::context::Context;
use crate::route::RouteDecl;

/// The fixed slot of a plugin in start order.
///
/// A need may point to the same or an earlier phase only. Shutdown runs backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Phase {
    /// Facts about the host that everything below needs.
    Host,
    /// Blobs and the metadata database.
    Content,
    /// Storage drivers and the layer store.
    Storage,
    /// Images.
    Image,
    /// Volume drivers and the volume store.
    Volume,
    /// Address management.
    Ipam,
    /// Network drivers and the network store.
    Network,
    /// Log drivers.
    Log,
    /// Runtimes and shims.
    Runtime,
    /// The container store.
    Container,
    /// Builders.
    Build,
    /// Services over many machines.
    Cluster,
    /// Authorisation and admission.
    Policy,
    /// Routes that see everything.
    Api,
}

impl Phase {
    /// All phases in start order.
    pub const ALL: [Self; 14] = [
        Self::Host,
        Self::Content,
        Self::Storage,
        Self::Image,
        Self::Volume,
        Self::Ipam,
        Self::Network,
        Self::Log,
        Self::Runtime,
        Self::Container,
        Self::Build,
        Self::Cluster,
        Self::Policy,
        Self::Api,
    ];
}

/// What must be ready before a plugin starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Every provider of this kind goes first; at least one must exist.
    Kind(&'static str),
    /// This instance of this kind.
    Instance(&'static str, &'static str),
    /// Order only: providers go first if there are any.
    Optional(&'static str),
}

/// A kind that a plugin provides, under a default instance name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provide {
    /// [`Kind::NAME`](crate::registry::Kind::NAME).
    pub kind: &'static str,
    /// What users type after `--storage-driver`, `-d`, `--log-driver`.
    pub instance: &'static str,
}

impl Provide {
    /// `instance` of `kind`.
    pub const fn new(kind: &'static str, instance: &'static str) -> Self {
        Self { kind, instance }
    }
}

/// A key of the daemon's configuration that a plugin honours.
///
/// A key that neither the kernel nor any plugin claims is refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigKey {
    /// As in `daemon.json`, for example `bip`.
    pub name: &'static str,
    /// Whether a new value takes effect on reload.
    pub reloadable: bool,
}

impl ConfigKey {
    /// A key that is read once, at start.
    pub const fn fixed(name: &'static str) -> Self {
        Self { name, reloadable: false }
    }

    /// A key whose new value takes effect on reload.
    pub const fn reloadable(name: &'static str) -> Self {
        Self { name, reloadable: true }
    }
}

/// Everything the kernel knows about a plugin before any of its code runs.
#[derive(Debug)]
pub struct Descriptor {
    /// Unique; `domain.name` for drivers, as in `storage.overlay2`.
    pub id: &'static str,
    /// Of the plugin, not of an interface.
    pub version: &'static str,
    /// Start slot.
    pub phase: Phase,
    /// Backends it registers.
    pub provides: &'static [Provide],
    /// What goes first.
    pub needs: &'static [Need],
    /// Routes it serves; each must be bound during `init`.
    pub routes: &'static [RouteDecl],
    /// Commands it adds to the program.
    pub commands: &'static [Command],
    /// Configuration keys it honours.
    pub config: &'static [ConfigKey],
    /// Checks the values of those keys without side effects; returns every mistake.
    pub check_config: fn(&ConfigView) -> Vec<String>,
    /// The same for its own section, [`Context::own_config`](crate::Context::own_config).
    pub check_section: fn(&serde_json::Value) -> Vec<String>,
    /// Whether the daemon must not run without it. Configuration overrides both ways.
    pub required: bool,
}

/// No configuration to check.
pub fn no_config(_: &ConfigView) -> Vec<String> {
    Vec::new()
}

/// The mistakes of what was parsed, for [`Descriptor::check_section`]: none, or the error with its
/// causes.
pub fn mistakes<T>(parsed: crate::Result<T>) -> Vec<String> {
    parsed.err().map(|error| error.chain()).into_iter().collect()
}

/// A plugin without a section of its own takes none.
pub fn no_section(section: &serde_json::Value) -> Vec<String> {
    if section.is_null() {
        Vec::new()
    } else {
        vec!["this plugin takes no configuration of its own".to_owned()]
    }
}

impl Descriptor {
    /// A descriptor with nothing but identity; fill in the rest with struct update syntax.
    pub const fn new(id: &'static str, phase: Phase) -> Self {
        Self {
            id,
            version: env!("CARGO_PKG_VERSION"),
            phase,
            provides: &[],
            needs: &[],
            routes: &[],
            commands: &[],
            config: &[],
            check_config: no_config,
            check_section: no_section,
            required: true,
        }
    }
}

/// How initialisation ended, short of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// In service.
    Ready,
    /// Not usable on this host, which is normal; the reason is one an operator can act on.
    Skipped(String),
}

/// A plugin's code. Calls come in this order: [`init`](Self::init), [`started`](Self::started),
/// any number of [`reload`](Self::reload), [`stop`](Self::stop).
#[async_trait]
pub trait Plugin: Send + Sync {
    /// Provides backends, binds routes, starts background tasks. Reconciles what the disk says with
    /// what is there. Bounded by a deadline; an error leaves the plugin out, or stops the boot if it
    /// is required.
    async fn init(&self, cx: &mut Context) -> Result<Init>;

    /// The registry and the router are frozen and requests are being accepted: the moment for work
    /// that needs plugins of later phases, such as starting containers.
    async fn started(&self) -> Result<()> {
        Ok(())
    }

    /// Checks a new configuration and returns the change to apply; nothing may take effect before
    /// the closure runs, because another plugin may still refuse.
    async fn reload(&self, _config: &ConfigView) -> Result<Box<dyn FnOnce() + Send>> {
        Ok(Box::new(|| ()))
    }

    /// Ends the plugin; its tasks are stopped by the kernel afterwards.
    async fn stop(&self) -> Result<()> {
        Ok(())
    }
}

/// A built-in plugin: data and a function pointer, so that nothing runs before `main`.
///
/// ```ignore
/// inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(VolumePlugin::default())) }
/// ```
#[derive(Debug)]
pub struct Registration {
    /// Its descriptor.
    pub descriptor: &'static Descriptor,
    /// Makes the plugin; must not do anything else.
    pub build: fn() -> Box<dyn Plugin>,
}

impl Registration {
    /// Registers what `build` makes under `descriptor`.
    pub const fn new(descriptor: &'static Descriptor, build: fn() -> Box<dyn Plugin>) -> Self {
        Self { descriptor, build }
    }
}

inventory::collect!(Registration);
