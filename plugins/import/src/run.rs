//! Image by image into the image store.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gantry_archive::{ArchiveError, Entry, Kind, Writer};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::{ImageStore, Loaded};
use gantry_sdk::reference::Reference;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, Result};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio_util::sync::CancellationToken;

use crate::containerd::Target;
use crate::graph::GraphImage;
use crate::pipe::{PipeWriter, pipe};
use crate::source::Directory;
use crate::wire::{ImportRequest, Message, Remainder, State};
use crate::{containerd, graph};

/// The engine's namespace in a containerd image store.
const NAMESPACE: &str = "moby";
/// How often a client hears of an image.
const PACE: Duration = Duration::from_millis(250);

/// Where images go.
pub struct Importer {
    images: Arc<dyn ImageStore>,
    /// Spawns what outlives a handler.
    pub tasks: Tasks,
    /// Held by the one import at a time.
    running: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Importer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Importer")
    }
}

/// An image that can come.
#[derive(Clone, Debug)]
pub enum Source {
    /// From a graph driver.
    Graph(GraphImage),
    /// From a containerd image store.
    Containerd(Target),
}

impl Source {
    fn id(&self) -> &Digest {
        match self {
            Self::Graph(image) => &image.id,
            Self::Containerd(target) => &target.digest,
        }
    }

    fn names(&self) -> &[Reference] {
        match self {
            Self::Graph(image) => &image.tags,
            Self::Containerd(target) => &target.names,
        }
    }

    const fn bytes(&self) -> u64 {
        match self {
            Self::Graph(image) => image.bytes,
            Self::Containerd(target) => target.bytes,
        }
    }

    /// The layers of it whose chain ids are in `known` need not come.
    fn lacks(&self, known: &BTreeSet<Digest>) -> bool {
        match self {
            Self::Graph(image) => image.chain_ids().iter().any(|id| known.contains(id)),
            Self::Containerd(_) => false,
        }
    }

    fn write(&self, out: PipeWriter, known: &BTreeSet<Digest>) -> Result<()> {
        match self {
            Self::Graph(image) => image.write(out, known),
            Self::Containerd(target) => target.write(out),
        }
    }

    fn message(&self, state: State, current: u64, why: Vec<String>) -> Message {
        let names = self.names().iter().map(Reference::familiar).collect();
        let (id, total) = (self.id().to_string(), self.bytes());
        Message::Image { id, names, state, current, total, why }
    }
}

/// What a data root has.
#[derive(Debug, Default)]
pub struct Plan {
    images: Vec<Source>,
    broken: Vec<(String, Vec<String>, String)>,
    remainder: Remainder,
}

/// Looks at a data root. Blocking.
///
/// # Errors
///
/// `InvalidArgument` for a path that is not absolute; `NotFound` if no images are there; those of
/// reading.
pub fn plan(request: &ImportRequest) -> Result<Plan> {
    let path = Path::new(&request.root);
    if !path.is_absolute() {
        return Err(Error::invalid(format!("the data root {} is no absolute path", request.root)));
    }
    let root = Directory::open(path)?;
    let graph = graph::find(&root)?;
    let namespace = request.namespace.as_deref().unwrap_or(NAMESPACE);
    let blobs = containerd::find(&root, namespace)?;
    let remainder = Remainder {
        containers: root.count_below("containers")?,
        volumes: root.count_below("volumes")?,
        digests: graph.digests,
        notes: graph.notes.into_iter().chain(blobs.notes).collect(),
    };
    let graph_images = graph.images.into_iter().map(Source::Graph);
    let images = graph_images.chain(blobs.images.into_iter().map(Source::Containerd)).collect();
    let broken = graph.broken.into_iter().chain(blobs.broken).collect();
    let plan = Plan { images, broken, remainder };
    if plan.images.is_empty() && plan.broken.is_empty() && plan.remainder.notes.is_empty() {
        return Err(Error::not_found(format!(
            "there are no images in {}; those of the system's containerd are in a root of its own, \
             /var/lib/containerd",
            path.display()
        )));
    }
    Ok(plan)
}

#[derive(Default)]
struct Tally {
    done: u64,
    present: u64,
    failed: u64,
    bytes: u64,
}

/// An import that can begin.
#[derive(Debug)]
pub struct Import {
    importer: Arc<Importer>,
    plan: Plan,
    dry_run: bool,
    cancel: CancellationToken,
    _alone: OwnedMutexGuard<()>,
}

impl Importer {
    /// Images go to `images`.
    pub fn new(images: Arc<dyn ImageStore>, tasks: Tasks) -> Self {
        Self { images, tasks, running: Arc::default() }
    }

    /// Looks at the data root, so that mistakes show before anything begins.
    ///
    /// # Errors
    ///
    /// Those of [`plan`]; `Conflict` while another import is under way.
    pub async fn import(self: &Arc<Self>, request: ImportRequest) -> Result<Import> {
        let alone = self.running.clone().try_lock_owned().map_err(|_| {
            Error::conflict("another import is under way; try again when it has ended")
        })?;
        let dry_run = request.dry_run;
        let plan = tokio::task::spawn_blocking(move || plan(&request)).await??;
        let cancel = self.tasks.stopping().child_token();
        Ok(Import { importer: self.clone(), plan, dry_run, cancel, _alone: alone })
    }
}

impl Import {
    /// Ends the import when it is cancelled; the images that are here stay.
    pub fn cancellation(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Brings everything and reports it.
    pub async fn run(self, reports: mpsc::Sender<Message>) {
        let mut tally = Tally::default();
        let outcome = self.each(&reports, &mut tally).await;
        let Tally { done, present, failed, bytes } = tally;
        let (remainder, error) = (self.plan.remainder, outcome.err().map(|e| e.chain()));
        // Who does not listen misses it.
        let _ = reports.send(Message::End { done, present, failed, bytes, remainder, error }).await;
    }

    async fn each(&self, reports: &mpsc::Sender<Message>, tally: &mut Tally) -> Result<()> {
        let cx = Ctx { cancelled: self.cancel.clone(), ..Ctx::background() };
        for (id, names, why) in self.plan.broken.iter().cloned() {
            tally.failed += 1;
            let (state, why) = (State::Failed, vec![why]);
            let _ =
                reports.send(Message::Image { id, names, state, current: 0, total: 0, why }).await;
        }
        let mut known = BTreeSet::new();
        for image in self.importer.images.list(&cx).await? {
            known.extend(image.chain.ids());
        }
        for source in &self.plan.images {
            if self.cancel.is_cancelled() {
                return Err(Error::unavailable("the import was given up"));
            }
            let message = if self.is_here(&cx, source).await {
                tally.present += 1;
                source.message(State::Present, 0, Vec::new())
            } else if self.dry_run {
                tally.done += 1;
                source.message(State::Planned, 0, Vec::new())
            } else {
                self.bring(&cx, source, &mut known, reports, tally).await
            };
            let _ = reports.send(message).await;
        }
        Ok(())
    }

    /// Brings one image; its result as a message.
    async fn bring(
        &self,
        cx: &Ctx,
        source: &Source,
        known: &mut BTreeSet<Digest>,
        reports: &mpsc::Sender<Message>,
        tally: &mut Tally,
    ) -> Message {
        let mut outcome = self.feed(cx, source, known, reports, tally).await;
        if outcome.is_err() && source.lacks(known) && !self.cancel.is_cancelled() {
            // A layer that was here may have gone.
            outcome = self.feed(cx, source, &BTreeSet::new(), reports, tally).await;
        }
        match outcome {
            Ok(loaded) => {
                tally.done += 1;
                if let Source::Graph(image) = source {
                    known.extend(image.chain_ids());
                }
                let renamed = loaded.iter().flat_map(|loaded| &loaded.renamed);
                let why = renamed.map(|(name, old)| format!("{name} no longer means image {old}"));
                source.message(State::Done, source.bytes(), why.collect())
            }
            Err(error) => {
                tally.failed += 1;
                source.message(State::Failed, 0, vec![error.chain()])
            }
        }
    }

    /// Hands one image over as a stream.
    async fn feed(
        &self,
        cx: &Ctx,
        source: &Source,
        known: &BTreeSet<Digest>,
        reports: &mpsc::Sender<Message>,
        tally: &mut Tally,
    ) -> Result<Vec<Loaded>> {
        let (writer, reader, state) = pipe(self.cancel.clone());
        let (image, known) = (source.clone(), known.clone());
        let writing = tokio::task::spawn_blocking(move || image.write(writer, &known));
        let loading = self.importer.images.load(cx, Box::new(reader), None);
        let mut loading = std::pin::pin!(loading);
        let loaded = loop {
            match tokio::time::timeout(PACE, &mut loading).await {
                Ok(loaded) => break loaded,
                Err(_elapsed) => {
                    let bytes = state.bytes.load(Ordering::Relaxed);
                    // Nobody waits for a listener: the next figure is as good.
                    let _ = reports.try_send(source.message(State::Working, bytes, Vec::new()));
                }
            }
        };
        let written = writing.await?;
        tally.bytes += state.bytes.load(Ordering::Relaxed);
        match written {
            // Whoever stops reading knows why.
            Err(error) if !state.refused.load(Ordering::Acquire) => Err(error),
            _ => loaded,
        }
    }

    /// Whether an image is here and all its names mean it.
    async fn is_here(&self, cx: &Ctx, source: &Source) -> bool {
        let id_of = async |name: String| {
            self.importer.images.resolve(cx, &name, None).await.ok().map(|image| image.id)
        };
        let expected = match source {
            Source::Graph(image) => id_of(image.id.to_string()).await,
            Source::Containerd(target) => match target.names.first() {
                Some(name) => id_of(name.at_digest(&target.digest).familiar()).await,
                None => None,
            },
        };
        if expected.is_none() {
            return false;
        }
        for name in source.names() {
            let text = match source {
                Source::Containerd(target) if name.is_digested() => name.at_digest(&target.digest),
                _ => name.clone(),
            };
            if id_of(text.familiar()).await != expected {
                return false;
            }
        }
        true
    }
}

/// Writes a small member.
pub(crate) fn member(out: &mut Writer<PipeWriter>, name: &str, bytes: &[u8]) -> Result<()> {
    let size = bytes.len() as u64;
    let entry = Entry { size, ..Entry::new(Kind::File, name, 0o644) };
    out.append(&entry, &mut &*bytes).map_err(unwritten)
}

/// Why a member could not be written.
pub(crate) fn unwritten(error: ArchiveError) -> Error {
    match error {
        ArchiveError::Read(source) => Error::invalid("cannot read its content").caused_by(source),
        other => Error::internal("cannot hand an image over", other),
    }
}
