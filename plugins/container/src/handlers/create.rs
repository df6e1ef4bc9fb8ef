//! `POST /containers/create`.

use std::sync::Arc;

use gantry_sdk::api::container::{ContainerCreateRequest, ContainerCreateResponse};
use gantry_sdk::api::version::request::{HostFacts, container_create};
use gantry_sdk::{ApiVersion, Error, Request, Response, Result};
use http::StatusCode;

use crate::engine::Engine;

/// `201` with the id; `400`, `404` for what it refers to, `409` for the name.
pub async fn create(engine: Arc<Engine>, mut request: Request) -> Result<Response> {
    let name = request.query.str("name").to_owned();
    let platform = match request.query.str("platform") {
        "" => None,
        _ if request.version < ApiVersion::v1(41) => None,
        platform => Some(platform.to_owned()),
    };
    let body: ContainerCreateRequest = request.json().await?;
    let facts = HostFacts { cgroup_v2: engine.facts.cgroup_unified, default_network: "bridge" };
    let new = container_create(request.version, body, facts)
        .map_err(|e| Error::invalid(e.to_string()))?;
    let cx = request.ctx();
    // Its own task: once begun it is finished or undone, whether the client waits or not.
    let tasks = engine.tasks.clone();
    let (handle, warnings) = tasks
        .spawn("container-create", async move {
            crate::create::create(&engine, &cx, &name, platform.as_deref(), new).await
        })
        .await??;
    let id = handle.view().record.id.to_string();
    Response::json(StatusCode::CREATED, &ContainerCreateResponse { id, warnings })
}
