//! Drivers whose layers are directories with nothing but the layer's own entries, stacked when they are
//! mounted.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::storage::{Layer, LayerForm, StorageDriver, StorageInfo};
use gantry_sdk::mounts::{Grants, MAX_LOWERS, MountExecutor, MountPlan, PathRef, Place, Step};
use gantry_sdk::{Ctx, Error, Labels, Result};

use crate::options::{SIZE, size_among};
use crate::{Layers, Record};

/// One less than an overlay can stack: a committed layer is mounted together with all below it.
const MAX_DEPTH: usize = MAX_LOWERS - 1;

/// The option of a layer that need not survive a power cut, with the value `true`.
const VOLATILE: &str = "volatile";

/// The writable layer of a stack.
#[derive(Clone, Debug)]
pub struct Top {
    /// The directory that takes the changes.
    pub upper: PathRef,
    /// Scratch space beside it.
    pub work: PathRef,
    /// Nothing of it needs to survive a power cut.
    pub volatile: bool,
}

/// What tells one such driver from another.
pub trait StackKind: Debug + Default + Send + Sync + 'static {
    /// The driver's name, for messages.
    const NAME: &'static str;
    /// The kinds of steps in its plans.
    const STEPS: &'static [&'static str];
    /// Whether a writable layer's directory says what the layer changes.
    const NATIVE_DIFF: bool;
    /// Whether owners can be seen through a map.
    const ID_MAPS: bool;
    /// Whether layers can be volatile.
    const VOLATILE: bool;

    /// Rows for `docker info`.
    fn status(layers: &Layers) -> Vec<(String, String)>;

    /// Stacks at least one layer, topmost first.
    fn stack(lowers: Vec<Place>, top: Option<Top>) -> Step;
}

/// A driver on one root directory.
#[derive(Debug)]
pub struct Stacks<K> {
    layers: Arc<Layers>,
    info: StorageInfo,
    kind: std::marker::PhantomData<K>,
}

impl<K: StackKind> Stacks<K> {
    /// The driver on `layers`.
    pub fn new(layers: Arc<Layers>) -> Self {
        let mut options = vec![SIZE.to_owned()];
        if K::VOLATILE {
            options.push(VOLATILE.to_owned());
        }
        let info = StorageInfo {
            form: LayerForm::OverlayDirectory,
            max_depth: u32::try_from(MAX_DEPTH).unwrap_or(u32::MAX),
            parallel_unpack: true,
            native_diff: K::NATIVE_DIFF,
            id_maps: K::ID_MAPS,
            options,
            defaults: layers.options().clone(),
            status: K::status(&layers),
        };
        Self { layers, info, kind: std::marker::PhantomData }
    }

    fn plan_of(&self, key: &str) -> Result<MountPlan> {
        let chain = self.layers.chain(key)?;
        let place = |rel: String| Place::Path(PathRef::new("root", rel));
        let lowers = |records: &[Record]| records.iter().map(|r| place(r.content())).collect();
        let (top, below) =
            chain.split_first().ok_or_else(|| Error::not_found(format!("no layer {key}")))?;
        // A stack needs a lower directory; without one the layer is the whole tree.
        let step = match (top.is_active(), below.is_empty()) {
            (read_write, true) => Step::Bind {
                source: place(top.content()),
                read_only: !read_write,
                recursive: false,
            },
            (true, false) => K::stack(
                lowers(below),
                Some(Top {
                    upper: PathRef::new("root", top.content()),
                    work: PathRef::new("root", top.work()),
                    volatile: top.volatile,
                }),
            ),
            (false, false) => K::stack(lowers(&chain), None),
        };
        Ok(MountPlan::of(vec![step]))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layers) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let layers = self.layers.clone();
        tokio::task::spawn_blocking(move || work(&layers)).await?
    }

    /// Makes a stack of two empty layers. Nothing else answers for certain whether it works: it
    /// depends on the kernel, on the file system beneath, and on being allowed to.
    ///
    /// # Errors
    ///
    /// Why it does not work.
    pub async fn probe(&self, grants: &Grants, mounts: &dyn MountExecutor) -> Result<()> {
        const KEYS: [&str; 3] = ["probe-upper", "probe-lower", "probe-making"];
        if !self.layers.tells_types()? {
            return Err(Error::unsupported(format!(
                "the directories of its file system ({}) do not tell types",
                self.layers.backing_file_system()
            )));
        }
        let cx = Ctx::background();
        for key in KEYS {
            self.remove(&cx, key).await?;
        }
        let outcome = async {
            self.prepare(&cx, KEYS[2], None, &Labels::new()).await?;
            self.commit(&cx, KEYS[2], KEYS[1]).await?;
            let plan = self.prepare(&cx, KEYS[0], Some(KEYS[1]), &Labels::new()).await?;
            mounts.mount(&cx, &plan, grants).await.map(drop)
        }
        .await;
        for key in KEYS {
            self.remove(&cx, key).await?;
        }
        outcome
    }
}

/// What a layer is to be: its options, taken apart.
fn wishes<K: StackKind>(options: &Labels) -> Result<(Option<u64>, bool)> {
    let mut options = options.clone();
    let volatile = match options.remove(VOLATILE).as_deref() {
        None | Some("false") => false,
        Some("true") if K::VOLATILE => true,
        Some("true") => {
            let name = K::NAME;
            return Err(Error::invalid(format!("{name} does not take storage option volatile")));
        }
        Some(other) => {
            let why = format!("storage option volatile is \"true\" or \"false\", not {other:?}");
            return Err(Error::invalid(why));
        }
    };
    Ok((size_among(&options, K::NAME)?, volatile))
}

#[async_trait]
impl<K: StackKind> StorageDriver for Stacks<K> {
    async fn prepare(
        &self,
        _: &Ctx,
        key: &str,
        parent: Option<&str>,
        options: &Labels,
    ) -> Result<MountPlan> {
        let (size, volatile) = wishes::<K>(options)?;
        let (own_key, parent) = (key.to_owned(), parent.map(str::to_owned));
        self.blocking(move |layers| {
            if size.is_some() {
                layers.check_limit(K::NAME)?;
            }
            let fill = |layer: &crate::NewLayer<'_>| {
                size.map_or(Ok(()), |bytes| layer.limit(bytes))?;
                layer.make_content()?;
                layer.make_work()
            };
            layers.prepare_as(&own_key, parent.as_deref(), volatile, MAX_DEPTH, fill)
        })
        .await?;
        self.plan(&Ctx::background(), key).await
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
        let plan = self.plan_of(key)?;
        let record = self.layers.get(key)?;
        if record.volatile && record.is_active() {
            self.blocking(move |layers| layers.forgive_volatile(&record)).await?;
        }
        Ok(plan)
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
