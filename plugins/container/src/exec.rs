//! Execs: commands that clients run in containers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_sdk::api::container::ExecCreateRequest;
use gantry_sdk::id::{ContainerId, ExecId};
use gantry_sdk::kinds::runtime::{ExecProcess, Exit};
use gantry_sdk::{Error, Result};
use tokio::sync::Notify;

/// How long an exec that has ended can still be inspected.
const KEPT: Duration = Duration::from_secs(600);
/// Execs of one daemon that have not ended; far above any honest use.
const MOST: usize = 100_000;

/// Where an exec is in its life.
#[derive(Clone)]
pub enum ExecState {
    /// Made, not started.
    Created,
    /// Being started by one client; a second start is refused.
    Starting,
    /// Runs.
    Running(Arc<dyn ExecProcess>),
    /// Ended.
    Ended {
        /// Exit code.
        code: i32,
        /// Its last process number.
        pid: i32,
        /// When, for forgetting it.
        at: Instant,
    },
}

impl std::fmt::Debug for ExecState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "Created",
            Self::Starting => "Starting",
            Self::Running(_) => "Running",
            Self::Ended { .. } => "Ended",
        })
    }
}

/// An exec as it is now.
#[derive(Clone, Debug)]
pub struct Exec {
    /// Identity.
    pub id: ExecId,
    /// The container it belongs to.
    pub container: ContainerId,
    /// What to run.
    pub request: Arc<ExecCreateRequest>,
    /// State.
    pub state: ExecState,
}

/// All execs by id.
#[derive(Debug, Default)]
pub struct Execs {
    by_id: Mutex<HashMap<ExecId, Exec>>,
    changed: Notify,
}

impl Execs {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ExecId, Exec>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process of an exec, once it has one: clients ask for it as soon as they have asked for
    /// the start.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Conflict` if it has ended, or is not started within `patience`.
    pub async fn process(
        &self,
        reference: &str,
        patience: Duration,
    ) -> Result<Arc<dyn ExecProcess>> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let changed = self.changed.notified();
            let exec = self.find(reference)?;
            match exec.state {
                ExecState::Running(process) => return Ok(process),
                ExecState::Ended { .. } => {
                    return Err(Error::conflict(format!(
                        "exec command {} is not running",
                        exec.id
                    )));
                }
                ExecState::Created | ExecState::Starting => {}
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(Error::conflict("timeout waiting for exec session ready"));
            }
        }
    }

    /// Adds an exec; forgets those that ended long ago.
    ///
    /// # Errors
    ///
    /// `Busy` if there are too many.
    pub fn create(&self, container: &ContainerId, request: ExecCreateRequest) -> Result<ExecId> {
        let mut execs = self.lock();
        execs.retain(|_, e| !matches!(e.state, ExecState::Ended { at, .. } if at.elapsed() > KEPT));
        if execs.len() >= MOST {
            return Err(Error::busy(format!("there are {MOST} exec instances already")));
        }
        let id = ExecId::random();
        let exec = Exec {
            id: id.clone(),
            container: container.clone(),
            request: Arc::new(request),
            state: ExecState::Created,
        };
        execs.insert(id.clone(), exec);
        Ok(id)
    }

    /// The exec that `reference` means: its id.
    ///
    /// # Errors
    ///
    /// `NotFound` with the reference engine's text.
    pub fn find(&self, reference: &str) -> Result<Exec> {
        let unknown = || Error::not_found(format!("No such exec instance: {reference:.300}"));
        let id = reference.parse().map_err(|_| unknown())?;
        self.lock().get(&id).cloned().ok_or_else(unknown)
    }

    /// Takes the right to start an exec.
    ///
    /// # Errors
    ///
    /// `Conflict` if it has been started already.
    pub fn begin(&self, id: &ExecId) -> Result<()> {
        let mut execs = self.lock();
        let exec = execs
            .get_mut(id)
            .ok_or_else(|| Error::not_found(format!("No such exec instance: {id}")))?;
        match exec.state {
            ExecState::Created => {
                exec.state = ExecState::Starting;
                Ok(())
            }
            ExecState::Ended { .. } => {
                Err(Error::conflict(format!("exec command {id} has already run")))
            }
            ExecState::Starting | ExecState::Running(_) => {
                Err(Error::conflict(format!("exec command {id} is already running")))
            }
        }
    }

    /// Records that an exec runs.
    pub fn started(&self, id: &ExecId, process: Arc<dyn ExecProcess>) {
        if let Some(exec) = self.lock().get_mut(id) {
            exec.state = ExecState::Running(process);
        }
        self.changed.notify_waiters();
    }

    /// Records how an exec ended, or that it could not be started.
    pub fn ended(&self, id: &ExecId, exit: &Exit, pid: i32) {
        if let Some(exec) = self.lock().get_mut(id) {
            exec.state = ExecState::Ended { code: exit.code, pid, at: Instant::now() };
        }
        self.changed.notify_waiters();
    }

    /// The execs of a container that have not ended.
    pub fn of_container(&self, container: &ContainerId) -> Vec<String> {
        let execs = self.lock();
        let mut ids: Vec<String> = execs
            .values()
            .filter(|e| e.container == *container && !matches!(e.state, ExecState::Ended { .. }))
            .map(|e| e.id.to_string())
            .collect();
        ids.sort();
        ids
    }

    /// Forgets the execs of a container that was removed.
    pub fn forget_container(&self, container: &ContainerId) {
        self.lock().retain(|_, e| e.container != *container);
    }
}
