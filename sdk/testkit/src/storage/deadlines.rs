//! Check 12: calls that are given no time.

use std::time::{Duration, Instant};

use gantry_sdk::kinds::storage::LayerState;
use gantry_sdk::{Ctx, ErrorKind, Labels, Result};

use super::fixture::{Fixture, cx, exists, path_of};
use crate::archive::Tar;

/// How much later than asked a call may answer, on a machine that has other things to do.
const GRACE: Duration = Duration::from_secs(2);
/// How long work may go on that nobody waits for.
const SETTLING: Duration = Duration::from_secs(20);

/// All methods, in an order in which each finds what it needs.
const METHODS: &[&str] = &[
    "prepare",
    "plan",
    "unpack_plan",
    "rebase",
    "stat",
    "list",
    "usage",
    "details",
    "commit",
    "sync",
    "removing",
    "recover",
    "remove",
];

async fn call(f: &Fixture, cx: &Ctx, method: &str) -> Result<()> {
    let driver = &f.driver;
    match method {
        "prepare" => driver.prepare(cx, "key", Some("base"), &Labels::new()).await.map(drop),
        "plan" => driver.plan(cx, "key").await.map(drop),
        "unpack_plan" => driver.unpack_plan(cx, "key").await.map(drop),
        "rebase" => driver.rebase(cx, "alone", Some("base")).await,
        "stat" => driver.stat(cx, "base").await.map(drop),
        "list" => driver.list(cx, None, 10).await.map(drop),
        "usage" => driver.usage(cx, "base").await.map(drop),
        "details" => driver.details(cx, "base").await.map(drop),
        "commit" => driver.commit(cx, "key", "top").await.map(drop),
        "sync" => driver.sync(cx, "base").await,
        "removing" => driver.removing(cx).await.map(drop),
        "recover" => driver.recover(cx).await.map(drop),
        _ => driver.remove(cx, "top").await,
    }
}

/// Whether the call has had its effect.
async fn is_done(f: &Fixture, method: &str) -> bool {
    let there = async |key: &str, state| {
        f.driver.stat(&cx(), key).await.is_ok_and(|layer| layer.state == state)
    };
    match method {
        "prepare" => there("key", LayerState::Active).await,
        "commit" => there("top", LayerState::Committed).await,
        "remove" => !there("top", LayerState::Committed).await,
        _ => false,
    }
}

/// Makes the call with all the time it wants, once whatever still goes on has ended.
async fn again(f: &Fixture, method: &str) {
    let deadline = Instant::now() + SETTLING;
    loop {
        match call(f, &cx(), method).await {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::Busy => {}
            // A commit that was made after all cannot be made again.
            Err(_) if is_done(f, method).await => return,
            Err(error) => panic!("{method} after one that was late: {}", error.chain()),
        }
        assert!(Instant::now() < deadline, "{method}: the layer stays busy");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Check 12.
pub async fn every_call_keeps_its_deadline_and_leaves_nothing_half(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "a").file("b", &"b".repeat(100_000))).await;
    for budget in [Duration::ZERO, Duration::from_millis(1)] {
        if f.info().parallel_unpack {
            f.prepare("alone", None).await.unwrap();
        }
        for method in METHODS {
            if *method == "rebase" && !f.info().parallel_unpack {
                continue;
            }
            if *method == "commit" {
                let archive = Tar::default().file("c", "c").end();
                f.unpack("key", Some("base"), &archive).await.unwrap();
            }
            let start = Instant::now();
            let late = call(f, &cx().within(budget), method).await;
            let took = start.elapsed();
            assert!(took < budget + GRACE, "{method} took {took:?} of {budget:?}");
            if let Err(error) = late {
                assert_eq!(error.kind(), ErrorKind::Deadline, "{method}: {}", error.chain());
            }
            again(f, method).await;
            if *method == "commit" {
                let mount = f.open("top").await;
                assert!(["a", "b", "c"].iter().all(|name| exists(path_of(&mount).join(name))));
            }
        }
        f.driver.remove(&cx(), "alone").await.unwrap();
        assert_eq!(f.restart().await, [""; 0], "something was left half made");
        assert_eq!(f.states().await, [("base".to_owned(), LayerState::Committed)]);
    }
}
