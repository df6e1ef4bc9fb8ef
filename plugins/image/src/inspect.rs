//! `GET /images/{name}/json` and `GET /images/{name}/history`.

use std::sync::Arc;

use gantry_api::container::DriverData;
use gantry_api::image::{ImageHistoryItem, ImageInspect, ImageMetadata, RootFs};
use gantry_sdk::{Ctx, Error, ErrorKind, Result};

use crate::config::time_of;
use crate::disk::{Disk, parts_of};
use crate::index::{Entry, Index};
use crate::manifests::{self, Users};
use crate::platform::Platform;
use crate::record::{TargetRecord, signed};
use crate::store::Store;

/// How to look at an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query<'a> {
    /// At the one for that platform.
    pub platform: Option<&'a Platform>,
    /// At what else is in its index, too.
    pub manifests: bool,
}

/// One image in full.
///
/// # Errors
///
/// Those of [`Index::resolve`] and of the layer store.
pub async fn inspect(
    store: &Store,
    cx: &Ctx,
    name: &str,
    query: Query<'_>,
) -> Result<ImageInspect> {
    let platform = query.platform;
    let index = store.index();
    let target = index.find(name)?.1;
    let entry = index.resolve(name, platform)?.clone();
    let disk = Disk::look(store, cx).await?;
    let (driver, data) = store.layers.chain_details(cx, &entry.record.chain()).await?;
    let file = &entry.file;
    let last_tagged = entry.record.last_tagged.map(|time| time.to_string());
    Ok(ImageInspect {
        id: entry.id.to_string(),
        repo_tags: index.tags(&entry.id),
        repo_digests: index.digests(&entry.id),
        parent: entry.record.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        comment: file.comment().to_owned(),
        created: entry.created.map(|time| time.to_string()).unwrap_or_default(),
        docker_version: file.docker_version.clone(),
        author: file.author.clone(),
        config: Some(file.config.clone()),
        architecture: file.architecture.clone(),
        variant: file.variant.clone(),
        os: file.os().to_owned(),
        os_version: file.os_version.clone(),
        size: signed(disk.bytes(&parts_of(&entry))),
        graph_driver: Some(DriverData { name: driver, data: Some(data) }),
        root_fs: RootFs {
            kind: "layers".to_owned(),
            layers: entry.record.layers.iter().map(|l| l.diff_id.to_string()).collect(),
        },
        metadata: last_tagged
            .map(|last_tag_time| ImageMetadata { last_tag_time })
            .unwrap_or_default(),
        descriptor: match platform {
            None => manifests::descriptor(&entry, target),
            Some(_) => manifests::manifest_descriptor(&entry, target),
        },
        manifests: match query.manifests {
            true => {
                let users = users(store, cx, &index, target).await;
                manifests::summaries(store, &index, &disk, &entry, &users, false)
            }
            false => Vec::new(),
        },
        identity: target.and_then(|target| manifests::identity_of(store, &target.digest)),
    })
}

/// Containers by image; those of a source that does not answer are left out.
async fn users(
    store: &Store,
    cx: &Ctx,
    index: &Index,
    target: Option<&Arc<TargetRecord>>,
) -> Users {
    let mut users = Users::new();
    for entry in target.into_iter().flat_map(|target| index.images_of(target)) {
        let of_image = store.users(cx, &entry.id).await.unwrap_or_default();
        let ids = of_image.into_iter().map(|user| user.container).collect();
        users.insert(entry.id.clone(), ids);
    }
    users
}

/// The steps that made an image, last first.
///
/// # Errors
///
/// Those of [`Index::resolve`]; `Internal` for a history with more steps than layers.
pub fn history(
    index: &Index,
    name: &str,
    platform: Option<&Platform>,
) -> Result<Vec<ImageHistoryItem>> {
    let entry = index.resolve(name, platform)?;
    let mut layers = entry.record.layers.iter();
    let mut items = Vec::with_capacity(entry.file.history.len());
    for step in &entry.file.history {
        let size = if step.empty_layer {
            0
        } else {
            let missing =
                || Error::new(ErrorKind::Internal, "too many non-empty layers in History section");
            signed(layers.next().ok_or_else(missing)?.unpacked)
        };
        items.push(ImageHistoryItem {
            comment: step.comment.clone(),
            created: time_of(step.created.as_deref()).map_or(0, |time| time.as_second()),
            created_by: step.created_by.clone(),
            id: "<missing>".to_owned(),
            size,
            tags: None,
        });
    }
    items.reverse();
    name_steps(index, entry, &mut items);
    Ok(items)
}

/// Ids and tags, as far as the images of the steps are here.
fn name_steps(index: &Index, top: &Entry, items: &mut [ImageHistoryItem]) {
    let mut id = Some(top.id.clone());
    for item in items {
        let Some(known) = id else { return };
        let tags = index.tags(&known);
        item.tags = (!tags.is_empty()).then_some(tags);
        item.id = known.to_string();
        id = index.get(&known).and_then(|entry| entry.record.parent.clone());
    }
}
