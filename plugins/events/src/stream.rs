//! Past events, then live ones, in the client's content type.

use std::sync::Arc;
use std::time::SystemTime;

use gantry_sdk::events::Event;
use gantry_sdk::route::BodySender;
use gantry_sdk::{ApiVersion, Request};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::query::Wanted;

/// How messages are separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`: what clients before 1.52 expect, one object per line.
    Json,
    /// `application/jsonl`
    JsonLines,
    /// `application/x-ndjson`
    NdJson,
    /// `application/json-seq`, RFC 7464: a record separator before each object.
    JsonSeq,
}

impl Format {
    /// By the `Accept` header; the newest versions default to JSON lines.
    pub fn negotiate(request: &Request) -> Self {
        if request.version < ApiVersion::v1(52) {
            return Self::Json;
        }
        let accepted = request.header("accept").unwrap_or_default();
        let mut kinds = accepted.split(',').map(|k| k.split(';').next().unwrap_or_default().trim());
        kinds
            .find_map(|kind| match kind {
                "application/jsonl" => Some(Self::JsonLines),
                "application/x-ndjson" => Some(Self::NdJson),
                "application/json-seq" => Some(Self::JsonSeq),
                _ => None,
            })
            .unwrap_or(Self::JsonLines)
    }

    /// The header's value.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonLines => "application/jsonl",
            Self::NdJson => "application/x-ndjson",
            Self::JsonSeq => "application/json-seq",
        }
    }

    fn write(self, to: &mut Vec<u8>, json: &[u8]) {
        if self == Self::JsonSeq {
            to.push(0x1e);
        }
        to.extend_from_slice(json);
        to.push(b'\n');
    }
}

/// Sends what `wanted` selects until its end.
pub async fn run(
    wanted: &Wanted,
    format: Format,
    past: Vec<Arc<Event>>,
    mut live: broadcast::Receiver<Arc<Event>>,
    body: &BodySender,
) {
    if wanted.wants_past() {
        for event in past {
            if !send(wanted, format, &event, body).await {
                return;
            }
        }
    }
    let deadline = async {
        match wanted.until() {
            Some(until) => {
                let left = until.duration_since(SystemTime::now()).unwrap_or_default();
                tokio::time::sleep(left).await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);
    loop {
        let event = tokio::select! {
            event = live.recv() => event,
            () = &mut deadline => return,
        };
        match event {
            Ok(event) => {
                if !send(wanted, format, &event, body).await {
                    return;
                }
            }
            // The client reads slower than things happen; it goes on with what is still there.
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "A client of the event stream is too slow.");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// False when the client is gone.
async fn send(wanted: &Wanted, format: Format, event: &Event, body: &BodySender) -> bool {
    let Some(message) = wanted.select(event) else { return true };
    let Ok(json) = serde_json::to_vec(&message) else { return true };
    let mut line = Vec::with_capacity(json.len() + 2);
    format.write(&mut line, &json);
    body.send(line).await
}
