//! Names, records and holds; everything that changes a volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::future::join_all;
use gantry_api::Volume as ApiVolume;
use gantry_sdk::events::{Event, EventBus};
use gantry_sdk::id::ContainerId;
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::kinds::volume::{Volume, VolumeDriver, VolumeInfo};
use gantry_sdk::kinds::volumes::{NewVolume, VolumeRecord, VolumeStore};
use gantry_sdk::mounts::{MountExecutor, MountFd};
use gantry_sdk::registry::Registry;
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};

use crate::names::Names;
use crate::publish::Published;
use crate::record::{ANONYMOUS, Record};

/// The table of the metadata database.
pub const TABLE: &str = "volumes";
/// The driver of volumes that name none.
pub const DEFAULT_DRIVER: &str = "local";
/// How long a request that concerns all drivers waits for one of them.
pub const SOFT: Duration = Duration::from_secs(2);

/// The volume store.
pub struct Store {
    pub(crate) registry: Arc<Registry>,
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) mounts: Arc<dyn MountExecutor>,
    pub(crate) events: EventBus,
    pub(crate) names: Names,
    pub(crate) pruning: AtomicBool,
    state: Mutex<State>,
}

/// What is known in this process.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) records: BTreeMap<String, Record>,
    /// Containers by volume.
    pub(crate) holds: BTreeMap<String, BTreeSet<String>>,
    pub(crate) published: BTreeMap<String, Published>,
}

impl State {
    /// Who uses the volume, whether by a hold or by a mount.
    pub(crate) fn users(&self, name: &str) -> BTreeSet<&str> {
        let holds = self.holds.get(name).into_iter().flatten();
        let published = self.published.get(name).into_iter().flat_map(|p| &p.users);
        holds.chain(published).map(String::as_str).collect()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// A store with the records of the database. No driver is asked: one that is not there yet must
    /// not cost a volume its record.
    ///
    /// # Errors
    ///
    /// Those of the database. A record that cannot be read is left alone, with a warning.
    pub async fn open(
        registry: Arc<Registry>,
        metadata: Arc<dyn MetadataStore>,
        mounts: Arc<dyn MountExecutor>,
        events: EventBus,
    ) -> Result<Self> {
        let mut records = BTreeMap::new();
        for (name, text) in metadata.scan(&Ctx::background(), TABLE, "").await? {
            match serde_json::from_slice::<Record>(&text) {
                Ok(record) => drop(records.insert(name, record)),
                Err(error) => tracing::warn!(volume = name, %error, "Cannot read a volume record."),
            }
        }
        let state = Mutex::new(State { records, ..State::default() });
        let (names, pruning) = (Names::default(), AtomicBool::new(false));
        Ok(Self { registry, metadata, mounts, events, names, pruning, state })
    }

    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self, name: &str) -> Option<Record> {
        self.state().records.get(name).cloned()
    }

    pub(crate) fn driver(&self, name: &str) -> Result<Arc<dyn VolumeDriver>> {
        self.registry.get::<Volume>(name).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::not_found(format!(
                "error looking up volume plugin {name}: plugin {name:?} not found"
            )),
            _ => error,
        })
    }

    pub(crate) fn report(&self, action: &str, record: &Record) {
        let event = Event::now("volume", action, &record.name);
        self.events.publish(event.with("driver", &record.driver));
    }

    async fn keep(&self, cx: &Ctx, record: &Record) -> Result<()> {
        let change = Change::put_json(TABLE, &record.name, record)?;
        self.metadata.commit(cx, vec![change]).await?;
        self.state().records.insert(record.name.clone(), record.clone());
        Ok(())
    }

    async fn forget(&self, cx: &Ctx, name: &str) -> Result<()> {
        self.metadata.commit(cx, vec![Change::delete(TABLE, name)]).await?;
        self.state().records.remove(name);
        Ok(())
    }

    /// Makes a volume, or returns the one of that name. As [`VolumeStore::create`], but keeps apart
    /// "no labels" and "none given", which clients see.
    ///
    /// # Errors
    ///
    /// As [`VolumeStore::create`]; messages begin with `create <name>`.
    pub async fn make(
        &self,
        cx: &Ctx,
        name: Option<&str>,
        driver: Option<&str>,
        options: Option<Labels>,
        labels: Option<Labels>,
    ) -> Result<(Record, VolumeInfo)> {
        let mut wanted = Record {
            name: name.map_or_else(|| ContainerId::random().to_string(), str::to_owned),
            driver: driver.unwrap_or_default().to_owned(),
            options,
            labels,
            created: gantry_sdk::time::rfc3339(SystemTime::now()),
        };
        if name.is_none() {
            wanted.labels.get_or_insert_default().insert(ANONYMOUS.to_owned(), String::new());
        }
        let _turn = self.names.turn(&wanted.name).await;
        let context = format!("create {:.255}", wanted.name);
        self.make_in_turn(cx, wanted).await.map_err(|error| error.context(context))
    }

    async fn make_in_turn(&self, cx: &Ctx, mut wanted: Record) -> Result<(Record, VolumeInfo)> {
        if let Some(found) = self.existing(cx, &wanted).await? {
            return Ok(found);
        }
        if wanted.driver.is_empty() {
            if let Some((record, info)) = self.probe(cx, &wanted.name).await {
                self.keep(cx, &record).await?;
                return Ok((record, info));
            }
            wanted.driver = DEFAULT_DRIVER.to_owned();
        }
        let driver = self.driver(&wanted.driver)?;
        driver.create(cx, &wanted.name, wanted.options.as_ref().unwrap_or(&Labels::new())).await?;
        let info = driver.get(cx, &wanted.name).await?;
        self.keep(cx, &wanted).await?;
        self.report("create", &wanted);
        Ok((wanted, info))
    }

    /// The volume of that name, if its record is right.
    async fn existing(&self, cx: &Ctx, wanted: &Record) -> Result<Option<(Record, VolumeInfo)>> {
        let Some(record) = self.record(&wanted.name) else { return Ok(None) };
        let (name, driver) = (&record.name, &record.driver);
        let unique = |why: String| Error::conflict(format!("{why}: volume name must be unique"));
        let answer = match self.driver(driver) {
            Ok(driver) => driver.get(cx, name).await,
            Err(error) => Err(error.with_kind(ErrorKind::Unavailable)),
        };
        match answer {
            Ok(_) if !wanted.driver.is_empty() && wanted.driver != *driver => {
                Err(unique(format!("driver '{driver}' already has volume '{name}'")))
            }
            Ok(info) => Ok(Some((record, info))),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(unique(format!(
                "found reference to volume '{name}' in driver '{driver}', but got an error while \
                 checking the driver: {}",
                error.chain()
            ))),
            Err(_) if self.state().users(name).is_empty() => Ok(None),
            Err(_) => Err(unique(format!(
                "found references to volume '{name}' in driver '{driver}' but the volume was not \
                 found in the driver -- you may need to remove containers referencing this volume \
                 or force remove the volume to re-create it"
            ))),
        }
    }

    /// Asks all drivers at once for a volume that has no record.
    async fn probe(&self, cx: &Ctx, name: &str) -> Option<(Record, VolumeInfo)> {
        let cx = &cx.within(SOFT);
        let asked =
            self.registry.all::<Volume>().into_iter().map(|(instance, driver)| async move {
                let info = driver.get(cx, name).await.ok()?;
                Some((Record::found(name, &instance), info))
            });
        join_all(asked).await.into_iter().flatten().next()
    }

    /// The record of `name` and what its driver says; a volume that only a driver knows gets one.
    ///
    /// # Errors
    ///
    /// `NotFound`; those of the driver. Messages begin with `get <name>`.
    pub async fn find(&self, cx: &Ctx, name: &str) -> Result<(Record, VolumeInfo)> {
        let found = match self.record(name) {
            Some(record) => match self.driver(&record.driver) {
                Ok(driver) => driver.get(cx, name).await.map(|info| (record, info)),
                Err(error) => Err(error.with_kind(ErrorKind::Unavailable)),
            },
            None => match self.probe(cx, name).await {
                Some((record, info)) => {
                    let _turn = self.names.turn(name).await;
                    // Made with labels, perhaps, while we asked.
                    match self.record(name) {
                        Some(record) => Ok((record, info)),
                        None => self.keep(cx, &record).await.map(|()| (record, info)),
                    }
                }
                None => Err(Error::not_found("")),
            },
        };
        found.map_err(|error| match error.kind() {
            ErrorKind::NotFound => no_such_volume(name),
            _ => error.context(format!("get {name:.255}")),
        })
    }

    /// The volume `name` as clients see it.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find).
    pub async fn inspect(&self, cx: &Ctx, name: &str) -> Result<ApiVolume> {
        let (record, info) = self.find(cx, name).await?;
        Ok(self.to_api(&record, Some(&info)))
    }

    pub(crate) fn to_api(&self, record: &Record, info: Option<&VolumeInfo>) -> ApiVolume {
        let driver = self.registry.get::<Volume>(&record.driver);
        record.to_api(info, driver.map(|driver| driver.scope()).unwrap_or_default())
    }

    /// Removes a volume. With `force` a missing one is no error, and the record goes even if the
    /// driver is gone or refuses.
    ///
    /// # Errors
    ///
    /// `Conflict` while it is in use, forced or not; `NotFound`; those of the driver.
    pub async fn delete(&self, cx: &Ctx, name: &str, force: bool) -> Result<()> {
        let record = match self.record(name) {
            Some(record) => record,
            None => match self.find(cx, name).await {
                Ok((record, _)) => record,
                Err(error) if force && error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        let _turn = self.names.turn(name).await;
        let Some(record) = self.record(&record.name) else {
            return if force { Ok(()) } else { Err(no_such_volume(name)) };
        };
        self.check_unused(name)?;
        let removed = match self.driver(&record.driver) {
            Ok(driver) => driver.remove(cx, name).await,
            // Nobody could remove it, and the operator insists.
            Err(error) if force && error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        if removed.is_ok() || force {
            self.forget(cx, name).await?;
        }
        removed.map_err(|error| error.context(format!("remove {name}")))?;
        self.report("destroy", &record);
        Ok(())
    }

    fn check_unused(&self, name: &str) -> Result<()> {
        let state = self.state();
        let users = state.users(name);
        if users.is_empty() {
            return Ok(());
        }
        let users = users.into_iter().collect::<Vec<_>>().join(", ");
        Err(Error::conflict(format!("remove {name}: volume is in use - [{users}]")))
    }
}

pub(crate) fn no_such_volume(name: &str) -> Error {
    Error::not_found(format!("get {name:.255}: no such volume"))
}

fn shown(record: Record, info: VolumeInfo) -> VolumeRecord {
    VolumeRecord {
        anonymous: record.is_anonymous(),
        name: record.name,
        driver: record.driver,
        mountpoint: info.mountpoint,
    }
}

#[async_trait]
impl VolumeStore for Store {
    async fn create(&self, cx: &Ctx, volume: NewVolume) -> Result<VolumeRecord> {
        let given = |labels: Labels| (!labels.is_empty()).then_some(labels);
        let NewVolume { name, driver, options, labels } = volume;
        let name = name.as_deref().filter(|name| !name.is_empty());
        let driver = driver.as_deref().filter(|driver| !driver.is_empty());
        let (record, info) = self.make(cx, name, driver, given(options), given(labels)).await?;
        Ok(shown(record, info))
    }

    async fn get(&self, cx: &Ctx, name: &str) -> Result<VolumeRecord> {
        self.find(cx, name).await.map(|(record, info)| shown(record, info))
    }

    async fn hold(&self, cx: &Ctx, name: &str, user: &str) -> Result<()> {
        // The driver is asked only if nothing is known here: at boot it may not be there yet.
        if self.record(name).is_none() {
            self.find(cx, name).await?;
        }
        let _turn = self.names.turn(name).await;
        let mut state = self.state();
        if !state.records.contains_key(name) {
            return Err(no_such_volume(name));
        }
        state.holds.entry(name.to_owned()).or_default().insert(user.to_owned());
        Ok(())
    }

    async fn release(&self, _: &Ctx, name: &str, user: &str) -> Result<()> {
        let mut state = self.state();
        if let Some(users) = state.holds.get_mut(name) {
            users.remove(user);
            if users.is_empty() {
                state.holds.remove(name);
            }
        }
        Ok(())
    }

    async fn publish(&self, cx: &Ctx, name: &str, user: &str) -> Result<MountFd> {
        crate::publish::publish(self, cx, name, user).await
    }

    async fn unpublish(&self, cx: &Ctx, name: &str, user: &str) -> Result<()> {
        crate::publish::unpublish(self, cx, name, user).await
    }

    async fn remove(&self, cx: &Ctx, name: &str) -> Result<()> {
        self.delete(cx, name, false).await
    }
}
