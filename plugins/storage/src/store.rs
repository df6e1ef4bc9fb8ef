//! The SDK's layer store.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::BlobStore;
use gantry_sdk::kinds::layers::{
    Chain, ContainerLayer, Hold, InstanceStatus, LayerChange, LayerProgress, LayerStore, Staged,
    Wanted,
};
use gantry_sdk::kinds::storage::{LayerState, Storage, StorageDriver, StorageInfo};
use gantry_sdk::mounts::{Grants, IdMap, MountExecutor, MountFd, MountPlan};
use gantry_sdk::registry::Registry;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};

use crate::admin::Admin;
use crate::admin::rules::{Choice, Rules};
use crate::flights::Flights;
use crate::pins::Pins;
use crate::records::Records;
use crate::stage::Staging;
use crate::unpack::Lanes;

/// The key of the layer that stands for a chain of none.
const EMPTY: &str = "empty";

/// Chains and container layers over all storage instances.
pub(crate) struct Store {
    pub(crate) registry: Arc<Registry>,
    pub(crate) mounts: Arc<dyn MountExecutor>,
    pub(crate) blobs: Arc<dyn BlobStore>,
    pub(crate) records: Records,
    pub(crate) tasks: Tasks,
    pub(crate) default: String,
    pub(crate) rules: Rules,
    pub(crate) flights: Arc<Flights>,
    pub(crate) lanes: Lanes,
    pub(crate) staged: Arc<Staging>,
    pub(crate) pins: Arc<Pins>,
    /// Held while a collection runs.
    pub(crate) collecting: tokio::sync::Mutex<()>,
    /// Held while the empty layer is made.
    pub(crate) making_empty: tokio::sync::Mutex<()>,
    /// By instance, a layer that is not known to be on disk.
    pub(crate) unsynced: Mutex<BTreeMap<String, Digest>>,
    pub(crate) sync_wanted: tokio::sync::Notify,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("default", &self.default).finish_non_exhaustive()
    }
}

/// A storage instance, ready to be called.
#[derive(Clone)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) driver: Arc<dyn StorageDriver>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) info: StorageInfo,
}

impl Instance {
    /// Whether the chain `id` is unpacked here.
    pub(crate) async fn has(&self, cx: &Ctx, id: &Digest) -> Result<bool> {
        self.has_key(cx, id.as_str()).await
    }

    async fn has_key(&self, cx: &Ctx, key: &str) -> Result<bool> {
        match self.driver.stat(cx, key).await {
            Ok(layer) => Ok(layer.state == LayerState::Committed),
            // Being removed or being made: whoever does it will be met under its lock.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// What a store is made of.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a bag of trait objects, taken apart at once")]
pub struct Parts {
    /// Where storage drivers are found.
    pub registry: Arc<Registry>,
    /// Executes their plans.
    pub mounts: Arc<dyn MountExecutor>,
    /// Where layers come from.
    pub blobs: Arc<dyn BlobStore>,
    /// Where chains are remembered.
    pub metadata: Arc<dyn gantry_sdk::kinds::metadata::MetadataStore>,
    /// Runs what several wait for.
    pub tasks: Tasks,
    /// The default instance.
    pub default: String,
    /// Which containers get another one.
    pub rules: Rules,
}

impl Store {
    /// See [`open`].
    pub(crate) async fn open(parts: Parts) -> Result<Arc<Self>> {
        let cx = Ctx::background();
        let Parts { registry, mounts, blobs, metadata, tasks, default, rules } = parts;
        let records = Records::open(metadata, &cx).await?;
        let flights = Arc::<Flights>::default();
        let store = Arc::new(Self {
            registry,
            mounts,
            blobs,
            records,
            tasks,
            default,
            rules,
            pins: Arc::new(Pins::new(flights.clone())),
            flights,
            lanes: Lanes::default(),
            staged: Arc::default(),
            collecting: tokio::sync::Mutex::default(),
            making_empty: tokio::sync::Mutex::default(),
            unsynced: Mutex::default(),
            sync_wanted: tokio::sync::Notify::new(),
        });
        store.recover(&cx).await?;
        store.spawn_syncer();
        store.spawn_discarder();
        Ok(store)
    }

    /// The instance `name`, or the default one.
    pub(crate) fn instance(&self, name: Option<&str>) -> Result<Instance> {
        let name = name.unwrap_or(&self.default);
        let driver = self.registry.get::<Storage>(name).map_err(|error| match error.kind() {
            // Of something that refers to it, and that is there.
            ErrorKind::NotFound => {
                Error::unavailable(format!("storage instance {name} is not configured"))
            }
            _ => error,
        })?;
        let info = driver.describe();
        let grants = self.registry.grants::<Storage>(name);
        Ok(Instance { name: name.to_owned(), driver, grants, info })
    }

    /// See [`LayerStore::choose`].
    fn choose_instance(&self, wanted: &Wanted) -> Result<String> {
        for choice in self.rules.choices(wanted) {
            match choice {
                Choice::Exactly(name) => {
                    return match self.registry.get::<Storage>(name) {
                        Ok(_) => Ok(name.to_owned()),
                        Err(error) if error.kind() == ErrorKind::NotFound => {
                            let ready = self.registry.all::<Storage>();
                            let ready: Vec<String> =
                                ready.into_iter().map(|(name, _)| name).collect();
                            let ready = ready.join(", ");
                            Err(Error::invalid(format!(
                                "no storage instance is named {name:?} (there are: {ready})"
                            )))
                        }
                        Err(error) => Err(error),
                    };
                }
                Choice::Hint(name) if self.registry.get::<Storage>(name).is_ok() => {
                    return Ok(name.to_owned());
                }
                Choice::Hint(_) => {}
            }
        }
        Ok(self.default.clone())
    }

    /// All instances, the default one first.
    pub(crate) fn all_instances(&self) -> Result<Vec<Instance>> {
        let mut instances = vec![self.instance(None)?];
        for (name, _) in self.registry.all::<Storage>() {
            if name != self.default {
                instances.push(self.instance(Some(&name))?);
            }
        }
        Ok(instances)
    }

    pub(crate) async fn mount_plan(
        &self,
        cx: &Ctx,
        instance: &Instance,
        plan: &MountPlan,
    ) -> Result<MountFd> {
        self.mounts.mount(cx, plan, &instance.grants).await
    }

    /// How to mount a container's tree.
    async fn container_plan(
        self: &Arc<Self>,
        cx: &Ctx,
        layer: &ContainerLayer,
    ) -> Result<(Instance, MountPlan)> {
        let instance = self.instance(Some(&layer.instance))?;
        let plan = match instance.driver.plan(cx, &layer.key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.restore_below(cx, &instance, &layer.key).await?;
                instance.driver.plan(cx, &layer.key).await?
            }
            answer => answer?,
        };
        Ok((instance, plan))
    }

    /// Makes the layer below a container again, after a power cut took it.
    async fn restore_below(
        self: &Arc<Self>,
        cx: &Ctx,
        instance: &Instance,
        key: &str,
    ) -> Result<()> {
        let layer = instance.driver.stat(cx, key).await?;
        let Some(parent) = layer.parent else { return Ok(()) };
        if parent == EMPTY {
            return self.make_empty(cx, instance).await;
        }
        let id: Digest = parent.parse()?;
        let chain = self.records.chain(cx, &id).await?.ok_or_else(|| {
            Error::not_found(format!("the image layers {id} below {key} are gone"))
        })?;
        self.unpack_chain(cx, instance, &chain, None).await
    }

    /// Mounts the tree of `chain`, unpacking it first if necessary.
    pub(crate) async fn mount_chain(
        self: &Arc<Self>,
        cx: &Ctx,
        instance: &Instance,
        chain: &Chain,
    ) -> Result<MountFd> {
        let _kept = self.pins.pin(chain.ids());
        self.unpack_chain(cx, instance, chain, None).await?;
        let plan = match chain.id() {
            Some(id) => instance.driver.plan(cx, id.as_str()).await?,
            None => {
                self.make_empty(cx, instance).await?;
                instance.driver.plan(cx, EMPTY).await?
            }
        };
        self.mount_plan(cx, instance, &plan).await
    }

    async fn make_empty(&self, cx: &Ctx, instance: &Instance) -> Result<()> {
        let _one_at_a_time = self.making_empty.lock().await;
        if instance.has_key(cx, EMPTY).await? {
            return Ok(());
        }
        let key = format!("{}{EMPTY}", crate::unpack::UNPACKING);
        instance.driver.prepare(cx, &key, None, &Labels::new()).await?;
        instance.driver.commit(cx, &key, EMPTY).await.map(drop)
    }
}

/// Opens a layer store: reads its records, recovers every instance, and starts its tasks.
///
/// # Errors
///
/// Those of the database and of the drivers.
pub async fn open(parts: Parts) -> Result<Arc<dyn LayerStore>> {
    Ok(Arc::new(Handle(Store::open(parts).await?)))
}

/// Opens a layer store, and what operators do with its instances.
///
/// # Errors
///
/// Those of [`open`].
pub async fn open_with_admin(parts: Parts) -> Result<(Arc<dyn LayerStore>, Arc<Admin>)> {
    let metadata = parts.metadata.clone();
    let store = Store::open(parts).await?;
    let layers: Arc<dyn LayerStore> = Arc::new(Handle(store.clone()));
    let admin = Admin::open(store, layers.clone(), metadata).await?;
    Ok((layers, admin))
}

/// The store as the registry hands it out.
pub(crate) struct Handle(pub(crate) Arc<Store>);

#[async_trait]
impl LayerStore for Handle {
    async fn unpack(
        &self,
        cx: &Ctx,
        chain: &Chain,
        instance: Option<&str>,
        progress: Option<LayerProgress>,
    ) -> Result<()> {
        let instance = self.0.instance(instance)?;
        self.0.unpack_chain(cx, &instance, chain, progress).await
    }

    async fn choose(&self, _: &Ctx, wanted: &Wanted) -> Result<String> {
        self.0.choose_instance(wanted)
    }

    async fn create(
        &self,
        cx: &Ctx,
        key: &str,
        chain: &Chain,
        instance: Option<&str>,
        options: &Labels,
    ) -> Result<ContainerLayer> {
        let instance = self.0.instance(instance)?;
        let _kept = self.0.pins.pin(chain.ids());
        self.0.unpack_chain(cx, &instance, chain, None).await?;
        let parent = chain.id();
        let parent = parent.as_ref().map(Digest::as_str);
        let mut all = instance.info.defaults.clone();
        all.extend(options.clone());
        instance.driver.prepare(cx, key, parent, &all).await?;
        Ok(ContainerLayer { key: key.to_owned(), instance: instance.name })
    }

    async fn stage(
        &self,
        _: &Ctx,
        source: Box<dyn Read + Send>,
        instance: Option<&str>,
    ) -> Result<Staged> {
        let instance = self.0.instance(instance)?;
        self.0.stage_layer(instance, source).await
    }

    async fn lease(&self, _: &Ctx, chain: &Chain) -> Result<Hold> {
        Ok(Arc::new(self.0.pins.pin(chain.ids())))
    }

    async fn changes(
        &self,
        cx: &Ctx,
        layer: &ContainerLayer,
        chain: &Chain,
    ) -> Result<Vec<LayerChange>> {
        self.0.layer_changes(cx, layer, chain).await
    }

    async fn diff(
        &self,
        cx: &Ctx,
        layer: &ContainerLayer,
        chain: &Chain,
        places: bool,
        out: Box<dyn Write + Send>,
    ) -> Result<()> {
        self.0.layer_diff(cx, layer, chain, places, out).await
    }

    async fn removing(&self, cx: &Ctx) -> Result<u64> {
        let mut sum = 0u64;
        for instance in self.0.all_instances()? {
            sum = sum.saturating_add(instance.driver.removing(cx).await?);
        }
        Ok(sum)
    }

    async fn mount(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<MountFd> {
        let (instance, plan) = self.0.container_plan(cx, layer).await?;
        self.0.mount_plan(cx, &instance, &plan).await
    }

    async fn mount_mapped(&self, cx: &Ctx, layer: &ContainerLayer, ids: &IdMap) -> Result<MountFd> {
        let (instance, plan) = self.0.container_plan(cx, layer).await?;
        if !instance.info.id_maps {
            let name = &instance.name;
            return Err(Error::unsupported(format!(
                "storage instance {name} cannot show its layers with other owners"
            )));
        }
        self.0.mount_plan(cx, &instance, &plan.with_ids(ids.clone())).await
    }

    async fn mount_chain(
        &self,
        cx: &Ctx,
        chain: &Chain,
        instance: Option<&str>,
    ) -> Result<MountFd> {
        let instance = self.0.instance(instance)?;
        self.0.mount_chain(cx, &instance, chain).await
    }

    async fn remove(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<()> {
        let instance = self.0.instance(Some(&layer.instance))?;
        instance.driver.remove(cx, &layer.key).await
    }

    async fn usage(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<u64> {
        let instance = self.0.instance(Some(&layer.instance))?;
        instance.driver.usage(cx, &layer.key).await.map(|(bytes, _)| bytes)
    }

    async fn chain_usage(&self, cx: &Ctx, chain: &Chain) -> Result<u64> {
        let mut sum = 0u64;
        for id in chain.ids() {
            sum = sum.saturating_add(self.0.layer_size(cx, &id).await?);
        }
        Ok(sum)
    }

    async fn chain_sizes(&self, cx: &Ctx) -> Result<Vec<(Digest, u64)>> {
        let mut ids = BTreeSet::new();
        for instance in self.0.all_instances()? {
            let layers = self.0.list_all(cx, &instance).await?;
            let committed = layers.into_iter().filter(|layer| layer.state == LayerState::Committed);
            ids.extend(committed.filter_map(|layer| layer.key.parse::<Digest>().ok()));
        }
        let mut sizes = Vec::with_capacity(ids.len());
        for id in ids {
            let size = self.0.layer_size(cx, &id).await?;
            sizes.push((id, size));
        }
        Ok(sizes)
    }

    async fn collect(&self, _: &Ctx, keep: &[Chain]) -> Result<()> {
        self.0.collect(keep.iter().flat_map(Chain::ids).collect()).await
    }

    async fn details(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<Labels> {
        let instance = self.0.instance(Some(&layer.instance))?;
        instance.driver.details(cx, &layer.key).await
    }

    async fn chain_details(&self, cx: &Ctx, chain: &Chain) -> Result<(String, Labels)> {
        let instance = self.0.instance(None)?;
        let details = match chain.id() {
            Some(id) if instance.has(cx, &id).await? => {
                instance.driver.details(cx, id.as_str()).await?
            }
            _ => Labels::new(),
        };
        Ok((instance.name, details))
    }

    async fn reconcile(&self, cx: &Ctx, known: &[String]) -> Result<Vec<String>> {
        self.0.drop_unknown(cx, known).await
    }

    async fn instances(&self, _: &Ctx) -> Result<Vec<InstanceStatus>> {
        let instances = self.0.all_instances()?.into_iter();
        Ok(instances.map(|i| InstanceStatus { name: i.name, status: i.info.status }).collect())
    }
}
