//! The store on a directory, with owners made up by the test.

use super::*;
use gantry_sdk::ErrorKind;

fn open(dir: &Path) -> FileBlobs {
    FileBlobs::open(dir, Arc::default()).unwrap()
}

async fn put(store: &FileBlobs, content: &[u8], expected: Option<&Digest>) -> Result<BlobInfo> {
    let cx = Ctx::background();
    let mut writer = store.writer(&cx, &store.lease(&cx).await?).await?;
    writer.write_all(content).unwrap();
    writer.commit(expected)
}

#[tokio::test]
async fn a_blob_is_found_by_its_digest_and_a_lie_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let cx = Ctx::background();
    let blob = put(&store, b"hello", None).await.unwrap();
    assert_eq!(store.read(&cx, &blob.digest, 5).await.unwrap(), b"hello");
    assert_eq!(
        store.read(&cx, &blob.digest, 4).await.unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert!(put(&store, b"other", Some(&blob.digest)).await.is_err());
    assert_eq!(store.list(&cx).await.unwrap(), std::slice::from_ref(&blob));
    store.remove(&cx, &blob.digest).await.unwrap();
    store.remove(&cx, &blob.digest).await.unwrap();
    assert_eq!(store.stat(&cx, &blob.digest).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn blobs_of_unknown_digest_are_dropped_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fs::write(dir.path().join("ingest/half"), b"x").unwrap();
    drop(store);
    open(dir.path());
    assert!(fs::read_dir(dir.path().join("ingest")).unwrap().next().is_none());
}
