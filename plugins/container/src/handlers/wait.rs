//! `POST /containers/{name}/wait`.

use std::sync::Arc;

use gantry_sdk::api::container::{ContainerWaitResponse, WaitError};
use gantry_sdk::{Error, Request, Response, Result};
use tokio::sync::watch;

use crate::engine::Engine;
use crate::handle::View;

/// When a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

impl Condition {
    fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            _ => Err(Error::invalid(format!("invalid condition: {text:.80?}"))),
        }
    }

    fn holds(self, view: &View, exits_before: u64) -> bool {
        match self {
            Self::NotRunning => !matches!(
                view.state,
                crate::state::State::Running { .. } | crate::state::State::Restarting { .. }
            ),
            Self::NextExit => view.exits > exits_before,
            Self::Removed => view.removed,
        }
    }
}

/// The head of the answer is sent at once, so that a client knows that it may start the container
/// now and will not miss its end.
pub async fn wait(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let condition = Condition::parse(request.query.str("condition"))?;
    let handle = engine.find(request.param("name"))?;
    let mut changes = handle.watch();
    let exits_before = changes.borrow_and_update().exits;
    let (body, response) = Response::stream("application/json");
    engine.tasks.spawn("container-wait", async move {
        let answer = tokio::select! {
            answer = finished(&mut changes, condition, exits_before) => answer,
            () = body.closed() => return,
        };
        body.json(&answer).await;
    });
    Ok(response)
}

async fn finished(
    changes: &mut watch::Receiver<Arc<View>>,
    condition: Condition,
    exits_before: u64,
) -> ContainerWaitResponse {
    // The sender goes away with the container's task: then the last view is the final one.
    let _ = changes.wait_for(|view| view.removed || condition.holds(view, exits_before)).await;
    let view = changes.borrow().clone();
    let code = view.record.life.exit.as_ref().map_or(0, |exit| i64::from(exit.code));
    // A container that is gone has no error any more, as in the reference engine.
    let message = if view.removed { "" } else { view.record.life.error.as_str() };
    ContainerWaitResponse {
        status_code: code,
        error: (!message.is_empty()).then(|| WaitError { message: message.to_owned() }),
    }
}
