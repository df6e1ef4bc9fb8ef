//! Figures, printed; run by hand.

use std::time::Instant;

use gantry_sdk::Labels;

use crate::host::{Host, cx};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; run by hand"]
async fn what_a_container_layer_costs() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let chain = host.chain();
    store.unpack(&cx(), &chain, None, None).await.unwrap();
    let mut times = [vec![], vec![], vec![]];
    for n in 0..500 {
        let start = Instant::now();
        let key = format!("c{n}");
        let layer = store.create(&cx(), &key, &chain, None, &Labels::new()).await.unwrap();
        times[0].push(start.elapsed());
        let start = Instant::now();
        drop(store.mount(&cx(), &layer).await.unwrap());
        times[1].push(start.elapsed());
        let start = Instant::now();
        store.remove(&cx(), &layer).await.unwrap();
        times[2].push(start.elapsed());
    }
    for (what, mut times) in ["create", "mount", "remove"].into_iter().zip(times) {
        times.sort_unstable();
        println!("{what}: p50 {:?}, p99 {:?}", times[250], times[495]);
    }
}
