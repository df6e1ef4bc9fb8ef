//! The way to a container for everybody but its task: a mailbox and a view.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::Duration;

use gantry_sdk::kinds::layers::ContainerLayer;
use gantry_sdk::kinds::runtime::{Attach, ContainerProcess};
use gantry_sdk::{Error, Result};
use tokio::sync::{mpsc, oneshot, watch};

use crate::record::Record;
use crate::state::State;

/// How long a container may take to end after its stop signal before it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopGrace {
    /// This long.
    After(Duration),
    /// For ever.
    Never,
}

impl StopGrace {
    /// From the API's `t`: whole seconds, negative for "wait for ever".
    pub fn from_seconds(seconds: i64) -> Self {
        u64::try_from(seconds).map_or(Self::Never, |s| Self::After(Duration::from_secs(s)))
    }
}

/// A message to a container's task. The reply comes when the work is done.
#[derive(Debug)]
pub enum Message {
    /// Start.
    Start,
    /// End by signal, then by force.
    Stop {
        /// Signal; none for the container's own.
        signal: Option<i32>,
        /// Time before force; none for the container's own.
        grace: Option<StopGrace>,
    },
    /// Send a signal.
    Kill {
        /// Signal number.
        signal: i32,
    },
    /// Remove.
    Remove {
        /// End it first if it runs.
        force: bool,
        /// Also remove its anonymous volumes.
        volumes: bool,
    },
    /// Take another name, which has been reserved.
    Rename {
        /// The new name.
        name: String,
    },
    /// Attach a client, now or from the first byte of the next start.
    Attach(Attach),
    /// Stay as it is — neither started nor removed — while what this points to lives.
    Hold(HoldMark),
    /// The writable layer is elsewhere now; only while held.
    Moved {
        /// Where.
        layer: ContainerLayer,
    },
    /// The daemon is ending and `live-restore` is off: end the container, keep its policy.
    ShutDown,
}

/// Lives as long as somebody holds a container.
pub type HoldMark = Weak<dyn Any + Send + Sync>;

/// A message and where its reply goes.
pub(crate) type Envelope = (Message, oneshot::Sender<Result<()>>);

/// What others may see of a container: immutable, replaced as a whole.
#[derive(Clone)]
pub struct View {
    /// Its record.
    pub record: Arc<Record>,
    /// Its state.
    pub state: State,
    /// Its process, while it runs.
    pub process: Option<Arc<dyn ContainerProcess>>,
    /// How often it has ended since this daemon started. A `watch` shows only the latest value, so
    /// what nobody may miss is counted.
    pub exits: u64,
    /// Whether it is gone.
    pub removed: bool,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("id", &self.record.id)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl View {
    /// The process.
    ///
    /// # Errors
    ///
    /// `Conflict` with the reference engine's text if the container does not run.
    pub fn running(&self) -> Result<&Arc<dyn ContainerProcess>> {
        self.process
            .as_ref()
            .filter(|_| self.state.is_running())
            .ok_or_else(|| Error::conflict(format!("container {} is not running", self.record.id)))
    }
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    messages: mpsc::Sender<Envelope>,
    view: watch::Receiver<Arc<View>>,
}

impl Handle {
    pub(crate) const fn new(
        messages: mpsc::Sender<Envelope>,
        view: watch::Receiver<Arc<View>>,
    ) -> Self {
        Self { messages, view }
    }

    /// The container as it is now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// For waiting until something changes.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Sends `message` and waits until it has been carried out. Dropping the future stops the
    /// waiting, not the work.
    ///
    /// # Errors
    ///
    /// Those of the work; `NotFound` if the container is gone.
    pub async fn ask(&self, message: Message) -> Result<()> {
        let gone =
            || Error::not_found(format!("No such container: {}", self.view.borrow().record.id));
        let (reply, answer) = oneshot::channel();
        self.messages.send((message, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
