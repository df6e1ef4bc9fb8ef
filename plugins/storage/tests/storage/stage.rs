//! Archives that come before their chain is known.

use std::io::Read;

use gantry_sdk::kinds::layers::{Chain, ChainLayer, Staged};
use gantry_sdk::{ErrorKind, Labels};
use gantry_testkit::archive::Tar;
use gantry_testkit::fakes::Blobs;

use crate::host::{Host, compressed, cx, names, path, read};

fn source(bytes: &[u8]) -> Box<dyn Read + Send> {
    Box::new(std::io::Cursor::new(bytes.to_vec()))
}

fn layer_of(staged: &Staged) -> ChainLayer {
    ChainLayer { diff_id: staged.diff_id.clone(), blob: staged.blob.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_chain_takes_what_was_staged_and_needs_no_blob() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let base = Tar::default().with("d", b'5', |header| header.set_mode(0o750)).file("d/a", "a");
    let tars = [base, Tar::default().file("d/b", "b")];
    let mut staged = Vec::new();
    for (n, tar) in tars.into_iter().enumerate() {
        let plain = tar.clone().end();
        let (diff_id, gzip) = compressed(tar);
        let bytes = if n == 0 { &gzip } else { &plain };
        let answer = store.stage(&cx(), source(bytes), None).await.unwrap();
        assert_eq!(answer.diff_id, diff_id);
        assert_eq!(answer.blob, Blobs::default().put(bytes.clone()));
        assert_eq!(answer.compression, ["gzip", ""][n]);
        assert_eq!((answer.bytes, answer.unpacked), (bytes.len() as u64, plain.len() as u64));
        staged.push(answer);
    }
    assert_eq!(host.drafts("overlay2"), 2);
    let chain = Chain(staged.iter().map(layer_of).collect());
    store.unpack(&cx(), &chain, None, None).await.unwrap();
    drop(staged);
    assert_eq!(host.drafts("overlay2"), 0);
    let mount = store.mount_chain(&cx(), &chain, None).await.unwrap();
    assert_eq!(names(&mount, "d"), ["a", "b"]);
    use std::os::unix::fs::PermissionsExt;
    let mode = path(&mount, "d").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750, "the directory is the one below");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_what_no_chain_takes_goes_with_its_hold() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let (_, gzip) = compressed(Tar::default().file("a", "a"));
    let first = store.stage(&cx(), source(&gzip), None).await.unwrap();
    let second = store.stage(&cx(), source(&gzip), None).await.unwrap();
    assert_eq!(host.drafts("overlay2"), 2);
    let chain = Chain(vec![layer_of(&first)]);
    store.unpack(&cx(), &chain, None, None).await.unwrap();
    drop((first, second));
    host.settled("overlay2").await;
    let layer = store.create(&cx(), "c", &chain, None, &Labels::new()).await.unwrap();
    assert_eq!(read(&store.mount(&cx(), &layer).await.unwrap(), "a"), "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_an_archive_that_cannot_be_staged_is_read_to_its_end() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let needy = Tar::default().hardlink("link", "of the base").file("more", &"x".repeat(100_000));
    for instance in ["overlay2", "vfs", "erofs"] {
        let (diff_id, gzip) = compressed(needy.clone());
        let staged = store.stage(&cx(), source(&gzip), Some(instance)).await.unwrap();
        assert_eq!((staged.diff_id, staged.bytes), (diff_id, gzip.len() as u64));
        assert_eq!(host.drafts(instance), 0);
    }
    let base = host.layer(Tar::default().file("of the base", "shared"));
    let chain = Chain(vec![base, host.layer(needy)]);
    store.unpack(&cx(), &chain, None, None).await.unwrap();
    let mount = store.mount_chain(&cx(), &chain, None).await.unwrap();
    assert_eq!(read(&mount, "link"), "shared");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_damaged_archive_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let (_, mut gzip) = compressed(Tar::default().file("a", &"x".repeat(100_000)));
    gzip.truncate(gzip.len() - 10);
    let cases = [("cut", gzip), ("no archive", vec![b'x'; 4096])];
    for (what, bytes) in cases {
        let error = store.stage(&cx(), source(&bytes), None).await.unwrap_err();
        let kinds = [ErrorKind::InvalidArgument, ErrorKind::Internal];
        assert!(kinds.contains(&error.kind()), "{what}: {}", error.chain());
    }
    assert_eq!(host.drafts("overlay2"), 0);
}
