//! The kind `layers` over every storage instance.
//!
//! Keys at the drivers: `<64 hex digits>` for an unpacked chain, `new-<hex>` while it is unpacked,
//! `container-<id>` for a container's layer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobStore, Blobs};
use gantry_sdk::kinds::info::InfoSource;
use gantry_sdk::kinds::layers::{
    Chain, ChainLayer, ContainerLayer, InstanceStatus, LayerProgress, LayerStore,
};
use gantry_sdk::kinds::storage::{LayerState, Storage, StorageDriver};
use gantry_sdk::mounts::{Grants, MountExecutor, MountFd, MountPlan, Step};
use gantry_sdk::{Context, Ctx, Error, ErrorKind, Labels, Result};
use serde_json::{Map, Value, json};

use crate::flight::Flights;
use crate::settings::Settings;
use crate::unpack::unpack;

/// Layers asked for at once when a driver lists what it has.
const PAGE: u32 = 1000;

/// One storage instance.
struct Instance {
    driver: Arc<dyn StorageDriver>,
    grants: Arc<Grants>,
    /// Bytes of committed layers, which never change.
    sizes: Mutex<HashMap<String, u64>>,
}

/// All layers of all instances.
pub struct Store {
    blobs: Arc<dyn BlobStore>,
    mounts: Arc<dyn MountExecutor>,
    instances: BTreeMap<String, Arc<Instance>>,
    default: String,
    unpacking: Flights,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("default", &self.default).finish_non_exhaustive()
    }
}

fn container_key(key: &str) -> String {
    format!("container-{key}")
}

impl Store {
    /// Opens every ready instance, after what a crash left half done was cleared.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the default instance is not ready; those of the drivers' recovery.
    pub async fn open(cx: &Context, settings: &Settings) -> Result<Self> {
        let background = Ctx::background();
        let mut instances = BTreeMap::new();
        for (name, driver) in cx.registry.all::<Storage>() {
            let dropped = driver.recover(&background).await?;
            if !dropped.is_empty() {
                tracing::info!(instance = name, layers = ?dropped, "Dropped unfinished layers.");
            }
            let grants = cx.registry.grants::<Storage>(&name);
            let instance = Instance { driver, grants, sizes: Mutex::default() };
            instance.drop_unfinished(&background).await?;
            instances.insert(name, Arc::new(instance));
        }
        let ready: Vec<String> = instances.keys().cloned().collect();
        Ok(Self {
            blobs: cx.registry.only::<Blobs>()?,
            mounts: cx.mounts.clone(),
            default: settings.choose(&ready)?,
            instances,
            unpacking: Flights::default(),
        })
    }

    fn instance(&self, name: Option<&str>) -> Result<(&str, Arc<Instance>)> {
        let name = name.filter(|n| !n.is_empty()).unwrap_or(&self.default);
        match self.instances.get_key_value(name) {
            Some((name, instance)) => Ok((name, instance.clone())),
            None => Err(Error::invalid(format!(
                "no storage instance named {name}; there are: {}",
                self.instances.keys().cloned().collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// Makes sure that every prefix of `chain` is committed.
    async fn ensure(
        &self,
        cx: &Ctx,
        chain: &Chain,
        instance: Option<&str>,
        progress: Option<&LayerProgress>,
    ) -> Result<()> {
        let (name, instance) = self.instance(instance)?;
        let Some(top) = chain.id() else { return Ok(()) };
        if instance.is_committed(cx, top.hex()).await? {
            return Ok(());
        }
        let mut parent: Option<Digest> = None;
        for (layer, id) in chain.0.iter().zip(chain.ids()) {
            // Held while the layer is made: a second caller finds it done.
            let _flight = self.unpacking.enter(&format!("{name}/{id}")).await;
            if !instance.is_committed(cx, id.hex()).await? {
                self.make(cx, &instance, layer, &id, parent.as_ref(), progress).await?;
            }
            parent = Some(id);
        }
        Ok(())
    }

    async fn make(
        &self,
        cx: &Ctx,
        instance: &Arc<Instance>,
        layer: &ChainLayer,
        id: &Digest,
        parent: Option<&Digest>,
        progress: Option<&LayerProgress>,
    ) -> Result<()> {
        let blob = self.blobs.open(cx, &layer.blob).await.map_err(|e| {
            e.context(format!("cannot unpack layer {}: its content is missing", layer.diff_id))
        })?;
        let driver = &instance.driver;
        let key = format!("new-{}", id.hex());
        driver.remove(cx, &key).await?; // what an earlier attempt left
        driver.prepare(cx, &key, parent.map(Digest::hex), &Labels::new()).await?;
        let made = async {
            let plan = driver.unpack_plan(cx, &key).await?;
            let target = self.mounts.mount(cx, &plan, &instance.grants).await?;
            let below = match parent {
                Some(parent) => {
                    let plan = driver.plan(cx, parent.hex()).await?;
                    Some(self.mounts.mount(cx, &plan, &instance.grants).await?)
                }
                None => None,
            };
            let (diff_id, whiteouts) = (layer.diff_id.clone(), driver.describe().whiteouts);
            let progress = progress.cloned();
            tokio::task::spawn_blocking(move || {
                unpack(blob, &diff_id, &target, below.as_ref(), whiteouts, progress)
            })
            .await??;
            driver.sync(cx, &key).await?;
            driver.commit(cx, &key, id.hex()).await
        };
        match made.await {
            Ok(_) => Ok(()),
            Err(error) => {
                if let Err(left) = driver.remove(cx, &key).await {
                    tracing::warn!(layer = key, error = %left.chain(), "Left an unfinished layer.");
                }
                Err(error)
            }
        }
    }

    async fn execute(&self, cx: &Ctx, instance: &Instance, plan: &MountPlan) -> Result<MountFd> {
        self.mounts.mount(cx, plan, &instance.grants).await
    }
}

impl Instance {
    async fn is_committed(&self, cx: &Ctx, key: &str) -> Result<bool> {
        match self.driver.stat(cx, key).await {
            Ok(layer) => Ok(layer.state == LayerState::Committed),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// All keys in `state`, in key order.
    async fn keys(&self, cx: &Ctx, state: LayerState) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.driver.list(cx, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(keys) };
            after = Some(last.key.clone());
            keys.extend(page.into_iter().filter(|l| l.state == state).map(|l| l.key));
        }
    }

    async fn drop_unfinished(&self, cx: &Ctx) -> Result<()> {
        for key in self.keys(cx, LayerState::Active).await? {
            if key.starts_with("new-") {
                self.driver.remove(cx, &key).await?;
            }
        }
        Ok(())
    }

    async fn committed_size(&self, cx: &Ctx, key: &str) -> Result<u64> {
        let known = || self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = known().get(key) {
            return Ok(*size);
        }
        match self.driver.usage(cx, key).await {
            Ok((size, _)) => {
                known().insert(key.to_owned(), size);
                Ok(size)
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
            Err(e) => Err(e),
        }
    }
}

#[async_trait]
impl LayerStore for Store {
    async fn unpack(
        &self,
        cx: &Ctx,
        chain: &Chain,
        instance: Option<&str>,
        progress: Option<LayerProgress>,
    ) -> Result<()> {
        self.ensure(cx, chain, instance, progress.as_ref()).await
    }

    async fn create(
        &self,
        cx: &Ctx,
        key: &str,
        chain: &Chain,
        instance: Option<&str>,
        options: &Labels,
    ) -> Result<ContainerLayer> {
        self.ensure(cx, chain, instance, None).await?;
        let (name, instance) = self.instance(instance)?;
        let parent = chain.id();
        let parent = parent.as_ref().map(Digest::hex);
        instance.driver.prepare(cx, &container_key(key), parent, options).await?;
        Ok(ContainerLayer { key: key.to_owned(), instance: name.to_owned() })
    }

    async fn mount(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<MountFd> {
        let (_, instance) = self.instance(Some(&layer.instance))?;
        let plan = instance.driver.plan(cx, &container_key(&layer.key)).await?;
        self.execute(cx, &instance, &plan).await
    }

    async fn mount_chain(
        &self,
        cx: &Ctx,
        chain: &Chain,
        instance: Option<&str>,
    ) -> Result<MountFd> {
        self.ensure(cx, chain, instance, None).await?;
        let (_, instance) = self.instance(instance)?;
        match chain.id() {
            Some(top) => {
                let plan = instance.driver.plan(cx, top.hex()).await?;
                self.execute(cx, &instance, &plan).await
            }
            None => {
                let empty = Step::Tmpfs { bytes: 4096, inodes: 1, mode: 0o755, uid: 0, gid: 0 };
                let grants = Grants { steps: ["tmpfs"].into(), ..Grants::default() };
                self.mounts.mount(cx, &MountPlan::of(vec![empty]), &grants).await
            }
        }
    }

    async fn remove(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<()> {
        let (_, instance) = self.instance(Some(&layer.instance))?;
        instance.driver.remove(cx, &container_key(&layer.key)).await
    }

    async fn usage(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<u64> {
        let (_, instance) = self.instance(Some(&layer.instance))?;
        Ok(instance.driver.usage(cx, &container_key(&layer.key)).await?.0)
    }

    async fn chain_usage(&self, cx: &Ctx, chain: &Chain) -> Result<u64> {
        let (_, instance) = self.instance(None)?;
        let mut total: u64 = 0;
        for id in chain.ids() {
            total = total.saturating_add(instance.committed_size(cx, id.hex()).await?);
        }
        Ok(total)
    }

    async fn chain_sizes(&self, cx: &Ctx) -> Result<Vec<(Digest, u64)>> {
        let (_, instance) = self.instance(None)?;
        let mut sizes = Vec::new();
        for key in instance.keys(cx, LayerState::Committed).await? {
            if let Ok(id) = format!("sha256:{key}").parse() {
                sizes.push((id, instance.committed_size(cx, &key).await?));
            }
        }
        Ok(sizes)
    }

    async fn collect(&self, cx: &Ctx, keep: &[Chain]) -> Result<()> {
        let keep: BTreeSet<String> =
            keep.iter().flat_map(Chain::ids).map(|id| id.hex().to_owned()).collect();
        for (name, instance) in &self.instances {
            let mut idle = instance.keys(cx, LayerState::Committed).await?;
            idle.retain(|key| !keep.contains(key));
            // A layer goes after those that stand on it; what a container stands on stays.
            loop {
                let before = idle.len();
                let mut busy = Vec::new();
                for key in idle {
                    let id = format!("sha256:{key}");
                    let _flight = self.unpacking.enter(&format!("{name}/{id}")).await;
                    match instance.driver.remove(cx, &key).await {
                        Ok(()) => {
                            let mut sizes =
                                instance.sizes.lock().unwrap_or_else(PoisonError::into_inner);
                            sizes.remove(&key);
                        }
                        Err(e) if e.kind() == ErrorKind::Busy => busy.push(key),
                        Err(e) => return Err(e),
                    }
                }
                if busy.is_empty() || busy.len() == before {
                    break;
                }
                idle = busy;
            }
        }
        Ok(())
    }

    async fn details(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<Labels> {
        let (_, instance) = self.instance(Some(&layer.instance))?;
        instance.driver.details(cx, &container_key(&layer.key)).await
    }

    async fn chain_details(&self, cx: &Ctx, chain: &Chain) -> Result<(String, Labels)> {
        let (name, instance) = self.instance(None)?;
        let details = match chain.id() {
            Some(top) => instance.driver.details(cx, top.hex()).await?,
            None => Labels::new(),
        };
        Ok((name.to_owned(), details))
    }

    async fn reconcile(&self, cx: &Ctx, known: &[String]) -> Result<Vec<String>> {
        let known: BTreeSet<String> = known.iter().map(|key| container_key(key)).collect();
        let mut dropped = Vec::new();
        for instance in self.instances.values() {
            for key in instance.keys(cx, LayerState::Active).await? {
                if key.starts_with("container-") && !known.contains(&key) {
                    instance.driver.remove(cx, &key).await?;
                    dropped.push(key);
                }
            }
        }
        Ok(dropped)
    }

    async fn instances(&self, _: &Ctx) -> Result<Vec<InstanceStatus>> {
        let status = |(name, instance): (&String, &Arc<Instance>)| InstanceStatus {
            name: name.clone(),
            status: instance.driver.describe().status,
        };
        let mut all: Vec<InstanceStatus> = self.instances.iter().map(status).collect();
        all.sort_by_key(|i| i.name != self.default); // stable: the default first
        Ok(all)
    }
}

#[async_trait]
impl InfoSource for Store {
    async fn info(&self, cx: &Ctx) -> Result<Map<String, Value>> {
        let all = self.instances(cx).await?;
        let default = all.first().cloned().into_iter().flat_map(|i| i.status);
        let mut rows: Vec<[String; 2]> = default.map(|(key, value)| [key, value]).collect();
        for other in all.iter().skip(1) {
            rows.push(["Also available".into(), other.name.clone()]);
        }
        let info = json!({ "Driver": self.default, "DriverStatus": rows });
        Ok(info.as_object().cloned().unwrap_or_default())
    }
}
