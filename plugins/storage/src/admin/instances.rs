//! What storage instances there are, and dropping what one holds of images.

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::storage::{Layer, LayerState, Storage};
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};

use super::Admin;
use super::moves::Stage;
use super::wire::{DropRequest, Dropped, InstanceReport};
use crate::store::Instance;
use crate::upkeep::removable;

/// References that an error lists; the others are counted.
const LISTED: usize = 20;

impl Admin {
    /// Every instance, usable or not, the default one first. `sizes`: also count what containers
    /// wrote.
    ///
    /// # Errors
    ///
    /// Those of who has containers.
    pub async fn report(&self, cx: &Ctx, sizes: bool) -> Result<Vec<InstanceReport>> {
        let users = self.users(cx).await?;
        let mut reports = Vec::new();
        for (kind, name, down) in self.store.registry.slots() {
            if kind != Storage::NAME {
                continue;
            }
            let used = users.iter().filter(|(_, user)| user.layer.instance == name);
            let moves = self.moves.list(None);
            let kept = moves.iter().filter(|m| m.stage == Stage::Kept && m.from == name);
            let mut report = InstanceReport {
                default: name == self.store.default,
                down,
                containers: used.clone().count() as u64,
                kept: kept.count() as u64,
                name: name.clone(),
                ..InstanceReport::default()
            };
            if report.down.is_none()
                && let Err(error) = self.measure(cx, &mut report).await
            {
                report.down = Some(error.chain());
            }
            if sizes && report.down.is_none() {
                let mut written = 0u64;
                for (_, user) in used {
                    let bytes = self.layers.usage(cx, &user.layer).await.unwrap_or(0);
                    written = written.saturating_add(bytes);
                }
                report.written = Some(written);
            }
            reports.push(report);
        }
        // What containers refer to is told even if nobody provides it any more.
        for (_, user) in &users {
            let name = &user.layer.instance;
            match reports.iter_mut().find(|report| report.name == *name) {
                Some(report) if report.down.as_deref() == Some(NOT_CONFIGURED) => {
                    report.containers += 1;
                }
                Some(_) => {}
                None => reports.push(InstanceReport {
                    name: name.clone(),
                    down: Some(NOT_CONFIGURED.to_owned()),
                    containers: 1,
                    ..InstanceReport::default()
                }),
            }
        }
        reports.sort_by(|a, b| (!a.default, &a.name).cmp(&(!b.default, &b.name)));
        Ok(reports)
    }

    async fn measure(&self, cx: &Ctx, report: &mut InstanceReport) -> Result<()> {
        let instance = self.store.instance(Some(&report.name))?;
        for layer in self.store.list_all(cx, &instance).await? {
            if let Some(id) = unpacked(&layer) {
                report.layers += 1;
                report.bytes = report.bytes.saturating_add(self.store.layer_size(cx, &id).await?);
            }
        }
        report.removing = instance.driver.removing(cx).await?;
        Ok(())
    }

    /// Drops the unpacked layers of images in an instance; they are unpacked again when they are
    /// needed. Writable layers of containers stay, and what these stand on.
    ///
    /// # Errors
    ///
    /// `Conflict` listing the containers that refer to it, unless forced; `InvalidArgument` for an
    /// unknown instance.
    pub async fn drop_layers(self: &Arc<Self>, cx: &Ctx, request: &DropRequest) -> Result<Dropped> {
        let operating = self.operate()?;
        let instance = self.known_instance(&request.instance)?;
        if !request.force {
            self.refuse_if_referenced(cx, &instance.name).await?;
        }
        let admin = self.clone();
        // Goes on when nobody waits any more: a removal is not left half-way.
        let work = self.store.tasks.spawn("drop-layers", async move {
            let _operating = operating;
            admin.drop_all(&Ctx::background(), &instance).await
        });
        work.await?
    }

    /// The instance `name`, as a client asks for it.
    pub(super) fn known_instance(&self, name: &str) -> Result<Instance> {
        match self.store.registry.get::<Storage>(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let all = self.store.registry.all::<Storage>();
                let names: Vec<String> = all.into_iter().map(|(name, _)| name).collect();
                let names = names.join(", ");
                Err(Error::invalid(format!(
                    "no storage instance is named {name:.100?} (there are: {names})"
                )))
            }
            Err(error) => Err(error),
            Ok(_) => self.store.instance(Some(name)),
        }
    }

    async fn refuse_if_referenced(&self, cx: &Ctx, instance: &str) -> Result<()> {
        let users = self.users(cx).await?;
        let used = users.iter().filter(|(_, user)| user.layer.instance == instance);
        let mut references: Vec<String> = used
            .map(|(_, user)| {
                let (word, name) = (if user.running { "running" } else { "stopped" }, &user.name);
                format!("container {name} ({word})")
            })
            .collect();
        let moves = self.moves.list(None);
        let kept = moves.iter().filter(|m| m.stage == Stage::Kept && m.from == instance);
        references.extend(kept.map(|m| {
            let container: String = m.container.chars().take(12).collect();
            format!("the old layer of container {container}, until it is started or purged")
        }));
        if references.is_empty() {
            return Ok(());
        }
        let more = references.len().saturating_sub(LISTED);
        references.truncate(LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let references = references.join(", ");
        Err(Error::conflict(format!(
            "storage instance {instance} is in use by {references}{more}; migrate them, or use force \
             to drop what no container stands on"
        )))
    }

    async fn drop_all(&self, cx: &Ctx, instance: &Instance) -> Result<Dropped> {
        let _collecting = self.store.collecting.lock().await;
        let collection = self.store.pins.collect();
        let layers = self.store.list_all(cx, instance).await?;
        let mut dropped = Dropped::default();
        let mut gone = BTreeSet::new();
        for key in removable(&layers, &collection.kept()) {
            let Ok(id) = key.parse::<Digest>() else { continue };
            let Some(_mark) = collection.mark(&id) else { continue };
            let bytes = self.store.layer_size(cx, &id).await?;
            match instance.driver.remove(cx, &key).await {
                Ok(()) => {
                    dropped.layers += 1;
                    dropped.bytes = dropped.bytes.saturating_add(bytes);
                    gone.insert(id);
                }
                Err(error) if error.kind() == ErrorKind::Busy => {}
                Err(error) => return Err(error),
            }
        }
        let unpacked = layers.iter().filter_map(unpacked);
        dropped.left = unpacked.filter(|id| !gone.contains(id)).count() as u64;
        Ok(dropped)
    }
}

const NOT_CONFIGURED: &str = "it is not configured";

/// The chain whose topmost layer this is, if it is one of an image.
pub(super) fn unpacked(layer: &Layer) -> Option<Digest> {
    (layer.state == LayerState::Committed).then(|| layer.key.parse().ok()).flatten()
}
