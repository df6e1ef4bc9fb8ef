//! The table of containers and what all of them share.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use gantry_sdk::context::{Host, Kernel};
use gantry_sdk::events::{Event, EventBus};
use gantry_sdk::id::ContainerId;
use gantry_sdk::kinds::logs::LogTarget;
use gantry_sdk::kinds::metadata::{Change, Metadata, MetadataStore};
use gantry_sdk::kinds::runtime::Exit;
use gantry_sdk::registry::Registry;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, Result};

use crate::exec::Execs;
use crate::handle::{Handle, View};
use crate::record::{Record, TABLE};
use crate::seccomp::Profiles;
use crate::settings::Settings;
use crate::spec::HostFacts;

/// What every container task and handler shares.
pub struct Engine {
    /// Backends.
    pub registry: Arc<Registry>,
    /// Where events go.
    pub events: EventBus,
    /// Spawner of container tasks.
    pub tasks: Tasks,
    /// Facts about the daemon.
    pub host: Arc<Host>,
    /// What only the kernel knows.
    pub kernel: Arc<dyn Kernel>,
    /// Defaults for containers.
    pub settings: RwLock<Arc<Settings>>,
    /// Files of containers: logs, `hosts`, `resolv.conf`.
    pub files: PathBuf,
    /// Run-time state of containers: shim sockets and exit records.
    pub run: PathBuf,
    /// The host as it was at start.
    pub facts: HostFacts,
    /// Seccomp profiles that were resolved.
    pub seccomp: Profiles,
    /// Execs of all containers.
    pub execs: Execs,
    metadata: Arc<dyn MetadataStore>,
    table: RwLock<Table>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Table {
    by_id: BTreeMap<ContainerId, Handle>,
    by_name: HashMap<String, ContainerId>,
}

impl Engine {
    /// An empty table over the backends of `cx`.
    ///
    /// # Errors
    ///
    /// `Unavailable` without a metadata store; those of making the directories.
    pub fn new(cx: &gantry_sdk::Context, settings: Settings) -> Result<Self> {
        Ok(Self {
            registry: cx.registry.clone(),
            events: cx.events.clone(),
            tasks: cx.tasks.clone(),
            host: cx.host.clone(),
            kernel: cx.kernel.clone(),
            settings: RwLock::new(Arc::new(settings)),
            files: cx.data_dir("containers")?,
            run: cx.run_dir("containers")?,
            facts: crate::host::facts()?,
            seccomp: Profiles::default(),
            execs: Execs::default(),
            metadata: cx.registry.only::<Metadata>()?,
            table: RwLock::default(),
        })
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The container that `reference` means: an id, a name (with or without slash), or a unique
    /// prefix of an id.
    ///
    /// # Errors
    ///
    /// `NotFound`; `InvalidArgument` for an ambiguous prefix.
    pub fn find(&self, reference: &str) -> Result<Handle> {
        let unknown = || Error::not_found(format!("No such container: {reference:.300}"));
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if name.is_empty() {
            return Err(unknown());
        }
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = reference.parse().ok().and_then(|id| table.by_id.get(&id)) {
            return Ok(handle.clone());
        }
        if let Some(handle) = table.by_name.get(name).and_then(|id| table.by_id.get(id)) {
            return Ok(handle.clone());
        }
        let mut matches = table.by_id.iter().filter(|(id, _)| id.as_str().starts_with(reference));
        match (matches.next(), matches.next()) {
            (Some((_, handle)), None) => Ok(handle.clone()),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("Multiple IDs found with provided prefix: {reference}")))
            }
            _ => Err(unknown()),
        }
    }

    /// Every container as it is now, in id order.
    pub fn views(&self) -> Vec<Arc<View>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_id.values().map(Handle::view).collect()
    }

    /// Every container's handle, in id order.
    pub fn handles(&self) -> Vec<Handle> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_id.values().cloned().collect()
    }

    /// Takes `name` for `id`.
    ///
    /// # Errors
    ///
    /// `Conflict` with the reference engine's text.
    pub fn reserve_name(&self, name: &str, id: &ContainerId) -> Result<()> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        match table.by_name.get(name) {
            Some(owner) if owner != id => Err(Error::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \
                 \"{owner}\". You have to remove (or rename) that container to be able to reuse \
                 that name."
            ))),
            _ => {
                table.by_name.insert(name.to_owned(), id.clone());
                Ok(())
            }
        }
    }

    /// Gives `name` back if it belongs to `id`.
    pub fn release_name(&self, name: &str, id: &ContainerId) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.by_name.get(name) == Some(id) {
            table.by_name.remove(name);
        }
    }

    /// Makes a container visible.
    pub fn insert(&self, id: ContainerId, handle: Handle) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).by_id.insert(id, handle);
    }

    /// Makes a container invisible and frees its name.
    pub fn forget(&self, record: &Record) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).by_id.remove(&record.id);
        self.release_name(&record.name, &record.id);
    }

    /// Writes a record; on disk when it returns.
    ///
    /// # Errors
    ///
    /// Those of the metadata store.
    pub async fn save(&self, record: &Record) -> Result<()> {
        let change = Change::put_json(TABLE, record.id.as_str(), record)?;
        self.metadata.commit(&Ctx::background(), vec![change]).await
    }

    /// Removes a record; gone from disk when it returns.
    ///
    /// # Errors
    ///
    /// Those of the metadata store.
    pub async fn erase(&self, id: &ContainerId) -> Result<()> {
        let change = Change::delete(TABLE, id.as_str());
        self.metadata.commit(&Ctx::background(), vec![change]).await
    }

    /// All records on disk.
    ///
    /// # Errors
    ///
    /// Those of the metadata store, and of a record that cannot be read.
    pub async fn load(&self) -> Result<Vec<Record>> {
        let rows = self.metadata.scan(&Ctx::background(), TABLE, "").await?;
        rows.iter().map(|(key, bytes)| Record::decode(key, bytes)).collect()
    }

    /// Reports that `action` happened to a container.
    pub fn report(&self, record: &Record, action: impl Into<String>, extra: &[(&str, String)]) {
        let mut event = Event::now("container", action, record.id.as_str());
        let labels = record.config.labels.iter().flatten();
        event.attributes.extend(labels.map(|(k, v)| (k.clone(), v.clone())));
        event.attributes.insert("image".into(), record.image.clone());
        event.attributes.insert("name".into(), record.name.clone());
        event.attributes.extend(extra.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        self.events.publish(event);
    }

    /// Reports that a container's first process ended after it `ran`.
    pub fn report_end(&self, record: &Record, exit: &Exit, ran: Duration) {
        if exit.oom {
            self.report(record, "oom", &[]);
        }
        let (code, seconds) = (exit.code.to_string(), ran.as_secs().to_string());
        self.report(record, "die", &[("exitCode", code), ("execDuration", seconds)]);
    }

    /// The directory with a container's files.
    pub fn files_of(&self, id: &ContainerId) -> PathBuf {
        self.files.join(id.as_str())
    }

    /// The directory with a container's run-time state.
    pub fn run_of(&self, id: &ContainerId) -> PathBuf {
        self.run.join(id.as_str())
    }

    /// How a log driver knows a container.
    pub fn log_target(&self, record: &Record) -> LogTarget {
        LogTarget {
            container: record.id.to_string(),
            name: record.name.clone(),
            image: record.image.clone(),
            labels: record.config.labels.clone().unwrap_or_default(),
            env: record.config.env.clone().unwrap_or_default(),
            options: record.log_options.clone(),
            dir: self.files_of(&record.id),
        }
    }
}
