//! The task that owns one container.
//!
//! Every change to a container happens here, so nothing is locked across an `.await` and nobody sees
//! half a change. The task sleeps in [`Task::run`] until there is a message, an exit or a timer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_sdk::kinds::layers::ContainerLayer;
use gantry_sdk::kinds::runtime::{Attach, ContainerProcess, Exit};
use gantry_sdk::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::create::DRIVER_OPTION;
use crate::engine::Engine;
use crate::handle::{Envelope, Handle, HoldMark, Message, StopGrace, View};
use crate::journal;
use crate::launch;
use crate::record::Record;
use crate::remove;
use crate::restart::{self, Backoff};
use crate::state::{Action, Command, Fact, Refusal, State};
use crate::waiting::Clients;

/// Messages that may wait for one container; more senders wait in turn.
const MAILBOX: usize = 64;
/// After a forced kill, how long the end may take before the stop is reported as failed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// After the database refused a write, when to try again.
const SAVE_AGAIN: Duration = Duration::from_secs(5);
const SIGKILL: i32 = 9;

/// Waits for an exit, or for the end of the daemon.
type Waiting = JoinHandle<Option<Result<Exit>>>;

/// The owner of one container.
pub(crate) struct Task {
    engine: Arc<Engine>,
    record: Record,
    state: State,
    process: Option<Arc<dyn ContainerProcess>>,
    exit: Option<Waiting>,
    /// Ended, and kept by its shim until the database has the end.
    ended: Option<Arc<dyn ContainerProcess>>,
    exits: u64,
    stopping: Option<Stopping>,
    /// When the database must have what it has not yet.
    save_at: Option<Instant>,
    restart_at: Option<Instant>,
    backoff: Backoff,
    waiting: Clients,
    held: Option<HoldMark>,
    view: watch::Sender<Arc<View>>,
}

/// A stop that is under way.
struct Stopping {
    kill_at: Option<Instant>,
    killed: bool,
    replies: Vec<oneshot::Sender<Result<()>>>,
    then: Then,
}

/// What follows the end of a stop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    Report,
    Remove { volumes: bool },
}

impl Task {
    /// Starts the task of a container that was just created or found on disk, and makes it visible.
    pub(crate) fn spawn(
        engine: &Arc<Engine>,
        record: Record,
        state: State,
        process: Option<Arc<dyn ContainerProcess>>,
    ) -> Handle {
        let view = View {
            record: Arc::new(record.clone()),
            state: state.clone(),
            process: process.clone(),
            exits: 0,
            removed: false,
        };
        let (view, seen) = watch::channel(Arc::new(view));
        let (messages, mailbox) = mpsc::channel(MAILBOX);
        let handle = Handle::new(messages, seen);
        engine.insert(record.id.clone(), handle.clone());
        let mut task = Self {
            engine: engine.clone(),
            record,
            state,
            process: None,
            exit: None,
            ended: None,
            exits: 0,
            stopping: None,
            save_at: None,
            restart_at: None,
            backoff: Backoff::default(),
            waiting: Clients::default(),
            held: None,
            view,
        };
        if let Some(process) = process {
            task.adopt(process);
        }
        engine.tasks.spawn("container", task.run(mailbox));
        handle
    }

    async fn run(mut self, mut mailbox: mpsc::Receiver<Envelope>) {
        let stop = self.engine.tasks.stopping().clone();
        loop {
            let timer = self.next_timer();
            tokio::select! {
                // Exits first: a message is judged against what is true, not what was.
                biased;
                exit = ended(&mut self.exit) => self.on_exit(exit).await,
                message = mailbox.recv() => match message {
                    Some((message, reply)) => self.on_message(message, reply).await,
                    None => return,
                },
                () = at(timer) => self.on_timer().await,
                () = stop.cancelled() => return self.settle().await,
            }
            if self.view.borrow().removed {
                return;
            }
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let kill = self.stopping.as_ref().and_then(|s| s.kill_at);
        [kill, self.restart_at, self.save_at].into_iter().flatten().min()
    }

    async fn on_timer(&mut self) {
        let now = Instant::now();
        if self.save_at.is_some_and(|at| at <= now) {
            self.settle().await;
        }
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            self.record.life.restarts += 1;
            if let Err(error) = self.start().await {
                tracing::warn!(container = %self.record.id, error = %error.chain(), "Restart failed.");
            }
        }
        if self.stopping.as_ref().and_then(|s| s.kill_at).is_some_and(|at| at <= now) {
            self.force().await;
        }
    }

    async fn on_message(&mut self, message: Message, reply: oneshot::Sender<Result<()>>) {
        let result = match message {
            Message::Start => self.start_by_hand().await,
            Message::Stop { signal, grace } => {
                let grace = grace.unwrap_or_else(|| self.own_grace());
                let signal = signal.unwrap_or_else(|| launch::stop_signal(&self.record.config));
                return self.stop(signal, grace, true, reply).await;
            }
            Message::Kill { signal } => self.kill(signal).await,
            Message::Remove { force, volumes } => return self.remove(force, volumes, reply).await,
            Message::Rename { name } => self.rename(name).await,
            Message::Attach(attach) => self.attach(attach).await,
            Message::Hold(mark) => self.hold(mark),
            Message::Moved { layer } => self.moved(layer).await,
            Message::ShutDown => {
                let signal = launch::stop_signal(&self.record.config);
                let grace = self.own_grace();
                return self.stop(signal, grace, false, reply).await;
            }
        };
        let _ = reply.send(result); // the client may be gone; the work is done
    }

    fn refuse(&self, refusal: Refusal) -> Error {
        let id = &self.record.id;
        match refusal {
            Refusal::AlreadyRunning | Refusal::AlreadyStopped => Error::not_modified(),
            Refusal::NotRunning => Error::conflict(format!("container {id} is not running")),
            Refusal::BeingRemoved => {
                Error::conflict(format!("removal of container {id} is already in progress"))
            }
            Refusal::IsDead => {
                Error::conflict("container is marked for removal and cannot be started".to_owned())
            }
            Refusal::RunningWithoutForce => Error::conflict(format!(
                "cannot remove container \"{}\": container is {}: stop the container before \
                 removing or force remove",
                self.record.name,
                self.state.word()
            )),
        }
    }

    async fn start_by_hand(&mut self) -> Result<()> {
        self.record.life.stopped_by_hand = false;
        self.record.life.restarts = 0;
        self.backoff = Backoff::default();
        self.start().await
    }

    async fn start(&mut self) -> Result<()> {
        let decided = self.state.decide(Command::Start).map_err(|r| self.refuse(r));
        if let Err(error) = decided.and_then(|_| self.refuse_if_held()) {
            // As after a start that fails: the client that asked for it has its answer.
            self.waiting.dismiss();
            return Err(error);
        }
        self.restart_at = None;
        if self.ended.is_some() {
            self.settle().await; // the run directory is needed again
        }
        let attach = self.waiting.take();
        match launch::launch(&self.engine, &self.record, attach).await {
            Ok((process, sandbox)) => {
                let at = SystemTime::now();
                let pid = process.pid();
                self.record.life.started = Some(at);
                self.record.life.exit = None;
                self.record.life.error = String::new();
                self.record.life.active = true;
                self.record.life.sandbox = Some(sandbox);
                self.adopt(process);
                self.state = self.state.clone().after(Fact::Started { pid, at });
                self.note();
                self.publish();
                self.engine.report(&self.record, "start", &[]);
                Ok(())
            }
            Err(error) => Err(self.start_failed(error).await),
        }
    }

    async fn start_failed(&mut self, error: Error) -> Error {
        let (code, error) = launch::start_failure(error);
        let exit = Exit { code, oom: false, at: SystemTime::now() };
        self.record.life.error = error.chain();
        self.record.life.exit = Some(exit.clone());
        self.record.life.active = false;
        self.record.life.sandbox = None;
        if !matches!(self.state, State::Created) {
            self.state = self.state.clone().after(Fact::Exited { exit, again: false });
        }
        // No exit is counted: nothing ran, and who waits for the next exit goes on waiting.
        self.publish();
        if self.record.auto_remove() {
            self.clean_up(true).await;
        } else {
            self.save().await;
        }
        error
    }

    /// Makes a live process ours.
    fn adopt(&mut self, process: Arc<dyn ContainerProcess>) {
        let waited = process.clone();
        let stop = self.engine.tasks.stopping().clone();
        self.exit =
            Some(self.engine.tasks.spawn("container-exit", async move {
                stop.run_until_cancelled(waited.wait()).await
            }));
        self.process = Some(process);
    }

    async fn on_exit(&mut self, exit: Result<Exit>) {
        self.exit = None;
        let exit = exit.unwrap_or_else(|error| {
            // The shim is gone without a word: somebody killed it, and with it the container.
            tracing::error!(container = %self.record.id, error = %error.chain(), "Lost a container.");
            Exit { code: 137, oom: false, at: SystemTime::now() }
        });
        let process = self.process.take();
        let began = self.record.life.started.unwrap_or(exit.at);
        let ran = exit.at.duration_since(began).unwrap_or_default();
        let stopping = self.stopping.take();
        let policy = &self.record.host.restart_policy;
        let delay = if stopping.is_some() || self.record.life.stopped_by_hand {
            None
        } else {
            restart::delay(policy, exit.code, self.record.life.restarts, ran, &mut self.backoff)
        };
        launch::release(&self.engine, &self.record).await;

        self.record.life.exit = Some(exit.clone());
        self.record.life.active = delay.is_some();
        self.record.life.sandbox = None;
        let fact = Fact::Exited { exit: exit.clone(), again: delay.is_some() };
        self.state = self.state.clone().after(fact);
        self.restart_at = delay.map(|d| Instant::now() + d);
        let removing = self.record.auto_remove() && delay.is_none();
        self.ended = process;
        self.note();
        self.exits += 1;
        self.publish();
        self.engine.report_end(&self.record, &exit, ran);
        self.finish_stop(stopping, removing).await;
    }

    async fn finish_stop(&mut self, stopping: Option<Stopping>, removing: bool) {
        let (replies, then) = stopping.map_or((Vec::new(), Then::Nothing), |s| (s.replies, s.then));
        if then == Then::Report {
            self.engine.report(&self.record, "stop", &[]);
        }
        if !replies.is_empty() && !removing && then == Then::Report {
            self.settle().await; // a stop is durable when it is answered
        }
        let result = match then {
            Then::Remove { volumes } => self.clean_up(volumes).await,
            _ if removing => self.clean_up(true).await,
            _ => true,
        };
        for reply in replies {
            let answer = if result {
                Ok(())
            } else {
                Err(Error::new(
                    ErrorKind::Internal,
                    format!("cannot remove container {}", self.record.id),
                ))
            };
            let _ = reply.send(answer);
        }
    }

    fn own_grace(&self) -> StopGrace {
        let seconds = self.record.config.stop_timeout;
        seconds.map_or_else(|| self.engine.settings().stop_grace, StopGrace::from_seconds)
    }

    async fn stop(
        &mut self,
        signal: i32,
        grace: StopGrace,
        by_hand: bool,
        reply: oneshot::Sender<Result<()>>,
    ) {
        let action = match self.state.decide(Command::Stop) {
            Ok(action) => action,
            Err(refusal) => {
                let _ = reply.send(Err(self.refuse(refusal)));
                return;
            }
        };
        self.record.life.stopped_by_hand |= by_hand;
        if action == Action::CancelRestart {
            self.cancel_restart().await;
            let _ = reply.send(Ok(()));
            return;
        }
        self.end(signal, grace, Then::Report, reply).await;
    }

    async fn cancel_restart(&mut self) {
        self.restart_at = None;
        self.record.life.active = false;
        self.state = self.state.clone().after(Fact::RestartCancelled);
        self.save().await;
        self.publish();
    }

    /// Begins to end the process; `reply` is answered when it has ended.
    async fn end(
        &mut self,
        signal: i32,
        grace: StopGrace,
        then: Then,
        reply: oneshot::Sender<Result<()>>,
    ) {
        let kill_at = match grace {
            StopGrace::After(time) => Some(Instant::now() + time),
            StopGrace::Never => None,
        };
        match &mut self.stopping {
            Some(stopping) => {
                // A second stop joins the first; the nearer deadline and the stronger end win.
                stopping.replies.push(reply);
                stopping.kill_at = [stopping.kill_at, kill_at].into_iter().flatten().min();
                if matches!(then, Then::Remove { .. }) {
                    stopping.then = then;
                }
            }
            None => {
                self.stopping =
                    Some(Stopping { kill_at, killed: false, replies: vec![reply], then });
            }
        }
        if grace == StopGrace::After(Duration::ZERO) && signal == SIGKILL {
            self.force().await;
            return;
        }
        self.engine.report(&self.record, "kill", &[("signal", signal.to_string())]);
        self.signal(signal).await;
    }

    async fn signal(&self, signal: i32) {
        if let Some(process) = &self.process {
            match process.signal(signal, false).await {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(container = %self.record.id, signal, error = %error.chain(), "Cannot signal.");
                }
                _ => {}
            }
        }
    }

    /// Time is up: kills; if even that does not end it, says so to those who wait.
    async fn force(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if stopping.killed {
            stopping.kill_at = None;
            let replies = std::mem::take(&mut stopping.replies);
            for reply in replies {
                let _ = reply.send(Err(Error::new(
                    ErrorKind::Internal,
                    format!(
                        "cannot stop container: {}: tried to kill container, but did not receive \
                         an exit event",
                        self.record.id
                    ),
                )));
            }
            return;
        }
        stopping.killed = true;
        stopping.kill_at = Some(Instant::now() + KILL_PATIENCE);
        self.engine.report(&self.record, "kill", &[("signal", SIGKILL.to_string())]);
        self.signal(SIGKILL).await;
    }

    async fn kill(&mut self, signal: i32) -> Result<()> {
        match self.state.decide(Command::Kill).map_err(|r| self.refuse(r))? {
            Action::CancelRestart => {
                self.record.life.stopped_by_hand = true;
                self.cancel_restart().await;
                return Ok(());
            }
            _ if signal == SIGKILL || signal == launch::stop_signal(&self.record.config) => {
                // The restart policy must not undo what the client wants.
                self.record.life.stopped_by_hand = true;
            }
            _ => {}
        }
        if let Some(process) = &self.process {
            match process.signal(signal, false).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        self.engine.report(&self.record, "kill", &[("signal", signal.to_string())]);
        Ok(())
    }

    async fn remove(&mut self, force: bool, volumes: bool, reply: oneshot::Sender<Result<()>>) {
        if let Err(error) = self.refuse_if_held() {
            let _ = reply.send(Err(error));
            return;
        }
        match self.state.decide(Command::Remove { force }) {
            Ok(Action::KillAndCleanUp) if self.state.is_running() => {
                self.record.life.stopped_by_hand = true;
                let now = StopGrace::After(Duration::ZERO);
                self.end(SIGKILL, now, Then::Remove { volumes }, reply).await;
            }
            Ok(_) => {
                self.restart_at = None;
                let done = self.clean_up(volumes).await;
                let id = &self.record.id;
                let failed =
                    || Error::new(ErrorKind::Internal, format!("cannot remove container {id}"));
                let _ = reply.send(done.then_some(()).ok_or_else(failed));
            }
            Err(refusal) => {
                let _ = reply.send(Err(self.refuse(refusal)));
            }
        }
    }

    /// Removes what is left of the container; true if it is gone.
    async fn clean_up(&mut self, volumes: bool) -> bool {
        self.state = self.state.clone().after(Fact::RemovalBegan);
        self.publish();
        self.save_at = None;
        let ended = self.ended.take();
        match remove::remove(&self.engine, &mut self.record, volumes, ended).await {
            Ok(()) => {
                self.waiting.dismiss();
                // Whoever hears of it must find the container gone.
                self.publish_removed();
                self.engine.report(&self.record, "destroy", &[]);
                true
            }
            Err(error) => {
                tracing::error!(container = %self.record.id, error = %error.chain(), "Cannot remove a container.");
                self.state = self.state.clone().after(Fact::RemovalFailed);
                self.record.life.error = error.chain();
                self.publish();
                false
            }
        }
    }

    async fn rename(&mut self, name: String) -> Result<()> {
        let old = std::mem::replace(&mut self.record.name, name);
        if let Err(error) = self.engine.save(&self.record).await {
            let name = std::mem::replace(&mut self.record.name, old);
            self.engine.release_name(&name, &self.record.id);
            return Err(error);
        }
        self.engine.release_name(&old, &self.record.id);
        self.publish();
        self.engine.report(&self.record, "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    fn is_held(&self) -> bool {
        self.held.as_ref().is_some_and(|mark| mark.strong_count() > 0)
    }

    fn refuse_if_held(&self) -> Result<()> {
        if !self.is_held() {
            return Ok(());
        }
        let id = &self.record.id;
        Err(Error::conflict(format!("container {id} is being moved to another storage instance")))
    }

    fn hold(&mut self, mark: HoldMark) -> Result<()> {
        self.refuse_if_held()?;
        match &self.state {
            State::Created | State::Exited { .. } => {
                self.held = Some(mark);
                Ok(())
            }
            other => {
                let (id, word) = (&self.record.id, other.word());
                Err(Error::conflict(format!("container {id} is {word}; stop it first")))
            }
        }
    }

    async fn moved(&mut self, layer: ContainerLayer) -> Result<()> {
        if self.record.layer == layer {
            return Ok(());
        }
        if !self.is_held() {
            return Err(Error::conflict(format!("container {} is not held", self.record.id)));
        }
        let before = self.record.clone();
        // What is shown as asked for is what a copy of this container would be made with.
        let options = self.record.host.storage_opt.as_mut();
        if let Some(asked) = options.and_then(|options| options.get_mut(DRIVER_OPTION)) {
            asked.clone_from(&layer.instance);
        }
        self.record.layer = layer;
        if let Err(error) = self.engine.save(&self.record).await {
            self.record = before;
            return Err(error);
        }
        self.publish();
        Ok(())
    }

    async fn attach(&mut self, attach: Attach) -> Result<()> {
        match &self.process {
            Some(process) => process.attach(attach).await,
            None if matches!(self.state, State::Removing | State::Dead) => Err(Error::conflict(
                "You cannot attach to a container that is being removed".to_owned(),
            )),
            None => self.waiting.push(attach),
        }
    }

    /// Puts the present life where it survives the daemon, and sees that the database follows.
    fn note(&mut self) {
        let run_dir = self.engine.run_of(&self.record.id);
        if let Err(error) = journal::write(&run_dir, &self.record.life) {
            tracing::warn!(container = %self.record.id, error = %error.chain(), "Cannot note the life of a container.");
        }
        self.save_at.get_or_insert_with(|| Instant::now() + journal::SAVE_WITHIN);
    }

    /// Brings the database up to date, then lets the shim of an ended process go.
    async fn settle(&mut self) {
        if self.save_at.take().is_some() && !self.save().await {
            self.save_at = Some(Instant::now() + SAVE_AGAIN);
            return;
        }
        self.dismiss().await;
    }

    /// Lets the shim of an ended process go, and with it the run directory.
    async fn dismiss(&mut self) {
        if let Some(process) = self.ended.take()
            && let Err(error) = process.delete().await
        {
            tracing::warn!(container = %self.record.id, error = %error.chain(), "Cannot clean up after the end of a container.");
        }
    }

    /// Writes the record where nothing depends on it: a failure is logged, and the next write says
    /// it all again.
    async fn save(&self) -> bool {
        match self.engine.save(&self.record).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(container = %self.record.id, error = %error.chain(), "Cannot write the record of a container.");
                false
            }
        }
    }

    fn publish(&self) {
        self.publish_as(false);
    }

    fn publish_removed(&self) {
        self.publish_as(true);
    }

    fn publish_as(&self, removed: bool) {
        self.view.send_replace(Arc::new(View {
            record: Arc::new(self.record.clone()),
            state: self.state.clone(),
            process: self.process.clone(),
            exits: self.exits,
            removed,
        }));
    }
}

/// Completes with the exit of the process that is being waited for; never if there is none, or the
/// daemon ends before it.
async fn ended(exit: &mut Option<Waiting>) -> Result<Exit> {
    if let Some(handle) = exit
        && let Some(answer) = handle.await.transpose()
    {
        return answer?;
    }
    *exit = None; // a handle must not be asked twice
    std::future::pending().await
}

async fn at(timer: Option<Instant>) {
    match timer {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
