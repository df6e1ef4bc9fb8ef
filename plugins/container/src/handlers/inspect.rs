//! `GET /containers/{name}/json`.

use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::api::ObjectKind;
use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::kinds::logs::Log;
use gantry_sdk::{Ctx, Request, Response, Result};

use crate::engine::Engine;
use crate::handle::View;
use crate::show::{self, Details};

/// A driver that does not answer leaves its part of the answer empty, not the client waiting.
const PATIENCE: Duration = Duration::from_secs(2);

/// `200`; `404`.
pub async fn inspect(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let view = engine.find(request.param("name"))?.view();
    let cx = request.ctx().within(PATIENCE);
    let mut details = details(&engine, &cx, &view).await;
    if request.query.bool("size") {
        let sizes = super::list::sizes(&engine, &request.ctx(), &view.record).await;
        details.sizes = sizes.ok();
    }
    let shown = show::inspect(&engine, &view, details);
    Response::shaped(ObjectKind::ContainerInspect, request.version, &shown)
}

async fn details(engine: &Engine, cx: &Ctx, view: &View) -> Details {
    let record = &view.record;
    let mut details = Details::default();
    if let Ok(driver) = engine.registry.get::<Log>(&record.log_driver) {
        details.log_path = driver.path(cx, &engine.log_target(record)).await.unwrap_or_default();
    }
    if let Ok(layers) = engine.registry.only::<Layers>() {
        details.graph = layers.details(cx, &record.layer).await.unwrap_or_default();
    }
    details
}
