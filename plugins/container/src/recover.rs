//! Starting again: what the disk says is reconciled with what shims, layers and volumes say.
//!
//! A start with nothing is a recovery of an empty list; there is no other way to start.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::kinds::networks::{Networks, SandboxSpec, SandboxStatus};
use gantry_sdk::kinds::runtime::{ContainerProcess, Exit, Recovered, Runtimes};
use gantry_sdk::kinds::volumes::Volumes;
use gantry_sdk::{Ctx, Error, Result};

use crate::engine::Engine;
use crate::handle::Message;
use crate::journal;
use crate::launch;
use crate::record::Record;
use crate::restart;
use crate::state::State;
use crate::task::Task;

/// Containers that are started at the same time when the daemon starts.
const STARTS_AT_ONCE: usize = 16;
/// How long the service manager may take to say whether the machine is being shut down.
const SYSTEM_PATIENCE: Duration = Duration::from_secs(3);

/// Finds all containers again and makes them visible.
///
/// # Errors
///
/// Records that cannot be read: going on would lose containers.
pub async fn recover(engine: &Arc<Engine>) -> Result<()> {
    let cx = Ctx::background();
    let mut records = engine.load().await?;
    records.sort_by_key(|r| r.created);
    let mut found = Vec::with_capacity(records.len());
    for mut record in records {
        if let Some(life) = journal::read(&engine.run_of(&record.id)) {
            record.life = life; // newer than the database, or the same
        }
        let recovered = find_process(engine, &cx, &record).await;
        found.push((record, recovered));
    }
    hold_volumes(engine, &cx, found.iter().map(|(r, _)| r)).await?;
    adopt_sandboxes(engine, &cx, &found).await?;

    let known: Vec<String> = found.iter().map(|(r, _)| r.id.to_string()).collect();
    for (record, recovered) in found {
        adopt(engine, record, recovered).await;
    }
    let dropped = engine.registry.only::<Layers>()?.reconcile(&cx, &known).await?;
    if !dropped.is_empty() {
        tracing::info!(layers = dropped.len(), "Dropped container layers that belong to nobody.");
    }
    let known: BTreeSet<String> = known.into_iter().collect();
    let (files, run) = (engine.files.clone(), engine.run.clone());
    tokio::task::spawn_blocking(move || {
        drop_unknown(&files, &known);
        drop_unknown(&run, &known);
    })
    .await?;
    Ok(())
}

async fn find_process(engine: &Engine, cx: &Ctx, record: &Record) -> Recovered {
    let run = engine.run_of(&record.id);
    if !run.exists() {
        return Recovered::Gone;
    }
    let Ok(runtime) = engine.registry.get::<Runtimes>(&record.runtime) else {
        tracing::error!(container = %record.id, runtime = record.runtime, "The runtime of a container is not configured any more.");
        return Recovered::Gone;
    };
    match runtime.recover(cx, record.id.as_str(), &run).await {
        Ok(recovered) => recovered,
        Err(error) => {
            tracing::error!(container = %record.id, error = %error.chain(), "Cannot reach the shim of a container.");
            Recovered::Gone
        }
    }
}

async fn hold_volumes<'a>(
    engine: &Engine,
    cx: &Ctx,
    records: impl Iterator<Item = &'a Record>,
) -> Result<()> {
    for record in records {
        for name in record.volumes() {
            let volumes = engine.registry.only::<Volumes>()?;
            if let Err(error) = volumes.hold(cx, name, record.id.as_str()).await {
                tracing::warn!(container = %record.id, volume = name, error = %error.chain(), "A container's volume is missing.");
            }
        }
    }
    Ok(())
}

async fn adopt_sandboxes(engine: &Engine, cx: &Ctx, found: &[(Record, Recovered)]) -> Result<()> {
    let mut live: Vec<(SandboxSpec, SandboxStatus)> = Vec::new();
    for (record, recovered) in found {
        if matches!(recovered, Recovered::Running(_))
            && let Some(status) = &record.life.sandbox
            && !status.sandbox_id.is_empty()
        {
            live.push((launch::sandbox_spec(engine, record)?, status.clone()));
        }
    }
    engine.registry.only::<Networks>()?.recover(cx, &live).await
}

async fn adopt(engine: &Arc<Engine>, mut record: Record, recovered: Recovered) {
    if record.life.removing {
        finish_removal(engine, record).await;
        return;
    }
    match recovered {
        Recovered::Running(process) => {
            let since = record.life.started.unwrap_or_else(SystemTime::now);
            record.life.started = Some(since);
            record.life.exit = None;
            let state = State::Running { pid: process.pid(), since };
            engine.reserve_and_spawn(record, state, Some(process));
        }
        Recovered::Exited(exit, process) => {
            settle_exit(engine, &mut record, exit, &process).await;
            rest(engine, record).await;
        }
        Recovered::Gone => {
            if record.life.active && record.life.exit.is_none() {
                // The machine was restarted, or the shim was killed: nobody saw the end.
                record.life.exit = Some(Exit { code: 137, oom: false, at: SystemTime::now() });
                record.life.sandbox = None;
                launch::release(engine, &record).await;
                if let Err(error) = engine.save(&record).await {
                    tracing::error!(container = %record.id, error = %error.chain(), "Cannot write the record of a container.");
                }
            }
            record.life.sandbox = None;
            rest(engine, record).await;
        }
    }
}

/// A container that ended while no daemon was there: its end is on record before anybody asks.
async fn settle_exit(
    engine: &Engine,
    record: &mut Record,
    exit: Exit,
    process: &Arc<dyn ContainerProcess>,
) {
    launch::release(engine, record).await;
    let started = record.life.started.unwrap_or(exit.at);
    let ran = exit.at.duration_since(started).unwrap_or_default();
    record.life.started = Some(started);
    record.life.sandbox = None;
    record.life.exit = Some(exit.clone());
    if let Err(error) = engine.save(record).await {
        tracing::error!(container = %record.id, error = %error.chain(), "Cannot write the record of a container.");
        return; // the shim still knows the exit
    }
    if let Err(error) = process.delete().await {
        tracing::warn!(container = %record.id, error = %error.chain(), "Cannot clean up after the end of a container.");
    }
    engine.report_end(record, &exit, ran);
}

/// Makes a container that does not run visible, or removes it if it wants that.
async fn rest(engine: &Arc<Engine>, record: Record) {
    if record.auto_remove() && record.life.started.is_some() {
        finish_removal(engine, record).await;
        return;
    }
    let state = record.state_at_rest();
    engine.reserve_and_spawn(record, state, None);
}

/// A removal that was interrupted, or an `--rm` container that ended with the machine.
async fn finish_removal(engine: &Arc<Engine>, mut record: Record) {
    if let Err(error) = crate::remove::remove(engine, &mut record, true, None).await {
        tracing::error!(container = %record.id, error = %error.chain(), "Cannot finish a removal.");
        engine.reserve_and_spawn(record, State::Dead, None);
    }
}

fn drop_unknown(dir: &std::path::Path, known: &BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if !known.contains(entry.file_name().to_string_lossy().as_ref()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Engine {
    fn reserve_and_spawn(
        self: &Arc<Self>,
        record: Record,
        state: State,
        process: Option<Arc<dyn ContainerProcess>>,
    ) {
        if let Err(error) = self.reserve_name(&record.name, &record.id) {
            tracing::error!(container = %record.id, error = %error, "Two containers have one name.");
        }
        Task::spawn(self, record, state, process);
    }
}

/// Starts what its restart policy wants running, in the order of creation, several at once.
pub fn auto_start(engine: &Arc<Engine>) {
    let mut wanted: Vec<_> = engine
        .handles()
        .into_iter()
        .filter(|handle| {
            let view = handle.view();
            matches!(view.state, State::Exited { .. }) && restart::at_boot(&view.record)
        })
        .collect();
    if wanted.is_empty() {
        return;
    }
    wanted.sort_by_key(|handle| handle.view().record.created);
    let limit = Arc::new(tokio::sync::Semaphore::new(STARTS_AT_ONCE));
    for handle in wanted {
        let limit = limit.clone();
        engine.tasks.spawn("container-auto-start", async move {
            let Ok(_permit) = limit.acquire().await else { return };
            if let Err(error) = handle.ask(Message::Start).await {
                let id = handle.view().record.id.clone();
                tracing::warn!(container = %id, error = %error.chain(), "Cannot start a container.");
            }
        });
    }
}

/// Whether the machine is being shut down, and not the daemon alone. Then containers end in any case:
/// better as they want to, with their networks, than by the signals that go to every process last.
pub async fn machine_goes_down() -> bool {
    let asked = tokio::task::spawn_blocking(crate::host::is_shutting_down);
    let answer = tokio::time::timeout(SYSTEM_PATIENCE, asked).await;
    let going = matches!(answer, Ok(Ok(true)));
    if going {
        tracing::info!("The machine is shutting down: stopping all containers.");
    }
    going
}

/// Stops every container, side by side; the kernel bounds the whole.
pub async fn stop_all(engine: &Arc<Engine>) {
    let stops: Vec<_> = engine
        .handles()
        .into_iter()
        .filter(|handle| handle.view().state.is_running())
        .map(|handle| {
            engine.tasks.spawn("container-stop", async move {
                let _: Result<(), Error> = handle.ask(Message::ShutDown).await;
            })
        })
        .collect();
    for stop in stops {
        let _ = tokio::time::timeout(Duration::from_secs(3600), stop).await;
    }
}
