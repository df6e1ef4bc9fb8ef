//! Plans for layers that are whole trees.

use std::os::fd::AsFd;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_archive::ArchiveError;
use gantry_layer_dirs::{Layers, NewLayer, Record};
use gantry_sdk::kinds::storage::{Layer, LayerForm, StorageDriver, StorageInfo};
use gantry_sdk::mounts::{MountPlan, PathRef, Place, Step};
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};

/// The kinds of steps in this driver's plans.
pub const STEPS: &[&str] = &["bind"];

/// Nothing limits the depth but patience; a bound there must be.
const MAX_DEPTH: usize = 1000;

/// The driver on one root directory.
#[derive(Debug)]
pub struct Vfs {
    layers: Arc<Layers>,
}

impl Vfs {
    /// The driver on `layers`.
    pub fn new(layers: Arc<Layers>) -> Self {
        Self { layers }
    }

    fn bind(record: &Record) -> MountPlan {
        let source = Place::Path(PathRef::new("root", record.content()));
        let read_only = !record.is_active();
        MountPlan::of(vec![Step::Bind { source, read_only, recursive: false }])
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

/// Makes the content: a copy of the parent's.
fn fill(layers: &Layers, layer: &NewLayer<'_>) -> Result<()> {
    layer.make_content()?;
    let Some(parent) = layer.parent else { return Ok(()) };
    let from = layers.open_content(parent)?;
    let to = layers.open_content(layer.record)?;
    gantry_archive::copy_tree(from.as_fd(), to.as_fd()).map_err(|error| copying(&parent.key, error))
}

fn copying(key: &str, error: ArchiveError) -> Error {
    let kind = if error.is_no_space() { ErrorKind::NoSpace } else { ErrorKind::Internal };
    Error::new(kind, format!("cannot copy layer {key}")).caused_by(error)
}

#[async_trait]
impl StorageDriver for Vfs {
    async fn prepare(
        &self,
        _: &Ctx,
        key: &str,
        parent: Option<&str>,
        options: &Labels,
    ) -> Result<MountPlan> {
        if let Some(name) = options.keys().next() {
            return Err(Error::invalid(format!("unknown storage option {name:?} for vfs")));
        }
        let (key, parent) = (key.to_owned(), parent.map(str::to_owned));
        self.blocking(move |layers| {
            let record =
                layers.prepare(&key, parent.as_deref(), MAX_DEPTH, |layer| fill(layers, layer))?;
            Ok(Self::bind(&record))
        })
        .await
    }

    async fn unpack_plan(&self, _: &Ctx, key: &str) -> Result<MountPlan> {
        let record = self.layers.get(key)?;
        if !record.is_active() {
            return Err(Error::conflict(format!("layer {key} is committed")));
        }
        Ok(Self::bind(&record))
    }

    async fn rebase(&self, _: &Ctx, key: &str, _: Option<&str>) -> Result<()> {
        Err(Error::unsupported(format!(
            "layer {key} is a copy of its parent: vfs cannot change that"
        )))
    }

    async fn plan(&self, _: &Ctx, key: &str) -> Result<MountPlan> {
        self.layers.get(key).map(|record| Self::bind(&record))
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

    /// A copy adds everything to the disk; what it adds to its parent is the difference.
    async fn usage(&self, _: &Ctx, key: &str) -> Result<(u64, u64)> {
        let key = key.to_owned();
        self.blocking(move |layers| {
            let (bytes, inodes) = layers.own_usage(&key)?;
            let below = match layers.get(&key)?.parent {
                // Gone after a power cut: until it is made again, nothing is known to be shared.
                Some(parent) => layers.own_usage(&parent).unwrap_or_default(),
                None => (0, 0),
            };
            Ok((bytes.saturating_sub(below.0), inodes.saturating_sub(below.1)))
        })
        .await
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
        self.layers.get(key).map(|_| Labels::new())
    }

    fn describe(&self) -> StorageInfo {
        StorageInfo {
            form: LayerForm::MergedTree,
            max_depth: u32::try_from(MAX_DEPTH).unwrap_or(u32::MAX),
            parallel_unpack: false,
            native_diff: false,
            id_maps: true,
            options: Vec::new(),
            defaults: Labels::new(),
            status: Vec::new(),
        }
    }
}
