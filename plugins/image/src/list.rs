//! `GET /images/json`, and the images of `/system/df`.

use std::collections::BTreeMap;

use gantry_api::image::ImageSummary;
use gantry_api::{FilterError, Filters};
use gantry_sdk::id::Digest;
use gantry_sdk::{Ctx, Error, Result};
use jiff::Timestamp;

use crate::index::{Entry, Index};
use crate::record::signed;
use crate::store::Store;
use gantry_sdk::reference::Reference;

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
}

/// A filter's error as an answer.
pub fn invalid(error: FilterError) -> Error {
    Error::invalid(error.to_string())
}

/// The images that `query` asks for, newest first.
///
/// # Errors
///
/// `InvalidArgument` and `NotFound` for values of filters.
pub async fn list(store: &Store, cx: &Ctx, query: &Query) -> Result<Vec<ImageSummary>> {
    let index = store.index();
    let select = Selection::new(&index, query)?;
    let shared = query.shared_size.then(|| layer_uses(&index));
    let mut found = Vec::new();
    for entry in index.images() {
        let Some(mut summary) = select.summary(entry) else { continue };
        // A source that does not answer costs a figure, not the list.
        let users = store.users(cx, &entry.id).await;
        summary.containers = users.map_or(-1, |users| signed(users.len() as u64));
        if let Some(uses) = &shared {
            summary.shared_size = shared_bytes(entry, uses);
        }
        found.push(summary);
    }
    found.sort_by_key(|summary| std::cmp::Reverse(summary.created));
    Ok(found)
}

/// How many images have a layer on the same layers, by chain id.
fn layer_uses(index: &Index) -> BTreeMap<Digest, usize> {
    let mut uses = BTreeMap::new();
    for entry in index.images() {
        for id in entry.record.chain().ids() {
            *uses.entry(id).or_default() += 1;
        }
    }
    uses
}

fn shared_bytes(entry: &Entry, uses: &BTreeMap<Digest, usize>) -> i64 {
    let ids = entry.record.chain().ids();
    let shared = ids.iter().zip(&entry.record.layers).filter(|(id, _)| uses.get(id) > Some(&1));
    signed(shared.map(|(_, layer)| layer.unpacked).sum())
}

/// Bytes of all layers of images, unpacked, each counted once.
pub fn layers_size(index: &Index) -> i64 {
    let mut sizes = BTreeMap::new();
    for entry in index.images() {
        let layers = entry.record.layers.iter().map(|layer| layer.unpacked);
        sizes.extend(entry.record.chain().ids().into_iter().zip(layers));
    }
    signed(sizes.values().sum())
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
