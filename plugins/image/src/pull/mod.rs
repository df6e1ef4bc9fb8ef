//! `docker pull`: images from registries.
//!
//! # How
//!
//! The documents come first and are checked against each other. Then all layers are fetched and
//! unpacked at once: the layer store reads each blob while it is being written, so that fetching,
//! decompressing, hashing and unpacking are one pipeline. An image becomes known when every byte of
//! it has been compared with its digest, in one commit.
//!
//! # Map
//!
//! - [`manifest`], [`mod@resolve`]: what a registry says, bounded and checked
//! - [`downloads`]: each blob once, whoever wants it
//! - [`unfinished`]: what stays of a pull that failed
//! - [`source`]: layers that were dropped come back
//! - [`board`]: what the client sees

pub mod board;
pub mod downloads;
pub mod manifest;
pub mod resolve;
pub mod source;
pub mod statements;
pub mod unfinished;

use std::sync::Arc;

use futures_util::future::{try_join, try_join_all};
use gantry_api::ProgressMessage;
use gantry_api::image::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobStore, Lease};
use gantry_sdk::kinds::registry::{Access, Credentials, Registries};
use gantry_sdk::reference::Reference;
use gantry_sdk::route::BodySender;
use gantry_sdk::{ApiVersion, Ctx, Error, ErrorKind, Request, Response, Result};

use crate::admit::{Admission, Content};
use crate::platform::Platform;
use crate::record::{LayerRecord, ManifestRecord, chain};
use crate::store::Store;
use board::Board;
use downloads::{Downloads, Origin, Remote, Wanted};
use resolve::{Resolved, resolve};
use unfinished::Unfinished;

/// Pulls of this daemon.
#[derive(Debug)]
pub struct Puller {
    /// Where images become known.
    pub store: Arc<Store>,
    /// Blobs on their way.
    pub downloads: Arc<Downloads>,
    /// What earlier pulls have left.
    pub unfinished: Arc<Unfinished>,
}

/// `POST /images/create`
///
/// With `fromImage` a pull: `200` with a stream that ends with an error if there was one; `404` if
/// the registry has no such image. Anything else is an import.
pub async fn create(puller: Arc<Puller>, req: Request) -> Result<Response> {
    let image = req.query.str("fromImage").trim();
    if image.is_empty() {
        return crate::handlers::create(puller.store.clone(), req).await;
    }
    let name = wanted_name(image, req.query.str("tag"))?;
    let platform = match req.query.str("platform") {
        text if req.version >= ApiVersion::v1(32) && !text.is_empty() => {
            Some(Platform::parse(text)?)
        }
        _ => None,
    };
    // The reference engine, too, asks as nobody in particular if it cannot read the header.
    let credentials = Credentials::from_header(req.header("x-registry-auth")).unwrap_or_default();
    let cx = Ctx { caller: Some(req.id.clone()), ..Ctx::background() };
    let registries = puller.store.registry.only::<Registries>()?;
    let repository = registries.repository(&cx, &name, Access::Pull, &credentials).await?;
    let origin = Origin { repository, limit: registries.limits().max_concurrent_downloads };
    let job = Job { puller: puller.clone(), cx, origin, platform };

    // What cannot be found is told by the status, which goes before the stream.
    let first = async {
        let mut names = job.names(&name).await?;
        let first = names
            .pop_front()
            .ok_or_else(|| Error::not_found(format!("{} has no tags", name.familiar_name())))?;
        let resolved = resolve(&job.cx, &*job.origin.repository, &first, job.platform.as_ref());
        Ok::<_, Error>((resolved.await?, first, names))
    };
    let Some(first) = req.gone.run_until_cancelled(first).await else {
        return Err(Error::new(ErrorKind::Deadline, format!("nobody waits for {name}")));
    };
    let (resolved, first, rest) = first?;
    let (sender, response) = Response::stream("application/json");
    puller.store.tasks.clone().spawn("image-pull", async move {
        let outcome = {
            let work = job.pull_all(first, resolved, rest, &sender);
            tokio::select! {
                outcome = work => outcome,
                () = sender.closed() => Err(Error::new(ErrorKind::Deadline, "the client is gone")),
            }
        };
        if let Err(error) = outcome {
            sender.json(&ProgressMessage::failed(error.chain())).await;
        }
        drop(sender);
        job.puller.store.litter(&Ctx::background()).await;
    });
    Ok(response)
}

/// The name that `fromImage` and `tag` mean together; without tag and digest, all tags.
fn wanted_name(image: &str, tag: &str) -> Result<Reference> {
    // Old clients end the name with the colon of a tag that is not there.
    let name = Reference::parse(image.trim_end_matches(':'))?;
    match tag {
        "" => Ok(name),
        digest if digest.contains(':') => {
            let digest: Digest = digest.parse()?;
            Ok(name.at_digest(&digest))
        }
        tag => name.at_tag(tag),
    }
}

/// One request.
struct Job {
    puller: Arc<Puller>,
    cx: Ctx,
    origin: Origin,
    platform: Option<Platform>,
}

impl Job {
    async fn names(&self, name: &Reference) -> Result<std::collections::VecDeque<Reference>> {
        if !name.is_name_only() {
            return Ok([name.clone()].into());
        }
        let tags = self.origin.repository.tags(&self.cx).await;
        let tags = tags.map_err(|error| resolve::named(error, name))?;
        // What is no tag to us cannot be asked for.
        Ok(tags.iter().filter_map(|tag| name.at_tag(tag).ok()).collect())
    }

    async fn pull_all(
        &self,
        first: Reference,
        resolved: Resolved,
        rest: std::collections::VecDeque<Reference>,
        sender: &BodySender,
    ) -> Result<()> {
        let name = if rest.is_empty() { first.familiar() } else { first.familiar_name() };
        let mut newer = self.pull(&first, resolved, sender).await?;
        for next in rest {
            let repository = &*self.origin.repository;
            let resolved = resolve(&self.cx, repository, &next, self.platform.as_ref()).await?;
            newer |= self.pull(&next, resolved, sender).await?;
        }
        let what = if newer { "Downloaded newer image" } else { "Image is up to date" };
        sender.json(&ProgressMessage::status("", format!("Status: {what} for {name}"))).await;
        Ok(())
    }

    /// Brings one image here; whether anything has changed by that.
    async fn pull(&self, name: &Reference, image: Resolved, sender: &BodySender) -> Result<bool> {
        let shown = name.digest().or(name.tag()).unwrap_or_default();
        let from = format!("Pulling from {}", repository_shown(name));
        sender.json(&ProgressMessage::status(shown, from)).await;

        let store = &self.puller.store;
        let lease = store.blobs.lease(&self.cx).await?;
        let target = image.target()?.clone();
        let target_digest: Digest = target.digest.parse()?;
        let before = store.index().named(&name.clone().stored()).cloned();
        let content = self.content(&image)?;
        let chain = chain(&content.layers);
        let _layers_lease = store.layers.lease(&self.cx, &chain).await?;
        let unfinished = &self.puller.unfinished;
        unfinished.begin(&self.cx, &target_digest, all_blobs(&image, &content)?).await?;

        let statements = statements::fetch(&self.cx, &*self.origin.repository, &image);
        let layers = self.layers(&image, &content, &lease, sender);
        let brought = try_join(layers, async { Ok(statements.await) }).await;
        if brought.as_ref().is_err_and(|error| error.kind() == ErrorKind::InvalidArgument) {
            // No next attempt makes an image of it.
            unfinished.end(&self.cx, &target_digest).await?;
        }
        let (fetched, statements) = brought?;

        for (descriptor, bytes) in &image.documents {
            put(&self.cx, &*store.blobs, &lease, bytes, &descriptor.digest.parse()?).await?;
        }
        put(&self.cx, &*store.blobs, &lease, &image.config, &content.config.0).await?;
        let manifests = self.manifests(&image, statements, &lease).await?;
        let blobs = all_blobs(&image, &content)?;
        let admission = Admission {
            indexes: inner_indexes(&image)?,
            target: Some(target),
            manifests,
            names: names_of(name, &target_digest),
            ..Admission::new(content, image.file)
        };
        let (entry, _renamed) = store.admit(&self.cx, admission).await?;
        store.distributed(&self.cx, &blobs, &name.name()).await?;
        unfinished.end(&self.cx, &target_digest).await?;
        store.report("pull", &entry, name.familiar());
        sender.json(&ProgressMessage::status("", format!("Digest: {target_digest}"))).await;
        Ok(fetched || before.as_ref() != Some(&entry.id))
    }

    /// What the image will be recorded as.
    fn content(&self, image: &Resolved) -> Result<Content> {
        let layer = |(descriptor, diff_id): (&OciDescriptor, &Digest)| {
            Ok(LayerRecord {
                diff_id: diff_id.clone(),
                blob: manifest::digest(descriptor)?,
                media_type: descriptor.media_type.clone(),
                bytes: manifest::size(descriptor, u64::MAX)?,
                unpacked: 0,
            })
        };
        let layers = image.manifest.layers.iter().zip(&image.diff_ids).map(layer);
        let (manifest, _) = image.documents.last().ok_or_else(|| Error::invalid("no manifest"))?;
        Ok(Content {
            config: (manifest::digest(&image.manifest.config)?, image.config.len() as u64),
            layers: layers.collect::<Result<_>>()?,
            manifest: Some(manifest.digest.parse()?),
            parent: None,
        })
    }

    /// Fetches and unpacks; whether anything had to be fetched.
    async fn layers(
        &self,
        image: &Resolved,
        content: &Content,
        lease: &Lease,
        sender: &BodySender,
    ) -> Result<bool> {
        let remotes = image.layers()?;
        let mut again = true;
        loop {
            let wanted = self.want(&remotes, lease).await?;
            let rows = remotes.iter().zip(&image.diff_ids).zip(&wanted);
            let rows = rows.map(|((remote, id), wanted)| (&remote.digest, id, wanted.as_ref()));
            let mut board = Board::new(sender, rows);
            board.begin().await;
            let coming: Vec<&Wanted> = wanted.iter().flatten().collect();
            let unpacked = board.callback();
            let work = async {
                try_join_all(coming.iter().map(|wanted| wanted.opened())).await?;
                let chain = chain(&content.layers);
                let layers = &self.puller.store.layers;
                let unpack = layers.unpack(&self.cx, &chain, None, Some(unpacked));
                let fetch = try_join_all(coming.iter().map(|wanted| wanted.done()));
                // A failed download fails the unpacking of its layer too, but says why.
                match futures_util::future::join(fetch, unpack).await {
                    (Err(error), _) => Err(error),
                    (Ok(_), unpacked) => unpacked,
                }
            };
            match board.during(work).await {
                Ok(()) => return Ok(!coming.is_empty()),
                // Somebody else's download failed, perhaps for a reason of his own.
                Err(error) if again && coming.iter().any(|wanted| wanted.joined) => {
                    tracing::debug!(error = %error.chain(), "A shared download is tried again.");
                    again = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The downloads of what is not here, in the order of the layers.
    async fn want(&self, remotes: &[Remote], lease: &Lease) -> Result<Vec<Option<Wanted>>> {
        let blobs = &self.puller.store.blobs;
        let mut wanted = Vec::with_capacity(remotes.len());
        let mut seen = std::collections::BTreeSet::new();
        for remote in remotes {
            lease.pin(&remote.digest);
            let is_here = match blobs.stat(&self.cx, &remote.digest).await {
                Ok(info) if info.size == remote.size => true,
                Ok(info) => {
                    let (digest, size) = (&remote.digest, remote.size);
                    let here = info.size;
                    return Err(Error::invalid(format!(
                        "invalid manifest: layer {digest} has {here} bytes, not {size}"
                    )));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            // A layer may be there twice.
            let needed = !is_here && seen.insert(&remote.digest);
            let downloads = &self.puller.downloads;
            wanted.push(needed.then(|| downloads.want(&self.cx, remote, &self.origin, lease)));
        }
        Ok(wanted)
    }

    /// Every manifest of the target, if it is an index; with the statements that were brought.
    async fn manifests(
        &self,
        image: &Resolved,
        statements: Vec<statements::Statement>,
        lease: &Lease,
    ) -> Result<Vec<ManifestRecord>> {
        let store = &self.puller.store;
        let mut records = Vec::new();
        for descriptor in resolve::flattened(image)? {
            records.push(ManifestRecord::new(descriptor)?);
        }
        for statement in statements {
            let Some(record) = records.iter_mut().find(|r| r.digest == statement.manifest) else {
                continue;
            };
            for (digest, bytes) in &statement.contents {
                put(&self.cx, &*store.blobs, lease, bytes, digest).await?;
            }
            record.here = true;
            record.blobs = statement.blobs;
        }
        Ok(records)
    }
}

/// As the reference engine shows it: the path within the registry.
fn repository_shown(name: &Reference) -> &str {
    name.path()
}

fn names_of(name: &Reference, target: &Digest) -> Vec<Reference> {
    let digested = name.at_digest(target);
    if name.is_digested() { vec![digested] } else { vec![name.clone(), digested] }
}

fn inner_indexes(image: &Resolved) -> Result<Vec<Digest>> {
    let documents = &image.documents;
    let inner = documents.get(1..documents.len().saturating_sub(1)).unwrap_or_default();
    inner.iter().map(|(descriptor, _)| descriptor.digest.parse()).collect()
}

fn all_blobs(image: &Resolved, content: &Content) -> Result<Vec<Digest>> {
    let mut blobs: Vec<Digest> = content.layers.iter().map(|layer| layer.blob.clone()).collect();
    blobs.push(content.config.0.clone());
    for (descriptor, _) in &image.documents {
        blobs.push(descriptor.digest.parse()?);
    }
    Ok(blobs)
}

/// Stores a small blob.
async fn put(
    cx: &Ctx,
    blobs: &dyn BlobStore,
    lease: &Lease,
    bytes: &[u8],
    digest: &Digest,
) -> Result<()> {
    lease.pin(digest);
    if blobs.stat(cx, digest).await.is_ok() {
        return Ok(());
    }
    let mut writer = blobs.writer(cx, lease).await?;
    let (bytes, digest) = (bytes.to_vec(), digest.clone());
    tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        writer.write_all(&bytes).map_err(|e| Error::io("write", format!("blob {digest}"), e))?;
        writer.commit(Some(&digest)).map(drop)
    })
    .await?
}
