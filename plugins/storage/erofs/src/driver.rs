//! Plans for layers that are images.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_layer_dirs::{Layers, Record, StackKind, Stacks, Top};
use gantry_sdk::kinds::storage::{EROFS_LAYER, Layer, LayerForm, StorageDriver, StorageInfo};
use gantry_sdk::mounts::{
    FsKind, Grants, MountExecutor, MountPlan, OverlayFlags, PathRef, Place, Step,
};
use gantry_sdk::{Ctx, Error, Labels, Result};

use crate::image;

/// The kinds of steps in this driver's plans.
pub const STEPS: &[&str] = &["bind", "fs", "mkdir", "overlay"];

/// What an active layer without a parent stands on, relative to the root.
const EMPTY: &str = "empty";

/// The driver on one root directory.
///
/// An active layer into which an image was written shows nothing of it before it is committed: its
/// [`plan`](StorageDriver::plan) is a `Conflict`.
#[derive(Debug)]
pub struct Erofs {
    layers: Arc<Layers>,
    /// All that concerns layers as directories.
    directories: Stacks<Images>,
    info: StorageInfo,
}

/// Stacks images, and directories, with overlayfs.
#[derive(Debug, Default)]
pub(crate) struct Images;

impl StackKind for Images {
    const NAME: &'static str = "erofs";
    const STEPS: &'static [&'static str] = STEPS;
    const NATIVE_DIFF: bool = true;
    const ID_MAPS: bool = true;
    const VOLATILE: bool = true;

    fn status(layers: &Layers) -> Vec<(String, String)> {
        vec![
            ("Backing Filesystem".to_owned(), layers.backing_file_system()),
            ("Native Overlay Diff".to_owned(), "true".to_owned()),
        ]
    }

    fn stack(lowers: Vec<Place>, top: Option<Top>) -> Step {
        let volatile = top.as_ref().is_some_and(|top| top.volatile);
        let flags = OverlayFlags { volatile, ..OverlayFlags::default() };
        let (upper, work) = match top {
            Some(top) => (Some(Place::Path(top.upper)), Some(Place::Path(top.work))),
            None => (None, None),
        };
        Step::Overlay { lowers, upper, work, flags }
    }
}

impl Erofs {
    /// The driver on `layers`.
    pub fn new(layers: Arc<Layers>) -> Self {
        let directories = Stacks::new(layers.clone());
        let info = StorageInfo { form: LayerForm::ErofsImage, ..directories.describe() };
        Self { layers, directories, info }
    }

    /// Runs `work` where it may wait for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layers) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let layers = self.layers.clone();
        tokio::task::spawn_blocking(move || work(&layers)).await?
    }

    /// Writes an empty image and mounts a layer on it. Nothing else answers for certain whether that
    /// works: it depends on the kernel, on the file system beneath, and on being allowed to.
    ///
    /// # Errors
    ///
    /// Why it does not work.
    pub async fn probe(&self, grants: &Grants, mounts: &dyn MountExecutor) -> Result<()> {
        const KEYS: [&str; 3] = ["probe-upper", "probe-lower", "probe-making"];
        let cx = Ctx::background();
        for key in KEYS {
            self.remove(&cx, key).await?;
        }
        let outcome = async {
            self.prepare(&cx, KEYS[2], None, &Labels::new()).await?;
            self.blocking(|layers| write_empty(layers, KEYS[2])).await?;
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

/// Writes an image without any entry for the active layer `key`.
fn write_empty(layers: &Layers, key: &str) -> Result<()> {
    let path = layers.root().join(layers.get(key)?.content()).join(EROFS_LAYER);
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(|e| Error::io("create", path.display(), e))?;
    gantry_erofs::convert(std::io::empty(), &file, &gantry_erofs::ConvertOptions::default())
        .map(drop)
        .map_err(|e| Error::internal("cannot write an image", e))
}

/// How to mount the layers of a chain, from the top down.
fn plan_of(layers: &Layers, chain: &[Record]) -> Result<MountPlan> {
    let root = |rel: String| PathRef::new("root", rel);
    let (top, below) = match chain.split_first() {
        Some((top, below)) if top.is_active() => (Some(top), below),
        _ => (None, chain),
    };
    let mut steps = Vec::with_capacity(chain.len() + 1);
    let mut lowers = Vec::with_capacity(below.len());
    for record in below {
        if !image::is_image(layers, record)? {
            lowers.push(Place::Path(root(record.content())));
            continue;
        }
        let device = Place::Path(root(image::path_of(record)));
        let options = Labels::new();
        lowers.push(Place::Step(u16::try_from(steps.len()).unwrap_or(u16::MAX)));
        steps.push(Step::Fs { kind: FsKind::Erofs, device, read_only: true, options });
    }
    match (top, lowers.as_slice()) {
        // One layer alone is the whole tree.
        (None, [Place::Path(path)]) => {
            let source = Place::Path(path.clone());
            steps.push(Step::Bind { source, read_only: true, recursive: false });
        }
        (None, [Place::Step(_)]) => {}
        (None, _) => steps.push(Images::stack(lowers, None)),
        (Some(top), _) => {
            if lowers.is_empty() {
                let at = root(EMPTY.to_owned());
                lowers.push(Place::Path(at.clone()));
                steps.push(Step::Mkdir { at, uid: 0, gid: 0, mode: 0o755 });
            }
            let (upper, work) = (root(top.content()), root(top.work()));
            let top = Top { upper, work, volatile: top.volatile };
            steps.push(Images::stack(lowers, Some(top)));
        }
    }
    Ok(MountPlan::of(steps))
}

#[async_trait]
impl StorageDriver for Erofs {
    async fn prepare(
        &self,
        cx: &Ctx,
        key: &str,
        parent: Option<&str>,
        options: &Labels,
    ) -> Result<MountPlan> {
        self.directories.prepare(cx, key, parent, options).await?;
        let chain = self.layers.chain(key)?;
        self.blocking(move |layers| plan_of(layers, &chain)).await
    }

    async fn unpack_plan(&self, cx: &Ctx, key: &str) -> Result<MountPlan> {
        self.directories.unpack_plan(cx, key).await
    }

    async fn rebase(&self, cx: &Ctx, key: &str, parent: Option<&str>) -> Result<()> {
        self.directories.rebase(cx, key, parent).await
    }

    async fn plan(&self, _: &Ctx, key: &str) -> Result<MountPlan> {
        let chain = self.layers.chain(key)?;
        self.blocking(move |layers| {
            if let Some(top) = chain.first().filter(|top| top.is_active()) {
                if image::is_awaited(layers, top)? {
                    return Err(Error::conflict(format!(
                        "layer {} is an image, which is mounted when it is committed",
                        top.key
                    )));
                }
                if top.volatile {
                    layers.forgive_volatile(top)?;
                }
            }
            plan_of(layers, &chain)
        })
        .await
    }

    async fn commit(&self, _: &Ctx, key: &str, name: &str) -> Result<Layer> {
        let (key, name) = (key.to_owned(), name.to_owned());
        self.blocking(move |layers| {
            let record = layers.get(&key)?;
            // Whoever cannot commit it learns why below.
            let may = record.is_active() && layers.get(&name).is_err();
            let is_image = may && image::adopt(layers, &record)?;
            match layers.commit(&key, &name) {
                Ok(record) => Ok(record.to_layer()),
                Err(error) => {
                    if is_image {
                        image::give_back(layers, &record)?;
                    }
                    Err(error)
                }
            }
        })
        .await
    }

    async fn remove(&self, cx: &Ctx, key: &str) -> Result<()> {
        self.directories.remove(cx, key).await
    }

    async fn stat(&self, cx: &Ctx, key: &str) -> Result<Layer> {
        self.directories.stat(cx, key).await
    }

    async fn list(&self, cx: &Ctx, after: Option<&str>, limit: u32) -> Result<Vec<Layer>> {
        self.directories.list(cx, after, limit).await
    }

    async fn usage(&self, _: &Ctx, key: &str) -> Result<(u64, u64)> {
        let key = key.to_owned();
        self.blocking(move |layers| {
            let record = layers.get(&key)?;
            if record.is_active() || !image::is_image(layers, &record)? {
                return layers.own_usage(&key);
            }
            let info = image::info(layers, &record)?;
            // The top directory is there even in a layer that changes nothing.
            Ok((info.bytes, info.inodes.saturating_sub(1)))
        })
        .await
    }

    async fn removing(&self, _: &Ctx) -> Result<u64> {
        self.blocking(image::trash_bytes).await
    }

    async fn sync(&self, cx: &Ctx, key: &str) -> Result<()> {
        self.directories.sync(cx, key).await
    }

    async fn recover(&self, cx: &Ctx) -> Result<Vec<String>> {
        self.directories.recover(cx).await
    }

    async fn details(&self, _: &Ctx, key: &str) -> Result<Labels> {
        let chain = self.layers.chain(key)?;
        self.blocking(move |layers| {
            let path = |rel: &str| layers.root().join(rel).display().to_string();
            let form = |record: &Record| {
                let is_image = image::is_image(layers, record)?;
                Ok(path(&if is_image { image::path_of(record) } else { record.content() }))
            };
            let mut details = Labels::new();
            let Some((top, below)) = chain.split_first() else { return Ok(details) };
            let lowers = below.iter().map(form).collect::<Result<Vec<_>>>()?;
            if !lowers.is_empty() {
                details.insert("LowerDir".to_owned(), lowers.join(":"));
            }
            details.insert("UpperDir".to_owned(), form(top)?);
            if top.is_active() {
                details.insert("WorkDir".to_owned(), path(&top.work()));
            }
            Ok(details)
        })
        .await
    }

    fn describe(&self) -> StorageInfo {
        self.info.clone()
    }
}
