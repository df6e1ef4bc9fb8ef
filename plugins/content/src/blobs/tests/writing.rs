//! Writing, going on with it, and reading meanwhile.

use super::*;

#[tokio::test]
async fn a_blob_is_found_by_its_digest_and_a_lie_is_refused() {
    let world = World::new();
    let (store, cx) = (&world.blobs, &world.cx);
    let blob = world.put(b"hello", None).await.unwrap();
    assert_eq!(store.read(cx, &blob.digest, 5).await.unwrap(), b"hello");
    assert_eq!(
        store.read(cx, &blob.digest, 4).await.unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert!(world.put(b"other", Some(&blob.digest)).await.is_err());
    assert_eq!(world.files("ingest"), 0);
    assert_eq!(store.list(cx).await.unwrap(), std::slice::from_ref(&blob));
    store.remove(cx, &blob.digest).await.unwrap();
    store.remove(cx, &blob.digest).await.unwrap();
    assert_eq!(store.stat(cx, &blob.digest).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_was_begun_goes_on_after_a_kill_and_the_rest_is_cleared() {
    let world = World::new();
    let content = noise(1, 700_000);
    let mut known = world.resume(&content).await.unwrap();
    known.write_all(&content[..400_000]).unwrap();
    let mut unknown = world.blobs.writer(&world.cx, &world.lease().await).await.unwrap();
    unknown.write_all(b"of no use").unwrap();
    fs::write(world.dir.path().join("trash/1"), b"removed").unwrap();
    std::mem::forget((known, unknown));

    let world = world.killed();
    assert_eq!((world.files("ingest"), world.files("trash")), (1, 0));
    let partials = world.blobs.partials(&world.cx).await.unwrap();
    assert_eq!(partials, [BlobInfo { digest: digest(&content), size: 400_000 }]);
    let mut writer = world.resume(&content).await.unwrap();
    assert_eq!(writer.offset(), 400_000);
    writer.write_all(&content[400_000..]).unwrap();
    let blob = writer.commit(Some(&digest(&content))).unwrap();
    assert_eq!(blob.size, 700_000);
    assert_eq!(world.files("ingest"), 0);
    assert_eq!(world.blobs.read(&world.cx, &blob.digest, 700_000).await.unwrap(), content);
}

#[tokio::test]
async fn a_partial_that_was_complete_only_needs_its_commit() {
    let world = World::new();
    let content = noise(2, 100_000);
    world.resume(&content).await.unwrap().write_all(&content).unwrap();
    let writer = world.resume(&content).await.unwrap();
    assert_eq!(writer.offset(), 100_000);
    writer.commit(None).unwrap();
    assert!(world.is_here(&digest(&content)).await);
}

#[tokio::test]
async fn one_writer_at_a_time_and_none_for_what_is_here() {
    let world = World::new();
    let writer = world.resume(b"x").await.unwrap();
    let error = |result: Result<Box<dyn BlobWriter>>| result.map(|_| ()).unwrap_err().kind();
    assert_eq!(error(world.resume(b"x").await), ErrorKind::Busy);
    let id = digest(b"x");
    let busy = world.blobs.discard_partial(&world.cx, &id).await.unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    drop(writer);
    assert_eq!(world.files("ingest"), 0, "nothing was written, so nothing is kept");
    world.put(b"x", None).await.unwrap();
    assert_eq!(error(world.resume(b"x").await), ErrorKind::Exists);
    world.leave_half(b"discarded").await;
    world.blobs.discard_partial(&world.cx, &digest(b"discarded")).await.unwrap();
    assert_eq!((world.files("ingest"), world.files("trash")), (0, 0));
}

#[tokio::test]
async fn wrong_content_is_thrown_away_with_its_partial() {
    let world = World::new();
    let mut writer = world.resume(b"right").await.unwrap();
    writer.write_all(b"wrong").unwrap();
    let error = writer.commit(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(world.files("ingest"), 0);
    assert_eq!(world.resume(b"right").await.unwrap().offset(), 0);
}

/// Starts again at 0 over `before`, as for a server that cannot resume.
async fn restarted(world: &World, content: &[u8], before: &[u8]) -> Box<dyn BlobWriter> {
    let mut writer = world.resume(content).await.unwrap();
    writer.write_all(before).unwrap();
    writer.restart().unwrap();
    assert_eq!(writer.offset(), 0);
    writer
}

#[tokio::test]
async fn followers_survive_a_restart_that_brings_the_same_content() {
    let world = World::new();
    let content = noise(3, 900_000);
    let mut writer = restarted(&world, &content, &content[..600_000]).await;
    let mut follower = world.blobs.follow(&world.cx, &digest(&content)).await.unwrap();
    let mut read = vec![0; 600_000];
    follower.read_exact(&mut read).unwrap();
    for piece in content.chunks(70_001) {
        writer.write_all(piece).unwrap();
    }
    writer.commit(None).unwrap();
    follower.read_to_end(&mut read).unwrap();
    assert_eq!(read, content);
}

#[tokio::test]
async fn followers_that_read_what_was_replaced_fail_and_others_do_not() {
    let world = World::new();
    let content = noise(4, 300_000);
    let mut before = content[..200_000].to_vec();
    before[150_000] ^= 1;
    let mut writer = restarted(&world, &content, &before).await;
    let follow = async || world.blobs.follow(&world.cx, &digest(&content)).await.unwrap();
    let (mut far, mut near) = (follow().await, follow().await);
    far.read_exact(&mut vec![0; 200_000]).unwrap();
    let mut read = vec![0; 150_000];
    near.read_exact(&mut read).unwrap();
    writer.write_all(&content).unwrap();
    writer.commit(None).unwrap();
    assert!(far.read(&mut [0; 10]).unwrap_err().to_string().contains("was replaced"));
    near.read_to_end(&mut read).unwrap();
    assert_eq!(read, content);
}

#[tokio::test]
async fn content_that_is_shorter_than_its_partial_is_cut() {
    let world = World::new();
    let mut writer = restarted(&world, b"short", b"short and more").await;
    writer.write_all(b"short").unwrap();
    let blob = writer.commit(None).unwrap();
    assert_eq!(world.blobs.stat(&world.cx, &blob.digest).await.unwrap().size, 5);
}

#[tokio::test]
async fn many_followers_read_everything_and_end_after_the_commit() {
    let world = World::new();
    let content = noise(5, 3_000_000);
    let id = world.leave_half(&content).await;
    assert_eq!(
        world.blobs.follow(&world.cx, &id).await.map(|_| ()).unwrap_err().kind(),
        ErrorKind::NotFound,
        "nobody writes it"
    );
    let mut writer = world.resume(&content).await.unwrap();
    let committed = Arc::new(AtomicBool::new(false));
    let mut followers = Vec::new();
    for size in 1..=16 {
        let mut follower = world.blobs.follow(&world.cx, &id).await.unwrap();
        let committed = committed.clone();
        followers.push(std::thread::spawn(move || {
            let (mut hash, mut buf) = (Sha256::new(), vec![0; size * 10_007]);
            loop {
                match follower.read(&mut buf).unwrap() {
                    0 => break,
                    n => hash.update(&buf[..n]),
                }
            }
            assert!(committed.load(Ordering::SeqCst));
            Digest::from_sha256(&hash.finalize().into())
        }));
    }
    let rest = &content[1_500_000..];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for piece in rest.chunks(33_333) {
                writer.write_all(piece).unwrap();
            }
            std::thread::sleep(Duration::from_millis(50));
            committed.store(true, Ordering::SeqCst);
            writer.commit(None).unwrap();
        });
    });
    for follower in followers {
        assert_eq!(follower.join().unwrap(), id);
    }
    let mut read = Vec::new();
    world.blobs.follow(&world.cx, &id).await.unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, content);
}

#[tokio::test]
async fn a_follower_fails_at_once_when_the_writer_goes_away() {
    let world = World::new();
    let content = noise(6, 100_000);
    let id = world.leave_half(&content).await;
    let writer = world.resume(&content).await.unwrap();
    let mut follower = world.blobs.follow(&world.cx, &id).await.unwrap();
    let waits = std::thread::spawn(move || follower.read_to_end(&mut Vec::new()));
    std::thread::sleep(Duration::from_millis(50)); // it has read the half and waits
    drop(writer);
    let error = waits.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert_eq!(world.blobs.partials(&world.cx).await.unwrap()[0].size, 50_000);

    let mut writer = world.resume(&content).await.unwrap();
    let mut follower = world.blobs.follow(&world.cx, &id).await.unwrap();
    writer.write_all(b"wrong").unwrap();
    writer.commit(None).unwrap_err();
    assert!(follower.read(&mut [0; 10]).is_err(), "no byte of it is given after it was refused");
}

#[tokio::test]
async fn equal_blobs_written_at_once_are_one() {
    let world = World::new();
    let content = noise(7, 200_000);
    let lease = world.lease().await;
    let mut writers = vec![world.resume(&content).await.unwrap()];
    for _ in 0..3 {
        writers.push(world.blobs.writer(&world.cx, &lease).await.unwrap());
    }
    std::thread::scope(|scope| {
        for mut writer in writers {
            scope.spawn(|| {
                writer.write_all(&content).unwrap();
                writer.commit(Some(&digest(&content))).unwrap()
            });
        }
    });
    assert_eq!((world.files("sha256"), world.files("ingest")), (1, 0));
}
