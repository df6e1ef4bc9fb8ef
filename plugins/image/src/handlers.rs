//! The `/images` routes: request → one call → response.

use std::sync::Arc;

use gantry_sdk::api::{ApiVersion, ObjectKind};
use gantry_sdk::{Ctx, Error, Request, Response, Result};
use http::StatusCode;

use crate::import::{self, Import};
use crate::list::{self, Query};
use crate::load::ingest::{Archive, with_body};
use crate::load::sink::Sink;
use crate::platform::Platform;
use crate::remove::{self, Options};
use crate::store::Store;
use crate::{attestations, inspect, load, save};
use gantry_sdk::reference::Reference;

/// `POST /images/load`
///
/// `200` with a stream that ends with an error if there was one; `400` for an archive that is
/// damaged or incomplete.
pub async fn load(store: Arc<Store>, mut req: Request) -> Result<Response> {
    let wanted = platforms(&req)?;
    let quiet = req.query.bool_or("quiet", true);
    let lease = store.blobs.lease(&req.ctx()).await?;
    let sink = Sink::new(&store, lease.clone(), &req.ctx());
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
    let query = Query {
        all: req.query.bool("all"),
        filters,
        shared_size: v >= ApiVersion::v1(42) && req.query.bool("shared-size"),
        manifests: v >= ApiVersion::v1(47) && req.query.bool("manifests"),
        identity: v >= ApiVersion::v1(54) && req.query.bool("identity"),
    };
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
    let query = inspect::Query { platform: platform.as_ref(), manifests };
    let image = inspect::inspect(&store, &req.ctx(), req.param("name"), query).await?;
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

/// `GET /images/{name}/attestations`
///
/// `200`, with an empty list if there are none; `400`; `404`, also if its index has no image for
/// the platform.
pub async fn attestations(store: Arc<Store>, req: Request) -> Result<Response> {
    let platforms: Vec<&str> = req.query.all("platform").collect();
    let platform = match platforms.as_slice() {
        [] | [""] => None,
        [text] => Some(Platform::parse_json(text)?),
        _ => return Err(Error::invalid("only one platform value is currently supported")),
    };
    let types = req.query.all("type").map(str::trim).filter(|text| !text.is_empty());
    let query = attestations::Query {
        platform,
        types: types.map(str::to_owned).collect(),
        content: req.query.bool("statement"),
    };
    let found = attestations::attestations(&store, &req.ctx(), req.param("name"), &query).await?;
    Response::ok(&found)
}

/// `POST /images/{name}/tag`
///
/// `201`; `400` for a bad name; `404`.
pub async fn tag(store: Arc<Store>, req: Request) -> Result<Response> {
    let reference = Reference::from_repo_and_tag(req.query.str("repo"), req.query.str("tag"))?
        .ok_or_else(|| Error::invalid("invalid reference format"))?;
    crate::store::check_name(&reference)?;
    let index = store.index();
    let (entry, target) = index.find(req.param("name"))?;
    let target = target.map(|target| &target.digest);
    store.tag(&req.ctx(), &entry.id, target, &reference).await?;
    Ok(Response::empty(StatusCode::CREATED))
}

/// `DELETE /images/{name}`
///
/// `200` with what was removed; `404`; `409` with what stands against it.
pub async fn remove(store: Arc<Store>, req: Request) -> Result<Response> {
    let name = req.param("name");
    if name.trim().is_empty() {
        return Err(Error::invalid("image name cannot be blank"));
    }
    let mut wanted = Vec::new();
    if req.version >= ApiVersion::v1(50) {
        for text in req.query.all("platforms") {
            wanted.push(Platform::parse_json(text)?);
        }
    }
    let options = Options { force: req.query.bool("force"), parents: !req.query.bool("noprune") };
    // A client that goes away must not cancel this half-way.
    let cx = Ctx { caller: Some(req.id.clone()), ..Ctx::background() };
    let done = remove::remove(&store, &cx, name, &wanted, options).await?;
    Response::ok(&done)
}

/// `POST /images/prune`
///
/// `200` with what was removed; `400` for filters it does not know; `409` while another one runs.
pub async fn prune(store: Arc<Store>, req: Request) -> Result<Response> {
    let filters = req.filters(remove::PRUNE_FILTERS)?;
    Response::ok(&remove::prune(&store, &req.ctx(), &filters).await?)
}

/// `GET /images/get` and `GET /images/{name}/get`
///
/// `200` with an archive; `404` for a name that means nothing.
pub async fn save(store: Arc<Store>, req: Request) -> Result<Response> {
    let wanted = platforms(&req)?;
    // What is pinned first and then still part of the view is not removed.
    let cx = req.ctx();
    let lease = store.blobs.lease(&cx).await?;
    let select = |index: &crate::index::Index| match req.param("name") {
        "" => save::select(index, req.query.all("names"), &wanted),
        name => save::select(index, std::iter::once(name), &wanted),
    };
    save::pin(&lease, &select(&store.index())?);
    let selected = select(&store.index())?;
    save::pin(&lease, &selected);
    let (sender, response) = Response::stream("application/x-tar");
    store.tasks.clone().spawn("image-save", async move {
        save::save(store.clone(), cx, selected, sender).await;
        drop(lease);
        store.mark_litter();
    });
    Ok(response)
}

/// `POST /images/create`
///
/// With `fromSrc=-` an import: `200` with the id; `400` for names, changes and archives. A pull, with
/// `fromImage`, is for [`crate::pull`].
pub async fn create(store: Arc<Store>, mut req: Request) -> Result<Response> {
    let text = req.query.str("platform");
    let platform = match text {
        text if req.version >= ApiVersion::v1(32) && !text.is_empty() => {
            Some(Platform::parse(text)?)
        }
        _ => None,
    };
    let source = req.query.str("fromSrc");
    if source != "-" {
        return Err(match source {
            "" => Error::invalid("either fromImage or fromSrc is required"),
            _ => Error::unsupported(format!(
                "cannot import {source:.200}: importing from an address is not supported; send \
                 the archive as the body of the request (fromSrc=-)"
            )),
        });
    }
    let message = match req.query.str("message") {
        "" => "Imported from -".to_owned(),
        message => message.to_owned(),
    };
    let import = Import {
        reference: Reference::from_repo_and_tag(req.query.str("repo"), req.query.str("tag"))?,
        message,
        changes: req.query.all("changes").map(str::to_owned).collect(),
        platform,
    };
    let body = std::mem::replace(&mut req.body, gantry_sdk::route::empty_body());
    let imported = import::import(&store, &req.ctx(), body, import).await;
    store.mark_litter();
    let status = gantry_api::ProgressMessage::status("", imported?.to_string());
    let mut line =
        serde_json::to_vec(&status).map_err(|e| Error::internal("cannot encode the id", e))?;
    line.extend_from_slice(b"\r\n");
    Ok(Response::full(StatusCode::OK, "application/json", line))
}
