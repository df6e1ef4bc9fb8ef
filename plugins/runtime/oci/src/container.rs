//! A container and its execs, seen through their shim.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_sdk::kinds::runtime::{
    Attach, ContainerProcess, ExecLaunch, ExecProcess, Exit, Stdio as SdkStdio,
};
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Error, ErrorKind, Result};
use gantry_shim_protocol::{
    Console, EXIT_NAME, ExecHead, Exit as WireExit, Failure, Reply, Request, SOCKET_NAME, Stdio,
    Streams, decode_body, encode_body, exec_exit_name, is_plain_id,
};
use gantry_sys::cgroup::Group;
use gantry_sys::memfd::{self, Executable};
use gantry_sys::path::read_file_bounded;
use tokio::sync::watch;

use crate::compile::compile_process;
use crate::connection::{Connection, State};
use crate::error::{exec_failed, from_failure};
use crate::seccomp::Programs;

/// How long a program may take to start in a running container.
const EXEC: Duration = Duration::from_secs(60);

/// How long the processes of a container whose shim is gone may take to die.
const KILL: Duration = Duration::from_secs(10);

/// Exit files are a few bytes.
const EXIT_MAX: usize = 4096;

/// The code of a container whose end nobody saw: as if killed.
const LOST: i32 = 137;

/// A container that was launched.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) pid: i32,
    pub(crate) group: Group,
    /// `None` when the shim was gone already when the container was found again.
    pub(crate) connection: Mutex<Option<Arc<Connection>>>,
    pub(crate) tasks: Tasks,
    pub(crate) programs: Arc<Programs>,
    /// An external runtime reads the specification's own form of a process.
    pub(crate) external: bool,
}

impl Container {
    fn held(&self) -> Option<Arc<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connects anew to a shim that has hung up and is still there, as it does on a daemon that was
    /// stopped for too long to take its messages.
    async fn reconnect(&self) -> Option<Arc<Connection>> {
        let path = self.run_dir.join(SOCKET_NAME);
        let socket = blocking(move || Ok(gantry_sys::socket::connect(&path).ok())).await.ok()??;
        let connection = Arc::new(Connection::new(socket, None, &self.tasks).ok()?);
        connection.hello().await.ok()?;
        let mut held = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        *held = Some(connection.clone());
        Some(connection)
    }

    fn connection(&self) -> Result<Arc<Connection>> {
        self.held().ok_or_else(|| Error::not_found(format!("container {} is not running", self.id)))
    }

    async fn simple(&self, request: Request) -> Result<()> {
        match self.connection()?.ask(&request, &[]).await? {
            Ok(_) => Ok(()),
            Err(failure) => Err(from_failure(&failure)),
        }
    }

    /// The shim was killed: what it left running has nobody to answer for it any more.
    async fn clean_up_lost(&self) -> Result<WireExit> {
        if let Some(exit) = read_exit(&self.run_dir.join(EXIT_NAME)).await? {
            return Ok(exit);
        }
        tracing::warn!(container = self.id, "the shim is gone, its container is killed");
        let group = self.group.clone();
        blocking(move || {
            group
                .kill(KILL)
                .and_then(|()| group.remove(KILL))
                .map_err(|error| Error::internal("cannot end a container without shim", error))
        })
        .await?;
        Ok(lost())
    }
}

#[async_trait]
impl ContainerProcess for Container {
    fn pid(&self) -> i32 {
        self.pid
    }

    async fn wait(&self) -> Result<Exit> {
        let mut held = self.held();
        while let Some(connection) = held {
            if let Some(exit) = ended(connection.exit()).await {
                return Ok(sdk_exit(exit));
            }
            held = self.reconnect().await;
        }
        self.clean_up_lost().await.map(sdk_exit)
    }

    async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        self.simple(Request::Kill { signal, all }).await
    }

    async fn attach(&self, attach: Attach) -> Result<()> {
        let request = Request::Attach(streams(&attach));
        match self.connection()?.ask(&request, &[attach.stream.as_fd()]).await? {
            Ok(_) => Ok(()),
            Err(failure) => Err(from_failure(&failure)),
        }
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        self.simple(Request::Resize(Console { rows, cols: columns })).await
    }

    async fn exec(&self, exec: ExecLaunch) -> Result<Arc<dyn ExecProcess>> {
        if !is_plain_id(&exec.id) {
            return Err(Error::invalid(format!("exec id {:?} is not usable", exec.id)));
        }
        let body = self.exec_body(&exec).await?;
        let connection = self.connection()?;
        let exit = connection.exec_exit(&exec.id);
        let request = Request::Exec(Box::new(ExecHead {
            id: exec.id.clone(),
            stdio: wire_stdio(exec.stdio),
            attach: exec.attach.as_ref().map(streams),
            oom_score_adj: exec.process.oom_score_adj(),
        }));
        let client = exec.attach.as_ref().map(|attach| attach.stream.as_fd());
        let fds: Vec<_> = [body.as_fd()].into_iter().chain(client).collect();
        let answer = connection.ask_within(&request, &fds, EXEC).await;
        let pid = match answer {
            Ok(Ok(Reply::Started { pid })) => pid,
            Ok(Ok(_)) => 0,
            Ok(Err(failure)) => {
                connection.forget_exec(&exec.id);
                return Err(exec_failed(&failure));
            }
            Err(error) => {
                connection.forget_exec(&exec.id);
                return Err(error);
            }
        };
        Ok(Arc::new(Exec {
            id: exec.id,
            pid,
            run_dir: self.run_dir.clone(),
            asker: connection.asker(),
            exit,
        }))
    }

    async fn pause(&self) -> Result<()> {
        self.simple(Request::Pause).await
    }

    async fn resume(&self) -> Result<()> {
        self.simple(Request::Resume).await
    }

    async fn delete(&self) -> Result<()> {
        if let Some(connection) = self.held() {
            match connection.ask(&Request::Delete { force: true }, &[]).await {
                Ok(Ok(_)) => {}
                Ok(Err(failure)) => return Err(from_failure(&failure)),
                // Gone already: a second call, or a shim that was killed.
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                Err(error) => return Err(error),
            }
        }
        let (group, run_dir) = (self.group.clone(), self.run_dir.clone());
        blocking(move || {
            if group.exists() {
                group.kill(KILL).and_then(|()| group.remove(KILL)).map_err(|error| {
                    Error::internal("cannot remove a container's groups", error)
                })?;
            }
            match std::fs::remove_dir_all(&run_dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove", run_dir.display(), error))
                }
                _ => Ok(()),
            }
        })
        .await
    }
}

impl Container {
    /// What an exec's program is, in a memfd.
    async fn exec_body(&self, exec: &ExecLaunch) -> Result<std::os::fd::OwnedFd> {
        let bytes = if self.external {
            let mut process = exec.process.clone();
            process.set_terminal(Some(exec.stdio.tty));
            serde_json::to_vec(&process)
                .map_err(|error| Error::invalid("bad process").caused_by(error))?
        } else {
            let program =
                exec.seccomp.as_ref().map(|filter| self.programs.get(filter)).transpose()?;
            let process = compile_process(&exec.process, program.as_deref())?;
            encode_body(&process).map_err(|error| Error::invalid("bad process").caused_by(error))?
        };
        memfd::sealed("gantry-exec", &bytes, Executable::No)
            .map_err(|error| Error::internal("cannot pass on the process", error))
    }
}

/// A process beside the first.
struct Exec {
    id: String,
    pid: i32,
    run_dir: PathBuf,
    asker: crate::connection::Asker,
    exit: watch::Receiver<State>,
}

impl Exec {
    async fn simple(&self, request: Request) -> Result<()> {
        match self.asker.ask(&request).await? {
            Ok(_) => Ok(()),
            Err(failure) => Err(from_failure(&failure)),
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        self.asker.forget_exec(&self.id);
    }
}

#[async_trait]
impl ExecProcess for Exec {
    fn pid(&self) -> i32 {
        self.pid
    }

    async fn wait(&self) -> Result<Exit> {
        if let Some(exit) = ended(self.exit.clone()).await {
            return Ok(sdk_exit(exit));
        }
        let exit = read_exit(&self.run_dir.join(exec_exit_name(&self.id))).await?;
        Ok(sdk_exit(exit.unwrap_or_else(lost)))
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Console { rows, cols: columns };
        self.simple(Request::ExecResize { id: self.id.clone(), size }).await
    }

    async fn signal(&self, signal: i32) -> Result<()> {
        self.simple(Request::ExecKill { id: self.id.clone(), signal }).await
    }
}

/// Waits for news: the exit, or `None` when there will be none.
async fn ended(mut news: watch::Receiver<State>) -> Option<WireExit> {
    let answer = news.wait_for(|state| *state != State::Unknown).await;
    match answer.as_deref() {
        Ok(State::Exited(exit)) => Some(*exit),
        _ => None,
    }
}

/// Reads an exit that a shim has put on record.
pub(crate) async fn read_exit(file: &Path) -> Result<Option<WireExit>> {
    let file = file.to_owned();
    blocking(move || match read_file_bounded(&file, EXIT_MAX) {
        Ok(bytes) => decode_body(&bytes)
            .map(Some)
            .map_err(|error| Error::internal(format!("bad exit record {}", file.display()), error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::internal("cannot read an exit record", error)),
    })
    .await
}

/// Runs work that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(Error::internal("blocking work was cut short", error)),
    }
}

pub(crate) fn wire_stdio(stdio: SdkStdio) -> Stdio {
    let (rows, cols) = stdio.size;
    Stdio {
        terminal: stdio.tty.then_some(Console { rows, cols }),
        stdin: stdio.stdin,
        stdin_once: stdio.stdin_once,
    }
}

fn streams(attach: &Attach) -> Streams {
    Streams { stdin: attach.stdin, stdout: attach.stdout, stderr: attach.stderr }
}

pub(crate) fn sdk_exit(exit: WireExit) -> Exit {
    Exit {
        code: exit.code,
        oom: exit.oom,
        at: SystemTime::UNIX_EPOCH + Duration::from_nanos(exit.at),
    }
}

fn lost() -> WireExit {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let at = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    WireExit { code: LOST, signal: Some(9), oom: false, at }
}

/// Turns an answer that should have been another into an error.
pub(crate) fn unexpected(answer: &std::result::Result<Reply, Failure>) -> Error {
    Error::new(ErrorKind::Internal, format!("the shim answered {answer:?}"))
}
