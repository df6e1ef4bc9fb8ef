//! The store: the truth in the metadata database, the view in memory, and what may run beside what.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use gantry_sdk::events::{Event, EventBus};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobStore, ContentOwner, Droppable};
use gantry_sdk::kinds::images::{CommitImage, Image, ImageStore, ImageUser, ImageUsers, Loaded};
use gantry_sdk::kinds::layers::{Hold, LayerProgress, LayerStore};
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::registry::Registry;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::config::{ImageFile, MAX_CONFIG};
use crate::index::{Entry, Index};
use crate::platform::Platform;
use crate::record::{
    DISTRIBUTION, DistributionRecord, IMAGES, ImageRecord, MAX_REPOSITORIES, REFERENCES,
    ReferenceRecord, TARGETS, TargetRecord,
};
use gantry_sdk::reference::Reference;

/// Images of this daemon.
pub struct Store {
    /// Content.
    pub blobs: Arc<dyn BlobStore>,
    /// Records.
    pub metadata: Arc<dyn MetadataStore>,
    /// Unpacked layers.
    pub layers: Arc<dyn LayerStore>,
    /// Where the users of images are found.
    pub registry: Arc<Registry>,
    /// Where to report.
    pub events: EventBus,
    /// Spawns what outlives a handler.
    pub tasks: Tasks,
    index: RwLock<Arc<Index>>,
    /// Where blobs are beside here.
    distribution: RwLock<BTreeMap<Digest, DistributionRecord>>,
    /// Held while records change, so that the view and the database change alike.
    writing: tokio::sync::Mutex<()>,
    /// Whether there may be content that nothing refers to.
    litter: AtomicBool,
    /// Wakes whoever removes it.
    littered: Notify,
    /// Held while it is removed.
    tidying: tokio::sync::Mutex<()>,
    /// Layers of images that were recorded since the last removal looked: the next one may have
    /// looked before they were.
    recent: Mutex<Vec<Hold>>,
    /// Whether a prune runs.
    pub pruning: AtomicBool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("images", &self.index().images().count())
            .finish_non_exhaustive()
    }
}

/// Where the store keeps things and whom it asks.
#[derive(Clone)]
pub struct Parts {
    /// Content.
    pub blobs: Arc<dyn BlobStore>,
    /// Records.
    pub metadata: Arc<dyn MetadataStore>,
    /// Unpacked layers.
    pub layers: Arc<dyn LayerStore>,
    /// Where the users of images are found.
    pub registry: Arc<Registry>,
    /// Where to report.
    pub events: EventBus,
    /// Spawns what outlives a handler.
    pub tasks: Tasks,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

impl Store {
    /// Reads all records. What an interrupted load has left goes with the first
    /// [tidying](Self::tidy).
    ///
    /// # Errors
    ///
    /// Those of the metadata database.
    pub async fn open(cx: &Ctx, parts: Parts) -> Result<Self> {
        let Parts { blobs, metadata, layers, registry, events, tasks } = parts;
        let index = read_index(cx, &*metadata, &*blobs).await?;
        let distribution = read_table(cx, &*metadata, DISTRIBUTION).await?;
        Ok(Self {
            blobs,
            metadata,
            layers,
            registry,
            events,
            tasks,
            index: RwLock::new(Arc::new(index)),
            distribution: RwLock::new(distribution.into_iter().collect()),
            writing: tokio::sync::Mutex::default(),
            litter: AtomicBool::new(true),
            littered: Notify::new(),
            tidying: tokio::sync::Mutex::default(),
            recent: Mutex::default(),
            pruning: AtomicBool::new(false),
        })
    }

    /// The present view.
    pub fn index(&self) -> Arc<Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes view and database alike: `decide` edits a copy of the view and says what that is in
    /// records. Nothing changes if either fails.
    ///
    /// # Errors
    ///
    /// Those of `decide` and of the database.
    pub async fn change<T>(
        &self,
        cx: &Ctx,
        decide: impl FnOnce(&mut Index) -> Result<(Vec<Change>, T)>,
    ) -> Result<T> {
        let _writing = self.writing.lock().await;
        let mut next = Index::clone(&self.index());
        let (mut changes, value) = decide(&mut next)?;
        let settled = next.settle();
        for target in &settled.changed {
            changes.push(Change::put_json(TARGETS, target.digest.as_str(), &**target)?);
        }
        changes.extend(settled.gone.iter().map(|gone| Change::delete(TARGETS, gone.as_str())));
        if !changes.is_empty() {
            self.metadata.commit(cx, changes).await?;
        }
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(value)
    }

    /// Who uses an image.
    ///
    /// # Errors
    ///
    /// Those of the sources: an image must not be removed because one did not answer.
    pub async fn users(&self, cx: &Ctx, id: &Digest) -> Result<Vec<ImageUser>> {
        let mut users = Vec::new();
        for (_, source) in self.registry.all::<ImageUsers>() {
            users.extend(source.users(cx, id).await?);
        }
        Ok(users)
    }

    /// Reports what happened to an image.
    pub fn report(&self, action: &'static str, entry: &Entry, name: String) {
        let mut event = Event::now("image", action, entry.id.as_str());
        for (key, value) in &entry.file.config.labels {
            event = event.with(key, value);
        }
        self.events.publish(event.with("name", name));
    }

    /// Lets `reference` name an image, by way of a target if there is one.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for the name `sha256`; `NotFound` if the image is gone.
    pub async fn tag(
        &self,
        cx: &Ctx,
        id: &Digest,
        target: Option<&Digest>,
        reference: &Reference,
    ) -> Result<()> {
        check_name(reference)?;
        let entry = self
            .change(cx, |index| {
                let missing = || Error::not_found(format!("No such image: {id}"));
                let mut entry = Entry::clone(index.get(id).ok_or_else(missing)?);
                entry.record.last_tagged = Some(Timestamp::now());
                let target = target.filter(|target| index.target(target).is_some());
                index.tag(reference, target, id);
                let changes = vec![put_image(&entry)?, put_reference(reference, target, id)?];
                index.put(entry.clone());
                Ok((changes, entry))
            })
            .await?;
        self.report("tag", &entry, reference.familiar());
        Ok(())
    }

    /// Remembers that `blobs` are also in `repository` (a canonical name): they were pulled from
    /// there or pushed to it. Of each blob the last [`MAX_REPOSITORIES`] are kept.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn distributed(&self, cx: &Ctx, blobs: &[Digest], repository: &str) -> Result<()> {
        let _writing = self.writing.lock().await;
        let (mut changes, mut records) = (Vec::new(), Vec::new());
        for blob in blobs {
            let mut record = self.distribution_of(blob);
            if record.repositories.last().is_some_and(|last| last == repository) {
                continue;
            }
            record.repositories.retain(|known| known != repository);
            record.repositories.push(repository.to_owned());
            let excess = record.repositories.len().saturating_sub(MAX_REPOSITORIES);
            record.repositories.drain(..excess);
            changes.push(Change::put_json(DISTRIBUTION, blob.as_str(), &record)?);
            records.push((blob.clone(), record));
        }
        if !changes.is_empty() {
            self.metadata.commit(cx, changes).await?;
        }
        self.distribution.write().unwrap_or_else(PoisonError::into_inner).extend(records);
        Ok(())
    }

    /// Canonical names of the repositories that are known to have a blob, the last one last.
    pub fn repositories(&self, blob: &Digest) -> Vec<String> {
        self.distribution_of(blob).repositories
    }

    fn distribution_of(&self, blob: &Digest) -> DistributionRecord {
        let known = self.distribution.read().unwrap_or_else(PoisonError::into_inner);
        known.get(blob).cloned().unwrap_or_default()
    }

    /// Forgets where blobs are that nothing here refers to.
    async fn forget_distribution(&self, cx: &Ctx) -> Result<()> {
        let _writing = self.writing.lock().await;
        let wanted = self.index().wanted();
        let gone: Vec<Digest> = {
            let known = self.distribution.read().unwrap_or_else(PoisonError::into_inner);
            known.keys().filter(|blob| !wanted.contains(*blob)).cloned().collect()
        };
        if gone.is_empty() {
            return Ok(());
        }
        let changes = gone.iter().map(|blob| Change::delete(DISTRIBUTION, blob.as_str()));
        self.metadata.commit(cx, changes.collect()).await?;
        let mut known = self.distribution.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|blob, _| !gone.contains(blob));
        Ok(())
    }

    /// Remembers that there may be something to remove, and lets it be removed in the background;
    /// does not wait for that.
    pub async fn litter(&self, _: &Ctx) {
        self.mark_litter();
    }

    /// As [`litter`](Self::litter).
    pub fn mark_litter(&self) {
        self.litter.store(true, Ordering::SeqCst);
        self.littered.notify_one();
    }

    /// Completes when there may be something to remove.
    pub async fn littered(&self) {
        self.littered.notified().await;
    }

    /// Keeps layers until a removal has looked that knows of their image.
    pub(crate) fn keep_for_now(&self, layers: Hold) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).push(layers);
    }

    /// Whether an image was removed by force while containers used it.
    pub fn has_retired(&self) -> bool {
        self.index().stored().any(|entry| entry.record.retired)
    }

    /// Removes what nothing refers to, if there may be something. What is being brought or read is
    /// kept by leases, so this waits for nobody. False if it has to be tried again.
    pub async fn tidy(&self, cx: &Ctx) -> bool {
        let _alone = self.tidying.lock().await;
        if !self.litter.swap(false, Ordering::SeqCst) {
            return true;
        }
        let Err(error) = self.collect(cx).await else { return true };
        self.litter.store(true, Ordering::SeqCst);
        if error.kind() == ErrorKind::Unavailable {
            tracing::debug!(error = %error.chain(), "Image content is not collected yet.");
        } else {
            tracing::warn!(error = %error.chain(), "Cannot remove unused image content.");
        }
        false
    }

    async fn collect(&self, cx: &Ctx) -> Result<()> {
        self.drop_retired(cx).await?;
        // Images recorded before this line are in the view below; the layers of later ones are
        // held at least until the next time.
        let recent =
            std::mem::take(&mut *self.recent.lock().unwrap_or_else(PoisonError::into_inner));
        let keep = self.index().chains();
        drop(recent);
        self.layers.collect(cx, &keep).await?;
        self.forget_distribution(cx).await?;
        self.blobs.collect(cx).await?;
        Ok(())
    }

    /// Forgets the images that were removed by force, once no container uses them.
    async fn drop_retired(&self, cx: &Ctx) -> Result<()> {
        let retired: Vec<Digest> = {
            let index = self.index();
            index.stored().filter(|e| e.record.retired).map(|e| e.id.clone()).collect()
        };
        for id in retired {
            if self.users(cx, &id).await?.is_empty() {
                self.change(cx, |index| {
                    index.remove(&id);
                    Ok((vec![Change::delete(IMAGES, id.as_str())], ()))
                })
                .await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ContentOwner for Store {
    async fn wanted(&self, _: &Ctx) -> Result<Vec<Digest>> {
        Ok(self.index().wanted().into_iter().collect())
    }

    async fn droppable(&self, cx: &Ctx) -> Result<Vec<Droppable>> {
        crate::pull::source::droppable(self, cx).await
    }
}

/// Refuses a repository named like the digest algorithm.
///
/// # Errors
///
/// `InvalidArgument`.
pub fn check_name(reference: &Reference) -> Result<()> {
    if reference.familiar_name() == "sha256" {
        return Err(Error::invalid(
            "refusing to create an ambiguous tag using digest algorithm as name",
        ));
    }
    Ok(())
}

/// The change that writes an image's record.
///
/// # Errors
///
/// `Internal`.
pub fn put_image(entry: &Entry) -> Result<Change> {
    Change::put_json(IMAGES, entry.id.as_str(), &entry.record)
}

/// The change that writes a reference.
///
/// # Errors
///
/// `Internal`.
pub fn put_reference(
    reference: &Reference,
    target: Option<&Digest>,
    id: &Digest,
) -> Result<Change> {
    let record = ReferenceRecord { image: id.clone(), target: target.cloned() };
    Change::put_json(REFERENCES, reference.to_string(), &record)
}

/// The change that removes a reference.
pub fn delete_reference(reference: &Reference) -> Change {
    Change::delete(REFERENCES, reference.to_string())
}

async fn read_index(
    cx: &Ctx,
    metadata: &dyn MetadataStore,
    blobs: &dyn BlobStore,
) -> Result<Index> {
    let mut index = Index::default();
    for (key, value) in metadata.scan(cx, IMAGES, "").await? {
        let damaged = |error: &Error| {
            tracing::error!(image = key, error = %error.chain(), "An image cannot be used.");
        };
        let record: ImageRecord = match serde_json::from_slice(&value) {
            Ok(record) => record,
            Err(error) => return Err(Error::internal(format!("record of image {key}"), error)),
        };
        let entry = async {
            let id: Digest = key.parse()?;
            let file = ImageFile::parse(&blobs.read(cx, &id, MAX_CONFIG).await?)?;
            Ok(Entry::new(id, record.clone(), file))
        };
        match entry.await {
            Ok(entry) => index.put(entry),
            Err(error) => {
                damaged(&error);
                index.damaged.push((key, record));
            }
        }
    }
    for (_, target) in read_table::<Digest, TargetRecord>(cx, metadata, TARGETS).await? {
        index.put_target(target);
    }
    for (key, value) in metadata.scan(cx, REFERENCES, "").await? {
        let record: ReferenceRecord = serde_json::from_slice(&value)
            .map_err(|e| Error::internal(format!("record of reference {key}"), e))?;
        let target = record.target.as_ref().and_then(|target| index.target(target));
        let of_target = target.is_some_and(|target| index.images_of(target).next().is_some());
        if of_target || index.get(&record.image).is_some() {
            index.tag(&Reference::parse(&key)?, record.target.as_ref(), &record.image);
        }
    }
    index.settle();
    Ok(index)
}

/// All records of a table; keys that are none are left out.
async fn read_table<K: std::str::FromStr, T: serde::de::DeserializeOwned>(
    cx: &Ctx,
    metadata: &dyn MetadataStore,
    table: &'static str,
) -> Result<Vec<(K, T)>> {
    let mut records = Vec::new();
    for (key, value) in metadata.scan(cx, table, "").await? {
        let record = serde_json::from_slice(&value)
            .map_err(|e| Error::internal(format!("record {table} {key}"), e))?;
        records.extend(key.parse().ok().map(|key| (key, record)));
    }
    Ok(records)
}

#[async_trait]
impl ImageStore for Store {
    async fn resolve(&self, _: &Ctx, reference: &str, platform: Option<&str>) -> Result<Image> {
        let platform = platform.filter(|text| !text.is_empty()).map(Platform::parse).transpose()?;
        let index = self.index();
        let entry = index.resolve(reference, platform.as_ref())?;
        Ok(index.image(entry))
    }

    async fn list(&self, _: &Ctx) -> Result<Vec<Image>> {
        let index = self.index();
        Ok(index.images().map(|entry| index.image(entry)).collect())
    }

    async fn commit(&self, cx: &Ctx, commit: CommitImage) -> Result<Digest> {
        crate::commit::commit(self, cx, commit).await
    }

    async fn load(
        &self,
        cx: &Ctx,
        source: Box<dyn Read + Send>,
        progress: Option<LayerProgress>,
    ) -> Result<Vec<Loaded>> {
        crate::load::direct::load(self, cx, source, progress).await
    }
}
