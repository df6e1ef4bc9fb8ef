//! Layers of images and containers on any instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer, LayerProgress};
use gantry_sdk::{ErrorKind, Labels};
use gantry_testkit::archive::Tar;
use gantry_testkit::fakes::Blobs;

use crate::host::{Host, cx, names, write};

#[tokio::test(flavor = "multi_thread")]
async fn root_a_container_gets_its_image_on_any_instance_and_remembers_it() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let chain = host.chain();
    let seen = Arc::new(AtomicU64::new(0));
    let counter = seen.clone();
    let progress: LayerProgress = Arc::new(move |_, done, total| {
        assert!(done <= total);
        counter.fetch_add(1, Ordering::Relaxed);
    });
    store.unpack(&cx(), &chain, None, Some(progress)).await.unwrap();
    assert!(seen.load(Ordering::Relaxed) >= 2, "one last report for each layer");

    for instance in ["overlay2", "vfs"] {
        let key = format!("on-{instance}");
        let layer =
            store.create(&cx(), &key, &chain, Some(instance), &Labels::new()).await.unwrap();
        assert_eq!(layer.instance, instance);
        let mount = store.mount(&cx(), &layer).await.unwrap();
        assert_eq!(names(&mount, "d"), ["a", "b"]);
        write(&mount, "new", &"x".repeat(50_000));
        assert!(store.usage(&cx(), &layer).await.unwrap() >= 50_000);
        store.details(&cx(), &layer).await.unwrap();
    }
    assert_eq!(store.chain_usage(&cx(), &chain).await.unwrap(), 7);
    assert_eq!(store.chain_sizes(&cx()).await.unwrap().len(), 2);
    assert_eq!(store.chain_details(&cx(), &chain).await.unwrap().0, "overlay2");

    let store = host.start().await;
    assert_eq!(store.chain_usage(&cx(), &chain).await.unwrap(), 7, "sizes are remembered");
    let dropped = store.reconcile(&cx(), &["on-vfs".to_owned()]).await.unwrap();
    assert_eq!(dropped, ["on-overlay2"]);
    let layer = store.create(&cx(), "on-vfs", &chain, Some("vfs"), &Labels::new()).await.unwrap();
    let mount = store.mount(&cx(), &layer).await.unwrap();
    assert_eq!(names(&mount, ""), ["d", "new"], "created again, it is the same");
    store.remove(&cx(), &layer).await.unwrap();
    store.remove(&cx(), &layer).await.unwrap();
    assert_eq!(store.mount(&cx(), &layer).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_chain_is_unpacked_once_for_all_who_ask() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let mut chain = host.chain();
    let large = "x".repeat(3 << 20);
    chain.0.push(host.layer(Tar::default().file("large", &large)));
    let ask = |n: usize| {
        let (store, chain) = (store.clone(), chain.clone());
        #[expect(clippy::disallowed_methods, reason = "a test's own task, awaited below")]
        tokio::spawn(async move {
            let key = format!("c{n}");
            store.create(&cx(), &key, &chain, None, &Labels::new()).await
        })
    };
    let asking: Vec<_> = (0..16).map(ask).collect();
    asking[3].abort(); // who stops waiting stops nothing
    let mut created = 0;
    for task in asking {
        if let Ok(layer) = task.await {
            layer.unwrap();
            created += 1;
        }
    }
    assert!(created >= 15);
    let unpacked = std::fs::read_dir(host.root("overlay2").join("l")).unwrap().count();
    assert!(unpacked <= 3 + 16, "{unpacked} directories for 3 layers and 16 containers");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_blob_that_lies_is_refused_and_nothing_stays() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let good = host.chain();
    let other = host.layer(Tar::default().file("other", ""));

    let wrong_diff = Chain(vec![ChainLayer { blob: other.blob.clone(), ..good.0[0].clone() }]);
    let error = store.unpack(&cx(), &wrong_diff, None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");

    let lying = host.layer(Tar::default().file("lying", ""));
    host.blobs.put_wrongly(&lying.blob, Tar::default().file("changed on disk", "").end());
    let error = store.unpack(&cx(), &Chain(vec![lying]), None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");

    let missing = Chain(vec![ChainLayer { blob: Blobs::default().put("gone"), ..other }]);
    let error = store.unpack(&cx(), &missing, None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");

    assert_eq!(store.chain_sizes(&cx()).await.unwrap(), []);
    assert_eq!(std::fs::read_dir(host.root("overlay2").join("r")).unwrap().count(), 0);
    store.unpack(&cx(), &good, None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_an_image_that_a_power_cut_took_is_unpacked_again_below_its_container() {
    let Some(host) = Host::new() else { return };
    let chain = host.chain();
    let store = host.start().await;
    let layer = store.create(&cx(), "c", &chain, None, &Labels::new()).await.unwrap();
    write(&store.mount(&cx(), &layer).await.unwrap(), "kept", "by the container");
    drop(store);
    std::fs::write(host.root("overlay2").join("boot"), "another boot").unwrap();

    let store = host.start().await;
    assert_eq!(store.chain_sizes(&cx()).await.unwrap(), [], "nothing was synced yet");
    let mount = store.mount(&cx(), &layer).await.unwrap();
    assert_eq!(names(&mount, ""), ["d", "kept"]);
    assert_eq!(names(&mount, "d"), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_collecting_keeps_what_images_and_containers_need() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let (kept, used, free) = (
        host.chain(),
        {
            let mut chain = host.chain();
            chain.0.push(host.layer(Tar::default().file("used", "")));
            chain
        },
        {
            let mut chain = host.chain();
            chain.0.push(host.layer(Tar::default().file("free", "")));
            chain.0.push(host.layer(Tar::default().file("free too", "")));
            chain
        },
    );
    for chain in [&kept, &used, &free] {
        store.unpack(&cx(), chain, None, None).await.unwrap();
    }
    let layer = store.create(&cx(), "c", &used, None, &Labels::new()).await.unwrap();
    store.collect(&cx(), std::slice::from_ref(&kept)).await.unwrap();
    let ids = |sizes: Vec<(Digest, u64)>| sizes.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    let mut expected = used.ids();
    expected.sort();
    assert_eq!(ids(store.chain_sizes(&cx()).await.unwrap()), expected);
    store.remove(&cx(), &layer).await.unwrap();
    store.collect(&cx(), &[]).await.unwrap();
    assert_eq!(store.chain_sizes(&cx()).await.unwrap(), []);
    store.unpack(&cx(), &free, None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_chain_of_none_is_an_empty_tree() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let empty = Chain::default();
    for instance in ["overlay2", "vfs", "erofs"] {
        let layer = store.create(&cx(), "c", &empty, Some(instance), &Labels::new()).await.unwrap();
        let mount = store.mount(&cx(), &layer).await.unwrap();
        write(&mount, "x", "");
        assert_eq!(names(&mount, ""), ["x"]);
        let both = tokio::join!(
            async { store.mount_chain(&cx(), &empty, Some(instance)).await.unwrap() },
            async { store.mount_chain(&cx(), &empty, Some(instance)).await.unwrap() },
        );
        assert_eq!((names(&both.0, ""), names(&both.1, "")), (vec![], vec![]));
    }
    let instances = store.instances(&cx()).await.unwrap();
    assert_eq!(
        instances.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(),
        ["overlay2", "erofs", "vfs"]
    );
}
