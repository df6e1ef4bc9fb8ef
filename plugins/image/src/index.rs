//! All images and references, in memory: what lists, inspection and lookups read.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::Image;
use gantry_sdk::kinds::layers::Chain;
use gantry_sdk::{Error, Result};
use jiff::Timestamp;

use crate::config::ImageFile;
use crate::platform::Platform;
use crate::record::ImageRecord;
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
}

/// A consistent view; cheap to clone, never changed in place once published.
#[derive(Clone, Debug, Default)]
pub struct Index {
    images: BTreeMap<Digest, Arc<Entry>>,
    /// By canonical form.
    references: BTreeMap<String, (Reference, Digest)>,
    /// The same by image; in order of the canonical form.
    by_image: BTreeMap<Digest, BTreeMap<String, Reference>>,
    /// Images whose configuration cannot be read: not shown, and nothing of theirs is removed.
    pub damaged: Vec<ImageRecord>,
}

impl Index {
    /// Adds or replaces an image.
    pub fn put(&mut self, entry: Entry) {
        self.images.insert(entry.id.clone(), Arc::new(entry));
    }

    /// Forgets an image; its references must be gone.
    pub fn remove(&mut self, id: &Digest) {
        self.images.remove(id);
    }

    /// Lets `reference` name `id`; returns what it named before.
    pub fn tag(&mut self, reference: &Reference, id: &Digest) -> Option<Digest> {
        let before = self.untag(reference);
        let key = reference.to_string();
        self.by_image.entry(id.clone()).or_default().insert(key.clone(), reference.clone());
        self.references.insert(key, (reference.clone(), id.clone()));
        before
    }

    /// Removes a reference; returns what it named.
    pub fn untag(&mut self, reference: &Reference) -> Option<Digest> {
        let key = reference.to_string();
        let (_, id) = self.references.remove(&key)?;
        if let Some(of_image) = self.by_image.get_mut(&id) {
            of_image.remove(&key);
            if of_image.is_empty() {
                self.by_image.remove(&id);
            }
        }
        Some(id)
    }

    /// The image `id`, unless it was removed by force.
    pub fn get(&self, id: &Digest) -> Option<&Arc<Entry>> {
        self.images.get(id).filter(|entry| !entry.record.retired)
    }

    /// All images that can be seen, in id order.
    pub fn images(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.images.values().filter(|entry| !entry.record.retired)
    }

    /// All images, also those that only wait for their containers to go.
    pub fn stored(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.images.values()
    }

    /// The chains to keep.
    pub fn chains(&self) -> Vec<Chain> {
        let records = self.images.values().map(|e| &e.record).chain(&self.damaged);
        records.map(ImageRecord::chain).collect()
    }

    /// What `reference`, in stored form, names.
    pub fn named(&self, reference: &Reference) -> Option<&Digest> {
        self.references.get(&reference.to_string()).map(|(_, id)| id)
    }

    /// The references to an image, in canonical order.
    pub fn references(&self, id: &Digest) -> impl Iterator<Item = &Reference> {
        self.by_image.get(id).into_iter().flat_map(BTreeMap::values)
    }

    /// The references of a repository.
    pub fn of_repository<'a>(
        &'a self,
        name: &'a Reference,
    ) -> impl Iterator<Item = &'a (Reference, Digest)> {
        let wanted = name.name();
        self.references.values().filter(move |(reference, _)| reference.name() == wanted)
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

    /// The image that `text` means.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it is neither id nor name; `NotFound`, also if `platform` is another.
    pub fn resolve(&self, text: &str, platform: Option<&Platform>) -> Result<&Arc<Entry>> {
        let reference = AnyReference::parse(text)?;
        let found = match &reference {
            AnyReference::Digest(digest) => digest.parse().ok().and_then(|id| self.get(&id)),
            AnyReference::Named(name) => self
                .named(&name.clone().stored())
                .and_then(|id| self.get(id))
                .or_else(|| self.by_prefix(text)),
        };
        let Some(entry) = found else {
            return Err(Error::not_found(format!("No such image: {}", reference.familiar())));
        };
        let file = &entry.file;
        let has = Platform::new(file.os(), &file.architecture, &file.variant);
        match platform {
            Some(wanted) if !wanted.accepts(&has) => Err(Error::not_found(format!(
                "image with reference {text} was found but its platform ({has}) does not match \
                 the specified platform ({wanted})"
            ))),
            _ => Ok(entry),
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
