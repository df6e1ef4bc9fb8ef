//! Checks 1–11: the calls themselves.

use std::collections::BTreeSet;

use gantry_sdk::kinds::storage::{LayerForm, LayerState};
use gantry_sdk::{ErrorKind, Labels};

use super::{Fixture, cx, path_of};
use crate::archive::Tar;

async fn keys(f: &Fixture) -> Vec<String> {
    let layers = f.driver.list(&cx(), None, 10_000).await.expect("list");
    layers.into_iter().map(|layer| layer.key).collect()
}

/// Check 1.
pub async fn describe_is_stable_across_calls_and_restart(f: &mut Fixture) {
    let before = f.info();
    assert_eq!(before, f.info());
    f.restart().await;
    assert_eq!(before, f.info());
    assert!(before.max_depth >= 128, "at least as deep as the reference engine's images");
}

/// Check 2.
pub async fn preparing_twice_gives_the_same_plan(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "1")).await;
    let plan = f.prepare("key", Some("base")).await.unwrap();
    std::fs::write(path_of(&f.mount(&plan).await).join("kept"), "x").unwrap();
    assert_eq!(f.prepare("key", Some("base")).await.unwrap(), plan);
    assert_eq!(f.driver.plan(&cx(), "key").await.unwrap(), plan);
    f.restart().await;
    assert_eq!(f.prepare("key", Some("base")).await.unwrap(), plan);
    assert!(path_of(&f.mount(&plan).await).join("kept").exists());
}

/// Check 3.
pub async fn preparing_on_another_parent_is_a_conflict(f: &mut Fixture) {
    for name in ["one", "two"] {
        f.layer(name, None, Tar::default().file(name, "")).await;
    }
    f.prepare("key", Some("one")).await.unwrap();
    for parent in [Some("two"), None] {
        assert_eq!(f.prepare("key", parent).await.unwrap_err().kind(), ErrorKind::Conflict);
    }
    assert_eq!(f.prepare("one", None).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(f.driver.stat(&cx(), "key").await.unwrap().parent.as_deref(), Some("one"));
}

/// Check 4.
pub async fn unknown_layers_are_not_found_and_nothing_is_made(f: &mut Fixture) {
    let (cx, driver) = (cx(), &f.driver);
    let kinds = [
        f.prepare("key", Some("none")).await.map(drop).unwrap_err().kind(),
        driver.plan(&cx, "none").await.map(drop).unwrap_err().kind(),
        driver.unpack_plan(&cx, "none").await.map(drop).unwrap_err().kind(),
        driver.commit(&cx, "none", "name").await.map(drop).unwrap_err().kind(),
        driver.stat(&cx, "none").await.map(drop).unwrap_err().kind(),
        driver.usage(&cx, "none").await.map(drop).unwrap_err().kind(),
        driver.details(&cx, "none").await.map(drop).unwrap_err().kind(),
        driver.sync(&cx, "none").await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::NotFound; 8]);
    driver.remove(&cx, "none").await.expect("removing nothing is no error");
    assert_eq!(keys(f).await, [""; 0]);
}

/// Check 5.
pub async fn an_active_layer_cannot_be_a_parent(f: &mut Fixture) {
    f.prepare("active", None).await.unwrap();
    let error = f.prepare("child", Some("active")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(keys(f).await, ["active"]);
}

/// Check 6.
pub async fn committing_to_a_taken_name_changes_nothing(f: &mut Fixture) {
    f.layer("name", None, Tar::default().file("a", "first")).await;
    f.apply("key", None, &Tar::default().file("a", "second").end()).await.unwrap();
    let error = f.driver.commit(&cx(), "key", "name").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    let read = async |key| {
        let mount = f.open(key).await;
        std::fs::read_to_string(path_of(&mount).join("a")).unwrap()
    };
    assert_eq!(read("name").await, "first");
    // An image can be looked into when it is committed.
    if f.info().form != LayerForm::ErofsImage {
        assert_eq!(read("key").await, "second");
    }
    assert_eq!(f.driver.stat(&cx(), "key").await.unwrap().state, LayerState::Active);
    f.driver.commit(&cx(), "key", "other").await.expect("another name is free");
    assert_eq!(read("other").await, "second");
    let gone = f.driver.commit(&cx(), "key", "third").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

/// Check 7.
pub async fn a_layer_with_children_is_busy_and_goes_after_them(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "")).await;
    f.layer("child", Some("base"), Tar::default().file("b", "")).await;
    f.prepare("active", Some("child")).await.unwrap();
    for _ in 0..2 {
        for key in ["base", "child"] {
            let error = f.driver.remove(&cx(), key).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{key}");
        }
        f.restart().await;
    }
    for key in ["active", "child", "base", "base"] {
        f.driver.remove(&cx(), key).await.unwrap_or_else(|e| panic!("{key}: {e:?}"));
    }
    assert_eq!(keys(f).await, [""; 0]);
}

/// Check 8.
pub async fn a_committed_layer_is_read_only(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "a")).await;
    f.layer("top", Some("base"), Tar::default().file("b", "b")).await;
    for key in ["base", "top"] {
        let mount = f.open(key).await;
        let error = std::fs::write(path_of(&mount).join("new"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()), "{key}");
        assert!(f.driver.commit(&cx(), key, "again").await.is_err());
        assert!(f.driver.unpack_plan(&cx(), key).await.is_err());
    }
}

/// Check 9.
pub async fn listing_is_complete_under_concurrent_inserts(f: &mut Fixture) {
    for n in 0..40 {
        f.prepare(&format!("k{n:03}"), None).await.unwrap();
    }
    let driver = f.driver.clone();
    #[expect(clippy::disallowed_methods, reason = "a test's own task, awaited below")]
    let inserting = tokio::spawn(async move {
        for n in 0..200 {
            driver.prepare(&cx(), &format!("later{n:03}"), None, &Labels::new()).await.unwrap();
        }
    });
    for limit in [1, 7, 1000] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = f.driver.list(&cx(), after.as_deref(), limit).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= limit as usize);
            after = Some(last.key.clone());
            found.extend(page.into_iter().map(|layer| layer.key));
        }
        assert!(found.is_sorted() && found.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(found.iter().filter(|key| key.starts_with('k')).count(), 40);
    }
    inserting.await.unwrap();
}

/// Check 10.
pub async fn keys_may_be_long_and_odd_and_differ_in_case_only(f: &mut Fixture) {
    let printable: String = (b' '..=b'~').map(char::from).filter(|c| *c != '/').collect();
    let long = "x".repeat(256);
    let good = [printable.as_str(), long.as_str(), "name", "NAME", ".", "..", "-", "a\\b:c,d"];
    for key in good {
        f.prepare(key, None).await.unwrap_or_else(|e| panic!("{key:?}: {e:?}"));
        f.driver.commit(&cx(), key, &format!("{:.250} done", key)).await.unwrap();
    }
    f.restart().await;
    assert_eq!(keys(f).await.into_iter().collect::<BTreeSet<_>>().len(), good.len());
    for key in ["", "a/b", "a\nb", "a\0b", "ä", &"x".repeat(257)] {
        let error = f.prepare(key, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{key:?}");
    }
    let outside: Vec<_> = std::fs::read_dir(f.beside()).unwrap().collect();
    assert_eq!(outside.len(), 1, "a key led out of the root: {outside:?}");
}

/// Check 11.
pub async fn plans_stay_within_their_grants(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "")).await;
    f.layer("top", Some("base"), Tar::default().file("b", "")).await;
    let mut plans = vec![f.prepare("key", Some("top")).await.unwrap()];
    for key in ["base", "top", "key"] {
        plans.push(f.driver.plan(&cx(), key).await.unwrap());
    }
    plans.push(f.driver.unpack_plan(&cx(), "key").await.unwrap());
    for plan in plans {
        f.subject.mounts.check(&plan, &f.grants).unwrap_or_else(|e| panic!("{plan:?}: {e:?}"));
    }
}

/// Check 4: an option that is not in `describe` is an error that names it.
pub async fn unknown_options_are_refused(f: &mut Fixture) {
    let options = Labels::from([("no-such-option".to_owned(), "1".to_owned())]);
    let error = f.driver.prepare(&cx(), "key", None, &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.chain().contains("no-such-option"), "{error:?}");
    assert_eq!(keys(f).await, [""; 0]);
}
