//! One connection to one shim: requests with answers, and what it tells unasked.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Error, ErrorKind, Result};
use gantry_shim_protocol::{
    Event, Exit, FRAME_MAX, Failure, Reply, Request, ServerMessage, VERSION, decode_frame,
    encode_frame,
};
use gantry_sys::process::wait_for;
use gantry_sys::socket;
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

/// How long a shim may take to answer what it does at once.
const PATIENCE: Duration = Duration::from_secs(30);

type Answer = std::result::Result<Reply, Failure>;

/// A connection. Dropping it changes nothing for the container.
#[derive(Debug)]
pub(crate) struct Connection {
    asker: Asker,
    reader: tokio::task::JoinHandle<()>,
}

/// What asks over a connection. It does not keep the connection's reader alive: once the connection
/// is dropped, nothing is answered any more.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    socket: Arc<AsyncFd<OwnedFd>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    next: AtomicU32,
    pending: Mutex<HashMap<u32, oneshot::Sender<Answer>>>,
    exit: watch::Sender<State>,
    execs: Mutex<HashMap<String, watch::Sender<State>>>,
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It runs, or has not run yet.
    Unknown,
    /// It has ended.
    Exited(Exit),
    /// The shim is gone, and with it all news.
    Gone,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Connection {
    /// Takes over a connected socket. `child` is the shim's process if it is this daemon's child, to
    /// be reaped when it ends.
    pub(crate) fn new(socket: OwnedFd, child: Option<Pid>, tasks: &Tasks) -> Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|errno| Error::io("use", "shim connection", errno.into()))?;
        let socket = watched(socket).map_err(|error| Error::io("use", "shim connection", error))?;
        let socket = Arc::new(socket);
        let shared = Arc::new(Shared {
            next: AtomicU32::new(1),
            pending: Mutex::default(),
            exit: watch::Sender::new(State::Unknown),
            execs: Mutex::default(),
        });
        let reading = read(socket.clone(), shared.clone());
        let stopping = tasks.stopping().clone();
        // A daemon that stops says nothing about the container, which goes on.
        let reader = tasks.spawn("shim-reader", async move {
            tokio::select! {
                () = reading => {}
                () = stopping.cancelled() => {}
            }
        });
        if let Some(pid) = child {
            let stopping = tasks.stopping().clone();
            tasks.spawn("shim-reaper", async move {
                tokio::select! {
                    () = reap(pid) => {}
                    () = stopping.cancelled() => {}
                }
            });
        }
        Ok(Self { asker: Asker { socket, shared }, reader })
    }

    /// What asks over this connection.
    pub(crate) fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Sends a request and waits for its answer, at most `patience`.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the shim is gone, `Deadline` when it does not answer; otherwise the
    /// failure, by [`crate::error::from_failure`].
    pub(crate) async fn ask_within(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Answer> {
        self.asker.ask_within(request, fds, patience).await
    }

    /// As [`Connection::ask_within`], for what is done at once.
    pub(crate) async fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Answer> {
        self.ask_within(request, fds, PATIENCE).await
    }

    /// Makes the acquaintance.
    pub(crate) async fn hello(&self) -> Result<gantry_shim_protocol::StateReport> {
        match self.ask(&Request::Hello { version: VERSION }, &[]).await? {
            Ok(Reply::Hello { state, .. }) => {
                if let Some(exit) = state.exit {
                    self.asker.shared.exit.send_replace(State::Exited(exit));
                }
                Ok(state)
            }
            Ok(other) => {
                Err(Error::new(ErrorKind::Internal, format!("the shim answered {other:?}")))
            }
            Err(failure) => Err(Error::unavailable(failure.message)),
        }
    }

    /// News of the first process.
    pub(crate) fn exit(&self) -> watch::Receiver<State> {
        self.asker.shared.exit.subscribe()
    }

    /// News of an exec, which is to be asked for before the exec is.
    pub(crate) fn exec_exit(&self, id: &str) -> watch::Receiver<State> {
        let sender = watch::Sender::new(State::Unknown);
        let receiver = sender.subscribe();
        if *self.asker.shared.exit.borrow() == State::Gone {
            sender.send_replace(State::Gone);
        }
        lock(&self.asker.shared.execs).insert(id.to_owned(), sender);
        receiver
    }

    /// Nobody asks for this exec any more.
    pub(crate) fn forget_exec(&self, id: &str) {
        self.asker.forget_exec(id);
    }
}

impl Asker {
    async fn ask_within(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Answer> {
        let (number, answer) = self.expect();
        let outcome = async {
            self.send(number, request, fds).await?;
            match tokio::time::timeout(patience, answer).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(gone()),
                Err(_) => Err(Error::new(ErrorKind::Deadline, "the shim does not answer")),
            }
        }
        .await;
        if outcome.is_err() {
            lock(&self.shared.pending).remove(&number);
        }
        outcome
    }

    /// Asks for what is done at once.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Answer> {
        self.ask_within(request, &[], PATIENCE).await
    }

    /// Nobody asks for this exec any more.
    pub(crate) fn forget_exec(&self, id: &str) {
        lock(&self.shared.execs).remove(id);
    }

    fn expect(&self) -> (u32, oneshot::Receiver<Answer>) {
        // Zero marks events.
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed).max(1);
        let (sender, receiver) = oneshot::channel();
        if *self.shared.exit.borrow() == State::Gone {
            return (number, receiver);
        }
        lock(&self.shared.pending).insert(number, sender);
        (number, receiver)
    }

    async fn send(&self, number: u32, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let packet = encode_frame(number, request).map_err(|error| {
            Error::invalid("the request is too big for the shim").caused_by(error)
        })?;
        loop {
            match socket::send(self.socket.get_ref(), &packet, fds) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut ready = self.socket.writable().await.map_err(|_| gone())?;
                    ready.clear_ready();
                }
                Err(_) => return Err(gone()),
            }
        }
    }
}

/// Waits for a descriptor without blocking a thread.
#[expect(
    deprecated,
    reason = "the unsafe replacement asks that the descriptor never changes, as an OwnedFd's does not"
)]
fn watched(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

fn gone() -> Error {
    Error::unavailable("the container's shim is gone")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As big as what waits, for there is a reader per container. Nothing waits after a readiness that
/// was used up; but a packet may come between this look and the reading, and must fit.
fn buffer_size(socket: &AsyncFd<OwnedFd>) -> usize {
    let waiting = rustix::io::ioctl_fionread(socket.get_ref()).unwrap_or(0);
    match usize::try_from(waiting) {
        Ok(0) | Err(_) => FRAME_MAX,
        Ok(waiting) => waiting.min(FRAME_MAX),
    }
}

/// Reads until the shim is gone.
async fn read(socket: Arc<AsyncFd<OwnedFd>>, shared: Arc<Shared>) {
    loop {
        let Ok(mut ready) = socket.readable().await else { break };
        let mut buffer = vec![0; buffer_size(&socket)];
        match socket::receive(socket.get_ref(), &mut buffer, 0) {
            Ok(received) if received.bytes > 0 => {
                let packet = buffer.get(..received.bytes).unwrap_or_default();
                if !shared.take(packet) {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => ready.clear_ready(),
            _ => break,
        }
    }
    shared.exit.send_if_modified(|state| {
        let unknown = *state == State::Unknown;
        if unknown {
            *state = State::Gone;
        }
        unknown
    });
    for exec in lock(&shared.execs).values() {
        exec.send_if_modified(|state| {
            let unknown = *state == State::Unknown;
            if unknown {
                *state = State::Gone;
            }
            unknown
        });
    }
    // Dropping the senders tells those who wait.
    lock(&shared.pending).clear();
}

impl Shared {
    /// Passes a message on; `false` when it is none.
    fn take(&self, packet: &[u8]) -> bool {
        let Ok((number, Ok(message))) = decode_frame::<ServerMessage>(packet) else {
            tracing::warn!("a shim said something unknown");
            return false;
        };
        match message {
            ServerMessage::Reply(answer) => {
                if let Some(waiter) = lock(&self.pending).remove(&number) {
                    let _ = waiter.send(answer);
                }
            }
            ServerMessage::Event(Event::Exited(exit)) => {
                self.exit.send_replace(State::Exited(exit));
            }
            ServerMessage::Event(Event::ExecExited { id, exit }) => {
                if let Some(exec) = lock(&self.execs).get(&id) {
                    exec.send_replace(State::Exited(exit));
                }
            }
        }
        true
    }
}

/// Waits for the end of a shim and reaps it.
async fn reap(pid: Pid) {
    let ended = async {
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)?;
        watched(pidfd)?.readable().await?.retain_ready();
        Ok::<_, std::io::Error>(())
    };
    // Without a pidfd the wait itself is what waits.
    let _ = ended.await;
    let _ = tokio::task::spawn_blocking(move || wait_for(pid)).await;
}
