//! Request → one call of the store → response.

use std::sync::Arc;

use gantry_api::{ObjectKind, VolumeCreateRequest};
use gantry_sdk::{ApiVersion, Error, Request, Response, Result};
use http::StatusCode;

use crate::list;
use crate::prune;
use crate::store::Store;

/// Cluster volumes exist from here on; before, their part of a request is ignored.
const CLUSTER_VOLUMES: ApiVersion = ApiVersion::v1(42);

/// `GET /volumes`: `200`; drivers that do not answer are named in `Warnings`.
pub async fn list(store: Arc<Store>, request: Request) -> Result<Response> {
    let filters = request.filters(list::FILTERS)?;
    let answer = list::list(&store, &request.ctx(), &filters).await?;
    Response::shaped(ObjectKind::VolumeList, request.version, &answer)
}

/// `GET /volumes/{name}`: `200`, or `404`.
pub async fn inspect(store: Arc<Store>, request: Request) -> Result<Response> {
    let volume = store.inspect(&request.ctx(), request.param("name")).await?;
    Response::shaped(ObjectKind::Volume, request.version, &volume)
}

/// `POST /volumes/create`: `201` with the volume, which may have been there before; `400` for a bad
/// name or option; `404` for an unknown driver; `409` if another driver has the name.
pub async fn create(store: Arc<Store>, mut request: Request) -> Result<Response> {
    let wanted: VolumeCreateRequest = request.json().await?;
    if wanted.cluster_volume_spec.is_some() && request.version >= CLUSTER_VOLUMES {
        return Err(Error::unavailable(
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" \
             to connect this node to swarm and try again.",
        ));
    }
    let given = |text: String| (!text.is_empty()).then_some(text);
    let (name, driver) = (given(wanted.name), given(wanted.driver));
    let (record, info) = store
        .make(&request.ctx(), name.as_deref(), driver.as_deref(), wanted.driver_opts, wanted.labels)
        .await?;
    let mut answer =
        Response::shaped(ObjectKind::Volume, request.version, &store.to_api(&record, Some(&info)))?;
    answer.status = StatusCode::CREATED;
    Ok(answer)
}

/// `POST /volumes/prune`: `200` with what was removed; `409` while another prune runs.
pub async fn prune(store: Arc<Store>, request: Request) -> Result<Response> {
    let filters = request.filters(prune::FILTERS)?;
    let report = prune::prune(&store, &request.ctx(), request.version, filters).await?;
    Response::ok(&report)
}

/// `DELETE /volumes/{name}`: `204`; `404`, unless forced; `409` while it is in use.
pub async fn remove(store: Arc<Store>, request: Request) -> Result<Response> {
    let force = request.query.bool("force");
    store.delete(&request.ctx(), request.param("name"), force).await?;
    Ok(Response::no_content())
}
