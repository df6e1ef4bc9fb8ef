//! The built-in runtime.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use gantry_sdk::kinds::logs::LogSink as SdkLog;
use gantry_sdk::kinds::networks::SandboxNs;
use gantry_sdk::kinds::runtime::{
    Attach, ContainerProcess, Launch, Recovered, Runtime, RuntimeInfo,
};
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};
use gantry_shim_protocol::{
    EXIT_NAME, LaunchHead, LogMode, LogSink, Phase, Reply, Request, SOCKET_NAME, VERSION,
    decode_body, encode_body,
};
use gantry_sys::cgroup::{Group, Layout};
use gantry_sys::memfd::{self, Executable};
use gantry_sys::path::{Durability, read_file_bounded, replace};
use gantry_sys::process::wait_for;
use gantry_sys::socket;
use rustix::process::Pid;

use crate::compile::{Input, compile};
use crate::connection::Connection;
use crate::container::{Container, blocking, read_exit, sdk_exit, unexpected, wire_stdio};
use crate::error::{create_failed, launch_failed};
use crate::external::{External, Prepared};
use crate::seccomp::Programs;
use crate::shim::Shim;
use crate::sources::Sources;

/// How long a container may take to start.
const START: Duration = Duration::from_secs(100);

/// Name of the file in the run directory that says where the container's groups are.
const GROUP_NAME: &str = "group";

/// Groups are a few paths.
const GROUP_MAX: usize = 64 << 10;

/// What every runtime of this plugin needs.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) shim: Shim,
    pub(crate) layout: Layout,
    pub(crate) programs: Arc<Programs>,
    pub(crate) tasks: Tasks,
}

impl Machine {
    /// Reads the machine. May block.
    pub(crate) fn read(tasks: Tasks) -> Result<Self> {
        let layout = Layout::read()
            .map_err(|error| Error::internal("cannot read the control groups", error))?;
        Ok(Self { shim: Shim::load()?, layout, programs: Arc::default(), tasks })
    }
}

/// A runtime: the shim's own core, or a program in its place.
#[derive(Debug)]
pub(crate) struct Oci {
    pub(crate) machine: Arc<Machine>,
    /// The program.
    pub(crate) external: Option<External>,
}

/// A launch on its way: the shim was told, and has not answered.
#[derive(Debug)]
struct Underway {
    control: OwnedFd,
    shim: Pid,
    request: Request,
    fds: Vec<OwnedFd>,
    group: Group,
}

#[async_trait]
impl Runtime for Oci {
    async fn launch(&self, _: &Ctx, launch: Launch) -> Result<Arc<dyn ContainerProcess>> {
        let (machine, external) = (self.machine.clone(), self.external.clone());
        // A caller that goes away must leave no container that nobody knows of: the launch has a
        // task of its own, which takes it back when there is nobody to give it to.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.machine.tasks.spawn("launch", async move {
            let outcome = start(machine, external, launch).await;
            if let Err(Ok(container)) = sender.send(outcome)
                && let Err(error) = container.delete().await
            {
                tracing::warn!(
                    container = container.id,
                    error = error.chain(),
                    "cannot take back a start that nobody waits for"
                );
            }
        });
        match receiver.await {
            Ok(outcome) => outcome.map(|container| container as Arc<dyn ContainerProcess>),
            Err(_) => Err(Error::unavailable("the daemon is stopping")),
        }
    }

    async fn recover(&self, _: &Ctx, id: &str, run_dir: &Path) -> Result<Recovered> {
        let container = |connection: Option<Connection>, pid, group| {
            Arc::new(Container {
                id: id.to_owned(),
                run_dir: run_dir.to_owned(),
                pid,
                group,
                connection: Mutex::new(connection.map(Arc::new)),
                tasks: self.machine.tasks.clone(),
                programs: self.machine.programs.clone(),
                external: self.external.is_some(),
            })
        };
        let path = run_dir.to_owned();
        let (group, connected) = blocking(move || {
            Ok((read_group(&path).unwrap_or_default(), socket::connect(&path.join(SOCKET_NAME))))
        })
        .await?;
        if let Ok(connected) = connected {
            let connection = Connection::new(connected, None, &self.machine.tasks)?;
            let state = connection.hello().await?;
            let pid = state.pid.unwrap_or(0);
            let found = container(Some(connection), pid, group);
            return Ok(match (state.phase, state.exit) {
                (Phase::Exited, Some(exit)) => Recovered::Exited(sdk_exit(exit), found),
                (Phase::Running, _) if state.id == id => Recovered::Running(found),
                // Only a commit pauses, and the one that did went with the last daemon.
                (Phase::Paused, _) if state.id == id => {
                    found.resume().await?;
                    Recovered::Running(found)
                }
                // A daemon died in the middle of a launch: nobody was told of this container.
                _ => {
                    found.delete().await?;
                    Recovered::Gone
                }
            });
        }
        if let Some(exit) = read_exit(&run_dir.join(EXIT_NAME)).await? {
            return Ok(Recovered::Exited(sdk_exit(exit), container(None, 0, group)));
        }
        // The shim was killed, or the machine was restarted and there is nothing at all.
        container(None, 0, group).delete().await?;
        Ok(Recovered::Gone)
    }

    fn describe(&self) -> RuntimeInfo {
        match &self.external {
            Some(external) => external.describe(),
            None => RuntimeInfo {
                path: String::new(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                status: Labels::from([("shim-protocol".to_owned(), VERSION.to_string())]),
            },
        }
    }
}

async fn start(
    machine: Arc<Machine>,
    external: Option<External>,
    mut launch: Launch,
) -> Result<Arc<Container>> {
    let (id, run_dir) = (launch.id.clone(), launch.run_dir.clone());
    let (programs, tasks) = (machine.programs.clone(), machine.tasks.clone());
    let is_external = external.is_some();
    let attach = std::mem::take(&mut launch.attach);
    let (underway, launch) = blocking(move || {
        let underway =
            begin(&machine, external.as_ref(), &launch, attach).map_err(launch_failed)?;
        Ok((underway, launch))
    })
    .await?;
    let connection = Connection::new(underway.control, Some(underway.shim), &tasks)?;
    let fds: Vec<BorrowedFd<'_>> = underway.fds.iter().map(AsFd::as_fd).collect();
    // Both are sent before the first is answered.
    let (hello, answer) =
        tokio::join!(connection.hello(), connection.ask_within(&underway.request, &fds, START));
    drop(launch);
    hello.map_err(launch_failed)?;
    if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Deadline) {
        // All or nothing: what is half done is taken back.
        let _ = connection.ask(&Request::Delete { force: true }, &[]).await;
    }
    let pid = match answer.map_err(launch_failed)? {
        Ok(Reply::Started { pid }) => pid,
        Err(failure) => return Err(create_failed(&failure)),
        other => return Err(unexpected(&other)),
    };
    Ok(Arc::new(Container {
        id,
        run_dir,
        pid,
        group: underway.group,
        connection: Mutex::new(Some(Arc::new(connection))),
        tasks,
        programs,
        external: is_external,
    }))
}

/// Everything up to the message: opens, compiles, starts the shim. Blocks.
fn begin(
    machine: &Machine,
    external: Option<&External>,
    launch: &Launch,
    attach: Vec<Attach>,
) -> Result<Underway> {
    // The shim starts up while the rest is worked out.
    let started = machine.shim.spawn(&launch.run_dir)?;
    match plan(machine, external, launch, attach) {
        Ok((head, fds)) => {
            let group = head.group.clone();
            let request = Request::Launch { head: Box::new(head), start: true };
            Ok(Underway { control: started.control, shim: started.pid, request, fds, group })
        }
        Err(error) => {
            // Without a connection it ends by itself, and is this daemon's to reap.
            drop(started.control);
            let _ = wait_for(started.pid);
            Err(error)
        }
    }
}

/// The message and its descriptors. Blocks.
fn plan(
    machine: &Machine,
    external: Option<&External>,
    launch: &Launch,
    attach: Vec<Attach>,
) -> Result<(LaunchHead, Vec<OwnedFd>)> {
    let sources = Sources::gather(launch, attach)?;
    let prepared = external.map(|it| it.prepare(launch, &sources, &machine.layout)).transpose()?;
    let (mut head, body) = match &prepared {
        Some(Prepared { head }) => (head.clone(), Vec::new()),
        None => native(machine, launch, &sources)?,
    };
    head.attach.clone_from(&sources.attach);
    write_group(&launch.run_dir, &head.group)?;
    let memfd = memfd::sealed("gantry-launch", &body, Executable::No)
        .map_err(|error| Error::internal("cannot pass on the plan", error))?;
    Ok((head, [memfd].into_iter().chain(sources.fds).collect()))
}

fn native(machine: &Machine, launch: &Launch, sources: &Sources) -> Result<(LaunchHead, Vec<u8>)> {
    let filter = launch.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let program = filter.map(|filter| machine.programs.get(filter)).transpose()?;
    let (head, plan) = compile(&Input {
        id: &launch.id,
        spec: &launch.spec,
        layout: &machine.layout,
        root: 0,
        trees: sources.trees.clone(),
        joined: sources.joined.clone(),
        host_network: matches!(launch.netns, SandboxNs::Host),
        stdio: wire_stdio(launch.stdio),
        log: wire_log(&launch.log)?,
        init: launch.init,
        seccomp: program.as_deref(),
    })?;
    let body = encode_body(&plan).map_err(|error| Error::invalid("bad plan").caused_by(error))?;
    Ok((head, body))
}

/// The log sink in the shim's words.
pub(crate) fn wire_log(sink: &SdkLog) -> Result<LogSink> {
    let SdkLog::JsonFile { path, max_size, max_files, compress, attrs, ring } = sink else {
        return Ok(LogSink::None);
    };
    let path = path.to_str().ok_or_else(|| Error::invalid("the log's path is not text"))?;
    Ok(LogSink::JsonFile {
        path: path.to_owned(),
        max_size: *max_size,
        max_files: *max_files,
        compress: *compress,
        attrs: attrs.clone().unwrap_or_default(),
        mode: ring.map_or(LogMode::Blocking, |buffer| LogMode::NonBlocking { buffer }),
    })
}

fn write_group(run_dir: &Path, group: &Group) -> Result<()> {
    let body = encode_body(group).map_err(|error| Error::invalid("bad group").caused_by(error))?;
    // It means nothing after a reboot, and neither does anything else there.
    replace(&run_dir.join(GROUP_NAME), &body, Durability::Volatile)
        .map_err(|error| Error::internal("cannot record the container's groups", error))
}

fn read_group(run_dir: &Path) -> Option<Group> {
    let bytes = read_file_bounded(&run_dir.join(GROUP_NAME), GROUP_MAX).ok()?;
    decode_body(&bytes).ok()
}
