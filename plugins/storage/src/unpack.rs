//! One layer from its blob into a storage instance.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_archive::{ArchiveError, ExtractOptions, Summary, Whiteouts, extract};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer, LayerProgress};
use gantry_sdk::kinds::storage::LayerForm;
use gantry_sdk::mounts::MountFd;
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Instance, Store};

/// The key under which a layer is unpacked, before it gets its chain's.
pub(crate) const UNPACKING: &str = "unpack-";
/// Time between two reports of progress.
const REPORT: Duration = Duration::from_millis(100);

/// What waiters get: errors are not `Clone`, so kind and message.
type Outcome = Option<Result<(), (ErrorKind, String)>>;
type Listeners = Arc<Mutex<Vec<LayerProgress>>>;

/// Layers that are being unpacked, by instance and chain id.
#[derive(Default)]
pub(crate) struct Flights(Mutex<BTreeMap<(String, Digest), Flight>>);

#[derive(Clone)]
struct Flight {
    done: watch::Receiver<Outcome>,
    listeners: Listeners,
}

/// One layer with its place in the chain.
#[derive(Clone)]
struct Job {
    id: Digest,
    parent: Option<Digest>,
    layer: ChainLayer,
}

impl Store {
    /// Unpacks what is missing of `chain`, the base first.
    pub(crate) async fn unpack_chain(
        self: &Arc<Self>,
        cx: &Ctx,
        instance: &Instance,
        chain: &Chain,
        progress: Option<LayerProgress>,
    ) -> Result<()> {
        let ids = chain.ids();
        let Some(top) = ids.last() else { return Ok(()) };
        let kept = self.pins.pin(ids.clone());
        kept.settled().await;
        if !instance.has(cx, top).await? {
            let limit = instance.info.max_depth as usize;
            if ids.len() > limit {
                let depth = ids.len();
                let name = &instance.name;
                return Err(Error::invalid(format!(
                    "the image has {depth} layers, storage {name} takes {limit}"
                )));
            }
            let mut parent = None;
            for (id, layer) in ids.iter().zip(&chain.0) {
                let job = Job { id: id.clone(), parent, layer: layer.clone() };
                if !instance.has(cx, id).await? {
                    self.fly(instance, job, progress.clone()).await?;
                }
                parent = Some(id.clone());
            }
        }
        self.records.note_chain(cx, chain).await
    }

    /// Starts unpacking a layer, or joins whoever has started it.
    async fn fly(
        self: &Arc<Self>,
        instance: &Instance,
        job: Job,
        progress: Option<LayerProgress>,
    ) -> Result<()> {
        let key = (instance.name.clone(), job.id.clone());
        let listen = |listeners: &Listeners| {
            listeners.lock().unwrap_or_else(PoisonError::into_inner).extend(progress);
        };
        let mut flight = {
            let mut flights = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(&key) {
                Some(flight) => {
                    listen(&flight.listeners);
                    flight.clone()
                }
                None => {
                    let (tell, done) = watch::channel(None);
                    let flight = Flight { done, listeners: Listeners::default() };
                    listen(&flight.listeners); // before the start: a small layer is quick
                    flights.insert(key.clone(), flight.clone());
                    self.start(instance.clone(), job, key, tell, flight.listeners.clone());
                    flight
                }
            }
        };
        // Ends when the task does: it drops the sender, whatever happens to it.
        let outcome = flight.done.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match outcome {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err((kind, message)))) => Err(Error::new(kind, message)),
            Ok(None) | Err(_) => Err(Error::unavailable("unpacking a layer ended early")),
        }
    }

    fn start(
        self: &Arc<Self>,
        instance: Instance,
        job: Job,
        key: (String, Digest),
        tell: watch::Sender<Outcome>,
        listeners: Listeners,
    ) {
        let store = self.clone();
        self.tasks.spawn("unpack-layer", async move {
            let cleared = ClearOnDrop { store: &store, key };
            let outcome = store.unpack_layer(&instance, &job, listeners).await;
            // Out of the table first: who asks from now on finds the layer, or tries again.
            drop(cleared);
            tell.send_replace(Some(outcome.map_err(|error| (error.kind(), error.chain()))));
        });
    }

    async fn unpack_layer(
        &self,
        instance: &Instance,
        job: &Job,
        listeners: Listeners,
    ) -> Result<()> {
        let cx = Ctx::background();
        if instance.has(&cx, &job.id).await? {
            return Ok(());
        }
        let key = format!("{UNPACKING}{}", job.id.hex());
        let driver = &instance.driver;
        driver.remove(&cx, &key).await?;
        let parent = job.parent.as_ref().map(Digest::as_str);
        driver.prepare(&cx, &key, parent, &Labels::new()).await?;
        let outcome = self.fill_layer(&cx, instance, job, &key, listeners).await;
        let summary = match outcome {
            Ok(summary) => summary,
            Err(error) => {
                if let Err(left) = driver.remove(&cx, &key).await {
                    tracing::warn!(key, error = %left.chain(), "A half unpacked layer stays until the next start.");
                }
                return Err(error.context(format!("cannot unpack layer {}", job.layer.diff_id)));
            }
        };
        match driver.commit(&cx, &key, job.id.as_str()).await {
            Ok(_) => {}
            // Somebody else's work, as good as ours.
            Err(error) if error.kind() == ErrorKind::Exists => driver.remove(&cx, &key).await?,
            Err(error) => return Err(error),
        }
        self.records.note_size(&job.id, summary.file_bytes);
        self.needs_sync(&instance.name, &job.id);
        Ok(())
    }

    /// Moves the bytes: mounts, extracts, compares digests.
    async fn fill_layer(
        &self,
        cx: &Ctx,
        instance: &Instance,
        job: &Job,
        key: &str,
        listeners: Listeners,
    ) -> Result<Summary> {
        let driver = &instance.driver;
        let target = self.mount_plan(cx, instance, &driver.unpack_plan(cx, key).await?).await?;
        let whiteouts = match instance.info.form {
            LayerForm::OverlayDirectory => Whiteouts::Overlay,
            LayerForm::MergedTree => Whiteouts::Remove,
            LayerForm::ErofsImage => {
                return Err(Error::unsupported("layers cannot be made into images yet"));
            }
        };
        let below = match &job.parent {
            Some(parent) if whiteouts == Whiteouts::Overlay => {
                let plan = driver.plan(cx, parent.as_str()).await?;
                Some(self.mount_plan(cx, instance, &plan).await?)
            }
            _ => None,
        };
        let blob = self.blobs.open(cx, &job.layer.blob).await?;
        let source = Source::new(blob, &job.layer, listeners, self.tasks.stopping().clone())?;
        let summary =
            tokio::task::spawn_blocking(move || pour(source, &target, below.as_ref(), whiteouts))
                .await?
                .map_err(explain)?;
        let stream = &summary.stream;
        let expected = [
            (Some(&stream.diff_id), &job.layer.diff_id),
            (stream.digest.as_ref(), &job.layer.blob),
        ];
        for (found, expected) in expected {
            let Some(found) = found else { continue };
            if found != expected.as_str() {
                return Err(Error::invalid(format!("its content is {found}, not {expected}")));
            }
        }
        Ok(summary)
    }
}

fn pour(
    source: Source,
    target: &MountFd,
    below: Option<&MountFd>,
    whiteouts: Whiteouts,
) -> Result<Summary, ArchiveError> {
    let below = below.map(AsFd::as_fd);
    let options = ExtractOptions { whiteouts, below, ..ExtractOptions::default() };
    extract(source, target.as_fd(), &options)
}

pub(crate) fn explain(error: ArchiveError) -> Error {
    let kind = match &error {
        error if error.is_no_space() => ErrorKind::NoSpace,
        error if error.is_bad_archive() => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    };
    let message = error.to_string();
    match std::error::Error::source(&error).map(ToString::to_string) {
        Some(cause) => Error::new(kind, message).caused_by(cause),
        None => Error::new(kind, message),
    }
}

/// Takes a flight out of the table however its task ends.
struct ClearOnDrop<'a> {
    store: &'a Store,
    key: (String, Digest),
}

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        let mut flights = self.store.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.remove(&self.key);
    }
}

/// A blob being read, with progress and an end when the daemon stops.
struct Source {
    blob: File,
    diff_id: Digest,
    done: u64,
    total: u64,
    reported: Instant,
    listeners: Listeners,
    stop: CancellationToken,
}

impl Source {
    fn new(
        blob: File,
        layer: &ChainLayer,
        listeners: Listeners,
        stop: CancellationToken,
    ) -> Result<Self> {
        let total = blob
            .metadata()
            .map_err(|e| Error::io("read", format!("blob {}", layer.blob), e))?
            .len();
        let diff_id = layer.diff_id.clone();
        Ok(Self { blob, diff_id, done: 0, total, reported: Instant::now(), listeners, stop })
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners {
            listener(&self.diff_id, self.done, self.total);
        }
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the daemon is stopping"));
        }
        let n = self.blob.read(buf)?;
        self.done += n as u64;
        if n == 0 || self.reported.elapsed() >= REPORT {
            self.report();
        }
        Ok(n)
    }
}
