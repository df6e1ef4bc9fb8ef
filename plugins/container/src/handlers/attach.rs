//! `POST /containers/{name}/attach`.

use std::sync::Arc;

use gantry_sdk::kinds::logs::{Log, ReadLogs};
use gantry_sdk::kinds::runtime::Attach;
use gantry_sdk::{Ctx, Error, Request, Response, Result};
use tokio::io::AsyncWriteExt;

use crate::engine::Engine;
use crate::frame;
use crate::handle::{Message, View};
use crate::state::State;
use crate::stream::{self, DetachKeys, End};

/// Hijacks the connection. A container that does not run yet keeps the client for its next start, so
/// that not a byte is missed.
pub async fn attach(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let query = &request.query;
    let keys = DetachKeys::parse(query.str("detachKeys"))?;
    let handle = engine.find(request.param("name"))?;
    let view = handle.view();
    if matches!(view.state, State::Restarting { .. }) {
        return Err(Error::conflict(format!(
            "Container {} is restarting, wait until the container is running",
            view.record.id
        )));
    }
    let (stdin, stdout, stderr) = (query.bool("stdin"), query.bool("stdout"), query.bool("stderr"));
    let (logs, live) = (query.bool("logs"), query.bool("stream"));
    let config = &view.record.config;
    let (tty, stdin) = (config.tty, stdin && config.open_stdin);
    let keys = if tty { keys } else { DetachKeys::none() };

    let past =
        if logs { past(&engine, &request.ctx(), &view, stdout, stderr).await? } else { vec![] };
    let shim = if live {
        let (theirs, ours) = stream::pair()?;
        handle.ask(Message::Attach(Attach { stream: theirs, stdin, stdout, stderr })).await?;
        Some(ours)
    } else {
        None
    };
    engine.report(&view.record, "attach", &[]);
    Ok(Response::hijack(stream::content_type(&request, tty), move |mut client| async move {
        if client.write_all(&past).await.is_err() {
            return;
        }
        match shim {
            Some(shim) => {
                let settled = std::future::ready(());
                if stream::copy(client, shim, &keys, stdin, settled).await == End::Detached {
                    engine.report(&view.record, "detach", &[]);
                }
            }
            None => {
                let _ = client.shutdown().await;
            }
        }
    }))
}

/// What the log has, in the form of the stream.
async fn past(
    engine: &Engine,
    cx: &Ctx,
    view: &View,
    stdout: bool,
    stderr: bool,
) -> Result<Vec<u8>> {
    let record = &view.record;
    let driver = engine.registry.get::<Log>(&record.log_driver)?;
    let wanted = ReadLogs { since: None, until: None, tail: None, follow: None, stdout, stderr };
    let mut lines = driver.read(cx, &engine.log_target(record), wanted).await?;
    let mut bytes = Vec::new();
    while let Some(line) = lines.recv().await {
        let line = line?;
        if record.config.tty {
            bytes.extend_from_slice(&line.data);
        } else {
            frame::push(&mut bytes, line.stderr, &line.data);
        }
    }
    Ok(bytes)
}
