//! `DELETE /images/{name}` and `POST /images/prune`.
//!
//! | | by name | by id |
//! |---|---|---|
//! | several names | only that name goes | refused unless forced |
//! | one name, a container uses it | refused unless forced, then only the name goes | as below |
//! | a stopped container uses it | – | refused unless forced |
//! | a running container uses it, or an image was built on it | – | refused |
//!
//! An image goes together with those that its line of the list stands for: the images for other
//! platforms in its index. With platforms, only these go, from every index that has them.
//!
//! An image that is forced away from a stopped container is gone for everybody, but its record
//! stays as long as the container does: so do its layers.
//!
//! What is answered is that records are gone. Content follows in the background.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gantry_api::Filters;
use gantry_api::image::{ImageDeleteResponse, ImagesPruneReport};
use gantry_sdk::events::Event;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::ImageUser;
use gantry_sdk::kinds::metadata::Change;
use gantry_sdk::reference::{AnyReference, Reference};
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use jiff::Timestamp;

use crate::disk::{Disk, parts_of_all};
use crate::index::{Entry, Index};
use crate::list::invalid;
use crate::platform::Platform;
use crate::record::{IMAGES, TargetRecord};
use crate::store::{Store, delete_reference, put_image};

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

/// Removes what `name` means, or of that what is for `platforms`. Content that nothing needs any
/// more is removed afterwards, in the background.
///
/// # Errors
///
/// `NotFound`; `Conflict` with what stands against it; `InvalidArgument` for platforms without
/// force.
pub async fn remove(
    store: &Store,
    cx: &Ctx,
    name: &str,
    platforms: &[Platform],
    options: Options,
) -> Result<Done> {
    let done = if platforms.is_empty() {
        remove_records(store, cx, name, options).await
    } else {
        remove_platforms(store, cx, name, platforms, options).await
    };
    store.mark_litter();
    done
}

async fn remove_records(store: &Store, cx: &Ctx, name: &str, options: Options) -> Result<Done> {
    let index = store.index();
    let entry = index.find(name)?.0.clone();
    let references: Vec<Reference> = index.references(&entry.id).cloned().collect();
    let users = users_of_line(store, cx, &index, &entry.id).await?;
    let mut done = Done::new();

    let removed = match AnyReference::parse(name)? {
        _ if is_id_prefix(&entry.id, name) => None,
        AnyReference::Named(reference) => Some(reference.stored()),
        AnyReference::Digest(_) => None,
    };
    let removed = removed.filter(|reference| index.meaning(reference).is_some());
    if let Some(removed) = &removed {
        if !options.force
            && is_single(&references)
            && let Some(user) = users.iter().flat_map(|(_, users)| users).next()
        {
            return Err(Error::conflict(format!(
                "conflict: unable to remove repository reference {name:?} (must force) - container \
                 {} is using its referenced image {}",
                short(&user.container),
                short(entry.id.hex())
            )));
        }
        let gone = with_digests(removed, &references);
        let left = references.iter().any(|r| !gone.contains(r));
        let targets: Vec<Arc<TargetRecord>> = index.line_targets(&entry.id).cloned().collect();
        untag(store, cx, &entry, &gone, &mut done).await?;
        if left {
            drop_orphans(store, cx, &targets, &mut done).await?;
            return Ok(done);
        }
    } else if is_single(&references) {
        let active = Conflicts { references: false, stopped: !options.force };
        if let Some(conflict) = conflict(&index, &entry, &users, active) {
            return Err(conflict.into());
        }
        untag(store, cx, &entry, &references, &mut done).await?;
    }
    remove_lineage(store, cx, entry.id.clone(), options, removed.is_some(), &mut done).await?;
    Ok(done)
}

/// Images, each with who uses it.
type Users = Vec<(Arc<Entry>, Vec<ImageUser>)>;

/// Who uses the images that the line of one stands for.
async fn users_of_line(store: &Store, cx: &Ctx, index: &Index, id: &Digest) -> Result<Users> {
    let mut users = Users::new();
    for entry in index.line(id) {
        users.push((entry.clone(), store.users(cx, &entry.id).await?));
    }
    Ok(users)
}

/// Removes the images that only removed names led to: those for other platforms in indexes that
/// have no name any more. What is used stays, without a name.
async fn drop_orphans(
    store: &Store,
    cx: &Ctx,
    targets: &[Arc<TargetRecord>],
    done: &mut Done,
) -> Result<()> {
    let index = store.index();
    for target in targets.iter().filter(|target| !index.is_named(&target.digest)) {
        for entry in index.images_of(target) {
            let needed = index.references(&entry.id).next().is_some()
                || index.is_covered(&entry.id)
                || index.has_children(&entry.id);
            if !needed && store.users(cx, &entry.id).await?.is_empty() {
                forget(store, cx, &[(entry.clone(), Vec::new())], done).await?;
            }
        }
    }
    Ok(())
}

/// Removes the images for `platforms` from wherever they are.
async fn remove_platforms(
    store: &Store,
    cx: &Ctx,
    name: &str,
    platforms: &[Platform],
    options: Options,
) -> Result<Done> {
    if !options.force {
        return Err(Error::invalid(
            "Content will be removed from all images referencing this variant. Use --force to \
             force delete.",
        ));
    }
    let mut done = Done::new();
    // What the name means is asked once: with its first image it may lose the name itself.
    let index = store.index();
    let (entry, target) = index.find(name)?;
    for platform in platforms {
        let failed = |error: Error| {
            error.context(format!("failed to delete platform {platform} for image {name}"))
        };
        let same = |entry: &&Arc<Entry>| platform.distance(&entry.platform()) == Some(0);
        let found = match target {
            Some(target) => index.images_of(target).find(same),
            None => Some(entry).filter(same),
        };
        let missing = || failed(Error::not_found("there is no image for it"));
        let found = found.ok_or_else(missing)?;
        let users = vec![(found.clone(), store.users(cx, &found.id).await?)];
        let hard = Conflicts { references: false, stopped: false };
        if let Some(conflict) = conflict(&index, found, &users, hard) {
            return Err(failed(conflict.into()));
        }
        let manifest = target
            .and_then(|t| t.manifests.iter().find(|m| m.image.as_ref() == Some(&found.id)))
            .map_or(&found.id, |manifest| &manifest.digest);
        forget_everywhere(store, cx, found, !users[0].1.is_empty(), &mut done).await?;
        done.push(ImageDeleteResponse { deleted: manifest.to_string(), ..Default::default() });
    }
    Ok(done)
}

/// Removes an image and the names that mean nothing without it.
async fn forget_everywhere(
    store: &Store,
    cx: &Ctx,
    entry: &Arc<Entry>,
    used: bool,
    done: &mut Done,
) -> Result<()> {
    let dead = store
        .change(cx, |index| {
            let mut changes = vec![take_out(index, entry, used)?];
            let dead = index.dead_references();
            for reference in &dead {
                index.untag(reference);
                changes.push(delete_reference(reference));
            }
            Ok((changes, dead))
        })
        .await?;
    for reference in dead {
        store.report("untag", entry, entry.id.to_string());
        done.push(ImageDeleteResponse { untagged: reference.familiar(), ..Default::default() });
    }
    let id = entry.id.as_str();
    store.events.publish(Event::now("image", "delete", id).with("name", id));
    Ok(())
}

/// Takes an image out of the view: its record goes, or is hidden while containers use the image.
fn take_out(index: &mut Index, entry: &Arc<Entry>, used: bool) -> Result<Change> {
    if used {
        let mut hidden = Entry::clone(entry);
        hidden.record.retired = true;
        let change = put_image(&hidden)?;
        index.put(hidden);
        index.leave_targets(&entry.id);
        return Ok(change);
    }
    index.remove(&entry.id);
    Ok(Change::delete(IMAGES, entry.id.as_str()))
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

fn conflict(index: &Index, entry: &Entry, users: &Users, which: Conflicts) -> Option<Conflict> {
    let all = || users.iter().flat_map(|(_, users)| users);
    let of = |hard, used, why: String| {
        Some(Conflict { id: short(entry.id.hex()).to_owned(), hard, used, why })
    };
    if users.iter().any(|(entry, _)| index.has_children(&entry.id)) {
        return of(true, false, "image has dependent child images".to_owned());
    }
    if let Some(user) = all().find(|user| user.running) {
        let container = short(&user.container);
        return of(true, true, format!("image is being used by running container {container}"));
    }
    if which.references && index.references(&entry.id).next().is_some() {
        return of(false, false, "image is referenced in multiple repositories".to_owned());
    }
    match all().find(|user| which.stopped && !user.running) {
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
        let users = users_of_line(store, cx, &index, &id).await?;
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
        forget(store, cx, &users, done).await?;
        next = entry.record.parent.clone().filter(|_| options.parents);
        (force, quiet) = (false, true);
    }
    Ok(())
}

/// Removes the records of images, or hides them while containers use the images.
async fn forget(
    store: &Store,
    cx: &Ctx,
    images: &[(Arc<Entry>, Vec<ImageUser>)],
    done: &mut Done,
) -> Result<()> {
    let freed = store
        .change(cx, |index| {
            let mut changes = Vec::new();
            for (entry, users) in images {
                let id = &entry.id;
                if index.references(id).next().is_some() {
                    return Err(Error::conflict(format!("image {id} has been tagged meanwhile")));
                }
                changes.push(take_out(index, entry, !users.is_empty())?);
            }
            let kept: BTreeSet<Digest> = index.chains().iter().flat_map(|c| c.ids()).collect();
            let mut freed: Vec<Digest> = Vec::new();
            for chain in images.iter().flat_map(|(e, _)| e.record.chain().ids().into_iter().rev()) {
                if !kept.contains(&chain) && !freed.contains(&chain) {
                    freed.push(chain);
                }
            }
            Ok((changes, freed))
        })
        .await?;
    for (entry, _) in images {
        let id = entry.id.as_str();
        store.events.publish(Event::now("image", "delete", id).with("name", id));
    }
    let ids = images.iter().map(|(entry, _)| entry.id.clone());
    for deleted in ids.chain(freed) {
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
    let disk = Disk::look(store, cx).await?;
    let mut deleted = Done::new();
    for entry in before.lines() {
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
    store.mark_litter();
    let (needed, left) = (parts_of_all(&before), parts_of_all(&store.index()));
    let space_reclaimed = disk.bytes(&needed.difference(&left).cloned().collect());
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
        match remove_records(store, cx, &name, options).await {
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
