//! The `/images` routes: request → one call → response.

use std::sync::Arc;

use gantry_sdk::api::{ApiVersion, ObjectKind};
use gantry_sdk::{Ctx, Error, Request, Response, Result};
use http::StatusCode;

use crate::list::{self, Query};
use crate::load::ingest::{Archive, Sink, with_body};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::Store;
use crate::{inspect, load};

/// `POST /images/load`
///
/// `200` with a stream that ends with an error if there was one; `400` for an archive that is
/// damaged or incomplete.
pub async fn load(store: Arc<Store>, mut req: Request) -> Result<Response> {
    let wanted = platforms(&req)?;
    let quiet = req.query.bool_or("quiet", true);
    let lease = store.lease().await;
    let sink = Sink::new(store.blobs.clone(), &req.ctx());
    let body = std::mem::replace(&mut req.body, gantry_sdk::route::empty_body());
    let of_archive = wanted.clone();
    let read = with_body(body, move |reader| {
        let mut archive = Archive::read(reader, sink)?;
        let candidates = load::candidates(&mut archive, &of_archive)?;
        Ok((archive, candidates))
    });
    let (archive, candidates) = match read.await {
        Ok(read) => read,
        Err(error) => {
            drop(lease);
            store.litter(&Ctx::background()).await;
            return Err(error);
        }
    };
    let (sender, response) = Response::stream("application/json");
    // The archive is here: what is in it is loaded whether the client waits or not.
    let cx = Ctx { caller: Some(req.id.clone()), ..Ctx::background() };
    store.tasks.clone().spawn("image-load", async move {
        let loaded =
            load::admit_all(&store, &cx, archive, candidates, &wanted, &sender, quiet).await;
        if let Err(error) = loaded {
            sender.json(&gantry_api::ProgressMessage::failed(error.chain())).await;
        }
        drop((lease, sender));
        store.litter(&cx).await;
    });
    Ok(response)
}

/// The `platform` parameters, which API versions learned one by one.
fn platforms(req: &Request) -> Result<Vec<Platform>> {
    if req.version < ApiVersion::v1(48) {
        return Ok(Vec::new());
    }
    let texts: Vec<&str> = req.query.all("platform").collect();
    if req.version < ApiVersion::v1(52) && texts.len() > 1 {
        return Err(Error::invalid(
            "multiple platform parameters are not supported in this API version; use API version \
             1.52 or later",
        ));
    }
    texts.into_iter().map(Platform::parse_json).collect()
}

/// The one `platform` of a route that has it since `version`.
fn platform(req: &Request, version: ApiVersion) -> Result<Option<Platform>> {
    let text = req.query.str("platform");
    if req.version < version || text.is_empty() {
        return Ok(None);
    }
    Platform::parse_json(text).map(Some)
}

/// `GET /images/json`
///
/// `200`; `400` for filters it does not know.
pub async fn list(store: Arc<Store>, req: Request) -> Result<Response> {
    let mut filters = req.filters(list::FILTERS)?;
    let pattern = req.query.str("filter");
    if req.version < ApiVersion::v1(25) && !filters.contains("reference") && !pattern.is_empty() {
        filters.add("reference", pattern);
    }
    let v = req.version;
    if v >= ApiVersion::v1(54) && req.query.bool("identity") && !req.query.bool("manifests") {
        return Err(Error::invalid("conflicting options: identity requires manifests=1"));
    }
    let shared_size = v >= ApiVersion::v1(42) && req.query.bool("shared-size");
    let query = Query { all: req.query.bool("all"), filters, shared_size };
    let images = list::list(&store, &req.ctx(), &query).await?;
    Response::shaped(ObjectKind::ImageList, req.version, &images)
}

/// `GET /images/{name}/json`
///
/// `200`; `404` if there is no such image, also for the platform asked for.
pub async fn inspect(store: Arc<Store>, req: Request) -> Result<Response> {
    let manifests = req.version >= ApiVersion::v1(48) && req.query.bool("manifests");
    let platform = platform(&req, ApiVersion::v1(49))?;
    if manifests && platform.is_some() {
        return Err(Error::invalid(
            "conflicting options: manifests and platform options cannot both be set",
        ));
    }
    let image = inspect::inspect(&store, &req.ctx(), req.param("name"), platform.as_ref()).await?;
    Response::shaped(ObjectKind::ImageInspect, req.version, &image)
}

/// `GET /images/{name}/history`
///
/// `200`; `404`.
pub async fn history(store: Arc<Store>, req: Request) -> Result<Response> {
    let platform = platform(&req, ApiVersion::v1(48))?;
    let items = inspect::history(&store.index(), req.param("name"), platform.as_ref())?;
    Response::ok(&items)
}

/// `POST /images/{name}/tag`
///
/// `201`; `400` for a bad name; `404`.
pub async fn tag(store: Arc<Store>, req: Request) -> Result<Response> {
    let reference = Reference::from_repo_and_tag(req.query.str("repo"), req.query.str("tag"))?
        .ok_or_else(|| Error::invalid("invalid reference format"))?;
    crate::store::check_name(&reference)?;
    let id = store.index().resolve(req.param("name"), None)?.id.clone();
    store.tag(&req.ctx(), &id, &reference).await?;
    Ok(Response::empty(StatusCode::CREATED))
}
