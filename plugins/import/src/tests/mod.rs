//! Data roots written by the tests, and hostile ones.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::{CommitImage, Image, ImageStore, Loaded};
use gantry_sdk::kinds::layers::LayerProgress;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use serde_json::json;
use sha2::Digest as _;
use tokio_util::sync::CancellationToken;

use crate::run::Importer;
use crate::tarsplit::crc64;
use crate::wire::{ImportRequest, Message, State};

mod database;
mod pieces;

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn gzip(text: &str) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap()
}

fn segment(bytes: &[u8]) -> String {
    json!({ "type": 2, "payload": STANDARD.encode(bytes), "position": 0 }).to_string() + "\n"
}

fn file(name: &str, content: &[u8]) -> String {
    let crc = STANDARD.encode(crc64(content).unwrap().to_be_bytes());
    let line = json!({ "type": 1, "name": name, "size": content.len(), "payload": crc });
    line.to_string() + "\n"
}

/// Remembers the members of every archive.
#[derive(Default)]
struct FakeImages(Mutex<Vec<BTreeMap<String, Vec<u8>>>>);

#[async_trait]
impl ImageStore for FakeImages {
    async fn resolve(&self, _: &Ctx, reference: &str, _: Option<&str>) -> Result<Image> {
        Err(Error::not_found(format!("No such image: {reference}")))
    }

    async fn list(&self, _: &Ctx) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    async fn commit(&self, _: &Ctx, _: CommitImage) -> Result<Digest> {
        Err(Error::unsupported("not used by imports"))
    }

    async fn load(
        &self,
        _: &Ctx,
        mut source: Box<dyn Read + Send>,
        _: Option<LayerProgress>,
    ) -> Result<Vec<Loaded>> {
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            source.read_to_end(&mut bytes).map(|_| bytes)
        });
        let bytes = read.await?.map_err(|e| Error::invalid("a bad archive").caused_by(e))?;
        let mut reader = gantry_archive::Reader::new(&*bytes, gantry_archive::Limits::default());
        let mut members = BTreeMap::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let name = String::from_utf8(entry.name).unwrap();
            members.insert(name, reader.read_data(1 << 20).unwrap());
        }
        self.0.lock().unwrap().push(members);
        Ok(Vec::new())
    }
}

/// Imports everything; the archives, and the messages with results.
async fn import(root: &Path, dry_run: bool) -> (Vec<BTreeMap<String, Vec<u8>>>, Vec<Message>) {
    let images = Arc::<FakeImages>::default();
    let tasks = Tasks::new("import", &CancellationToken::new());
    let importer = Arc::new(Importer::new(images.clone(), tasks));
    let root = root.display().to_string();
    let request = ImportRequest { root, dry_run, namespace: None };
    let import = importer.import(request).await.unwrap();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(64);
    import.run(sender).await;
    let mut messages = Vec::new();
    while let Some(message) = receiver.recv().await {
        if !matches!(message, Message::Image { state: State::Working, .. }) {
            messages.push(message);
        }
    }
    (std::mem::take(&mut *images.0.lock().unwrap()), messages)
}

fn states(messages: &[Message]) -> Vec<State> {
    let state = |message: &Message| match message {
        Message::Image { state, .. } => Some(*state),
        Message::End { .. } => None,
    };
    messages.iter().filter_map(state).collect()
}

/// A root of a graph driver with one image of two layers; the first layer's archive, and the id.
fn graph_root(root: &Path, driver: &str, place: impl Fn(&str) -> String) -> (Vec<u8>, Digest) {
    let (head, content, tail) = (b"HEADER".as_slice(), b"content".as_slice(), b"TAIL".as_slice());
    let base = [head, content, tail].concat();
    let (base_id, top_id) = (digest(&base), digest(b"TOP"));
    let chain = digest(format!("{base_id} {top_id}").as_bytes());
    let split = segment(head) + &file("bin/tool", content) + &segment(tail);
    for (chain, diff, cache, split) in
        [(&base_id, &base_id, "c1", split), (&chain, &top_id, "c2", segment(b"TOP"))]
    {
        let at = format!("image/{driver}/layerdb/sha256/{}", chain.hex());
        write(root, &format!("{at}/diff"), diff.as_str().as_bytes());
        write(root, &format!("{at}/cache-id"), cache.as_bytes());
        write(root, &format!("{at}/size"), b"7");
        write(root, &format!("{at}/tar-split.json.gz"), &gzip(&split));
        write(root, &format!("{}/.keep", place(cache)), b"");
    }
    // The directory is a link in the layer, as after a merge of /usr.
    write(root, &format!("{}/usr/bin/tool", place("c1")), content);
    std::os::unix::fs::symlink("/usr/bin", root.join(place("c1")).join("bin")).unwrap();
    let config =
        json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": [base_id, top_id] } });
    let config = config.to_string();
    let id = digest(config.as_bytes());
    let of_driver = |path: &str| format!("image/{driver}/{path}");
    write(root, &of_driver(&format!("imagedb/content/sha256/{}", id.hex())), config.as_bytes());
    let names = json!({ "Repositories": { "tool": {
        "tool:1": id, format!("tool@{top_id}"): id, "tool:lost": digest(b"lost"),
    } } });
    write(root, &of_driver("repositories.json"), names.to_string().as_bytes());
    write(root, "containers/abc/config.v2.json", b"{}");
    write(root, "volumes/data/_data/x", b"");
    write(root, "volumes/metadata.db", b"");
    (base, id)
}

#[tokio::test]
async fn layers_of_graph_drivers_are_put_together_again() {
    type Place = fn(&str) -> String;
    let places: [(&str, Place); 3] = [
        ("overlay2", |cache| format!("overlay2/{cache}/diff")),
        ("fuse-overlayfs", |cache| format!("fuse-overlayfs/{cache}/diff")),
        ("vfs", |cache| format!("vfs/dir/{cache}")),
    ];
    for (driver, place) in places {
        let dir = tempfile::tempdir().unwrap();
        let (base, id) = graph_root(dir.path(), driver, place);
        let (archives, messages) = import(dir.path(), true).await;
        assert_eq!((archives.len(), states(&messages)), (0, vec![State::Planned]), "{driver}");
        let (archives, messages) = import(dir.path(), false).await;
        assert_eq!(states(&messages), [State::Done], "{driver}: {messages:?}");
        let [archive] = archives.as_slice() else { panic!("{driver}: {archives:?}") };
        assert_eq!(digest(&archive["config.json"]), id);
        assert_eq!((&archive["0/layer.tar"], &*archive["1/layer.tar"]), (&base, b"TOP".as_slice()));
        let list: serde_json::Value = serde_json::from_slice(&archive["manifest.json"]).unwrap();
        assert_eq!(list[0]["RepoTags"], json!(["docker.io/library/tool:1"]));
        let Some(Message::End { remainder, .. }) = messages.last() else { panic!() };
        assert_eq!((remainder.containers, remainder.volumes, remainder.digests), (1, 1, 1));
        assert_eq!(remainder.notes.len(), 1, "a name of nothing: {remainder:?}");
    }
}

#[tokio::test]
async fn what_has_changed_is_named_and_does_not_come() {
    type Harm = fn(&Path);
    let cases: [(&str, Harm, &str); 5] = [
        ("content", |c1| write(c1, "usr/bin/tool", b"CONTENT"), "have changed: bin/tool"),
        ("shorter", |c1| write(c1, "usr/bin/tool", b"con"), "has become shorter"),
        ("gone", |c1| std::fs::remove_file(c1.join("usr/bin/tool")).unwrap(), "No such file"),
        (
            "a link out",
            |c1| {
                std::fs::remove_file(c1.join("bin")).unwrap();
                std::os::unix::fs::symlink("../../../../../../../../etc", c1.join("bin")).unwrap();
            },
            "No such file",
        ),
        (
            "a directory",
            |c1| {
                std::fs::remove_file(c1.join("usr/bin/tool")).unwrap();
                std::fs::create_dir(c1.join("usr/bin/tool")).unwrap();
            },
            "no regular file",
        ),
    ];
    for (what, harm, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        graph_root(dir.path(), "overlay2", |cache| format!("overlay2/{cache}/diff"));
        harm(&dir.path().join("overlay2/c1/diff"));
        let (_, messages) = import(dir.path(), false).await;
        let Message::Image { state: State::Failed, why, .. } = &messages[0] else {
            panic!("{what}: {messages:?}")
        };
        assert!(why[0].contains(expected), "{what}: {why:?}");
    }
}

#[tokio::test]
async fn blobs_of_containerd_come_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let blob = |bytes: &[u8]| {
        let digest = digest(bytes);
        let at = "containerd/daemon/io.containerd.content.v1.content/blobs/sha256";
        write(dir.path(), &format!("{at}/{}", digest.hex()), bytes);
        digest
    };
    let (config, layer) = (blob(b"{}"), blob(b"layer"));
    let elsewhere = digest(b"another platform");
    let manifest = json!({ "config": { "digest": config }, "layers": [{ "digest": layer }] });
    let manifest = blob(manifest.to_string().as_bytes());
    let index = json!({ "manifests": [{ "digest": manifest }, { "digest": elsewhere }] });
    let index = blob(index.to_string().as_bytes());
    let names = [
        ("docker.io/library/tool:1", index.as_str()),
        ("docker.io/library/tool:2", index.as_str()),
        ("docker.io/library/lost:1", elsewhere.as_str()),
    ];
    let database = database::containerd(&names);
    write(dir.path(), "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db", &database);
    let (archives, messages) = import(dir.path(), false).await;
    assert_eq!(states(&messages), [State::Failed, State::Done], "{messages:?}");
    let [archive] = archives.as_slice() else { panic!("{archives:?}") };
    let blobs = archive.keys().filter(|name| name.starts_with("blobs/")).count();
    assert_eq!(blobs, 4);
    assert_eq!(archive[&format!("blobs/sha256/{}", layer.hex())], b"layer");
    let index_json: serde_json::Value = serde_json::from_slice(&archive["index.json"]).unwrap();
    let manifests = index_json["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 2);
    assert_eq!(manifests[1]["digest"], index.as_str());
    assert_eq!(manifests[1]["annotations"]["io.containerd.image.name"], names[1].0);
}

#[tokio::test]
async fn what_is_no_data_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().display().to_string();
    let cases = [
        ("relative", ErrorKind::InvalidArgument),
        ("/no/such/directory", ErrorKind::NotFound),
        (there.as_str(), ErrorKind::NotFound),
    ];
    for (root, kind) in cases {
        let request = ImportRequest { root: root.to_owned(), dry_run: true, namespace: None };
        assert_eq!(crate::run::plan(&request).unwrap_err().kind(), kind, "{root}");
    }
}
