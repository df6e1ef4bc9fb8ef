//! `GET /containers/{name}/logs`.

use std::sync::Arc;
use std::time::SystemTime;

use gantry_sdk::kinds::logs::{Log, LogLine, ReadLogs};
use gantry_sdk::route::Query;
use gantry_sdk::time::rfc3339;
use gantry_sdk::{Error, Request, Response, Result};
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::frame;
use crate::handle::Handle;
use crate::state::State;
use crate::stream::{MULTIPLEXED, RAW};

/// Lines are gathered up to this size before they are sent: a fast reader gets few large pieces.
const BATCH: usize = 64 << 10;

/// How lines are written.
#[derive(Clone, Copy, Debug)]
struct Format {
    tty: bool,
    timestamps: bool,
    details: bool,
}

/// Streams the log; with `follow` until the container ends.
pub async fn logs(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let query = &request.query;
    let (stdout, stderr) = (query.bool("stdout"), query.bool("stderr"));
    if !stdout && !stderr {
        return Err(Error::invalid("Bad parameters: you must choose at least one stream"));
    }
    let handle = engine.find(request.param("name"))?;
    let record = handle.view().record.clone();
    let follow = query.bool("follow");
    let stop = CancellationToken::new();
    let wanted = ReadLogs {
        since: time(query, "since")?,
        until: time(query, "until")?,
        tail: tail(query.str("tail")),
        follow: follow.then(|| stop.clone()),
        stdout,
        stderr,
    };
    let driver = engine.registry.get::<Log>(&record.log_driver)?;
    let mut lines = driver.read(&request.ctx(), &engine.log_target(&record), wanted).await?;
    if follow {
        engine.tasks.spawn("container-logs-follow", stop_when_ended(handle, stop.clone()));
    }

    let tty = record.config.tty;
    let format =
        Format { tty, timestamps: query.bool("timestamps"), details: query.bool("details") };
    let new = request.version >= gantry_sdk::ApiVersion::v1(42);
    let (body, response) = Response::stream(if new && !tty { MULTIPLEXED } else { RAW });
    let stopping = engine.tasks.stopping().clone();
    engine.tasks.spawn("container-logs", async move {
        let _stop = stop.drop_guard();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let line = tokio::select! {
                line = lines.recv() => line,
                () = body.closed() => return,
                () = stopping.cancelled() => return,
            };
            match line {
                Some(Ok(line)) => write(&mut batch, &line, format),
                Some(Err(error)) => {
                    let text = format!("Error grabbing logs: {}\n", error.chain());
                    frame::push(&mut batch, true, text.as_bytes());
                    body.send(std::mem::take(&mut batch)).await;
                    return;
                }
                None => {
                    body.send(batch).await;
                    return;
                }
            }
            let more = !lines.is_empty();
            if (batch.len() >= BATCH || !more) && !body.send(std::mem::take(&mut batch)).await {
                return;
            }
        }
    });
    Ok(response)
}

/// Absent, empty and `0` are no bound.
fn time(query: &Query, name: &str) -> Result<Option<SystemTime>> {
    let text = query.get(name).filter(|text| !matches!(*text, "" | "0"));
    text.map(|text| gantry_sdk::time::query(name, text)).transpose()
}

/// `all`, or a number of lines; what is neither means all, as in the reference engine.
fn tail(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// Ends the following when the container has ended, also one that was not running to begin with.
async fn stop_when_ended(handle: Handle, stop: CancellationToken) {
    let mut changes = handle.watch();
    let ended = changes.wait_for(|view| {
        view.removed || !matches!(view.state, State::Running { .. } | State::Restarting { .. })
    });
    tokio::select! {
        _ = ended => stop.cancel(),
        () = stop.cancelled() => {}
    }
}

fn write(batch: &mut Vec<u8>, line: &LogLine, format: Format) {
    let mut text = Vec::with_capacity(line.data.len() + 64);
    if format.timestamps {
        text.extend_from_slice(timestamp(line).as_bytes());
        text.push(b' ');
    }
    if format.details {
        let attrs: Vec<String> =
            line.attrs.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
        text.extend_from_slice(attrs.join(",").as_bytes());
        text.push(b' ');
    }
    text.extend_from_slice(&line.data);
    if format.tty {
        batch.extend_from_slice(&text);
    } else {
        frame::push(batch, line.stderr, &text);
    }
}

/// RFC 3339 with exactly nine digits, so that columns line up.
fn timestamp(line: &LogLine) -> String {
    let text = rfc3339(line.at);
    let (seconds, fraction) = text
        .trim_end_matches('Z')
        .split_once('.')
        .map_or((text.trim_end_matches('Z'), ""), |parts| parts);
    format!("{seconds}.{fraction:0<9}Z")
}

/// Percent-encoded, as attributes are on the wire.
fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn lines_are_framed_and_stamped() {
        let line = LogLine {
            at: UNIX_EPOCH + Duration::from_millis(1500),
            stderr: false,
            data: b"hi\n".to_vec(),
            attrs: [("a".to_owned(), "b c".to_owned())].into(),
        };
        let mut batch = Vec::new();
        write(&mut batch, &line, Format { tty: true, timestamps: true, details: true });
        assert_eq!(batch, b"1970-01-01T00:00:01.500000000Z a=b%20c hi\n");
        batch.clear();
        write(&mut batch, &line, Format { tty: false, timestamps: false, details: false });
        assert_eq!(batch, b"\x01\0\0\0\0\0\0\x03hi\n");
    }
}
