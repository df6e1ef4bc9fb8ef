//! What a collection removes, and what it must not.

use super::*;

#[tokio::test]
async fn what_nobody_wants_and_nothing_pins_goes() {
    let world = World::new();
    let (a, b) = (world.put(b"wanted", None).await.unwrap(), world.put(b"no", None).await.unwrap());
    world.owner.want(&a.digest);
    let lease = world.lease().await;
    let pinned = {
        let mut writer = world.blobs.writer(&world.cx, &lease).await.unwrap();
        writer.write_all(b"pinned").unwrap();
        writer.commit(None).unwrap().digest
    };
    let (kept, gone) = (world.leave_half(b"kept half").await, world.leave_half(b"half").await);
    world.owner.want(&kept);
    let active = world.resume(b"being written").await.unwrap();

    let items = world.blobs.explain(&world.cx, None).await.unwrap();
    let why =
        |digest: &Digest| items.iter().find(|item| item.digest == *digest).unwrap().why.to_string();
    assert_eq!(why(&a.digest), "wanted by test");
    assert_eq!(why(&b.digest), "nothing refers to it");
    assert_eq!(why(&pinned), "in use by something that runs now");
    assert_eq!(why(&digest(b"being written")), "in use by something that runs now");

    let collected = world.blobs.collect(&world.cx).await.unwrap();
    assert_eq!(collected, Collected { blobs: 2, bytes: 2 + 2 });
    for (digest, here) in [(&a.digest, true), (&b.digest, false), (&pinned, true)] {
        assert_eq!(world.is_here(digest).await, here);
    }
    let partials = world.blobs.partials(&world.cx).await.unwrap();
    assert!(partials.iter().any(|it| it.digest == kept));
    assert!(!partials.iter().any(|it| it.digest == gone));
    drop((lease, active));
    world.blobs.collect(&world.cx).await.unwrap();
    assert!(!world.is_here(&pinned).await);
    world.blobs.clear().await.unwrap();
    assert_eq!((world.files("ingest"), world.files("trash")), (1, 0));
}

#[tokio::test]
async fn nothing_goes_while_an_owner_cannot_answer() {
    let world = World::new();
    let blob = world.put(b"x", None).await.unwrap();
    let refused = async |why: &str| {
        let error = world.blobs.collect(&world.cx).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{why}");
        assert!(error.chain().contains(why), "{}", error.chain());
        assert!(world.is_here(&blob.digest).await);
    };
    world.owner.fails.store(true, Ordering::Relaxed);
    refused("content of test: cannot say").await;
    world.owner.fails.store(false, Ordering::Relaxed);
    world.registry.mark_down(ContentOwners::NAME, "other", "its database is damaged");
    refused("which content other needs").await;

    let nobody = FileBlobs::open(world.dir.path(), Arc::default()).unwrap();
    assert!(nobody.collect(&world.cx).await.unwrap_err().chain().contains("has started"));
    nobody.owners_complete();
    assert!(nobody.collect(&world.cx).await.unwrap_err().chain().contains("nobody says"));
    assert!(world.is_here(&blob.digest).await);
}

/// Asks for its turn in the middle of a collection.
struct Gate {
    asked: tokio::sync::Notify,
    answer: tokio::sync::Notify,
    calls: AtomicU64,
}

#[async_trait]
impl ContentOwner for Gate {
    async fn wanted(&self, _: &Ctx) -> Result<Vec<Digest>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.asked.notify_one();
        self.answer.notified().await;
        Ok(Vec::new())
    }

    async fn droppable(&self, _: &Ctx) -> Result<Vec<Droppable>> {
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn a_pin_that_ends_during_a_collection_counts_and_callers_share_the_next_one() {
    let world = World::new();
    let gate = Arc::new(Gate {
        asked: tokio::sync::Notify::new(),
        answer: tokio::sync::Notify::new(),
        calls: AtomicU64::new(0),
    });
    world
        .registry
        .provide::<ContentOwners>("gate", gate.clone(), Grants::default(), false)
        .unwrap();
    let lease = world.lease().await;
    let blob = world.put(b"x", None).await.unwrap();
    lease.pin(&blob.digest);
    let collect = || {
        let (blobs, cx) = (world.blobs.clone(), world.cx.clone());
        async move { blobs.collect(&cx).await.unwrap() }
    };
    let during = async {
        gate.asked.notified().await;
        drop(lease);
        let later = async { tokio::join!(collect(), collect(), collect()) };
        let answers = async {
            tokio::task::yield_now().await;
            gate.answer.notify_one();
            gate.asked.notified().await;
            gate.answer.notify_one();
        };
        tokio::join!(later, answers).0
    };
    let (first, (a, b, c)) = tokio::join!(collect(), during);
    assert_eq!(first.blobs, 0);
    assert_eq!([a.blobs, b.blobs, c.blobs], [1; 3]);
    assert_eq!(gate.calls.load(Ordering::SeqCst), 2);
    assert!(!world.is_here(&blob.digest).await);
}

/// Writers bring and forget the same few blobs while collections run: what a record refers to is
/// always there.
#[test]
fn no_record_ever_lacks_its_blob() {
    const ROUNDS: u64 = 150;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = World::new();
    std::thread::scope(|scope| {
        let threads = [0, 1, 2, 3, 4, 5].map(|thread: u64| {
            let (world, runtime) = (&world, &runtime);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    bring(
                        world,
                        runtime,
                        noise((thread + round) % 4, 5_000),
                        thread.is_multiple_of(2),
                    );
                }
            })
        });
        while threads.iter().any(|thread| !thread.is_finished()) {
            runtime.block_on(world.blobs.collect(&world.cx)).unwrap();
            let mut wanted = world.owner.wanted.lock().unwrap();
            for id in &*wanted {
                assert!(path(&world, id).exists(), "recorded before, so it stayed");
            }
            wanted.clear(); // so that there is something to remove
        }
    });
    runtime.block_on(world.blobs.collect(&world.cx)).unwrap();
    runtime.block_on(world.blobs.clear()).unwrap();
    assert_eq!((world.files("ingest"), world.files("trash")), (0, 0));
}

/// What a pull does: pins, finds or writes, records, lets go; the blob must be there at the end.
fn bring(world: &World, runtime: &tokio::runtime::Runtime, content: Vec<u8>, known: bool) {
    let id = digest(&content);
    let lease = runtime.block_on(world.lease());
    let writer = match known {
        true => runtime.block_on(world.blobs.resume(&world.cx, &id, &lease)),
        false => runtime.block_on(world.blobs.writer(&world.cx, &lease)),
    };
    match writer {
        Ok(mut writer) => {
            let from = usize::try_from(writer.offset()).unwrap();
            writer.write_all(&content[from..]).unwrap();
            writer.commit(Some(&id)).unwrap();
        }
        Err(error) if error.kind() == ErrorKind::Busy => return,
        Err(error) => assert_eq!(error.kind(), ErrorKind::Exists),
    }
    assert!(runtime.block_on(world.is_here(&id)), "pinned, so it stays");
    world.owner.want(&id);
    let wanted = world.owner.wanted.lock().unwrap(); // nobody forgets it in between
    drop(lease);
    if wanted.contains(&id) {
        assert!(path(world, &id).exists(), "recorded, so it stays");
    }
}

fn path(world: &World, digest: &Digest) -> std::path::PathBuf {
    world.dir.path().join("sha256").join(digest.hex())
}
