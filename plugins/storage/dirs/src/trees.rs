//! Drivers whose layers are whole trees: each begins as a copy of its parent's.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::storage::{Layer, LayerForm, StorageDriver, StorageInfo};
use gantry_sdk::mounts::{MountPlan, PathRef, Place, Step};
use gantry_sdk::{Ctx, Error, Labels, Result};

use crate::options::{SIZE, size_among};
use crate::{Layers, NewLayer, Record};

/// The kinds of steps in the plans of [`Trees`].
pub const TREE_STEPS: &[&str] = &["bind"];

/// What tells one such driver from another. All calls may wait for the disk.
pub trait TreeKind: Debug + Default + Send + Sync + 'static {
    /// The driver's name, for messages.
    const NAME: &'static str;
    /// The most committed layers beneath a writable one.
    const MAX_DEPTH: u32;

    /// Rows for `docker info`.
    fn status(layers: &Layers) -> Vec<(String, String)>;

    /// Sees that a layer of `bytes` at most can be made.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` saying what stands in the way.
    fn check_size(layers: &Layers, bytes: u64) -> Result<()>;

    /// Makes the content of a new layer: a copy of the parent's, limited to `size`.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    fn fill(layers: &Layers, layer: &NewLayer<'_>, size: Option<u64>) -> Result<()>;

    /// The layer will not be written to any more. Again at every start, for every committed layer.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    fn freeze(layers: &Layers, record: &Record) -> Result<()>;
}

/// A driver on one root directory.
#[derive(Debug)]
pub struct Trees<K> {
    layers: Arc<Layers>,
    info: StorageInfo,
    kind: std::marker::PhantomData<K>,
}

impl<K: TreeKind> Trees<K> {
    /// The driver on `layers`.
    pub fn new(layers: Arc<Layers>) -> Self {
        let only_size = |(name, _): &(&String, &String)| name.as_str() == SIZE;
        let own = |(name, value): (&String, &String)| (name.clone(), value.clone());
        let info = StorageInfo {
            form: LayerForm::MergedTree,
            max_depth: K::MAX_DEPTH,
            parallel_unpack: false,
            native_diff: false,
            id_maps: true,
            options: vec![SIZE.to_owned()],
            defaults: layers.options().iter().filter(only_size).map(own).collect(),
            status: K::status(&layers),
        };
        Self { layers, info, kind: std::marker::PhantomData }
    }

    fn bind(record: &Record) -> MountPlan {
        let source = Place::Path(PathRef::new("root", record.content()));
        let read_only = !record.is_active();
        MountPlan::of(vec![Step::Bind { source, read_only, recursive: false }])
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layers) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let layers = self.layers.clone();
        tokio::task::spawn_blocking(move || work(&layers)).await?
    }
}

#[async_trait]
impl<K: TreeKind> StorageDriver for Trees<K> {
    async fn prepare(
        &self,
        _: &Ctx,
        key: &str,
        parent: Option<&str>,
        options: &Labels,
    ) -> Result<MountPlan> {
        let size = size_among(options, K::NAME)?;
        let (key, parent) = (key.to_owned(), parent.map(str::to_owned));
        self.blocking(move |layers| {
            if let Some(bytes) = size {
                K::check_size(layers, bytes)?;
            }
            let depth = usize::try_from(K::MAX_DEPTH).unwrap_or(usize::MAX);
            let fill = |layer: &NewLayer<'_>| K::fill(layers, layer, size);
            layers.prepare(&key, parent.as_deref(), depth, fill).map(|record| Self::bind(&record))
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
        let name = K::NAME;
        Err(Error::unsupported(format!(
            "layer {key} is a copy of its parent: {name} cannot change that"
        )))
    }

    async fn plan(&self, _: &Ctx, key: &str) -> Result<MountPlan> {
        self.layers.get(key).map(|record| Self::bind(&record))
    }

    async fn commit(&self, _: &Ctx, key: &str, name: &str) -> Result<Layer> {
        let (key, name) = (key.to_owned(), name.to_owned());
        self.blocking(move |layers| {
            let record = layers.commit(&key, &name)?;
            // It is committed either way, and only mounted read-only; the next start tries again.
            if let Err(error) = K::freeze(layers, &record) {
                tracing::warn!(key = name, error = %error.chain(), "A committed layer can still be written to.");
            }
            Ok(record.to_layer())
        })
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

    /// A copy holds everything; what it adds to its parent is the difference.
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
        self.blocking(|layers| {
            let dropped = layers.recover()?;
            for record in layers.list(None, u32::MAX).iter().filter(|it| !it.is_active()) {
                K::freeze(layers, record)?;
            }
            Ok(dropped)
        })
        .await
    }

    async fn details(&self, _: &Ctx, key: &str) -> Result<Labels> {
        self.layers.get(key).map(|_| Labels::new())
    }

    fn describe(&self) -> StorageInfo {
        self.info.clone()
    }
}
