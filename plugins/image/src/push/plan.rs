//! What a push has to bring to the registry, worked out before anything is sent.

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_api::image::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::registry::MAX_MANIFEST;
use gantry_sdk::reference::Reference;
use gantry_sdk::{Ctx, Result};

use crate::index::Entry;
use crate::platform::Platform;
use crate::pull::manifest::{self, Document as Parsed, is_foreign};
use crate::record::TargetRecord;
use crate::save;
use crate::store::{Store, put_reference};

/// A blob to be uploaded.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    /// What the client sees.
    pub(super) shown: String,
}

/// A manifest or index.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
}

/// All of one push.
#[derive(Debug)]
pub(super) struct Plan {
    /// The image that the name means.
    pub(super) entry: Arc<Entry>,
    /// In the order of the layers; each once.
    pub(super) blobs: Vec<Blob>,
    /// What `top` names, innermost first.
    pub(super) documents: Vec<Document>,
    /// What the tag will name.
    pub(super) top: Document,
    /// Whether it is only a part of what the name means here.
    pub(super) is_partial: bool,
}

impl Plan {
    /// For `name`, or the image of it that is for `platform`.
    pub(super) async fn make(
        store: &Store,
        cx: &Ctx,
        name: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Self> {
        let index = store.index();
        let entry = index.resolve(&name.to_string(), platform)?.clone();
        let named = index.meaning(name).and_then(|named| named.target.as_ref());
        let target = named.and_then(|digest| index.target(digest));
        let mut maker = Maker { store, cx, blobs: Vec::new(), seen: BTreeSet::new() };
        let of_index = target.filter(|target| target.is_index());
        if let Some(target) = of_index.filter(|t| platform.is_none() && is_complete(t)) {
            let mut documents = Vec::new();
            for record in &target.manifests {
                let document = maker.stored(&record.digest, &record.descriptor.media_type).await?;
                maker.content_of(&document, &entry)?;
                documents.push(document);
            }
            for inner in target.indexes.iter().rev() {
                documents.push(maker.stored(inner, "").await?);
            }
            let top = maker.stored(&target.digest, &target.descriptor.media_type).await?;
            return Ok(Self { entry, blobs: maker.blobs, documents, top, is_partial: false });
        }
        let top = match &entry.record.manifest {
            Some(digest) => maker.stored(digest, "").await?,
            None => {
                let bytes = save::own_manifest(&entry).to_string().into_bytes();
                Document {
                    digest: crate::load::digest_of(&bytes),
                    media_type: String::new(),
                    bytes,
                }
                .typed()
            }
        };
        maker.content_of(&top, &entry)?;
        let is_partial = of_index.is_some();
        Ok(Self { entry, blobs: maker.blobs, documents: Vec::new(), top, is_partial })
    }

    /// Lets `name@digest` name what was pushed, as after a pull.
    pub(super) async fn remember(&self, store: &Store, cx: &Ctx, name: &Reference) -> Result<()> {
        let digest = &self.top.digest;
        let reference = name.at_digest(digest);
        let is_new = store.index().meaning(&reference).is_none();
        if !is_new {
            return Ok(());
        }
        store
            .change(cx, |index| {
                if index.get(&self.entry.id).is_none() {
                    return Ok((Vec::new(), ())); // removed meanwhile
                }
                let target = index.target(digest).map(|target| target.digest.clone());
                index.tag(&reference, target.as_ref(), &self.entry.id);
                let change = put_reference(&reference, target.as_ref(), &self.entry.id)?;
                Ok((vec![change], ()))
            })
            .await
    }

    /// What a person should know of a partial push.
    pub(super) fn note(&self) -> String {
        let platform = self.entry.platform();
        format!(
            "Not all multiplatform-content is present and only the image for {platform} was pushed"
        )
    }
}

/// Whether every manifest of an index is here.
fn is_complete(target: &TargetRecord) -> bool {
    target.manifests.iter().all(|manifest| manifest.here)
}

struct Maker<'a> {
    store: &'a Store,
    cx: &'a Ctx,
    blobs: Vec<Blob>,
    seen: BTreeSet<Digest>,
}

impl Maker<'_> {
    /// A document of the blob store; `media_type` if somebody else said it.
    async fn stored(&self, digest: &Digest, media_type: &str) -> Result<Document> {
        let bytes = self.store.blobs.read(self.cx, digest, MAX_MANIFEST).await?;
        let media_type = media_type.to_owned();
        Ok(Document { digest: digest.clone(), media_type, bytes }.typed())
    }

    /// The blobs that a manifest names.
    fn content_of(&mut self, document: &Document, entry: &Entry) -> Result<()> {
        let Parsed::Manifest(parsed) = Parsed::parse(&document.bytes)? else { return Ok(()) };
        let of_image = entry.record.manifest.as_ref().is_none_or(|m| *m == document.digest);
        for (n, layer) in parsed.layers.iter().enumerate() {
            let diff_id = entry.record.layers.get(n).filter(|_| of_image).map(|l| &l.diff_id);
            self.blob(layer, diff_id)?;
        }
        self.blob(&parsed.config, None)
    }

    fn blob(&mut self, descriptor: &OciDescriptor, diff_id: Option<&Digest>) -> Result<()> {
        let digest = manifest::digest(descriptor)?;
        if is_foreign(&descriptor.media_type) || !self.seen.insert(digest.clone()) {
            return Ok(());
        }
        let shown = diff_id.unwrap_or(&digest).hex()[..12].to_owned();
        let bytes = manifest::size(descriptor, u64::MAX)?;
        self.blobs.push(Blob { digest, bytes, shown });
        Ok(())
    }
}

impl Document {
    /// With the media type that it has itself, if nobody else said one.
    fn typed(mut self) -> Self {
        if self.media_type.is_empty() {
            let text: Option<serde_json::Value> = serde_json::from_slice(&self.bytes).ok();
            let own = text.as_ref().and_then(|text| text["mediaType"].as_str());
            self.media_type = own.unwrap_or(save::MANIFEST).to_owned();
        }
        self
    }
}
