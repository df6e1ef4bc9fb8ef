//! `POST /containers/prune`.

use std::sync::Arc;
use std::time::SystemTime;

use gantry_sdk::api::Filters;
use gantry_sdk::api::container::ContainersPruneReport;
use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::{Error, Request, Response, Result};

use crate::engine::Engine;
use crate::handle::{Message, View};
use crate::state::State;

/// One at a time: a second answers `409`.
static RUNNING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Removes containers that do not run.
pub async fn prune(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let filters = request.filters(&["label", "label!", "until"])?;
    let until = until(&filters)?;
    let _running =
        RUNNING.try_lock().map_err(|_| Error::conflict("a prune operation is already running"))?;
    let layers = engine.registry.only::<Layers>()?;
    let cx = request.ctx();
    let mut deleted = Vec::new();
    let mut reclaimed: u64 = 0;
    for handle in engine.handles() {
        if request.gone.is_cancelled() {
            break;
        }
        let view = handle.view();
        if !is_wanted(&view, &filters, until) {
            continue;
        }
        let size = layers.usage(&cx, &view.record.layer).await.unwrap_or(0);
        if handle.ask(Message::Remove { force: false, volumes: false }).await.is_ok() {
            deleted.push(view.record.id.to_string());
            reclaimed = reclaimed.saturating_add(size);
        }
    }
    Response::ok(&ContainersPruneReport {
        containers_deleted: (!deleted.is_empty()).then_some(deleted),
        space_reclaimed: reclaimed,
    })
}

fn until(filters: &Filters) -> Result<Option<SystemTime>> {
    let mut values = filters.get("until");
    let first = values.next();
    if values.next().is_some() {
        return Err(Error::invalid("more than one until filter specified"));
    }
    first.map(|text| gantry_sdk::time::query("until", text)).transpose()
}

fn is_wanted(view: &View, filters: &Filters, until: Option<SystemTime>) -> bool {
    let record = &view.record;
    let labels = record.config.labels.clone().unwrap_or_default();
    matches!(view.state, State::Created | State::Exited { .. } | State::Dead)
        && until.is_none_or(|at| record.created <= at)
        && filters.matches_labels("label", &labels)
        && !filters.excludes_labels("label!", &labels)
}
