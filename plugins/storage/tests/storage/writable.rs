//! What containers change, and what is kept for whom.

use std::io::Write;
use std::sync::{Arc, Mutex};

use gantry_archive::{Kind, Limits, Reader};
use gantry_sdk::Labels;
use gantry_sdk::kinds::layers::Chain;
use gantry_testkit::archive::Tar;

use crate::host::{Host, cx, path, write};

/// Collects what is written to it.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn members(archive: &[u8]) -> Vec<(String, Kind)> {
    let mut reader = Reader::new(archive, Limits::default());
    let mut members = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let name = String::from_utf8(entry.name.clone()).unwrap();
        members.push((name.trim_end_matches('/').to_owned(), entry.kind));
    }
    members
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_container_tells_what_it_changed_while_it_is_in_use() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let mut chain = host.chain();
    chain.0.push(host.layer(Tar::default().dir("e").file("e/kept", "").file("gone", "")));
    for instance in ["overlay2", "vfs", "erofs"] {
        let layer = store.create(&cx(), "c", &chain, Some(instance), &Labels::new()).await.unwrap();
        let diff = async || {
            let sink = Sink::default();
            store.diff(&cx(), &layer, &chain, false, Box::new(sink.clone())).await.unwrap();
            let bytes = sink.0.lock().unwrap().clone();
            members(&bytes)
        };
        assert_eq!(store.changes(&cx(), &layer, &chain).await.unwrap(), [], "{instance}");
        assert_eq!(diff().await, [], "{instance}");

        let mount = store.mount(&cx(), &layer).await.unwrap();
        write(&mount, "d/a", "changed, and longer");
        write(&mount, "d/new", "");
        std::fs::remove_file(path(&mount, "gone")).unwrap();
        let changes = store.changes(&cx(), &layer, &chain).await.unwrap();
        let changes: Vec<_> = changes.iter().map(|c| (c.path.as_str(), c.kind)).collect();
        assert_eq!(changes, [("/d", 0), ("/d/a", 0), ("/d/new", 1), ("/gone", 2)], "{instance}");
        let mut found = diff().await;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [".wh.gone", "d", "d/a", "d/new"], "{instance}");
        store.remove(&cx(), &layer).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_lease_keeps_layers_from_a_collection() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let chain = host.chain();
    let large = host.layer(Tar::default().file("large", &"x".repeat(1 << 20)));
    let other = Chain(vec![large]);
    let lease = store.lease(&cx(), &chain).await.unwrap();
    for chain in [&chain, &other] {
        store.unpack(&cx(), chain, None, None).await.unwrap();
    }
    store.collect(&cx(), &[]).await.unwrap();
    assert_eq!(store.chain_sizes(&cx()).await.unwrap().len(), 2);
    // Nobody empties the trash in this test.
    assert_eq!(store.removing(&cx()).await.unwrap(), 1 << 20);
    drop(lease);
    store.collect(&cx(), &[]).await.unwrap();
    assert_eq!(store.chain_sizes(&cx()).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_unpacking_and_collecting_at_once_loses_nothing() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let chain = host.chain();
    let collecting = {
        let store = store.clone();
        #[expect(clippy::disallowed_methods, reason = "a test's own task, awaited below")]
        tokio::spawn(async move {
            for _ in 0..200 {
                store.collect(&cx(), &[]).await.unwrap();
            }
        })
    };
    for n in 0..50 {
        let key = format!("c{n}");
        let layer = store.create(&cx(), &key, &chain, None, &Labels::new()).await.unwrap();
        store.mount(&cx(), &layer).await.unwrap();
        store.remove(&cx(), &layer).await.unwrap();
    }
    collecting.await.unwrap();
}
