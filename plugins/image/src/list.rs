//! `GET /images/json`, and the images of `/system/df`.

use std::collections::{BTreeMap, BTreeSet};

use gantry_api::image::ImageSummary;
use gantry_api::{FilterError, Filters};
use gantry_sdk::id::Digest;
use gantry_sdk::reference::Reference;
use gantry_sdk::{Ctx, Error, Result};
use jiff::Timestamp;

use crate::disk::{Disk, Part, parts_of_line, uses};
use crate::index::{Entry, Index};
use crate::manifests::{self, Users};
use crate::record::signed;
use crate::store::Store;

/// The filters of the list.
pub const FILTERS: &[&str] = &["dangling", "label", "before", "since", "reference", "until"];

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Also images that others were built on.
    pub all: bool,
    /// Restrictions by [`FILTERS`].
    pub filters: Filters,
    /// Whether to compute what images share.
    pub shared_size: bool,
    /// Whether to show what is in their indexes.
    pub manifests: bool,
    /// Whether to show with that where images are known from.
    pub identity: bool,
}

/// A filter's error as an answer.
pub fn invalid(error: FilterError) -> Error {
    Error::invalid(error.to_string())
}

/// The images that `query` asks for, newest first: one line for an image and for those that only
/// its index names.
///
/// # Errors
///
/// `InvalidArgument` and `NotFound` for values of filters; those of the blob store.
pub async fn list(store: &Store, cx: &Ctx, query: &Query) -> Result<Vec<ImageSummary>> {
    let index = store.index();
    let disk = Disk::look(store, cx).await?;
    lines(store, cx, query, &index, &disk).await
}

/// As [`list`], of a view that the caller has.
///
/// # Errors
///
/// `InvalidArgument` and `NotFound` for values of filters.
pub async fn lines(
    store: &Store,
    cx: &Ctx,
    query: &Query,
    index: &Index,
    disk: &Disk,
) -> Result<Vec<ImageSummary>> {
    let select = Selection::new(index, query)?;
    let mut found = Vec::new();
    let all: BTreeMap<&Digest, BTreeSet<Part>> =
        index.lines().map(|entry| (&entry.id, parts_of_line(index, &entry.id))).collect();
    let shared = query.shared_size.then(|| uses(all.values()));
    for entry in index.lines() {
        let Some(mut summary) = select.summary(entry) else { continue };
        let (users, count) = users_of_line(store, cx, index, &entry.id).await;
        summary.containers = count;
        let parts = all.get(&entry.id).cloned().unwrap_or_default();
        summary.size = signed(disk.bytes(&parts));
        if let Some(uses) = &shared {
            let own = |part: &Part| uses.get(part).is_none_or(|n| *n < 2);
            let shared = parts.into_iter().filter(|part| !own(part)).collect();
            summary.shared_size = signed(disk.bytes(&shared));
        }
        let target = index.target_of(&entry.id);
        summary.descriptor = manifests::descriptor(entry, target);
        if query.manifests {
            let identity = query.identity;
            summary.manifests = manifests::summaries(store, index, disk, entry, &users, identity);
        }
        found.push(summary);
    }
    found.sort_by_key(|summary| std::cmp::Reverse(summary.created));
    Ok(found)
}

/// The containers that use the images of a line, and how many they are; -1 if a source does not
/// answer, which costs a figure and not the list.
async fn users_of_line(store: &Store, cx: &Ctx, index: &Index, id: &Digest) -> (Users, i64) {
    let (mut users, mut count) = (Users::new(), 0);
    for entry in index.line(id) {
        match store.users(cx, &entry.id).await {
            Ok(of_image) => {
                count += of_image.len() as u64;
                let ids = of_image.into_iter().map(|user| user.container).collect();
                users.insert(entry.id.clone(), ids);
            }
            Err(_) => return (users, -1),
        }
    }
    (users, signed(count))
}

/// The time that an `until` filter means.
///
/// # Errors
///
/// `InvalidArgument`.
pub fn until(text: &str) -> Result<Timestamp> {
    let at = gantry_sdk::time::query("until", text)?;
    Timestamp::try_from(at).map_err(|e| Error::invalid("invalid value for \"until\"").caused_by(e))
}

/// Filters, parsed.
struct Selection<'a> {
    index: &'a Index,
    query: &'a Query,
    dangling: Option<bool>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

impl<'a> Selection<'a> {
    fn new(index: &'a Index, query: &'a Query) -> Result<Self> {
        let filters = &query.filters;
        let dangling = filters.flag("dangling").map_err(invalid)?;
        let (mut before, mut since) = (None::<Timestamp>, None::<Timestamp>);
        for value in filters.get("before") {
            let created = index.resolve(value, None)?.created;
            before = before.into_iter().chain(created).min();
        }
        for value in filters.get("until") {
            before = before.into_iter().chain([until(value)?]).min();
        }
        for value in filters.get("since") {
            let created = index.resolve(value, None)?.created;
            since = since.into_iter().chain(created).max();
        }
        Ok(Self { index, query, dangling, before, since })
    }

    /// The image's line, if it is selected.
    fn summary(&self, entry: &Entry) -> Option<ImageSummary> {
        let filters = &self.query.filters;
        let in_time = self.before.is_none_or(|before| entry.created.is_some_and(|c| c < before))
            && self.since.is_none_or(|since| entry.created.is_some_and(|c| c > since));
        let labels = &entry.file.config.labels;
        if !in_time || !filters.matches_labels("label", labels) {
            return None;
        }
        let by_reference = filters.contains("reference");
        let shown = |reference: &&Reference| !by_reference || self.matches(reference);
        let references: Vec<&Reference> = self.index.references(&entry.id).filter(shown).collect();
        let names = |digested| {
            let of_kind = references.iter().filter(move |r| r.is_digested() == digested);
            of_kind.map(|r| r.familiar()).collect::<Vec<_>>()
        };
        let (tags, digests) = (names(false), names(true));
        if references.is_empty() {
            let inner = self.index.has_children(&entry.id);
            let hidden = inner && !self.query.all;
            if hidden || self.dangling == Some(false) || by_reference {
                return None;
            }
        }
        let dangling_only = self.dangling == Some(true);
        if dangling_only && (!tags.is_empty() || self.index.has_children(&entry.id)) {
            return None;
        }
        Some(ImageSummary {
            containers: -1,
            created: entry.created_seconds(),
            id: entry.id.to_string(),
            labels: (!labels.is_empty()).then(|| labels.clone()),
            parent_id: entry.record.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
            repo_digests: digests,
            repo_tags: tags,
            shared_size: -1,
            size: entry.record.size(),
            ..ImageSummary::default()
        })
    }

    /// Patterns may be written for any form of a name.
    fn matches(&self, reference: &Reference) -> bool {
        let forms = [
            reference.familiar(),
            reference.familiar_name(),
            reference.to_string(),
            reference.name(),
        ];
        forms.iter().any(|form| self.query.filters.matches_glob("reference", form))
    }
}
