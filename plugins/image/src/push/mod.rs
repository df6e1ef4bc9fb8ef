//! `docker push`: images to registries.
//!
//! Blobs go as they are: they were kept, so nothing is packed again and digests stay; only layers
//! that are not compressed, and of which no manifest from elsewhere speaks, become so. What the
//! registry has is left out, what another repository of the same registry has is mounted from
//! there. An index goes if all of it is here; else the one image that is meant.

mod lines;
pub(crate) mod pack;
mod plan;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use futures_util::future::try_join_all;
use gantry_api::ProgressMessage;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::Lease;
use gantry_sdk::kinds::registry::{Access, Credentials, Registries, Repository};
use gantry_sdk::reference::Reference;
use gantry_sdk::route::BodySender;
use gantry_sdk::{ApiVersion, Ctx, Error, ErrorKind, Request, Response, Result};
use serde_json::json;

use crate::platform::Platform;
use crate::record::{LayerRecord, signed};
use crate::slots::Slots;
use crate::store::Store;
use lines::Lines;
use plan::{Blob, Plan};

/// Pushes of this daemon.
#[derive(Debug)]
pub struct Pusher {
    /// Where images are found.
    pub store: Arc<Store>,
    /// Uploads that run.
    pub uploads: Slots,
    /// Whoever compresses: one at a time, who comes later finds it done.
    pub packing: Slots,
}

/// `POST /images/{name}/push`
///
/// `200` with a stream that ends with an error if there was one; `400` for a name that cannot be
/// pushed.
pub async fn push(pusher: Arc<Pusher>, req: Request) -> Result<Response> {
    let name = Reference::parse(req.param("name"))?;
    if name.is_digested() {
        return Err(Error::invalid("cannot push a digest reference"));
    }
    let name = match req.query.str("tag") {
        "" => name,
        tag => name.at_tag(tag)?,
    };
    let platform = match req.query.str("platform") {
        text if req.version >= ApiVersion::v1(46) && !text.is_empty() => {
            Some(Platform::parse_json(text)?)
        }
        _ => None,
    };
    let credentials = Credentials::from_header(req.header("x-registry-auth")).unwrap_or_default();
    let cx = Ctx { caller: Some(req.id.clone()), ..Ctx::background() };
    let registries = pusher.store.registry.only::<Registries>()?;
    let repository = registries.repository(&cx, &name, Access::Push, &credentials).await?;
    let limit = registries.limits().max_concurrent_uploads;
    let (sender, response) = Response::stream("application/json");
    pusher.store.tasks.clone().spawn("image-push", async move {
        let job = Job { pusher: &pusher, cx, repository, limit, platform, sender: &sender };
        let outcome = tokio::select! {
            outcome = job.push_all(&name) => outcome,
            () = sender.closed() => Err(Error::new(ErrorKind::Deadline, "the client is gone")),
        };
        if let Err(error) = outcome {
            sender.json(&ProgressMessage::failed(error.chain())).await;
        }
    });
    Ok(response)
}

/// One request.
struct Job<'a> {
    pusher: &'a Pusher,
    cx: Ctx,
    repository: Arc<dyn Repository>,
    limit: usize,
    platform: Option<Platform>,
    sender: &'a BodySender,
}

impl Job<'_> {
    async fn push_all(&self, name: &Reference) -> Result<()> {
        let refers = format!("The push refers to repository [{}]", name.name());
        self.sender.json(&ProgressMessage::status("", refers)).await;
        let index = self.pusher.store.index();
        let tagged = |r: &&Reference| name.is_name_only() && r.tag().is_some() || *r == name;
        let of_repository = index.of_repository(name).map(|named| &named.reference);
        let tags: Vec<Reference> = of_repository.filter(tagged).cloned().collect();
        if tags.is_empty() {
            let shown = name.familiar();
            return Err(Error::not_found(format!(
                "An image does not exist locally with the tag: {shown}"
            )));
        }
        for tag in tags {
            self.push_one(&tag).await?;
        }
        Ok(())
    }

    async fn push_one(&self, name: &Reference) -> Result<()> {
        let store = &self.pusher.store;
        let lease = store.blobs.lease(&self.cx).await?;
        self.pack(name, &lease).await?;
        let plan = Plan::make(store, &self.cx, name, self.platform.as_ref()).await?;
        plan.blobs.iter().for_each(|blob| lease.pin(&blob.digest));
        let lines = Arc::new(Lines::default());
        for (row, blob) in plan.blobs.iter().enumerate() {
            lines.say(row, &blob.shown, "Preparing");
        }
        let uploads =
            plan.blobs.iter().enumerate().map(|(row, blob)| self.upload(name, row, blob, &lines));
        lines.during(self.sender, try_join_all(uploads)).await?;
        // A registry takes a document only after all that it names.
        for document in &plan.documents {
            let digest = document.digest.as_str();
            let (kind, bytes) = (document.media_type.as_str(), &document.bytes);
            self.repository.put_manifest(&self.cx, digest, kind, bytes).await?;
        }
        let top = &plan.top;
        let tag = name.tag().unwrap_or_default();
        self.repository.put_manifest(&self.cx, tag, &top.media_type, &top.bytes).await?;

        let documents = plan.documents.iter().chain([top]).map(|document| &document.digest);
        let blobs = plan.blobs.iter().map(|blob| &blob.digest);
        let digests: Vec<Digest> = blobs.chain(documents).cloned().collect();
        store.distributed(&self.cx, &digests, &name.name()).await?;
        plan.remember(store, &self.cx, name).await?;
        store.report("push", &plan.entry, name.familiar());
        let (digest, size) = (&top.digest, top.bytes.len());
        let summary = format!("{tag}: digest: {digest} size: {size}");
        self.sender.json(&ProgressMessage::status("", summary)).await;
        if plan.is_partial {
            self.sender.json(&ProgressMessage::status("", plan.note())).await;
        }
        let aux = json!({"Tag": tag, "Digest": digest, "Size": signed(size as u64)});
        self.sender.json(&ProgressMessage::aux("", aux)).await;
        Ok(())
    }

    /// Sees that what is pushed is compressed.
    async fn pack(&self, name: &Reference, lease: &Lease) -> Result<()> {
        let store = &self.pusher.store;
        let _slot = self.pusher.packing.take(1).await;
        let entry = store.index().resolve(&name.to_string(), self.platform.as_ref())?.clone();
        let lines = Lines::default();
        let doing = |layer: &LayerRecord| lines.say(0, &layer.diff_id.hex()[..12], "Compressing");
        lines.during(self.sender, pack::pack(store, &self.cx, &entry, lease, doing)).await
    }

    /// Sees that the registry has a blob.
    async fn upload(
        &self,
        name: &Reference,
        row: usize,
        blob: &Blob,
        lines: &Arc<Lines>,
    ) -> Result<()> {
        let (cx, shown, digest) = (&self.cx, blob.shown.as_str(), &blob.digest);
        lines.say(row, shown, "Waiting");
        let _slot = self.pusher.uploads.take(self.limit).await;
        if self.repository.has_blob(cx, digest).await? {
            lines.say(row, shown, "Layer already exists");
            return Ok(());
        }
        if let Some(from) = self.mount(name, digest).await {
            lines.say(row, shown, format!("Mounted from {from}"));
            return Ok(());
        }
        let file = self.pusher.store.blobs.open(cx, digest).await?;
        // Opened anew for each attempt: a descriptor shared with the last one shares its position.
        let open = || {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            File::open(&path).map_err(|e| Error::io("open", format!("blob {digest}"), e))
        };
        let (figures, id) = (lines.clone(), blob.shown.clone());
        let progress =
            Arc::new(move |done, total| figures.figures(row, &id, "Pushing", done, total));
        self.repository.push_blob(cx, digest, blob.bytes, &open, progress).await?;
        lines.say(row, shown, "Pushed");
        Ok(())
    }

    /// The repository of the same registry that the blob could be mounted from.
    async fn mount(&self, name: &Reference, digest: &Digest) -> Option<String> {
        let prefix = format!("{}/", name.domain());
        let known = self.pusher.store.repositories(digest);
        let here = known.iter().rev().filter_map(|known| known.strip_prefix(&prefix));
        for from in here.filter(|from| *from != name.path()).take(3) {
            match self.repository.mount_blob(&self.cx, digest, from).await {
                Ok(true) => return Some(from.to_owned()),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(from, error = %error.chain(), "A blob cannot be mounted.");
                }
            }
        }
        None
    }
}
