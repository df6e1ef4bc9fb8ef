//! Layers that are unpacked at once, from blobs that may still be arriving.

use std::sync::Arc;
use std::time::Duration;

use gantry_content::blobs::FileBlobs;
use gantry_sdk::ErrorKind;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobStore, BlobWriter};
use gantry_sdk::kinds::layers::{Chain, ChainLayer, LayerStore};
use gantry_testkit::archive::Tar;
use gantry_testkit::fakes::Blobs;
use gantry_testkit::tree::snapshot;

use crate::host::{Host, compressed, cx, names, path};

/// Layers of which each needs those below, in one way or another.
fn entangled() -> Vec<(&'static str, Tar)> {
    let odd = |header: &mut gantry_testkit::archive::Header| {
        header.set_mode(0o1777);
        header.set_uid(1234);
        header.set_gid(70_000);
        header.set_mtime(1_234_567);
    };
    vec![
        (
            "a base",
            Tar::default()
                .with("./", b'5', |header| header.set_mode(0o711))
                .with("odd", b'5', odd)
                .with("odd/inner", b'5', odd)
                .dir("real")
                .dir("real/dir")
                .symlink("link", "real")
                .symlink("real/up", "../odd")
                .file("lower", "of the base")
                .file("hidden", ""),
        ),
        ("directories that are not described", Tar::default().file("odd/inner/new", "1")),
        ("a parent that is a link", Tar::default().file("link/dir/through", "2")),
        ("two links on the way", Tar::default().file("link/up/both", "3")),
        ("a hard link to a file below", Tar::default().hardlink("odd/hard", "lower")),
        ("a link that is replaced", Tar::default().dir("link").file("link/own", "4")),
        (
            "deletions",
            Tar::default().file("odd/inner/.wh.new", "").file(".wh.hidden", "").file("new/x", ""),
        ),
        (
            "an opaque directory",
            Tar::default().file("real/dir/.wh..wh..opq", "").file("real/dir/y", ""),
        ),
        ("a new top", Tar::default().with("./", b'5', odd).file("last", "")),
        ("an opaque top", Tar::default().file(".wh..wh..opq", "").file("odd/only", "")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn root_layers_unpacked_alone_are_what_they_are_over_a_copy_of_those_below() {
    let Some(host) = Host::new() else { return };
    let chain = Chain(entangled().into_iter().map(|(_, tar)| host.layer(tar)).collect());
    let store = host.start().await;
    for instance in ["overlay2", "vfs", "erofs"] {
        store.unpack(&cx(), &chain, Some(instance), None).await.unwrap();
        assert_eq!(host.drafts(instance), 0);
    }
    for (n, (what, _)) in entangled().iter().enumerate() {
        let part = Chain(chain.0[..=n].to_vec());
        let seen = async |instance| {
            let mount = store.mount_chain(&cx(), &part, Some(instance)).await.unwrap();
            snapshot(&path(&mount, ".")).unwrap()
        };
        let expected = seen("vfs").await;
        for instance in ["overlay2", "erofs"] {
            let ours = seen(instance).await;
            for (name, node) in &expected {
                assert_eq!(ours.get(name), Some(node), "{what} on {instance}: {name}");
            }
            assert_eq!(ours.len(), expected.len(), "{what} on {instance}");
        }
    }
}

/// A blob that arrives when the test says so.
struct Arriving {
    writer: Option<Box<dyn BlobWriter>>,
    digest: Digest,
    rest: Vec<u8>,
}

impl Arriving {
    /// The layer, and its blob of which a half is here.
    async fn begin(blobs: &FileBlobs, tar: Tar) -> (ChainLayer, Self) {
        let (diff_id, mut bytes) = compressed(tar);
        let digest = Blobs::default().put(bytes.clone());
        let lease = blobs.lease(&cx()).await.unwrap();
        let mut writer = blobs.resume(&cx(), &digest, &lease).await.unwrap();
        let rest = bytes.split_off(bytes.len() / 2);
        writer.write_all(&bytes).unwrap();
        let layer = ChainLayer { diff_id, blob: digest.clone() };
        (layer, Self { writer: Some(writer), digest, rest })
    }

    fn finish(mut self) {
        let mut writer = self.writer.take().unwrap();
        writer.write_all(&self.rest).unwrap();
        writer.commit(Some(&self.digest)).unwrap();
    }
}

async fn put(blobs: &FileBlobs, tar: Tar) -> ChainLayer {
    let (layer, rest) = Arriving::begin(blobs, tar).await;
    rest.finish();
    layer
}

/// Starts unpacking; the result is aborted when it is dropped.
fn unpacking(
    store: &Arc<dyn LayerStore>,
    chain: &Chain,
) -> tokio::task::JoinHandle<gantry_sdk::Result<()>> {
    let (store, chain) = (store.clone(), chain.clone());
    #[expect(clippy::disallowed_methods, reason = "a test's own task, awaited or aborted by it")]
    tokio::spawn(async move { store.unpack(&cx(), &chain, None, None).await })
}

async fn is_there(store: &Arc<dyn LayerStore>, id: &Digest) -> bool {
    store.chain_sizes(&cx()).await.unwrap().iter().any(|(there, _)| there == id)
}

async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}");
}

fn noise(bytes: u32) -> String {
    (0..bytes / 8).map(|n| format!("{:08x}", n.wrapping_mul(2_654_435_761))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_layer_is_unpacked_while_its_blob_arrives_and_lands_after_those_below() {
    let Some(host) = Host::new() else { return };
    let blobs = host.arriving();
    let store = host.start_on(blobs.clone()).await;
    let large = noise(2 << 20);
    let (base, first) = Arriving::begin(&blobs, Tar::default().file("a/base", &large)).await;
    let (top, second) = Arriving::begin(&blobs, Tar::default().file("a/top", &large)).await;
    let chain = Chain(vec![base, top]);
    let ids = chain.ids();
    let whole = unpacking(&store, &chain);
    soon("both are at work", async || host.drafts("overlay2") == 2).await;
    second.finish();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!is_there(&store, &ids[1]).await, "the one below is not there yet");
    first.finish();
    whole.await.unwrap().unwrap();
    let mount = store.mount_chain(&cx(), &chain, None).await.unwrap();
    assert_eq!(names(&mount, "a"), ["base", "top"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_blob_that_ends_in_the_middle_fails_all_who_wait_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let blobs = host.arriving();
    let store = host.start_on(blobs.clone()).await;
    let base = put(&blobs, Tar::default().file("base", "")).await;
    let (top, rest) = Arriving::begin(&blobs, Tar::default().file("top", &noise(1 << 20))).await;
    let chain = Chain(vec![base, top]);
    let (one, other) = (unpacking(&store, &chain), unpacking(&store, &chain));
    soon("the layer is at work", async || host.drafts("overlay2") == 1).await;
    drop(rest);
    for waiting in [one, other] {
        let error = waiting.await.unwrap().unwrap_err();
        assert!(error.chain().contains("cannot unpack layer"), "{}", error.chain());
    }
    host.settled("overlay2").await;
    let ids = chain.ids();
    assert!(!is_there(&store, &ids[1]).await);
    let error = unpacking(&store, &chain).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn root_what_nobody_waits_for_stops_unless_a_lease_keeps_it() {
    let Some(host) = Host::new() else { return };
    let blobs = host.arriving();
    let store = host.start_on(blobs.clone()).await;
    for is_leased in [false, true] {
        let tar = Tar::default().file(if is_leased { "kept" } else { "left" }, &noise(1 << 20));
        let (layer, rest) = Arriving::begin(&blobs, tar).await;
        let chain = Chain(vec![layer]);
        let lease = match is_leased {
            true => Some(store.lease(&cx(), &chain).await.unwrap()),
            false => None,
        };
        let waiting = unpacking(&store, &chain);
        soon("the layer is at work", async || host.drafts("overlay2") == 1).await;
        waiting.abort();
        assert!(waiting.await.is_err());
        rest.finish();
        host.settled("overlay2").await;
        let id = chain.id().unwrap();
        assert_eq!(is_there(&store, &id).await, is_leased);
        drop(lease);
        store.unpack(&cx(), &chain, None, None).await.unwrap();
    }
}

#[test]
fn root_what_a_killed_daemon_was_unpacking_is_gone_after_the_next_start() {
    let Some(host) = Host::new() else { return };
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let first = runtime();
    let (chain, rest) = first.block_on(async {
        let blobs = host.arriving();
        let store = host.start_on(blobs.clone()).await;
        let base = put(&blobs, Tar::default().file("base", "")).await;
        let (top, rest) =
            Arriving::begin(&blobs, Tar::default().file("top", &noise(1 << 20))).await;
        let chain = Chain(vec![base, top]);
        drop(unpacking(&store, &chain));
        soon("the layer is at work", async || host.drafts("overlay2") == 1).await;
        soon("the base is there", async || is_there(&store, &chain.ids()[0]).await).await;
        (chain, rest)
    });
    first.shutdown_background();
    assert_eq!(host.drafts("overlay2"), 1);

    runtime().block_on(async {
        let blobs = host.arriving();
        let store = host.start_on(blobs.clone()).await;
        assert_eq!(host.drafts("overlay2"), 0);
        assert!(is_there(&store, &chain.ids()[0]).await, "what was complete is kept");
        rest.finish();
        store.unpack(&cx(), &chain, None, None).await.unwrap();
        let mount = store.mount_chain(&cx(), &chain, None).await.unwrap();
        assert_eq!(names(&mount, ""), ["base", "top"]);
    });
}
