//! `POST /commit`, `GET /containers/{name}/changes` and `GET /containers/{name}/export`: what a
//! container has written.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;

use gantry_archive::{CreateOptions, create};
use gantry_sdk::api::IdResponse;
use gantry_sdk::api::container::{ContainerConfig, FilesystemChange};
use gantry_sdk::api::image::ImageConfig;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::{CommitImage, Images};
use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::kinds::runtime::ContainerProcess;
use gantry_sdk::reference::Reference;
use gantry_sdk::route::{BodySender, BodyWriter};
use gantry_sdk::{Ctx, Error, Request, Response, Result};
use http::StatusCode;

use crate::engine::Engine;
use crate::handle::View;
use crate::record::Record;
use crate::state::State;

/// Bytes of an export handed to the connection at once.
const PIECE: usize = 1 << 20;

/// `POST /commit`
///
/// `201` with the new image's id; `400` for a bad name, instruction or configuration; `404`; `409`
/// for a container that is being removed.
pub async fn commit(engine: Arc<Engine>, mut request: Request) -> Result<Response> {
    let body: Option<ContainerConfig> = request.json_or_empty::<Option<_>>().await?.flatten();
    let query = &request.query;
    let reference = Reference::from_repo_and_tag(query.str("repo"), query.str("tag"))?;
    let pause = query.get("pause").is_none() || query.bool("pause");
    let view = engine.find(query.str("container"))?.view();
    refuse_ending(&view, "commit")?;
    let record = view.record.clone();
    let container_config = record.config.clone();
    let commit = CommitImage {
        parent: record.image_id.clone(),
        chain: record.chain.clone(),
        platform: record.platform.clone(),
        layer: record.layer.clone(),
        config: ImageConfig::from(body.as_ref().unwrap_or(&container_config)),
        changes: query.all("changes").map(str::to_owned).collect(),
        author: query.str("author").to_owned(),
        comment: query.str("comment").to_owned(),
        reference,
        container_config: ImageConfig::from(&container_config),
    };
    // Its own task: a container that was paused goes on, whether the client waits or not.
    let cx = Ctx { caller: Some(request.id.clone()), ..Ctx::background() };
    let tasks = engine.tasks.clone();
    let process = view.process.clone().filter(|_| pause && view.state.is_running());
    let id = tasks
        .spawn("container-commit", async move {
            let (comment, name) = (commit.comment.clone(), commit.reference.clone());
            let id = paused(&engine, &record, process, commit_layer(&engine, &cx, commit)).await?;
            let name = name.map(|name| name.familiar()).unwrap_or_default();
            let extra = [("comment", comment), ("imageID", id.to_string()), ("imageRef", name)];
            engine.report(&record, "commit", &extra);
            Ok::<_, Error>(id)
        })
        .await??;
    Response::json(StatusCode::CREATED, &IdResponse { id: id.to_string() })
}

async fn commit_layer(engine: &Engine, cx: &Ctx, commit: CommitImage) -> Result<Digest> {
    engine.registry.only::<Images>()?.commit(cx, commit).await
}

/// Carries `work` out while the container's processes do not run.
async fn paused<T>(
    engine: &Engine,
    record: &Record,
    process: Option<Arc<dyn ContainerProcess>>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(process) = process else { return work.await };
    if let Err(error) = process.pause().await {
        // It may have ended meanwhile, or its runtime cannot do it: as the reference engine does.
        tracing::warn!(container = %record.id, error = %error.chain(), "Not paused.");
        return work.await;
    }
    engine.report(record, "pause", &[]);
    let outcome = work.await;
    match process.resume().await {
        Ok(()) => engine.report(record, "unpause", &[]),
        Err(error) => {
            tracing::error!(container = %record.id, error = %error.chain(), "Cannot resume.");
        }
    }
    outcome
}

/// What is about to go has no content that can be relied upon.
fn refuse_ending(view: &View, doing: &str) -> Result<()> {
    let id = &view.record.id;
    match view.state {
        State::Dead => {
            Err(Error::conflict(format!("You cannot {doing} container {id} which is Dead")))
        }
        State::Removing => {
            let text = format!("You cannot {doing} container {id} which is being removed");
            Err(Error::conflict(text))
        }
        _ => Ok(()),
    }
}

/// `GET /containers/{name}/changes`
///
/// `200` with one item for each path, `null` for none; `404`.
pub async fn changes(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let view = engine.find(request.param("name"))?.view();
    let record = &view.record;
    let layers = engine.registry.only::<Layers>()?;
    let changes = layers.changes(&request.ctx(), &record.layer, &record.chain).await?;
    let changes: Vec<FilesystemChange> = changes
        .into_iter()
        .map(|change| FilesystemChange { kind: change.kind, path: change.path })
        .collect();
    Response::ok(&(!changes.is_empty()).then_some(changes))
}

/// `GET /containers/{name}/export`
///
/// `200` with the container's tree as an archive, without what is mounted into it; `404`; `409`
/// for a container that is being removed.
pub async fn export(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let view = engine.find(request.param("name"))?.view();
    refuse_ending(&view, "export")?;
    let layers = engine.registry.only::<Layers>()?;
    let cx = request.ctx();
    let name = request.param("name").to_owned();
    let failed = move |error: Error| error.context(format!("Error exporting container {name}"));
    let root = layers.mount(&cx, &view.record.layer).await.map_err(&failed)?;
    let (sender, response) = Response::stream("application/octet-stream");
    engine.tasks.clone().spawn("container-export", async move {
        let out = sender.clone();
        let written = tokio::task::spawn_blocking(move || archive(&root.as_fd(), out)).await;
        match written.map_err(Error::from).and_then(|written| written) {
            Ok(()) => engine.report(&view.record, "export", &[]),
            Err(error) => {
                sender.abort(failed(error)).await;
            }
        }
    });
    Ok(response)
}

fn archive(root: &impl AsFd, sender: BodySender) -> Result<()> {
    let mut out = BodyWriter::new(sender, PIECE);
    create(root.as_fd(), &mut out, &CreateOptions::default())
        .map_err(|e| Error::internal("cannot archive its tree", e))?;
    out.flush().map_err(|e| Error::io("send", "an archive", e))
}
