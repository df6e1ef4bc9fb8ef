//! Plans for layers that are directories.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_layer_dirs::{Layers, Record};
use gantry_sdk::kinds::storage::{Layer, LayerForm, StorageDriver, StorageInfo};
use gantry_sdk::mounts::{MAX_LOWERS, MountPlan, OverlayFlags, PathRef, Place, Step};
use gantry_sdk::{Ctx, Error, Labels, Result};

/// The kinds of steps in this driver's plans.
pub const STEPS: &[&str] = &["bind", "overlay"];

/// One less than an overlay can stack: a committed layer is mounted together with all below it.
const MAX_DEPTH: usize = MAX_LOWERS - 1;

/// The driver on one root directory.
#[derive(Debug)]
pub struct Overlay2 {
    layers: Arc<Layers>,
    info: StorageInfo,
}

impl Overlay2 {
    /// The driver on `layers`.
    pub fn new(layers: Arc<Layers>) -> Self {
        let row = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let info = StorageInfo {
            form: LayerForm::OverlayDirectory,
            max_depth: u32::try_from(MAX_DEPTH).unwrap_or(u32::MAX),
            parallel_unpack: true,
            native_diff: true,
            id_maps: true,
            options: Vec::new(),
            defaults: Labels::new(),
            status: vec![
                row("Backing Filesystem", &layers.backing_file_system()),
                row("Supports d_type", "true"),
                row("Using metacopy", "false"),
                row("Native Overlay Diff", "true"),
                row("userxattr", "false"),
            ],
        };
        Self { layers, info }
    }

    fn plan_of(&self, key: &str) -> Result<MountPlan> {
        let chain = self.layers.chain(key)?;
        let place = |rel: String| Place::Path(PathRef::new("root", rel));
        let (top, below) =
            chain.split_first().ok_or_else(|| Error::not_found(format!("no layer {key}")))?;
        let lowers = |records: &[Record]| records.iter().map(|r| place(r.content())).collect();
        // An overlay needs a lower directory; without one the layer is the whole tree.
        let step = match (top.is_active(), below.is_empty()) {
            (read_write, true) => Step::Bind {
                source: place(top.content()),
                read_only: !read_write,
                recursive: false,
            },
            (true, false) => Step::Overlay {
                lowers: lowers(below),
                upper: Some(place(top.content())),
                work: Some(place(top.work())),
                flags: OverlayFlags::default(),
            },
            (false, false) => Step::Overlay {
                lowers: lowers(&chain),
                upper: None,
                work: None,
                flags: OverlayFlags::default(),
            },
        };
        Ok(MountPlan::of(vec![step]))
    }

    /// Runs `work` where it may wait for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layers) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let layers = self.layers.clone();
        tokio::task::spawn_blocking(move || work(&layers)).await?
    }
}

/// None of them can be honoured without project quotas.
fn refuse_options(options: &Labels) -> Result<()> {
    match options.keys().next() {
        None => Ok(()),
        Some(name) if name == "size" => Err(Error::invalid(
            "storage option size is not supported by overlay2: it has no quotas",
        )),
        Some(name) => Err(Error::invalid(format!("unknown storage option {name:?} for overlay2"))),
    }
}

#[async_trait]
impl StorageDriver for Overlay2 {
    async fn prepare(
        &self,
        _: &Ctx,
        key: &str,
        parent: Option<&str>,
        options: &Labels,
    ) -> Result<MountPlan> {
        refuse_options(options)?;
        let (own_key, parent) = (key.to_owned(), parent.map(str::to_owned));
        self.blocking(move |layers| {
            layers.prepare(&own_key, parent.as_deref(), MAX_DEPTH, |layer| {
                layer.make_content()?;
                layer.make_work()
            })
        })
        .await?;
        self.plan_of(key)
    }

    async fn unpack_plan(&self, _: &Ctx, key: &str) -> Result<MountPlan> {
        let record = self.layers.get(key)?;
        if !record.is_active() {
            return Err(Error::conflict(format!("layer {key} is committed")));
        }
        let source = Place::Path(PathRef::new("root", record.content()));
        Ok(MountPlan::of(vec![Step::Bind { source, read_only: false, recursive: false }]))
    }

    async fn rebase(&self, _: &Ctx, key: &str, parent: Option<&str>) -> Result<()> {
        let (key, parent) = (key.to_owned(), parent.map(str::to_owned));
        self.blocking(move |layers| layers.rebase(&key, parent.as_deref(), MAX_DEPTH)).await
    }

    async fn plan(&self, _: &Ctx, key: &str) -> Result<MountPlan> {
        self.plan_of(key)
    }

    async fn commit(&self, _: &Ctx, key: &str, name: &str) -> Result<Layer> {
        let (key, name) = (key.to_owned(), name.to_owned());
        self.blocking(move |layers| layers.commit(&key, &name).map(|record| record.to_layer()))
            .await
    }

    async fn remove(&self, _: &Ctx, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.blocking(move |layers| layers.remove(&key)).await
    }

    async fn stat(&self, _: &Ctx, key: &str) -> Result<Layer> {
        self.layers.get(key).map(|record| record.to_layer())
    }

    async fn list(&self, _: &Ctx, after: Option<&str>, limit: u32) -> Result<Vec<Layer>> {
        Ok(self.layers.list(after, limit).iter().map(Record::to_layer).collect())
    }

    async fn usage(&self, _: &Ctx, key: &str) -> Result<(u64, u64)> {
        let key = key.to_owned();
        self.blocking(move |layers| layers.own_usage(&key)).await
    }

    async fn removing(&self, _: &Ctx) -> Result<u64> {
        self.blocking(Layers::trash_bytes).await
    }

    async fn sync(&self, _: &Ctx, key: &str) -> Result<()> {
        self.layers.get(key)?;
        self.blocking(Layers::sync).await
    }

    async fn recover(&self, _: &Ctx) -> Result<Vec<String>> {
        self.blocking(Layers::recover).await
    }

    async fn details(&self, _: &Ctx, key: &str) -> Result<Labels> {
        let chain = self.layers.chain(key)?;
        let path = |rel: &str| self.layers.root().join(rel).display().to_string();
        let mut details = Labels::new();
        if let Some((top, below)) = chain.split_first() {
            let lowers: Vec<String> = below.iter().map(|record| path(&record.content())).collect();
            if !lowers.is_empty() {
                details.insert("LowerDir".to_owned(), lowers.join(":"));
            }
            details.insert("UpperDir".to_owned(), path(&top.content()));
            if top.is_active() {
                details.insert("WorkDir".to_owned(), path(&top.work()));
            }
        }
        Ok(details)
    }

    fn describe(&self) -> StorageInfo {
        self.info.clone()
    }
}
