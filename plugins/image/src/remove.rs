//! `DELETE /images/{name}` and `POST /images/prune`.
//!
//! | | by name | by id |
//! |---|---|---|
//! | several names | only that name goes | refused unless forced |
//! | one name, a container uses it | refused unless forced, then only the name goes | as below |
//! | a stopped container uses it | – | refused unless forced |
//! | a running container uses it, or an image was built on it | – | refused |
//!
//! An image that is forced away from a stopped container is gone for everybody, but its record
//! stays as long as the container does: so do its layers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use gantry_api::Filters;
use gantry_api::image::{ImageDeleteResponse, ImagesPruneReport};
use gantry_sdk::events::Event;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::ImageUser;
use gantry_sdk::kinds::metadata::Change;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use jiff::Timestamp;

use crate::index::{Entry, Index};
use crate::list::invalid;
use crate::platform::Platform;
use crate::record::IMAGES;
use crate::store::{Store, delete_reference, put_image};
use gantry_sdk::reference::Reference;

/// The filters of a prune.
pub const PRUNE_FILTERS: &[&str] = &["dangling", "label", "label!", "until"];

/// How to remove.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Also what has several names or stopped containers.
    pub force: bool,
    /// Also the images it was built on, if nothing else needs them.
    pub parents: bool,
}

/// What was done, as clients show it.
type Done = Vec<ImageDeleteResponse>;

/// Removes what `name` means, then the content that nothing needs any more.
///
/// # Errors
///
/// `NotFound`; `Conflict` with what stands against it.
pub async fn remove(
    store: &Store,
    cx: &Ctx,
    name: &str,
    platform: Option<&Platform>,
    options: Options,
) -> Result<Done> {
    let done = remove_records(store, cx, name, platform, options).await;
    store.litter(cx).await;
    done
}

async fn remove_records(
    store: &Store,
    cx: &Ctx,
    name: &str,
    platform: Option<&Platform>,
    options: Options,
) -> Result<Done> {
    let index = store.index();
    let entry = index.resolve(name, platform)?.clone();
    let references: Vec<Reference> = index.references(&entry.id).cloned().collect();
    let users = store.users(cx, &entry.id).await?;
    let mut done = Done::new();

    let by_name = !is_id_prefix(&entry.id, name);
    if by_name {
        if !options.force
            && is_single(&references)
            && let Some(user) = users.first()
        {
            return Err(Error::conflict(format!(
                "conflict: unable to remove repository reference {name:?} (must force) - container \
                 {} is using its referenced image {}",
                short(&user.container),
                short(entry.id.hex())
            )));
        }
        let removed = Reference::parse(name)?.stored();
        let gone = with_digests(&removed, &references);
        let left = references.iter().any(|r| !gone.contains(r));
        untag(store, cx, &entry, &gone, &mut done).await?;
        if left {
            return Ok(done);
        }
    } else if is_single(&references) {
        let active = Conflicts { references: false, stopped: !options.force };
        if let Some(conflict) = conflict(&index, &entry, &users, active) {
            return Err(conflict.into());
        }
        untag(store, cx, &entry, &references, &mut done).await?;
    }
    remove_lineage(store, cx, entry.id.clone(), options, by_name, &mut done).await?;
    Ok(done)
}

/// Whether `text` was meant as an id.
fn is_id_prefix(id: &Digest, text: &str) -> bool {
    id.as_str().starts_with(text) || id.hex().starts_with(text)
}

/// Whether all references are of one repository, with at most one tag.
fn is_single(references: &[Reference]) -> bool {
    let tags = references.iter().filter(|r| !r.is_digested()).count();
    let names: BTreeSet<String> = references.iter().map(Reference::name).collect();
    tags <= 1 && names.len() == 1
}

/// `removed`, and with the last tag of a repository its digests.
fn with_digests(removed: &Reference, references: &[Reference]) -> Vec<Reference> {
    let mut gone = vec![removed.clone()];
    let same = |r: &&Reference| r.name() == removed.name() && *r != removed;
    let tagged = references.iter().filter(same).any(|r| !r.is_digested());
    if !removed.is_digested() && !tagged {
        gone.extend(references.iter().filter(same).cloned());
    }
    gone
}

/// Removes references, in one commit.
async fn untag(
    store: &Store,
    cx: &Ctx,
    entry: &Entry,
    references: &[Reference],
    done: &mut Done,
) -> Result<()> {
    if references.is_empty() {
        return Ok(());
    }
    store
        .change(cx, |index| {
            for reference in references {
                // Somebody else may have moved the name meanwhile.
                if index.named(reference) != Some(&entry.id) {
                    return Err(Error::not_found("reference does not exist"));
                }
                index.untag(reference);
            }
            Ok((references.iter().map(delete_reference).collect(), ()))
        })
        .await?;
    for reference in references {
        store.report("untag", entry, entry.id.to_string());
        done.push(ImageDeleteResponse { untagged: reference.familiar(), ..Default::default() });
    }
    Ok(())
}

/// Which soft conflicts count.
#[derive(Clone, Copy)]
struct Conflicts {
    references: bool,
    stopped: bool,
}

/// What stands against the removal of an image.
struct Conflict {
    id: String,
    hard: bool,
    used: bool,
    why: String,
}

impl From<Conflict> for Error {
    fn from(conflict: Conflict) -> Self {
        let force = if conflict.hard { "cannot be forced" } else { "must be forced" };
        let Conflict { id, why, .. } = conflict;
        Self::conflict(format!("conflict: unable to delete {id} ({force}) - {why}"))
    }
}

fn conflict(
    index: &Index,
    entry: &Entry,
    users: &[ImageUser],
    which: Conflicts,
) -> Option<Conflict> {
    let of = |hard, used, why: String| {
        Some(Conflict { id: short(entry.id.hex()).to_owned(), hard, used, why })
    };
    if index.has_children(&entry.id) {
        return of(true, false, "image has dependent child images".to_owned());
    }
    if let Some(user) = users.iter().find(|user| user.running) {
        let container = short(&user.container);
        return of(true, true, format!("image is being used by running container {container}"));
    }
    if which.references && index.references(&entry.id).next().is_some() {
        return of(false, false, "image is referenced in multiple repositories".to_owned());
    }
    match users.iter().find(|user| which.stopped && !user.running) {
        Some(user) => {
            let container = short(&user.container);
            of(false, true, format!("image is being used by stopped container {container}"))
        }
        None => None,
    }
}

/// Removes an image, then, if asked for, those it was built on as long as nothing needs them.
/// `quiet`: a name is gone already, so a conflict ends the work without being an error, unless the
/// image is left without a name and unused.
async fn remove_lineage(
    store: &Store,
    cx: &Ctx,
    id: Digest,
    options: Options,
    mut quiet: bool,
    done: &mut Done,
) -> Result<()> {
    let mut force = options.force;
    let mut next = Some(id);
    while let Some(id) = next {
        let index = store.index();
        let Some(entry) = index.get(&id).cloned() else { return Ok(()) };
        let users = store.users(cx, &id).await?;
        let soft = Conflicts { references: !force, stopped: !force };
        if let Some(conflict) = conflict(&index, &entry, &users, soft) {
            let nameless = index.references(&id).next().is_none() && !index.has_children(&id);
            if quiet && (!nameless || conflict.used) {
                return Ok(());
            }
            return Err(conflict.into());
        }
        let references: Vec<Reference> = index.references(&id).cloned().collect();
        untag(store, cx, &entry, &references, done).await?;
        forget(store, cx, &entry, !users.is_empty(), done).await?;
        next = entry.record.parent.clone().filter(|_| options.parents);
        (force, quiet) = (false, true);
    }
    Ok(())
}

/// Removes an image's record, or hides it while containers use the image.
async fn forget(store: &Store, cx: &Ctx, entry: &Entry, used: bool, done: &mut Done) -> Result<()> {
    let id = &entry.id;
    let freed = store
        .change(cx, |index| {
            if index.references(id).next().is_some() {
                return Err(Error::conflict(format!("image {id} has been tagged meanwhile")));
            }
            if used {
                let mut hidden = entry.clone();
                hidden.record.retired = true;
                let change = put_image(&hidden)?;
                index.put(hidden);
                return Ok((vec![change], Vec::new()));
            }
            index.remove(id);
            let kept: BTreeSet<Digest> = index.chains().iter().flat_map(|c| c.ids()).collect();
            let ids = entry.record.chain().ids().into_iter().rev();
            let freed = ids.filter(|chain| !kept.contains(chain)).collect();
            Ok((vec![Change::delete(IMAGES, id.as_str())], freed))
        })
        .await?;
    store.events.publish(Event::now("image", "delete", id.as_str()).with("name", id.as_str()));
    for deleted in std::iter::once(id.clone()).chain(freed) {
        done.push(ImageDeleteResponse { deleted: deleted.to_string(), ..Default::default() });
    }
    Ok(())
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Removes the images that nothing needs.
///
/// # Errors
///
/// `Conflict` while another prune runs; `InvalidArgument` for values of filters.
pub async fn prune(store: &Store, cx: &Ctx, filters: &Filters) -> Result<ImagesPruneReport> {
    if store.pruning.swap(true, Ordering::SeqCst) {
        return Err(Error::conflict("a prune operation is already running"));
    }
    let _running = Running(store);
    let dangling = filters.flag("dangling").map_err(invalid)?.unwrap_or(true);
    let until = until(filters)?;
    let before = store.index();
    let sizes = layer_sizes(&before);
    let mut deleted = Done::new();
    for entry in before.images() {
        if cx.cancelled.is_cancelled() {
            break;
        }
        let old = until.is_none_or(|until| entry.created.is_some_and(|c| c <= until));
        let labels = &entry.file.config.labels;
        let selected =
            filters.matches_labels("label", labels) && !filters.excludes_labels("label!", labels);
        if old && selected {
            deleted.extend(prune_one(store, cx, entry, dangling).await);
        }
    }
    store.litter(cx).await;
    let freed = deleted.iter().filter_map(|d| sizes.get(d.deleted.as_str()));
    let space_reclaimed = freed.sum();
    store.events.publish(
        Event::now("image", "prune", "").with("reclaimed", u64::to_string(&space_reclaimed)),
    );
    let images_deleted = (!deleted.is_empty()).then_some(deleted);
    Ok(ImagesPruneReport { images_deleted, space_reclaimed })
}

/// Marks the prune as ended, also if its future is dropped.
struct Running<'a>(&'a Store);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.pruning.store(false, Ordering::SeqCst);
    }
}

fn until(filters: &Filters) -> Result<Option<Timestamp>> {
    let values: Vec<&str> = filters.get("until").collect();
    match values.as_slice() {
        [] => Ok(None),
        [value] => crate::list::until(value).map(Some),
        _ => Err(Error::invalid("more than one until filter specified")),
    }
}

/// What each stack of layers adds, by its id.
fn layer_sizes(index: &Index) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    for entry in index.images() {
        let ids = entry.record.chain().ids().into_iter().map(String::from);
        sizes.extend(ids.zip(entry.record.layers.iter().map(|layer| layer.unpacked)));
    }
    sizes
}

/// What could be removed of one image; what stands against it is no error of a prune.
async fn prune_one(store: &Store, cx: &Ctx, entry: &Entry, dangling: bool) -> Done {
    let index = store.index();
    let references: Vec<&Reference> = index.references(&entry.id).collect();
    if references.is_empty() && index.has_children(&entry.id) {
        return Done::new();
    }
    let tagged = references.iter().any(|r| r.tag().is_some());
    let names: Vec<String> = if references.is_empty() {
        vec![entry.id.hex().to_owned()]
    } else if dangling && tagged {
        Vec::new()
    } else {
        references.iter().map(ToString::to_string).collect()
    };
    let options = Options { force: false, parents: true };
    let mut deleted = Done::new();
    for name in names {
        match remove_records(store, cx, &name, None, options).await {
            Ok(done) => deleted.extend(done),
            // In use, or gone with another name.
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
            Err(error) => {
                tracing::warn!(image = name, error = %error.chain(), "Cannot prune an image.");
            }
        }
    }
    deleted
}
