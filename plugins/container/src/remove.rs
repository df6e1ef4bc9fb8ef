//! Removing what is left of a container.
//!
//! The record goes last where other things depend on its knowledge (anonymous volumes), first where
//! a later start would find the leftovers anyway (layer, files): so a crash in between leaks nothing.

use std::io;
use std::sync::Arc;

use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::kinds::logs::Log;
use gantry_sdk::kinds::runtime::ContainerProcess;
use gantry_sdk::kinds::volumes::Volumes;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};

use crate::engine::Engine;
use crate::record::{MountSource, Record};

/// Removes the container that `record` describes, its anonymous volumes if `volumes`. May be
/// repeated. `ended` is its last process, if the shim still keeps it.
///
/// # Errors
///
/// What could not be removed; the record is kept then.
pub async fn remove(
    engine: &Engine,
    record: &mut Record,
    volumes: bool,
    ended: Option<Arc<dyn ContainerProcess>>,
) -> Result<()> {
    let cx = Ctx::background();
    let anonymous: Vec<String> = if volumes { anonymous(record) } else { Vec::new() };
    if !anonymous.is_empty() {
        record.life.removing = true;
        engine.save(record).await?;
    }
    release_volumes(engine, &cx, record, &anonymous).await?;
    let forgotten = async {
        remove_log(engine, &cx, record).await?;
        engine.erase(&record.id).await
    };
    let dismissed = async {
        match ended {
            Some(process) => process.delete().await,
            None => Ok(()),
        }
    };
    // Neither waits for the other: one waits for the disk, one for the shim.
    let (forgotten, dismissed) = tokio::join!(forgotten, dismissed);
    forgotten?;
    engine.execs.forget_container(&record.id);

    let layers = engine.registry.only::<Layers>()?;
    let (layer, files, run) = tokio::join!(
        layers.remove(&cx, &record.layer),
        remove_dir(engine.files_of(&record.id)),
        remove_dir(engine.run_of(&record.id)),
    );
    engine.forget(record);
    for error in [dismissed, layer, files, run].into_iter().filter_map(Result::err) {
        // The container is gone; the next start of the daemon collects what this leaves.
        tracing::warn!(container = %record.id, error = %error.chain(), "Left something behind.");
    }
    Ok(())
}

fn anonymous(record: &Record) -> Vec<String> {
    let of = |m: &crate::record::MountRecord| match &m.source {
        MountSource::Volume { name, anonymous: true, .. } => Some(name.clone()),
        _ => None,
    };
    record.mounts.iter().filter_map(of).collect()
}

async fn release_volumes(
    engine: &Engine,
    cx: &Ctx,
    record: &Record,
    anonymous: &[String],
) -> Result<()> {
    if record.volumes().next().is_none() {
        return Ok(());
    }
    let store = engine.registry.only::<Volumes>()?;
    for name in record.volumes() {
        store.release(cx, name, record.id.as_str()).await?;
    }
    for name in anonymous {
        match store.remove(cx, name).await {
            // Another container uses it by --volumes-from; it goes with the last one.
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
            other => other?,
        }
    }
    Ok(())
}

async fn remove_log(engine: &Engine, cx: &Ctx, record: &Record) -> Result<()> {
    match engine.registry.get::<Log>(&record.log_driver) {
        Ok(driver) => driver.remove(cx, &engine.log_target(record)).await,
        // A driver that is no longer there keeps nobody from removing the container.
        Err(_) => Ok(()),
    }
}

async fn remove_dir(path: std::path::PathBuf) -> Result<()> {
    tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path.display(), e))
        }
        _ => Ok(()),
    })
    .await?
}
