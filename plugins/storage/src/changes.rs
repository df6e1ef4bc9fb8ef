//! What a container changed over its image.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use gantry_archive::{
    ArchiveError, ChangeKind, Changes, CreateOptions, Source, create, create_of_changes,
    overlay_changes, tree_changes,
};
use gantry_sdk::kinds::layers::{Chain, ContainerLayer, LayerChange};
use gantry_sdk::kinds::storage::LayerForm;
use gantry_sdk::mounts::MountFd;
use gantry_sdk::{Ctx, Error, Result};

use crate::places;
use crate::pour::explain;
use crate::store::Store;

/// Bytes gathered before the sink sees them.
const BUFFER: usize = 256 << 10;

/// A container's layer beside its image.
struct Compared {
    /// The layer alone if `is_overlay`, otherwise the whole tree.
    new: MountFd,
    below: MountFd,
    is_overlay: bool,
}

impl Compared {
    fn all_changes(&self) -> Result<Changes, ArchiveError> {
        let below = Some(self.below.as_fd());
        if self.is_overlay {
            overlay_changes(self.new.as_fd(), below)
        } else {
            tree_changes(below, self.new.as_fd())
        }
    }

    fn places(&self, changes: &Changes) -> BTreeSet<Vec<u8>> {
        places::among(changes, self.new.as_fd(), self.below.as_fd())
    }

    fn changes(&self) -> Result<Changes, ArchiveError> {
        let mut changes = self.all_changes()?;
        let places = self.places(&changes);
        changes.retain(|path, _| !places.contains(path));
        Ok(changes)
    }

    fn archive(&self, with_places: bool, out: impl Write) -> Result<(), ArchiveError> {
        if self.is_overlay {
            let places =
                if with_places { BTreeSet::new() } else { self.places(&self.all_changes()?) };
            let wanted = move |path: &[u8]| !places.contains(path);
            let options = CreateOptions {
                source: Source::OverlayUpper,
                filter: Some(&wanted),
                ..CreateOptions::default()
            };
            create(self.new.as_fd(), out, &options).map(drop)
        } else {
            let changes = if with_places { self.all_changes()? } else { self.changes()? };
            create_of_changes(&changes, self.new.as_fd(), out).map(drop)
        }
    }
}

impl Store {
    async fn compared(
        self: &Arc<Self>,
        cx: &Ctx,
        layer: &ContainerLayer,
        chain: &Chain,
    ) -> Result<Compared> {
        let instance = self.instance(Some(&layer.instance))?;
        instance.driver.stat(cx, &layer.key).await?;
        let below = self.mount_chain(cx, &instance, chain).await?;
        let is_overlay = instance.info.form != LayerForm::MergedTree && instance.info.native_diff;
        let plan = if is_overlay {
            instance.driver.unpack_plan(cx, &layer.key).await?
        } else {
            instance.driver.plan(cx, &layer.key).await?
        };
        let new = self.mount_plan(cx, &instance, &plan).await?;
        Ok(Compared { new, below, is_overlay })
    }

    /// See [`LayerStore::changes`](gantry_sdk::kinds::layers::LayerStore::changes).
    pub(crate) async fn layer_changes(
        self: &Arc<Self>,
        cx: &Ctx,
        layer: &ContainerLayer,
        chain: &Chain,
    ) -> Result<Vec<LayerChange>> {
        let _kept = self.pins.pin(chain.ids());
        let compared = self.compared(cx, layer, chain).await?;
        let changes = tokio::task::spawn_blocking(move || compared.changes()).await?;
        let changes = changes.map_err(|error| comparing(layer, error))?;
        // The top directory has no name that could be shown.
        let named = changes.into_iter().filter(|(path, _)| !path.is_empty());
        let row = |(path, kind): (Vec<u8>, ChangeKind)| LayerChange {
            path: format!("/{}", String::from_utf8_lossy(&path)),
            kind: match kind {
                ChangeKind::Modified => 0,
                ChangeKind::Added => 1,
                ChangeKind::Deleted => 2,
            },
        };
        Ok(named.map(row).collect())
    }

    /// See [`LayerStore::diff`](gantry_sdk::kinds::layers::LayerStore::diff).
    pub(crate) async fn layer_diff(
        self: &Arc<Self>,
        cx: &Ctx,
        layer: &ContainerLayer,
        chain: &Chain,
        places: bool,
        out: Box<dyn Write + Send>,
    ) -> Result<()> {
        let _kept = self.pins.pin(chain.ids());
        let compared = self.compared(cx, layer, chain).await?;
        let archive = move || {
            let mut out = BufWriter::with_capacity(BUFFER, out);
            compared.archive(places, &mut out)?;
            out.flush().map_err(ArchiveError::Write)
        };
        tokio::task::spawn_blocking(archive).await?.map_err(|error| comparing(layer, error))
    }
}

fn comparing(layer: &ContainerLayer, error: ArchiveError) -> Error {
    explain(error).context(format!("cannot compare layer {} with its image", layer.key))
}
