//! Checks 37–41: deep stacks, and many at the same time.

#![expect(clippy::disallowed_methods, reason = "a test's own tasks, all awaited")]

use std::fs;

use gantry_sdk::{ErrorKind, Labels};

use super::{Fixture, cx, exists, path_of};
use crate::archive::Tar;

async fn stack(f: &Fixture, depth: usize) {
    for n in 1..=depth {
        let parent = (n > 1).then(|| format!("l{}", n - 1));
        let tar = Tar::default().file(&format!("f{n}"), "").file("same", &n.to_string());
        f.layer(&format!("l{n}"), parent.as_deref(), tar).await;
    }
}

/// Check 37.
pub async fn a_hundred_and_twenty_eight_layers_can_be_read(f: &mut Fixture) {
    stack(f, 128).await;
    let mount = f.writable("key", Some("l128")).await;
    let root = path_of(&mount);
    assert!((1..=128).all(|n| exists(root.join(format!("f{n}")))));
    assert_eq!(fs::read_to_string(root.join("same")).unwrap(), "128");
    fs::remove_file(root.join("f1")).unwrap();
    assert!(!exists(root.join("f1")));
}

/// Check 37: the declared limit.
pub async fn one_layer_more_than_the_limit_is_refused(f: &mut Fixture) {
    let limit = f.info().max_depth as usize;
    for n in 1..=limit {
        let parent = (n > 1).then(|| format!("l{}", n - 1));
        f.prepare("making", parent.as_deref()).await.unwrap_or_else(|e| panic!("{n}: {e:?}"));
        f.driver.commit(&cx(), "making", &format!("l{n}")).await.unwrap();
    }
    let top = format!("l{limit}");
    f.open(&top).await;
    let mount = f.writable("key", Some(&top)).await;
    fs::write(path_of(&mount).join("x"), "").unwrap();
    f.driver.commit(&cx(), "key", "too deep").await.unwrap();
    let error = f.prepare("more", Some("too deep")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

/// Check 38.
pub async fn concurrent_prepares_work_and_one_commit_wins(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "")).await;
    let prepare = |n: usize| {
        let driver = f.driver.clone();
        tokio::spawn(async move {
            driver.prepare(&cx(), &format!("k{n}"), Some("base"), &Labels::new()).await
        })
    };
    for task in (0..32).map(prepare).collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    let commit = |n: usize| {
        let driver = f.driver.clone();
        tokio::spawn(async move { driver.commit(&cx(), &format!("k{n}"), "name").await })
    };
    let mut won = 0;
    for task in (0..32).map(commit).collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(layer) => {
                won += 1;
                assert_eq!((layer.key.as_str(), layer.parent.as_deref()), ("name", Some("base")));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Exists),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(f.driver.list(&cx(), None, 100).await.unwrap().len(), 33);
}

/// Check 39.
pub async fn containers_on_one_layer_do_not_see_each_other(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("shared", "base").file("a", "")).await;
    let mut mounts = Vec::new();
    for n in 0..64 {
        mounts.push(f.writable(&format!("k{n}"), Some("base")).await);
    }
    for (n, mount) in mounts.iter().enumerate() {
        fs::write(path_of(mount).join("shared"), n.to_string()).unwrap();
        fs::write(path_of(mount).join(format!("own{n}")), "").unwrap();
    }
    for (n, mount) in mounts.iter().enumerate() {
        assert_eq!(fs::read_to_string(path_of(mount).join("shared")).unwrap(), n.to_string());
        assert_eq!(fs::read_dir(path_of(mount)).unwrap().count(), 3);
    }
    let mount = f.open("base").await;
    assert_eq!(fs::read_to_string(path_of(&mount).join("shared")).unwrap(), "base");
}

/// Check 40.
pub async fn removing_a_parent_races_cleanly_with_a_child(f: &mut Fixture) {
    for round in 0..50 {
        let (base, child) = (format!("base{round}"), format!("child{round}"));
        f.layer(&base, None, Tar::default().file("a", "")).await;
        let (driver, parent) = (f.driver.clone(), base.clone());
        let removing = tokio::spawn(async move { driver.remove(&cx(), &parent).await });
        let (driver, parent, key) = (f.driver.clone(), base.clone(), child.clone());
        let preparing = tokio::spawn(async move {
            driver.prepare(&cx(), &key, Some(&parent), &Labels::new()).await
        });
        match (removing.await.unwrap(), preparing.await.unwrap()) {
            (Ok(()), Err(error)) => {
                assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy), "{error:?}");
                assert!(f.driver.stat(&cx(), &child).await.is_err());
            }
            (Err(error), Ok(plan)) => {
                assert_eq!(error.kind(), ErrorKind::Busy);
                assert!(exists(path_of(&f.mount(&plan).await).join("a")));
            }
            (removed, prepared) => panic!("{removed:?} and {prepared:?}"),
        }
    }
}

/// Check 41.
pub async fn siblings_can_be_unpacked_at_the_same_time(f: &mut Fixture) {
    f.layer("base", None, Tar::default().dir("d").file("d/a", "a")).await;
    let (one, two) = ("1".repeat(100_000), "2".repeat(100_000));
    let sibling = |name: &'static str, text: &str| {
        f.layer(name, Some("base"), Tar::default().file("d/a", text).file(name, ""))
    };
    tokio::join!(sibling("one", &one), sibling("two", &two));
    for (key, text, other) in [("one", &one, "two"), ("two", &two, "one")] {
        let mount = f.open(key).await;
        assert_eq!(&fs::read_to_string(path_of(&mount).join("d/a")).unwrap(), text);
        assert!(!exists(path_of(&mount).join(other)));
    }
}
