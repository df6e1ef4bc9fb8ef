//! `docker commit`: what a container changed becomes a layer, and with the image below it a new one.
//!
//! The layer is written once: archived, hashed, compressed and hashed again on its way to the blob
//! store. It is not unpacked; the first container of the image does that.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_api::container::HealthConfig;
use gantry_api::image::ImageConfig;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::CommitImage;
use gantry_sdk::kinds::layers::Chain;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use jiff::Timestamp;

use crate::admit::Admission;
use crate::changes;
use crate::config::{HistoryEntry, ImageFile, RootFs};
use crate::index::{Entry, Index};
use crate::load::sink::{Packer, Sink, Stored};
use crate::load::{layer_record, own_content};
use crate::platform::Platform;
use crate::record::LayerRecord;
use crate::store::{Store, check_name};

/// Diff id of an archive without members: such a layer is left out.
///
/// Source: the digest of 1024 zero bytes.
const EMPTY: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// Makes the image; returns its id.
///
/// # Errors
///
/// See [`gantry_sdk::kinds::images::ImageStore::commit`].
pub async fn commit(store: &Store, cx: &Ctx, commit: CommitImage) -> Result<Digest> {
    if let Some(reference) = &commit.reference {
        check_name(reference)?;
    }
    let mut config = commit.config.clone();
    changes::apply(&mut config, &commit.changes)?;
    fill_in(&mut config, &commit.container_config);

    let lease = store.blobs.lease(cx).await?;
    let _hold = store.layers.lease(cx, &commit.chain).await?;
    commit.chain.0.iter().for_each(|layer| lease.pin(&layer.blob));
    let index = store.index();
    let mut layers = layers_below(&index, &commit.chain)?;
    let sink = Sink::new(store, lease.clone(), cx);
    let stored = archive(store, cx, &commit, &sink).await?;
    let mut top = layer_record(stored)?;
    let is_empty = top.diff_id.as_str() == EMPTY;
    if !is_empty {
        top.unpacked = store.layers.usage(cx, &commit.layer).await?;
        layers.push(top);
    }
    let below = index.stored().find(|entry| entry.id == commit.parent);
    let file = image_file(&commit, below.map(AsRef::as_ref), config, &layers, is_empty)?;
    let stored = {
        let (sink, file, layers) = (sink.clone(), file.clone(), layers);
        tokio::task::spawn_blocking(move || own_content(&sink, &file, layers)).await??
    };
    let parent = index.get(&commit.parent).map(|entry| entry.id.clone());
    let content = crate::admit::Content { parent, ..stored };
    let admission = Admission {
        names: commit.reference.iter().cloned().collect(),
        unpack: false,
        ..Admission::new(content, file)
    };
    let (entry, _) = store.admit(cx, admission).await?;
    drop(lease);
    store.report("create", &entry, entry.id.to_string());
    if let Some(reference) = &commit.reference {
        store.report("tag", &entry, reference.familiar());
    }
    if is_empty {
        store.mark_litter(); // the archive of nothing
    }
    Ok(entry.id.clone())
}

/// The records of the layers below the container.
fn layers_below(index: &Index, chain: &Chain) -> Result<Vec<LayerRecord>> {
    let known = index.known_layers();
    let record = |id: Digest| {
        let unknown = || {
            let text = format!("nothing is known about layer {id}");
            Error::new(ErrorKind::Internal, text)
        };
        known.get(&id).cloned().ok_or_else(unknown)
    };
    chain.ids().into_iter().map(record).collect()
}

/// Writes what the container changed into the blob store.
async fn archive(store: &Store, cx: &Ctx, commit: &CommitImage, sink: &Sink) -> Result<Stored> {
    let blob = store.blobs.writer(cx, sink.lease()).await?;
    let packer = Arc::new(Mutex::new(Some(Packer::new(blob)?)));
    let out = Box::new(Shared(packer.clone()));
    store.layers.diff(cx, &commit.layer, &commit.chain, false, out).await?;
    let packer = packer.lock().unwrap_or_else(PoisonError::into_inner).take();
    let gone = || Error::new(ErrorKind::Internal, "the archive of a layer is gone");
    let packer = packer.ok_or_else(gone)?;
    tokio::task::spawn_blocking(move || packer.finish()).await?
}

/// Lets go of a sink that is taken back when everything was written.
struct Shared(Arc<Mutex<Option<Packer>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut packer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        packer.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write(bytes)
    }

    /// Small flushes would cost compression.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The configuration of the new image.
fn image_file(
    commit: &CommitImage,
    below: Option<&Entry>,
    config: ImageConfig,
    layers: &[LayerRecord],
    is_empty: bool,
) -> Result<ImageFile> {
    let now = Timestamp::now().to_string();
    let mut file = match below {
        Some(below) => below.file.clone(),
        None => {
            let platform = Platform::parse(&commit.platform)?;
            ImageFile {
                architecture: platform.architecture().to_owned(),
                variant: platform.variant().to_owned(),
                os: platform.os().to_owned(),
                ..ImageFile::default()
            }
        }
    };
    file.os = file.os().to_owned();
    file.created = Some(now.clone());
    file.author.clone_from(&commit.author);
    file.comment.clone_from(&commit.comment);
    file.docker_version = String::new();
    file.rootfs = RootFs {
        kind: "layers".to_owned(),
        diff_ids: layers.iter().map(|layer| layer.diff_id.to_string()).collect(),
    };
    file.history.push(HistoryEntry {
        created: Some(now),
        author: commit.author.clone(),
        created_by: commit.container_config.cmd.join(" "),
        comment: commit.comment.clone(),
        empty_layer: is_empty,
    });
    file.config = config;
    Ok(file)
}

/// Takes what `config` leaves open from the container's configuration.
fn fill_in(config: &mut ImageConfig, container: &ImageConfig) {
    let text = |own: &mut String, other: &String| {
        if own.is_empty() {
            own.clone_from(other);
        }
    };
    text(&mut config.user, &container.user);
    text(&mut config.working_dir, &container.working_dir);
    text(&mut config.stop_signal, &container.stop_signal);
    config.exposed_ports.extend(container.exposed_ports.clone());
    config.volumes.extend(container.volumes.clone());
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in &container.env {
        if !config.env.iter().any(|own| name(own) == name(variable)) {
            config.env.push(variable.clone());
        }
    }
    for (key, value) in &container.labels {
        config.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    if config.entrypoint.is_empty() {
        if config.cmd.is_empty() {
            config.cmd.clone_from(&container.cmd);
        }
        config.entrypoint.clone_from(&container.entrypoint);
    }
    match (&mut config.healthcheck, &container.healthcheck) {
        (Some(own), Some(other)) => fill_in_health(own, other),
        (own @ None, Some(other)) => *own = Some(other.clone()),
        (_, None) => {}
    }
    if config.shell.is_empty() {
        config.shell.clone_from(&container.shell);
    }
}

fn fill_in_health(own: &mut HealthConfig, other: &HealthConfig) {
    if own.test.as_ref().is_none_or(Vec::is_empty) {
        own.test.clone_from(&other.test);
    }
    for (own, other) in [
        (&mut own.interval, other.interval),
        (&mut own.timeout, other.timeout),
        (&mut own.start_period, other.start_period),
        (&mut own.start_interval, other.start_interval),
        (&mut own.retries, other.retries),
    ] {
        if *own == 0 {
            *own = other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_open_comes_from_the_container() {
        let container = ImageConfig {
            user: "root".into(),
            env: vec!["A=1".into(), "B=2".into()],
            cmd: vec!["sh".into()],
            entrypoint: vec!["/init".into()],
            labels: [("x".to_owned(), "old".to_owned())].into(),
            ..ImageConfig::default()
        };
        let mut config = ImageConfig {
            env: vec!["A=3".into()],
            labels: [("y".to_owned(), "new".to_owned())].into(),
            ..ImageConfig::default()
        };
        fill_in(&mut config, &container);
        assert_eq!(config.env, ["A=3", "B=2"]);
        assert_eq!((config.user.as_str(), config.labels.len()), ("root", 2));
        assert_eq!((config.cmd, config.entrypoint), (vec!["sh".into()], vec!["/init".into()]));

        let mut with_entrypoint =
            ImageConfig { entrypoint: vec!["/x".into()], ..ImageConfig::default() };
        fill_in(&mut with_entrypoint, &container);
        assert!(with_entrypoint.cmd.is_empty());
    }
}
