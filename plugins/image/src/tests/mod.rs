//! The store with real content, a layer store that only counts, and users made up by the test.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_archive::{Entry as Member, Kind, Writer};
use gantry_content::blobs::FileBlobs;
use gantry_content::metadata::Database;
use gantry_sdk::events::{Event, EventBus};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{ContentOwner, ContentOwners, Droppable};
use gantry_sdk::kinds::images::{ImageUser, ImageUserSource, ImageUsers};
use gantry_sdk::kinds::layers::{
    Chain, ContainerLayer, Hold, InstanceStatus, LayerChange, LayerProgress, LayerStore, Staged,
};
use gantry_sdk::mounts::{Grants, MountFd};
use gantry_sdk::registry::Registry;
use gantry_sdk::route::{Payload, Query, Response, empty_body};
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{ApiVersion, Ctx, Error, Labels, Method, Request, Result};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::store::{Parts, Store};

mod archives;
mod packing;
mod platforms;
mod removal;

/// Unpacks nothing: remembers chains and says that each layer takes a thousand bytes.
#[derive(Default)]
struct FakeLayers {
    chains: Mutex<BTreeMap<Digest, u64>>,
}

fn unused<T>() -> Result<T> {
    Err(Error::unsupported("not used by images"))
}

#[async_trait]
impl LayerStore for FakeLayers {
    async fn choose(&self, _: &Ctx, _: &gantry_sdk::kinds::layers::Wanted) -> Result<String> {
        Ok("fake".to_owned())
    }

    async fn unpack(
        &self,
        _: &Ctx,
        chain: &Chain,
        _: Option<&str>,
        progress: Option<LayerProgress>,
    ) -> Result<()> {
        for (id, layer) in chain.ids().into_iter().zip(&chain.0) {
            self.chains.lock().unwrap().insert(id, 1000);
            if let Some(progress) = &progress {
                progress(&layer.diff_id, 10, 10);
            }
        }
        Ok(())
    }
    async fn stage(
        &self,
        _: &Ctx,
        source: Box<dyn Read + Send>,
        _: Option<&str>,
    ) -> Result<Staged> {
        let drain = |chunks: &mut gantry_archive::Chunks| {
            std::io::copy(chunks, &mut std::io::sink()).map_err(gantry_archive::ArchiveError::Read)
        };
        let (_, passed) = gantry_archive::decompressed(source, drain)
            .map_err(|e| Error::invalid("cannot read the archive").caused_by(e))?;
        Ok(Staged {
            diff_id: passed.diff_id.parse()?,
            blob: passed.digest.unwrap_or_default().parse()?,
            bytes: passed.bytes,
            compression: passed.compression.name().to_owned(),
            unpacked: passed.diff_bytes,
            hold: Arc::new(()),
        })
    }
    async fn lease(&self, _: &Ctx, _: &Chain) -> Result<Hold> {
        Ok(Arc::new(()))
    }
    async fn changes(&self, _: &Ctx, _: &ContainerLayer, _: &Chain) -> Result<Vec<LayerChange>> {
        Ok(Vec::new())
    }
    async fn diff(
        &self,
        _: &Ctx,
        _: &ContainerLayer,
        _: &Chain,
        _: bool,
        mut out: Box<dyn Write + Send>,
    ) -> Result<()> {
        out.write_all(&[0; 1024]).map_err(|e| Error::io("write", "a diff", e))
    }
    async fn removing(&self, _: &Ctx) -> Result<u64> {
        Ok(0)
    }
    async fn create(
        &self,
        _: &Ctx,
        _: &str,
        _: &Chain,
        _: Option<&str>,
        _: &Labels,
    ) -> Result<ContainerLayer> {
        unused()
    }
    async fn mount(&self, _: &Ctx, _: &ContainerLayer) -> Result<MountFd> {
        unused()
    }
    async fn mount_mapped(
        &self,
        _: &Ctx,
        _: &ContainerLayer,
        _: &gantry_sdk::mounts::IdMap,
    ) -> Result<MountFd> {
        unused()
    }
    async fn mount_chain(&self, _: &Ctx, _: &Chain, _: Option<&str>) -> Result<MountFd> {
        unused()
    }
    async fn remove(&self, _: &Ctx, _: &ContainerLayer) -> Result<()> {
        unused()
    }
    async fn usage(&self, _: &Ctx, _: &ContainerLayer) -> Result<u64> {
        unused()
    }
    async fn chain_usage(&self, _: &Ctx, chain: &Chain) -> Result<u64> {
        let chains = self.chains.lock().unwrap();
        Ok(chain.ids().iter().filter_map(|id| chains.get(id)).sum())
    }
    async fn chain_sizes(&self, _: &Ctx) -> Result<Vec<(Digest, u64)>> {
        Ok(self.chains.lock().unwrap().clone().into_iter().collect())
    }
    async fn collect(&self, _: &Ctx, keep: &[Chain]) -> Result<()> {
        let keep: Vec<Digest> = keep.iter().flat_map(Chain::ids).collect();
        self.chains.lock().unwrap().retain(|id, _| keep.contains(id));
        Ok(())
    }
    async fn details(&self, _: &Ctx, _: &ContainerLayer) -> Result<Labels> {
        unused()
    }
    async fn chain_details(&self, _: &Ctx, _: &Chain) -> Result<(String, Labels)> {
        Ok(("fake".to_owned(), Labels::new()))
    }
    async fn reconcile(&self, _: &Ctx, _: &[String]) -> Result<Vec<String>> {
        unused()
    }
    async fn instances(&self, _: &Ctx) -> Result<Vec<InstanceStatus>> {
        unused()
    }
}

/// Users by image id.
#[derive(Default)]
struct FakeUsers(Mutex<BTreeMap<Digest, Vec<ImageUser>>>);

#[async_trait]
impl ImageUserSource for FakeUsers {
    async fn users(&self, _: &Ctx, id: &Digest) -> Result<Vec<ImageUser>> {
        Ok(self.0.lock().unwrap().get(id).cloned().unwrap_or_default())
    }
}

/// The store as the registry of its own blob store knows it, without keeping it alive.
struct Owner(Weak<Store>);

#[async_trait]
impl ContentOwner for Owner {
    async fn wanted(&self, cx: &Ctx) -> Result<Vec<Digest>> {
        self.0.upgrade().ok_or_else(|| Error::unavailable("closed"))?.wanted(cx).await
    }
    async fn droppable(&self, cx: &Ctx) -> Result<Vec<Droppable>> {
        self.0.upgrade().ok_or_else(|| Error::unavailable("closed"))?.droppable(cx).await
    }
}

struct World {
    dir: tempfile::TempDir,
    layers: Arc<FakeLayers>,
    users: Arc<FakeUsers>,
    events: EventBus,
    store: Arc<Store>,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (layers, users) = (Arc::<FakeLayers>::default(), Arc::<FakeUsers>::default());
        let events = EventBus::default();
        let store = open(dir.path(), &layers, &users, &events).await;
        Self { dir, layers, users, events, store }
    }

    /// The daemon starts again.
    async fn restart(self) -> Self {
        let Self { dir, layers, users, events, store } = self;
        drop(store);
        let store = open(dir.path(), &layers, &users, &events).await;
        Self { dir, layers, users, events, store }
    }

    fn use_image(&self, id: &str, container: char, running: bool) {
        let user = ImageUser { container: container.to_string().repeat(64), running };
        self.users.0.lock().unwrap().entry(id.parse().unwrap()).or_default().push(user);
    }

    fn blobs(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("blobs/sha256")).unwrap().count()
    }

    fn request(&self, query: &str, params: &[(&'static str, &str)], body: Vec<u8>) -> Request {
        Request {
            method: Method::Get,
            path: String::new(),
            params: params.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
            query: Query::parse(query),
            version: ApiVersion::MAX,
            headers: http::HeaderMap::new(),
            body: if body.is_empty() {
                empty_body()
            } else {
                let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
                http_body_util::combinators::UnsyncBoxBody::new(body)
            },
            peer: gantry_sdk::route::Peer::default(),
            id: "test".into(),
            gone: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// Loads an archive; the messages of the stream.
    async fn load(&self, archive: &[u8], query: &str) -> Result<Vec<Value>> {
        let request = self.request(query, &[], archive.to_vec());
        let loaded = crate::handlers::load(self.store.clone(), request).await;
        if loaded.is_err() {
            self.store.tidy(&Ctx::background()).await;
        }
        let response = loaded?;
        let text = String::from_utf8(collect(response).await).unwrap();
        // The task goes on for a moment after the stream.
        while !self.store.tasks.running().is_empty() {
            tokio::task::yield_now().await;
        }
        self.store.tidy(&Ctx::background()).await;
        Ok(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    async fn save(&self, query: &str) -> Result<Vec<u8>> {
        let request = self.request(query, &[], Vec::new());
        Ok(collect(crate::handlers::save(self.store.clone(), request).await?).await)
    }

    async fn remove(&self, name: &str, query: &str) -> Result<Vec<String>> {
        let request = self.request(query, &[("name", name)], Vec::new());
        let removed = crate::handlers::remove(self.store.clone(), request).await;
        self.store.tidy(&Ctx::background()).await;
        let response = removed?;
        let done: Vec<BTreeMap<String, String>> =
            serde_json::from_slice(&collect(response).await).unwrap();
        Ok(done.into_iter().flatten().map(|(k, v)| format!("{k} {v}")).collect())
    }

    async fn list(&self, query: &str) -> Result<Value> {
        let request = self.request(query, &[], Vec::new());
        let response = crate::handlers::list(self.store.clone(), request).await?;
        Ok(serde_json::from_slice(&collect(response).await).unwrap())
    }

    fn actions(&self) -> Vec<String> {
        self.events.subscribe().0.iter().map(|event| event.action.clone()).collect()
    }
}

async fn open(
    dir: &Path,
    layers: &Arc<FakeLayers>,
    users: &Arc<FakeUsers>,
    events: &EventBus,
) -> Arc<Store> {
    let registry = Arc::<Registry>::default();
    registry.provide::<ImageUsers>("test", users.clone(), Grants::default(), false).unwrap();
    let blobs = Arc::new(FileBlobs::open(&dir.join("blobs"), registry.clone()).unwrap());
    blobs.owners_complete();
    let parts = Parts {
        blobs,
        metadata: Arc::new(Database::open(&dir.join("db")).unwrap()),
        layers: layers.clone(),
        registry: registry.clone(),
        events: events.clone(),
        tasks: Tasks::new("image", &tokio_util::sync::CancellationToken::new()),
    };
    let store = Arc::new(Store::open(&Ctx::background(), parts).await.unwrap());
    let owner = Arc::new(Owner(Arc::downgrade(&store)));
    registry.provide::<ContentOwners>("image", owner, Grants::default(), false).unwrap();
    store
}

async fn collect(response: Response) -> Vec<u8> {
    match response.payload {
        Payload::Body(body) => body.collect().await.unwrap().to_bytes().to_vec(),
        Payload::Hijack(_) => panic!("no body"),
    }
}

fn digest(bytes: &[u8]) -> String {
    Digest::from_sha256(&Sha256::digest(bytes).into()).to_string()
}

/// An archive from names and contents; a content that begins with `->` is a symbolic link.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (name, content) in files {
        let mut member = Member::new(Kind::File, *name, 0o644);
        if let Some(target) = content.strip_prefix(b"->") {
            member.kind = Kind::Symlink;
            member.link = target.to_vec();
        } else {
            member.size = content.len() as u64;
        }
        writer.append(&member, &mut &**content).unwrap();
    }
    writer.finish().unwrap()
}

/// A layer with one file.
fn layer(name: &str) -> Vec<u8> {
    tar(&[(name, name.as_bytes())])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(layers: &[&[u8]], label: &str) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| digest(l)).collect();
    let history: Vec<Value> = layers
        .iter()
        .map(|_| json!({"created_by": "test", "created": "2023-11-14T22:13:20Z"}))
        .collect();
    let config = json!({
        "architecture": crate::platform::Platform::host().architecture(), "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": {"Cmd": ["sh"], "Labels": {"is": label}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
    });
    config.to_string().into_bytes()
}

/// An archive with `manifest.json` from a configuration, layers and tags.
fn docker_archive(config: &[u8], layers: &[&[u8]], tags: &[&str]) -> Vec<u8> {
    let names: Vec<String> = (0..layers.len()).map(|n| format!("l{n}/layer.tar")).collect();
    let manifest =
        json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]).to_string();
    let mut files: Vec<(&str, &[u8])> = vec![("config.json", config)];
    files.extend(names.iter().map(String::as_str).zip(layers.iter().copied()));
    files.push(("manifest.json", manifest.as_bytes()));
    tar(&files)
}

/// An image of one layer called `name`, with `tags`; its id.
async fn load_simple(world: &World, name: &str, tags: &[&str]) -> String {
    let layer = layer(name);
    let config = config(&[&layer], name);
    world.load(&docker_archive(&config, &[&layer], tags), "").await.unwrap();
    digest(&config)
}

fn messages(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["stream"].as_str()).collect()
}

fn read_members(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut reader = gantry_archive::Reader::new(archive, gantry_archive::Limits::default());
    let mut members = BTreeMap::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let name = String::from_utf8(entry.name).unwrap();
        let mut content = Vec::new();
        let data = reader.read_data(1 << 30).unwrap();
        (&data[..]).read_to_end(&mut content).unwrap();
        assert!(members.insert(name.clone(), content).is_none(), "{name} is there twice");
    }
    members
}
