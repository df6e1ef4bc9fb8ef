//! Start, stop, restart, kill, rename, resize, remove.

use std::sync::Arc;

use gantry_sdk::id::is_valid_name;
use gantry_sdk::{Error, ErrorKind, Request, Response, Result};

use crate::engine::Engine;
use crate::handle::{Handle, Message, StopGrace};
use crate::spec::signal;

/// `POST /containers/{name}/start`: `204`; `304` if it runs.
pub async fn start(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let length = request.header("content-length").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    if length > 7 || request.header("transfer-encoding").is_some() {
        return Err(Error::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and \
             removed in v1.24",
        ));
    }
    if !request.query.str("checkpoint").is_empty() {
        return Err(Error::unsupported("starting from a checkpoint is not supported yet"));
    }
    engine.find(request.param("name"))?.ask(Message::Start).await?;
    Ok(Response::no_content())
}

/// Signal and grace of a stop, from the query.
fn stop_message(request: &Request) -> Result<Message> {
    let signal = match request.query.str("signal") {
        "" => None,
        text => Some(signal::parse(text)?),
    };
    let grace = match request.query.get("t") {
        None | Some("") => None,
        Some(text) => {
            let seconds = text.parse::<i64>().map_err(|_| {
                Error::invalid(format!("strconv.Atoi: parsing {text:.80?}: invalid syntax"))
            })?;
            Some(StopGrace::from_seconds(seconds))
        }
    };
    Ok(Message::Stop { signal, grace })
}

/// `POST /containers/{name}/stop`: `204`; `304` if it does not run.
pub async fn stop(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let handle = engine.find(request.param("name"))?;
    handle.ask(stop_message(&request)?).await?;
    Ok(Response::no_content())
}

/// `POST /containers/{name}/restart`: `204`.
pub async fn restart(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let handle = engine.find(request.param("name"))?;
    let stop = stop_message(&request)?;
    // Its own task, so that a client that goes away does not leave the container stopped.
    let tasks = engine.tasks.clone();
    tasks
        .spawn("container-restart", async move {
            match handle.ask(stop).await {
                Err(e) if e.kind() != ErrorKind::NotModified => return Err(e),
                _ => {}
            }
            match handle.ask(Message::Start).await {
                // Somebody else, or its policy, was faster.
                Err(e) if e.kind() != ErrorKind::NotModified => return Err(e),
                _ => {}
            }
            engine.report(&handle.view().record, "restart", &[]);
            Ok(())
        })
        .await??;
    Ok(Response::no_content())
}

/// `POST /containers/{name}/kill`: `204`; `409` if it does not run.
pub async fn kill(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let signal = match request.query.str("signal") {
        "" => 9,
        text => signal::parse(text)?,
    };
    let handle = engine.find(request.param("name"))?;
    let kills = signal == 9;
    let mut changes = handle.watch();
    let exits = changes.borrow_and_update().exits;
    handle.ask(Message::Kill { signal }).await.map_err(|e| match e.kind() {
        ErrorKind::Conflict => {
            e.context(format!("cannot kill container: {}", request.param("name")))
        }
        _ => e,
    })?;
    if kills {
        // As the reference engine does: a kill that cannot be caught returns when it is done.
        let done = changes.wait_for(|v| v.exits > exits || !v.state.is_running() || v.removed);
        let _ = tokio::time::timeout(std::time::Duration::from_secs(10), done).await;
    }
    Ok(Response::no_content())
}

/// `POST /containers/{name}/rename`: `204`; `409` if the name is taken.
pub async fn rename(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let handle = engine.find(request.param("name"))?;
    let wanted = request.query.str("name");
    let name = wanted.strip_prefix('/').unwrap_or(wanted);
    let record = handle.view().record.clone();
    if name.is_empty() {
        return Err(Error::invalid("Neither old nor new names may be empty"));
    }
    if name == record.name {
        return Err(Error::invalid("Renaming a container with the same name as its current name"));
    }
    check_name(name)?;
    engine.reserve_name(name, &record.id)?;
    let renamed = handle.ask(Message::Rename { name: name.to_owned() }).await;
    if renamed.is_err() && handle.view().record.name != name {
        engine.release_name(name, &record.id);
    }
    renamed?;
    Ok(Response::no_content())
}

/// # Errors
///
/// `InvalidArgument` with the reference engine's text.
pub fn check_name(name: &str) -> Result<()> {
    if is_valid_name(name) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Invalid container name ({name:.300}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )))
}

/// Rows and columns of a terminal, from the query.
///
/// # Errors
///
/// `InvalidArgument` naming the parameter.
pub fn terminal_size(request: &Request) -> Result<(u16, u16)> {
    let read = |name: &str| -> Result<u16> {
        let text = request.query.str(name);
        let number: u32 = text.parse().map_err(|_| {
            Error::invalid(format!("invalid resize {name:?} {text:.80?}: not a number"))
        })?;
        Ok(u16::try_from(number).unwrap_or(u16::MAX))
    };
    Ok((read("h")?, read("w")?))
}

/// `POST /containers/{name}/resize`: `200`.
pub async fn resize(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let (rows, columns) = terminal_size(&request)?;
    let view = engine.find(request.param("name"))?.view();
    view.running()?.resize(rows, columns).await?;
    let size = [("height", rows.to_string()), ("width", columns.to_string())];
    engine.report(&view.record, "resize", &size);
    Ok(Response::empty(http::StatusCode::OK))
}

/// `DELETE /containers/{name}`: `204`; `409` if it runs and `force` is not given.
pub async fn remove(engine: Arc<Engine>, request: Request) -> Result<Response> {
    if request.query.bool("link") {
        return Err(Error::unsupported("links between containers are not supported yet"));
    }
    let handle = engine.find(request.param("name"))?;
    remove_one(&handle, request.query.bool("force"), request.query.bool("v")).await?;
    Ok(Response::no_content())
}

/// Removes one container; that somebody else is removing it is as good if `force` is given.
///
/// # Errors
///
/// Those of the container's task.
pub async fn remove_one(handle: &Handle, force: bool, volumes: bool) -> Result<()> {
    handle.ask(Message::Remove { force, volumes }).await
}
