//! All images, references and what they point at, in memory: what lists, inspection and lookups
//! read.
//!
//! # How a reference becomes an image
//!
//! A reference points at a *target*, an index or a manifest, of which some images are here. Which
//! of them it means depends on who asks: the one for the platform asked for, or else the best for
//! this host, or else the first that is here. The answer for nobody in particular is the
//! reference's *default*; it is worked out again after every change ([`Index::settle`]).
//!
//! An image that is not the default of any reference is still part of a target; it is shown on its
//! own only if no line of a list stands for it ([`Index::is_covered`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::Image;
use gantry_sdk::kinds::layers::Chain;
use gantry_sdk::{Error, Result};
use jiff::Timestamp;

use crate::config::ImageFile;
use crate::platform::Platform;
use crate::record::{ImageRecord, LayerRecord, TargetRecord};
use gantry_sdk::reference::{AnyReference, Reference};

/// An image with its configuration.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Digest of the configuration.
    pub id: Digest,
    /// What is stored.
    pub record: ImageRecord,
    /// The configuration.
    pub file: ImageFile,
    /// When it was made.
    pub created: Option<Timestamp>,
}

impl Entry {
    /// From its parts.
    pub fn new(id: Digest, record: ImageRecord, file: ImageFile) -> Self {
        let created = file.created();
        Self { id, record, file, created }
    }

    /// Seconds since 1970; 0 if unknown.
    pub fn created_seconds(&self) -> i64 {
        self.created.map_or(0, Timestamp::as_second)
    }

    /// What it runs on.
    pub fn platform(&self) -> Platform {
        Platform::new(self.file.os(), &self.file.architecture, &self.file.variant)
    }
}

/// A reference and what it means.
#[derive(Clone, Debug)]
pub struct Named {
    /// In stored form.
    pub reference: Reference,
    /// What it points at.
    pub target: Option<Digest>,
    /// The image of it that is meant when nobody asks for a platform.
    pub image: Digest,
}

/// A consistent view; cheap to clone, never changed in place once published.
#[derive(Clone, Debug, Default)]
pub struct Index {
    images: BTreeMap<Digest, Arc<Entry>>,
    /// By canonical form.
    references: BTreeMap<String, Named>,
    /// The same by default image; in order of the canonical form.
    by_image: BTreeMap<Digest, BTreeMap<String, Reference>>,
    targets: BTreeMap<Digest, Arc<TargetRecord>>,
    /// The targets that an image is in, as of the last [`settle`](Self::settle).
    memberships: BTreeMap<Digest, Vec<Digest>>,
    /// The targets that references point at, likewise.
    pointed_at: BTreeSet<Digest>,
    /// Targets that changed since the last [`settle`](Self::settle).
    touched: BTreeSet<Digest>,
    /// Images whose configuration cannot be read, by id: not shown, and nothing of theirs is
    /// removed.
    pub damaged: Vec<(String, ImageRecord)>,
}

/// Targets to write and to delete after a change.
#[derive(Debug, Default)]
pub struct Settled {
    /// New or changed ones.
    pub changed: Vec<Arc<TargetRecord>>,
    /// Those of which nothing is here any more.
    pub gone: Vec<Digest>,
}

impl Index {
    /// Adds or replaces an image.
    pub fn put(&mut self, entry: Entry) {
        self.images.insert(entry.id.clone(), Arc::new(entry));
    }

    /// Forgets an image; its references must be gone.
    pub fn remove(&mut self, id: &Digest) {
        self.images.remove(id);
        self.leave_targets(id);
    }

    /// Takes an image out of all targets: nobody may find it there any more.
    pub fn leave_targets(&mut self, id: &Digest) {
        for (digest, target) in &mut self.targets {
            if !holds(target, id) {
                continue;
            }
            let mut left = Vec::new();
            let target = Arc::make_mut(target);
            for manifest in target.manifests.iter_mut().filter(|m| m.image.as_ref() == Some(id)) {
                manifest.forget();
                left.push(manifest.digest.clone());
            }
            // Statements about what is gone go with it.
            for manifest in &mut target.manifests {
                if manifest.about.as_ref().is_some_and(|about| left.contains(about)) {
                    manifest.forget();
                }
            }
            self.touched.insert(digest.clone());
        }
    }

    /// Adds or replaces a target.
    pub fn put_target(&mut self, target: TargetRecord) {
        self.touched.insert(target.digest.clone());
        self.targets.insert(target.digest.clone(), Arc::new(target));
    }

    /// The target with that digest.
    pub fn target(&self, digest: &Digest) -> Option<&Arc<TargetRecord>> {
        self.targets.get(digest)
    }

    /// All targets, in digest order.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<TargetRecord>> {
        self.targets.values()
    }

    /// Lets `reference` point at `target`, and name `image` if there is none; returns what it was
    /// before.
    pub fn tag(
        &mut self,
        reference: &Reference,
        target: Option<&Digest>,
        image: &Digest,
    ) -> Option<Named> {
        let before = self.untag(reference);
        let key = reference.to_string();
        let of_image = self.by_image.entry(image.clone()).or_default();
        of_image.insert(key.clone(), reference.clone());
        let named =
            Named { reference: reference.clone(), target: target.cloned(), image: image.clone() };
        self.references.insert(key, named);
        before
    }

    /// Removes a reference; returns what it was.
    pub fn untag(&mut self, reference: &Reference) -> Option<Named> {
        let key = reference.to_string();
        let named = self.references.remove(&key)?;
        if let Some(of_image) = self.by_image.get_mut(&named.image) {
            of_image.remove(&key);
            if of_image.is_empty() {
                self.by_image.remove(&named.image);
            }
        }
        Some(named)
    }

    /// Works out again what references mean, and which targets are left; to be called after
    /// changes and before the view is published. Until then questions about targets are answered
    /// as of the last time.
    pub fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        let empty: Vec<Digest> = self
            .targets
            .values()
            .filter(|target| self.images_of(target).next().is_none())
            .map(|target| target.digest.clone())
            .collect();
        for digest in empty {
            self.targets.remove(&digest);
            self.touched.remove(&digest);
            settled.gone.push(digest);
        }
        let touched = std::mem::take(&mut self.touched);
        settled.changed = touched.iter().filter_map(|d| self.targets.get(d).cloned()).collect();

        self.memberships.clear();
        for target in self.targets.values() {
            for image in target.manifests.iter().filter_map(|m| m.image.as_ref()) {
                let of_image = self.memberships.entry(image.clone()).or_default();
                if of_image.last() != Some(&target.digest) {
                    of_image.push(target.digest.clone());
                }
            }
        }
        self.pointed_at = self.references.values().filter_map(|n| n.target.clone()).collect();

        let mut references = std::mem::take(&mut self.references);
        self.by_image.clear();
        for (key, named) in &mut references {
            if let Some(target) = named.target.as_ref().and_then(|t| self.targets.get(t))
                && let Some(best) = self.best_of(target, None)
            {
                named.image = best.id.clone();
            }
            let of_image = self.by_image.entry(named.image.clone()).or_default();
            of_image.insert(key.clone(), named.reference.clone());
        }
        self.references = references;
        settled
    }

    /// The images of a target that are here, in its order.
    pub fn images_of<'a, 'b>(
        &'a self,
        target: &'b TargetRecord,
    ) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a, 'b> {
        target.manifests.iter().filter_map(|m| m.image.as_ref()).filter_map(|id| self.get(id))
    }

    /// The image of a target for `platform`, or for nobody in particular.
    pub fn best_of(
        &self,
        target: &TargetRecord,
        platform: Option<&Platform>,
    ) -> Option<&Arc<Entry>> {
        let host = Platform::host();
        let wanted = platform.unwrap_or(&host);
        let fitting = self.images_of(target).filter_map(|entry| {
            let distance = wanted.distance(&entry.platform())?;
            Some((distance, entry))
        });
        let best = fitting.min_by_key(|(distance, _)| *distance).map(|(_, entry)| entry);
        match (best, platform) {
            (None, None) => self.images_of(target).next(),
            (best, _) => best,
        }
    }

    /// The image `id`, unless it was removed by force.
    pub fn get(&self, id: &Digest) -> Option<&Arc<Entry>> {
        self.images.get(id).filter(|entry| !entry.record.retired)
    }

    /// All images that can be seen, in id order.
    pub fn images(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.images.values().filter(|entry| !entry.record.retired)
    }

    /// The images that lists have a line for.
    pub fn lines(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.images().filter(|entry| !self.is_covered(&entry.id))
    }

    /// The targets that an image is in.
    pub fn targets_with<'a>(
        &'a self,
        id: &Digest,
    ) -> impl Iterator<Item = &'a Arc<TargetRecord>> + use<'a> {
        let targets = self.memberships.get(id).map(Vec::as_slice).unwrap_or_default();
        targets.iter().filter_map(|digest| self.targets.get(digest))
    }

    /// Whether the line of another image stands for this one: both are of one target, which is
    /// named, or whose default image has no name either.
    pub fn is_covered(&self, id: &Digest) -> bool {
        self.references(id).next().is_none()
            && self.targets_with(id).any(|target| {
                let default = self.best_of(target, None).filter(|default| default.id != *id);
                default.is_some_and(|default| self.stands_for_all(target, &default.id))
            })
    }

    /// Whether the line of a target's default image stands for its other images too.
    fn stands_for_all(&self, target: &TargetRecord, default: &Digest) -> bool {
        self.is_named(&target.digest) || self.references(default).next().is_none()
    }

    /// The targets that the line of an image stands for.
    pub fn line_targets<'a>(
        &'a self,
        id: &'a Digest,
    ) -> impl Iterator<Item = &'a Arc<TargetRecord>> + use<'a> {
        self.targets_with(id).filter(move |target| {
            self.best_of(target, None).is_some_and(|default| default.id == *id)
                && self.stands_for_all(target, id)
        })
    }

    /// The image `id`, and those that its line stands for.
    pub fn line(&self, id: &Digest) -> Vec<&Arc<Entry>> {
        let mut line: Vec<&Arc<Entry>> = self.get(id).into_iter().collect();
        for target in self.line_targets(id) {
            for image in self.images_of(target) {
                let nameless = self.references(&image.id).next().is_none();
                if nameless && !line.iter().any(|known| known.id == image.id) {
                    line.push(image);
                }
            }
        }
        line
    }

    /// Whether a reference points at that target.
    pub fn is_named(&self, target: &Digest) -> bool {
        self.pointed_at.contains(target)
    }

    /// References that mean nothing any more: neither their target nor their image is here.
    pub fn dead_references(&self) -> Vec<Reference> {
        let dead = |named: &&Named| {
            let target = named.target.as_ref().and_then(|target| self.targets.get(target));
            self.get(&named.image).is_none()
                && target.is_none_or(|target| self.images_of(target).next().is_none())
        };
        self.references.values().filter(dead).map(|named| named.reference.clone()).collect()
    }

    /// All images, also those that only wait for their containers to go.
    pub fn stored(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.images.values()
    }

    /// The chains to keep.
    pub fn chains(&self) -> Vec<Chain> {
        let damaged = self.damaged.iter().map(|(_, record)| record);
        let records = self.images.values().map(|e| &e.record).chain(damaged);
        records.map(ImageRecord::chain).collect()
    }

    /// Every blob that must stay.
    pub fn wanted(&self) -> BTreeSet<Digest> {
        let mut wanted = BTreeSet::new();
        for entry in self.images.values() {
            wanted.insert(entry.id.clone());
            wanted.extend(entry.record.blobs().cloned());
        }
        for (id, record) in &self.damaged {
            wanted.extend(id.parse().ok().into_iter().chain(record.blobs().cloned()));
        }
        for target in self.targets.values() {
            wanted.extend(target.blobs().cloned());
        }
        wanted
    }

    /// The layers that are here, by the identity of their stack.
    pub fn known_layers(&self) -> BTreeMap<Digest, LayerRecord> {
        let mut known = BTreeMap::new();
        for entry in self.images.values() {
            let layers = entry.record.layers.iter().cloned();
            known.extend(entry.record.chain().ids().into_iter().zip(layers));
        }
        known
    }

    /// The image that `reference`, in stored form, names when nobody asks for a platform.
    pub fn named(&self, reference: &Reference) -> Option<&Digest> {
        self.meaning(reference).map(|named| &named.image)
    }

    /// What `reference`, in stored form, is.
    pub fn meaning(&self, reference: &Reference) -> Option<&Named> {
        self.references.get(&reference.to_string())
    }

    /// The references whose default an image is, in canonical order.
    pub fn references(&self, id: &Digest) -> impl Iterator<Item = &Reference> {
        self.by_image.get(id).into_iter().flat_map(BTreeMap::values)
    }

    /// The references of a repository.
    pub fn of_repository<'a>(&'a self, name: &'a Reference) -> impl Iterator<Item = &'a Named> {
        let wanted = name.name();
        self.references.values().filter(move |named| named.reference.name() == wanted)
    }

    /// The target that stands for an image: that of its first reference with one, or else one of
    /// which it is the default, or else one it is in.
    pub fn target_of(&self, id: &Digest) -> Option<&Arc<TargetRecord>> {
        let of_names = self
            .references(id)
            .filter_map(|reference| self.meaning(reference)?.target.as_ref())
            .find_map(|digest| self.target(digest));
        let is_default =
            |t: &&Arc<TargetRecord>| self.best_of(t, None).is_some_and(|best| best.id == *id);
        of_names
            .or_else(|| self.targets_with(id).find(is_default))
            .or_else(|| self.targets_with(id).next())
    }

    /// `name:tag` of an image, as users know them.
    pub fn tags(&self, id: &Digest) -> Vec<String> {
        self.references(id).filter(|r| r.tag().is_some()).map(Reference::familiar).collect()
    }

    /// `name@digest` of an image, as users know them.
    pub fn digests(&self, id: &Digest) -> Vec<String> {
        self.references(id).filter(|r| r.is_digested()).map(Reference::familiar).collect()
    }

    /// Whether another image says it was built on `id`.
    pub fn has_children(&self, id: &Digest) -> bool {
        self.images().any(|entry| entry.record.parent.as_ref() == Some(id))
    }

    /// The image whose id begins with `prefix`, if there is exactly one.
    pub fn by_prefix(&self, prefix: &str) -> Option<&Arc<Entry>> {
        let hex = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut found = self.images().filter(|entry| entry.id.hex().starts_with(hex));
        match (found.next(), found.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    /// The image that `text` means, and the target it is meant by: that of the name, or for an id
    /// the one that stands for the image.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it is neither id nor name; `NotFound`.
    pub fn find<'a>(
        &'a self,
        text: &str,
    ) -> Result<(&'a Arc<Entry>, Option<&'a Arc<TargetRecord>>)> {
        let reference = AnyReference::parse(text)?;
        let missing = || Error::not_found(format!("No such image: {}", reference.familiar()));
        let by_id = |entry: &'a Arc<Entry>| (entry, self.target_of(&entry.id));
        match &reference {
            AnyReference::Digest(digest) => {
                let digest: Digest = digest.parse().map_err(|_: Error| missing())?;
                let by_target = || {
                    let target = self.target(&digest)?;
                    Some((self.best_of(target, None)?, Some(target)))
                };
                self.get(&digest).map(by_id).or_else(by_target).ok_or_else(missing)
            }
            AnyReference::Named(name) => {
                let by_name = self.meaning(&name.clone().stored()).and_then(|named| {
                    let target = named.target.as_ref().and_then(|digest| self.target(digest));
                    Some((self.get(&named.image)?, target))
                });
                by_name.or_else(|| self.by_prefix(text).map(by_id)).ok_or_else(missing)
            }
        }
    }

    /// The image that `text` means, for `platform` if one is given.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it is neither id nor name; `NotFound`, also if it is not here for
    /// `platform`.
    pub fn resolve(&self, text: &str, platform: Option<&Platform>) -> Result<&Arc<Entry>> {
        let (entry, target) = self.find(text)?;
        let Some(wanted) = platform else { return Ok(entry) };
        let of_target = target.and_then(|target| self.best_of(target, platform));
        let has = entry.platform();
        match of_target {
            Some(entry) => Ok(entry),
            None if wanted.accepts(&has) => Ok(entry),
            None => Err(Error::not_found(format!(
                "image with reference {text} was found but its platform ({has}) does not match \
                 the specified platform ({wanted})"
            ))),
        }
    }

    /// An image as other plugins see it.
    pub fn image(&self, entry: &Entry) -> Image {
        Image {
            id: entry.id.clone(),
            tags: self.tags(&entry.id),
            platform: entry.file.platform(),
            config: entry.file.config.clone(),
            chain: entry.record.chain(),
        }
    }
}

/// Whether an image is one of a target's.
fn holds(target: &TargetRecord, id: &Digest) -> bool {
    target.manifests.iter().any(|manifest| manifest.image.as_ref() == Some(id))
}
