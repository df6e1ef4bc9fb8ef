//! Images with more layers than a driver can stack.

use gantry_sdk::Labels;
use gantry_sdk::kinds::layers::Chain;
use gantry_testkit::archive::Tar;

use crate::host::{Host, cx, names, read, write};

/// Layer `n` writes its number, deletes what the one before has added, and adds something.
fn numbered(n: usize) -> Tar {
    let before = n.wrapping_sub(1);
    let tar = Tar::default().file("number", &n.to_string()).file(&format!("d/{n}"), "");
    if n == 0 { tar } else { tar.file(&format!("d/.wh.{before}"), "") }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_chains_of_any_length_are_materialised() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let mut chain = Chain::default();
    for (length, instance) in [
        (130, "overlay2"),
        (600, "overlay2"),
        (601, "overlay2"),
        (130, "vfs"),
        (850, "overlay2"),
        (130, "erofs"),
        (600, "erofs"),
        (601, "erofs"),
    ] {
        chain.0.truncate(length);
        while chain.0.len() < length {
            chain.0.push(host.layer(numbered(chain.0.len())));
        }
        store.unpack(&cx(), &chain, Some(instance), None).await.unwrap();
        let key = format!("c{length}");
        let layer =
            store.create(&cx(), &key, &chain, Some(instance), &Labels::new()).await.unwrap();
        let mount = store.mount(&cx(), &layer).await.unwrap();
        let last = (length - 1).to_string();
        assert_eq!(read(&mount, "number"), last, "{length} on {instance}");
        assert_eq!(names(&mount, "d"), [last], "{length} on {instance}");
        write(&mount, "d/own", "");
        assert_eq!(host.drafts(instance), 0);
    }
    let error = store.collect(&cx(), &[chain.clone()]).await;
    error.unwrap();
    store.unpack(&cx(), &chain, None, None).await.unwrap();
}
