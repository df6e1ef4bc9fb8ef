//! Execs: create, start, resize, inspect.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_sdk::api::IdResponse;
use gantry_sdk::api::container::{
    ExecCreateRequest, ExecInspect, ExecProcessConfig, ExecStartRequest,
};
use gantry_sdk::api::version::request;
use gantry_sdk::kinds::runtime::{Attach, ExecLaunch, ExecProcess, Exit, Stdio};
use gantry_sdk::{Error, Request, Response, Result};
use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use crate::engine::Engine;
use crate::exec::{Exec, ExecState};
use crate::exec_process;
use crate::frame;
use crate::launch;
use crate::record::Record;
use crate::spec;
use crate::stream::{self, DetachKeys};

/// How long the end of a stream waits for the record of the exec's end. It normally comes first; a
/// process that closes its output and goes on would otherwise hold the client.
const RECORD_PATIENCE: Duration = Duration::from_secs(2);

/// How long a resize waits for the start that it was sent after.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// `POST /containers/{name}/exec`: `201` with an id; `409` if the container does not run.
pub async fn create(engine: Arc<Engine>, mut request: Request) -> Result<Response> {
    let mut body: ExecCreateRequest = request.json().await?;
    request::exec_create(request.version, &mut body);
    spec::check_exec(&body)?;
    DetachKeys::parse(&body.detach_keys)?;
    let view = engine.find(request.param("name"))?.view();
    view.running()?;
    let command = body.cmd.as_ref().map(|c| c.join(" ")).unwrap_or_default();
    let id = engine.execs.create(&view.record.id, body)?;
    let action = format!("exec_create: {command}");
    engine.report(&view.record, action, &[("execID", id.to_string())]);
    Response::json(StatusCode::CREATED, &IdResponse { id: id.to_string() })
}

/// `POST /exec/{id}/start`: `200` when detached, otherwise the connection is hijacked.
pub async fn start(engine: Arc<Engine>, mut request: Request) -> Result<Response> {
    let mut body: ExecStartRequest = request.json_or_empty().await?.unwrap_or_default();
    request::exec_start(request.version, &mut body);
    let exec = engine.execs.find(request.param("id"))?;
    let view = engine.find(exec.container.as_str())?.view();
    view.running()?;
    engine.execs.begin(&exec.id)?;

    let size = body.console_size.or(exec.request.console_size).unwrap_or_default();
    if body.detach {
        run(&engine, &exec, &view.record, size, None).await?;
        return Ok(Response::empty(StatusCode::OK));
    }
    let wanted = &exec.request;
    let tty = wanted.tty;
    let keys = match tty {
        true => DetachKeys::parse(&wanted.detach_keys)?,
        false => DetachKeys::none(),
    };
    let content_type = stream::content_type(&request, tty);
    Ok(Response::hijack(content_type, move |mut client| async move {
        let (theirs, ours) = match stream::pair() {
            Ok(pair) => pair,
            Err(error) => return tell(&mut client, tty, &error).await,
        };
        let stdin = exec.request.attach_stdin;
        let attach = Attach {
            stream: theirs,
            stdin,
            stdout: exec.request.attach_stdout,
            stderr: exec.request.attach_stderr,
        };
        match run(&engine, &exec, &view.record, size, Some(attach)).await {
            Ok(recorded) => {
                // A client inspects the exec as soon as the stream ends.
                let settled = async { drop(tokio::time::timeout(RECORD_PATIENCE, recorded).await) };
                stream::copy(client, ours, &keys, stdin, settled).await;
            }
            Err(error) => tell(&mut client, tty, &error).await,
        }
    }))
}

/// The connection is hijacked already, so an error can only be told in the stream.
async fn tell(client: &mut gantry_sdk::route::HijackedIo, tty: bool, error: &Error) {
    let text = format!("{}\r\n", error.chain());
    let mut bytes = Vec::new();
    if tty {
        bytes.extend_from_slice(text.as_bytes());
    } else {
        frame::push(&mut bytes, true, text.as_bytes());
    }
    let _ = client.write_all(&bytes).await;
    let _ = client.shutdown().await;
}

/// Starts an exec; the returned task ends when its end is recorded.
async fn run(
    engine: &Arc<Engine>,
    exec: &Exec,
    record: &Arc<Record>,
    size: [u64; 2],
    attach: Option<Attach>,
) -> Result<JoinHandle<()>> {
    match start_process(engine, exec, record, size, attach).await {
        Ok(process) => {
            engine.execs.started(&exec.id, process.clone());
            report(engine, exec, record, "exec_start");
            let (engine2, exec, record) = (engine.clone(), exec.clone(), record.clone());
            Ok(engine.tasks.spawn("exec-exit", async move {
                watch(&engine2, &exec, &record, process).await;
            }))
        }
        Err(error) => {
            let (code, error) = launch::start_failure(error);
            let exit = Exit { code, oom: false, at: SystemTime::now() };
            engine.execs.ended(&exec.id, &exit, 0);
            Err(error)
        }
    }
}

fn report(engine: &Engine, exec: &Exec, record: &Record, what: &str) {
    let command = exec.request.cmd.as_ref().map(|c| c.join(" ")).unwrap_or_default();
    engine.report(record, format!("{what}: {command}"), &[("execID", exec.id.to_string())]);
}

async fn start_process(
    engine: &Arc<Engine>,
    exec: &Exec,
    record: &Arc<Record>,
    size: [u64; 2],
    attach: Option<Attach>,
) -> Result<Arc<dyn ExecProcess>> {
    let view = engine.find(exec.container.as_str())?.view();
    let container = view.running()?.clone();
    let (engine2, record, wanted) = (engine.clone(), record.clone(), exec.request.clone());
    let pid = container.pid();
    let (process, seccomp) =
        tokio::task::spawn_blocking(move || exec_process::build(&engine2, &record, &wanted, pid))
            .await??;
    let short = |n: u64| u16::try_from(n).unwrap_or(0);
    let stdio = Stdio {
        tty: exec.request.tty,
        stdin: exec.request.attach_stdin,
        stdin_once: true,
        size: (short(size[0]), short(size[1])),
    };
    container.exec(ExecLaunch { id: exec.id.to_string(), process, seccomp, stdio, attach }).await
}

async fn watch(engine: &Engine, exec: &Exec, record: &Record, process: Arc<dyn ExecProcess>) {
    let exit = process.wait().await.unwrap_or_else(|_| {
        // The container ended, and its shim with it.
        Exit { code: 137, oom: false, at: SystemTime::now() }
    });
    engine.execs.ended(&exec.id, &exit, process.pid());
    let extra = [("execID", exec.id.to_string()), ("exitCode", exit.code.to_string())];
    engine.report(record, "exec_die", &extra);
}

/// `POST /exec/{id}/resize`: `200`.
pub async fn resize(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let (rows, columns) = super::life::terminal_size(&request)?;
    let process = engine.execs.process(request.param("id"), START_PATIENCE).await?;
    process.resize(rows, columns).await?;
    Ok(Response::empty(StatusCode::OK))
}

/// `GET /exec/{id}/json`.
pub async fn inspect(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let exec = engine.execs.find(request.param("id"))?;
    let wanted = &exec.request;
    let (exit_code, pid) = match &exec.state {
        ExecState::Created | ExecState::Starting => (None, 0),
        ExecState::Running(process) => (None, process.pid()),
        ExecState::Ended { code, pid, .. } => (Some(i64::from(*code)), *pid),
    };
    let mut command = wanted.cmd.iter().flatten().cloned();
    Response::ok(&ExecInspect {
        id: exec.id.to_string(),
        running: matches!(exec.state, ExecState::Running(_)),
        exit_code,
        process_config: ExecProcessConfig {
            tty: wanted.tty,
            entrypoint: command.next().unwrap_or_default(),
            arguments: command.collect(),
            privileged: Some(wanted.privileged),
            user: wanted.user.clone(),
        },
        open_stdin: wanted.attach_stdin,
        open_stderr: wanted.attach_stderr,
        open_stdout: wanted.attach_stdout,
        can_remove: false,
        container_id: exec.container.to_string(),
        detach_keys: None,
        pid: i64::from(pid),
    })
}
