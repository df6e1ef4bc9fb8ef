//! Layers that are not compressed are so after a push.

use std::io::Read;

use super::*;
use crate::push::pack::pack;

/// An archive of about five megabytes that is not all the same.
fn large_layer() -> Vec<u8> {
    let text: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(n) >> 11) as u8 & 0x3f).collect();
    tar(&[("data", &text)])
}

async fn pack_all(world: &World, name: &str) -> usize {
    let (store, cx) = (&world.store, Ctx::background());
    let entry = store.index().resolve(name, None).unwrap().clone();
    let lease = store.blobs.lease(&cx).await.unwrap();
    let count = Mutex::new(0);
    pack(store, &cx, &entry, &lease, |_| *count.lock().unwrap() += 1).await.unwrap();
    count.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_layers_are_compressed_once() {
    let world = World::new().await;
    let (large, small) = (large_layer(), layer("small"));
    let file = config(&[&large, &small], "packed");
    world.load(&docker_archive(&file, &[&large, &small], &["packed:1"]), "").await.unwrap();
    let other = config(&[&large], "other");
    world.load(&docker_archive(&other, &[&large], &["other:1"]), "").await.unwrap();
    world.use_image(&digest(&other), 'c', true);

    assert_eq!(pack_all(&world, "packed:1").await, 1);
    let index = world.store.index();
    let record = index.resolve("packed:1", None).unwrap().record.clone();
    let first = &record.layers[0];
    assert_eq!(first.diff_id.as_str(), digest(&large));
    assert_ne!(first.blob, first.diff_id);
    assert!(first.media_type.ends_with("tar+gzip"));
    assert_eq!(record.layers[1].blob, record.layers[1].diff_id, "too small");
    let blob = world.store.blobs.read(&Ctx::background(), &first.blob, 1 << 30).await.unwrap();
    assert_eq!(blob.len() as u64, first.bytes);
    assert!(blob.len() < large.len());
    let mut again = Vec::new();
    flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut again).unwrap();
    assert!(again == large);
    let passed = gantry_archive::decompressed_with(&blob[..], true, |_| Ok(())).unwrap().1;
    assert_eq!(passed.diff_id, digest(&large));

    // The other image is no different, and its container still finds what it was made from.
    let other = index.resolve("other:1", None).unwrap().record.clone();
    assert_eq!((&other.layers[0], &other.replaced), (first, &vec![first.diff_id.clone()]));
    assert!(record.replaced.is_empty());
    assert_eq!(pack_all(&world, "packed:1").await, 0);
    assert_eq!(pack_all(&world, "other:1").await, 0);
    // Nor does a database that is read again.
    let world = world.restart().await;
    assert_eq!(world.store.index().resolve("packed:1", None).unwrap().record, record);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_a_registry_has_stays_as_it_is() {
    let world = World::new().await;
    let large = large_layer();
    let file = config(&[&large], "known");
    world.load(&docker_archive(&file, &[&large], &["known:1"]), "").await.unwrap();
    let blob: Digest = digest(&large).parse().unwrap();
    let cx = Ctx::background();
    world.store.distributed(&cx, &[blob], "registry.example/known").await.unwrap();
    assert_eq!(pack_all(&world, "known:1").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_in_xz_becomes_one_that_manifests_have_a_word_for() {
    let world = World::new().await;
    let archive = include_bytes!("../../../../tests/fuzz/corpus/docker_archive/xz-layer.tar");
    world.load(archive, "").await.unwrap();
    let record = world.store.index().resolve("a:1", None).unwrap().record.clone();
    let layer = &record.layers[0];
    assert!(layer.media_type.ends_with("tar+zstd"), "{layer:?}");
    let blob = world.store.blobs.read(&Ctx::background(), &layer.blob, 1 << 20).await.unwrap();
    let passed = gantry_archive::decompressed_with(&blob[..], true, |_| Ok(())).unwrap().1;
    assert_eq!(passed.diff_id, layer.diff_id.as_str());
}
