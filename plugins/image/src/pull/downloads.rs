//! Downloads of blobs: each blob once at a time, whoever wants it.
//!
//! A download belongs to everybody who wants its blob. It goes on while one of them is left, and
//! keeps what it has when the last one leaves; the next one goes on from there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobStore, BlobWriter, Lease};
use gantry_sdk::kinds::registry::Repository;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::slots::Slots;

/// Between two looks at a blob that somebody else is writing, and how many of them.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
const BUSY_LOOKS: u32 = 200;

/// A blob to be fetched.
#[derive(Clone, Debug)]
pub struct Remote {
    /// What its content must hash to.
    pub digest: Digest,
    /// Bytes, as its manifest says.
    pub size: u64,
    /// Where else it may be: foreign layers.
    pub urls: Vec<String>,
}

/// Where blobs come from.
#[derive(Clone)]
pub struct Origin {
    /// The repository.
    pub repository: Arc<dyn Repository>,
    /// How many downloads may run at once, over all origins.
    pub limit: usize,
}

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing has been done yet.
    Opening,
    /// The blob can be followed; its turn has not come.
    Waiting,
    /// Bytes are coming: so many of so many.
    Downloading(u64, u64),
    /// All are here and are being checked.
    Verifying,
    /// The blob is here.
    Done,
    /// What waiters get: errors are not `Clone`, so kind and message.
    Failed(ErrorKind, String),
}

impl State {
    fn has_ended(&self) -> bool {
        matches!(self, Self::Done | Self::Failed(..))
    }
}

struct Flight {
    state: watch::Receiver<State>,
    cancel: CancellationToken,
    /// How many want it; changed under the table's lock only.
    wanted: usize,
}

/// All downloads of this daemon.
pub struct Downloads {
    blobs: Arc<dyn BlobStore>,
    tasks: Tasks,
    flights: Mutex<HashMap<Digest, Flight>>,
    slots: Slots,
}

impl std::fmt::Debug for Downloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Downloads").field("running", &self.flights().len()).finish_non_exhaustive()
    }
}

impl Downloads {
    /// None yet.
    pub fn new(blobs: Arc<dyn BlobStore>, tasks: Tasks) -> Self {
        Self { blobs, tasks, flights: Mutex::default(), slots: Slots::default() }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Digest, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the download of a blob from `origin`, or joins the one that runs.
    pub fn want(
        self: &Arc<Self>,
        cx: &Ctx,
        remote: &Remote,
        origin: &Origin,
        lease: &Lease,
    ) -> Wanted {
        lease.pin(&remote.digest);
        let mut flights = self.flights();
        let (state, joined) = match flights.get_mut(&remote.digest) {
            Some(flight) if !flight.cancel.is_cancelled() => {
                flight.wanted += 1;
                (flight.state.clone(), true)
            }
            _ => {
                let (tell, state) = watch::channel(State::Opening);
                let cancel = CancellationToken::new();
                let flight = Flight { state: state.clone(), cancel: cancel.clone(), wanted: 1 };
                flights.insert(remote.digest.clone(), flight);
                self.start(cx, remote, origin, lease, tell, cancel);
                (state, false)
            }
        };
        drop(flights);
        Wanted { downloads: self.clone(), digest: remote.digest.clone(), state, joined }
    }

    fn start(
        self: &Arc<Self>,
        cx: &Ctx,
        remote: &Remote,
        origin: &Origin,
        lease: &Lease,
        tell: watch::Sender<State>,
        cancel: CancellationToken,
    ) {
        // Not the caller's context: he may leave while others want the blob.
        let cx = Ctx { caller: cx.caller.clone(), ..Ctx::background() };
        let tell = Arc::new(tell);
        let job = Job {
            cx,
            remote: remote.clone(),
            origin: origin.clone(),
            lease: lease.clone(),
            tell: tell.clone(),
        };
        let downloads = self.clone();
        self.tasks.spawn("download-blob", async move {
            let stop = downloads.tasks.stopping().clone();
            let work = async { cancel.run_until_cancelled(job.run(&downloads)).await };
            let outcome = stop.run_until_cancelled(work).await.flatten();
            downloads.forget(&job.remote.digest, &tell);
            tell.send_replace(match outcome {
                Some(Ok(())) => State::Done,
                Some(Err(error)) => State::Failed(error.kind(), error.chain()),
                None => State::Failed(ErrorKind::Unavailable, "the download was given up".into()),
            });
        });
    }

    /// Out of the table before its end is told: who asks from now on looks for the blob first.
    fn forget(&self, digest: &Digest, tell: &watch::Sender<State>) {
        let mut flights = self.flights();
        if flights.get(digest).is_some_and(|flight| tell.subscribe().same_channel(&flight.state)) {
            flights.remove(digest);
        }
    }
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Somebody's interest in a download; it ends with this, and the download with the last of them.
pub struct Wanted {
    downloads: Arc<Downloads>,
    digest: Digest,
    state: watch::Receiver<State>,
    /// Whether somebody else began it, with credentials of his own.
    pub joined: bool,
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Wanted {
    /// How far it is.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until the blob can be followed, or is here.
    ///
    /// # Errors
    ///
    /// Why it failed.
    pub async fn opened(&self) -> Result<()> {
        self.until(|state| *state != State::Opening).await
    }

    /// Waits until the blob is here.
    ///
    /// # Errors
    ///
    /// Why it failed.
    pub async fn done(&self) -> Result<()> {
        self.until(State::has_ended).await
    }

    async fn until(&self, reached: impl FnMut(&State) -> bool) -> Result<()> {
        let mut state = self.state.clone();
        let state = state.wait_for(reached).await;
        match state.as_deref() {
            Ok(State::Failed(kind, message)) => Err(Error::new(*kind, message.clone())),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::unavailable("a download ended early")),
        }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let mut flights = self.downloads.flights();
        let Some(flight) = flights.get_mut(&self.digest) else { return };
        if !flight.state.same_channel(&self.state) {
            return; // a later download of the same blob
        }
        flight.wanted -= 1;
        if flight.wanted == 0 {
            flight.cancel.cancel();
        }
    }
}

/// One download.
struct Job {
    cx: Ctx,
    remote: Remote,
    origin: Origin,
    lease: Lease,
    tell: Arc<watch::Sender<State>>,
}

impl Job {
    async fn run(&self, downloads: &Downloads) -> Result<()> {
        let Some(writer) = self.open(downloads).await? else { return Ok(()) };
        self.tell.send_replace(State::Waiting);
        let _slot = downloads.slots.take(self.origin.limit).await;
        match self.fetch(writer).await {
            // What was kept from an earlier attempt, or what a mirror sent, was not the content.
            Err(error) if error.kind() == ErrorKind::InvalidArgument => {
                let digest = &self.remote.digest;
                tracing::warn!(%digest, error = %error.chain(), "A download is begun again.");
                match self.open(downloads).await? {
                    Some(writer) => self.fetch(writer).await,
                    None => Ok(()),
                }
            }
            outcome => outcome,
        }
    }

    /// A writer that goes on where an earlier attempt has ended; none if the blob is here.
    async fn open(&self, downloads: &Downloads) -> Result<Option<Box<dyn BlobWriter>>> {
        let digest = &self.remote.digest;
        let mut looks = 0;
        loop {
            match downloads.blobs.resume(&self.cx, digest, &self.lease).await {
                Ok(writer) => return Ok(Some(writer)),
                Err(error) if error.kind() == ErrorKind::Exists => return Ok(None),
                // An attempt that was given up has not let go of it yet.
                Err(error) if error.kind() == ErrorKind::Busy && looks < BUSY_LOOKS => {
                    looks += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn fetch(&self, writer: Box<dyn BlobWriter>) -> Result<()> {
        let Remote { digest, size, urls } = &self.remote;
        self.tell.send_replace(State::Downloading(writer.offset(), *size));
        let tell = self.tell.clone();
        let progress = Arc::new(move |done, total| {
            tell.send_replace(State::Downloading(done, total));
        });
        let repository = &self.origin.repository;
        let writer = repository.fetch_blob(&self.cx, digest, *size, urls, writer, progress).await?;
        self.tell.send_replace(State::Verifying);
        let expected = digest.clone();
        tokio::task::spawn_blocking(move || writer.commit(Some(&expected)))
            .await?
            .map(drop)
            .map_err(|error| error.context(format!("layer verification failed for {digest}")))
    }
}
