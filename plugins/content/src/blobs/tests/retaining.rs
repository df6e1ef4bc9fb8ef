//! Blobs that a policy drops, and how they come back.

use super::*;

/// Has one blob, and counts how often it is asked for it.
struct Source {
    blobs: Weak<FileBlobs>,
    content: Vec<u8>,
    error: Mutex<Option<ErrorKind>>,
    calls: AtomicU64,
}

#[async_trait]
impl BlobSource for Source {
    async fn fetch(&self, cx: &Ctx, wanted: &Digest) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if let Some(kind) = *self.error.lock().unwrap() {
            return Err(Error::new(kind, "no answer"));
        }
        if *wanted != digest(&self.content) {
            return Err(Error::not_found("never heard of it"));
        }
        let blobs = self.blobs.upgrade().unwrap();
        let mut writer = blobs.resume(cx, wanted, &blobs.lease(cx).await?).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        writer.write_all(&self.content).unwrap();
        writer.commit(None)?;
        Ok(())
    }
}

fn source(world: &World, content: &[u8]) -> Arc<Source> {
    let source = Arc::new(Source {
        blobs: Arc::downgrade(&world.blobs),
        content: content.to_vec(),
        error: Mutex::default(),
        calls: AtomicU64::new(0),
    });
    world
        .registry
        .provide::<BlobSources>("test", source.clone(), Grants::default(), false)
        .unwrap();
    source
}

#[tokio::test]
async fn each_policy_drops_what_it_may() {
    let cases = [
        (Retention::Keep, [true, true, true]),
        (Retention::UntilUnpacked, [false, true, true]),
        (Retention::DropIfRemote, [true, false, true]),
    ];
    for (retention, here) in cases {
        let world = World::with(retention);
        let mut blobs = Vec::new();
        for content in [b"unpacked", b"remote..", b"neither."] {
            blobs.push(world.put(content, None).await.unwrap().digest);
            world.owner.want(&blobs[blobs.len() - 1]);
        }
        world.owner.offer(&blobs[0], true, false);
        world.owner.offer(&blobs[1], false, true);
        let lease = world.lease().await;
        blobs.iter().for_each(|digest| lease.pin(digest));
        assert_eq!(world.blobs.collect(&world.cx).await.unwrap().blobs, 0, "pinned");
        drop(lease);
        world.blobs.collect(&world.cx).await.unwrap();
        for (digest, here) in blobs.iter().zip(here) {
            assert_eq!(world.is_here(digest).await, here, "{retention}: {digest}");
        }
    }
}

#[tokio::test]
async fn a_dropped_blob_is_fetched_once_for_all_who_need_it() {
    let world = World::with(Retention::DropIfRemote);
    let content = noise(1, 50_000);
    let id = world.put(&content, None).await.unwrap().digest;
    world.owner.want(&id);
    world.owner.offer(&id, true, true);
    assert_eq!(world.blobs.collect(&world.cx).await.unwrap().bytes, 50_000);

    let text = format!(
        "blob {id} was dropped by the retention policy drop-if-remote; pull the image again \
         (example.org/app)"
    );
    let error = world.blobs.stat(&world.cx, &id).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::NotFound, text.clone()));
    let error = world.blobs.open(&world.cx, &id).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::NotFound, text.clone()));

    let source = source(&world, &content);
    *source.error.lock().unwrap() = Some(ErrorKind::Unavailable);
    let error = world.blobs.open(&world.cx, &id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.chain(), format!("{text}: no answer"));
    *source.error.lock().unwrap() = Some(ErrorKind::NotFound);
    let error = world.blobs.follow(&world.cx, &id).await.map(|_| ()).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::NotFound, text));

    *source.error.lock().unwrap() = None;
    let before = source.calls.load(Ordering::SeqCst);
    let read = world.blobs.read(&world.cx, &id, 50_000);
    let (open, read, follow) =
        tokio::join!(world.blobs.open(&world.cx, &id), read, world.blobs.follow(&world.cx, &id));
    assert_eq!(read.unwrap(), content);
    let mut all = Vec::new();
    open.unwrap().read_to_end(&mut all).unwrap();
    follow.unwrap().read_to_end(&mut all).unwrap();
    assert_eq!(all, [&*content, &content].concat());
    assert_eq!(source.calls.load(Ordering::SeqCst) - before, 1);

    // Dropped again by the next collection; and forgotten once nobody wants it.
    world.blobs.collect(&world.cx).await.unwrap();
    assert!(!world.is_here(&id).await);
    let items = world.blobs.explain(&world.cx, None).await.unwrap();
    assert_eq!(items[0].why.to_string(), "dropped; comes back from example.org/app");
    world.owner.wanted.lock().unwrap().clear();
    world.blobs.collect(&world.cx).await.unwrap();
    assert_eq!(world.files("dropped"), 0);
    let error = world.blobs.open(&world.cx, &id).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no blob {id}"));
}

#[tokio::test]
async fn whoever_waits_takes_over_when_the_first_gives_up() {
    let world = World::with(Retention::UntilUnpacked);
    let id = world.put(b"layer", None).await.unwrap().digest;
    world.owner.want(&id);
    world.owner.offer(&id, true, false);
    world.blobs.collect(&world.cx).await.unwrap();
    let source = source(&world, b"layer");
    let mut first = Box::pin(world.blobs.open(&world.cx, &id));
    assert!(futures_poll(&mut first).await.is_none());
    let second = world.blobs.open(&world.cx, &id);
    let cancel = async { drop(first) };
    let (opened, ()) = tokio::join!(second, cancel);
    opened.unwrap();
    assert_eq!(source.calls.load(Ordering::SeqCst), 2);
}

/// The result of `future` if it has one already.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    tokio::time::timeout(Duration::from_millis(5), future).await.ok()
}
