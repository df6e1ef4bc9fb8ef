//! Checks 47–60: resources, recovery, and leaving nothing behind.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use gantry_sdk::kinds::storage::{LayerForm, LayerState};

use super::fixture::Place;
use super::{Fixture, cx, exists, path_of};
use crate::archive::Tar;

/// Check 47.
pub async fn usage_is_what_an_independent_walk_finds(f: &mut Fixture) {
    let large = "x".repeat(300_000);
    f.layer("base", None, Tar::default().dir("d").file("d/a", &large).hardlink("d/b", "d/a")).await;
    f.layer("top", Some("base"), Tar::default().dir("e").file("e/c", &large[..100_000])).await;
    for (key, files) in [("base", &["d", "d/a"][..]), ("top", &["e", "e/c"])] {
        let mount = f.open(key).await;
        let length = |name: &&str| match path_of(&mount).join(name).metadata().unwrap() {
            directory if directory.is_dir() => 0,
            file => file.len(),
        };
        let expected: u64 = files.iter().map(length).sum();
        let (bytes, inodes) = f.driver.usage(&cx(), key).await.unwrap();
        assert_eq!(inodes, files.len() as u64, "{key}");
        assert_eq!(bytes, expected, "{key}");
    }
}

async fn out_of(f: &Fixture, what: &str, too_much: Tar) {
    f.driver.recover(&cx()).await.unwrap();
    f.layer("base", None, Tar::default().file("a", "a")).await;
    let error = f.apply("key", Some("base"), &too_much.end()).await.unwrap_err();
    assert!(!error.is_empty());
    assert!(f.driver.stat(&cx(), "key").await.is_err(), "{what}: something was left");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        f.empty_trash();
        match f.apply("key", Some("base"), &Tar::default().file("b", "b").end()).await {
            Ok(()) => break,
            Err(error) => assert!(Instant::now() < deadline, "{what}: still {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    f.driver.commit(&cx(), "key", "top").await.unwrap();
    assert!(exists(path_of(&f.open("top").await).join("b")));
}

/// Check 48.
pub async fn running_out_of_space_is_clean(f: &mut Fixture) {
    let Some(small) = f.on_small(24 << 20, 0).await else {
        return f.skip("the driver's file system cannot be so small");
    };
    let large = "x".repeat(48 << 20);
    out_of(&small, "space", Tar::default().file("large", &large)).await;
}

/// Check 49.
pub async fn running_out_of_inodes_is_clean(f: &mut Fixture) {
    // However many files an image holds, it is one.
    if f.info().form == LayerForm::ErofsImage {
        return f.skip("a layer is one file, however many are in it");
    }
    let Some(small) = f.on_small(64 << 20, 300).await else {
        return f.skip("the driver's file system has no limit of inodes");
    };
    let many = (0..1000).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), ""));
    out_of(&small, "inodes", many).await;
}

/// Check 54.
pub async fn recovering_twice_is_recovering_once(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "")).await;
    f.prepare("key", Some("base")).await.unwrap();
    let list = f.driver.list(&cx(), None, 100).await.unwrap();
    let strange = f.root.join("not ours");
    fs::create_dir(&strange).unwrap();
    for _ in 0..2 {
        assert_eq!(f.driver.recover(&cx()).await.unwrap(), [""; 0]);
        assert_eq!(f.restart().await, [""; 0]);
        assert_eq!(f.driver.list(&cx(), None, 100).await.unwrap(), list);
    }
    assert!(strange.exists(), "a directory that is not ours was removed");
    assert!(exists(path_of(&f.open("key").await).join("a")));
}

/// Check 55.
pub async fn a_restart_between_prepare_and_commit_is_no_obstacle(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "")).await;
    f.apply("key", Some("base"), &Tar::default().file("b", "").end()).await.unwrap();
    f.restart().await;
    let layer = f.driver.commit(&cx(), "key", "top").await.unwrap();
    assert_eq!((layer.state, layer.parent.as_deref()), (LayerState::Committed, Some("base")));
    f.restart().await;
    let mount = f.open("top").await;
    assert!(exists(path_of(&mount).join("a")) && exists(path_of(&mount).join("b")));
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Check 56. Other tests of the process open and close descriptors too, so their count has slack; a
/// leak of one a cycle is a thousand.
pub async fn a_thousand_cycles_leave_nothing(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "")).await;
    f.restart().await;
    let (fds, before) = (descriptors(), f.entries());
    for n in 0..1000 {
        let mount = f.writable(&format!("k{n}"), Some("base")).await;
        fs::write(path_of(&mount).join("x"), "").unwrap();
        drop(mount);
        f.driver.remove(&cx(), &format!("k{n}")).await.unwrap();
    }
    assert!(descriptors() < fds + 300, "{} descriptors before, {} after", fds, descriptors());
    assert_eq!(f.driver.list(&cx(), None, 10).await.unwrap().len(), 1);
    f.empty_trash();
    assert_eq!(f.entries(), before);
}

/// Check 57.
pub async fn hostile_archives_stay_inside(f: &mut Fixture) {
    let outside = f.beside().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let out = outside.to_str().unwrap();
    let climb = "../".repeat(30) + &out[1..];
    let path = |name: &str| format!("{climb}/{name}");
    let through = |link: &str| Tar::default().symlink("l", link).file("l/secret", "x");
    let name = path("secret");
    let attempts = [
        ("climbing name", Tar::default().pax(&[("path", name.as_bytes())]).file("x", "x")),
        ("link out", through(out)),
        (
            "link up",
            Tar::default()
                .pax(&[("linkpath", climb.as_bytes())])
                .symlink("l", "")
                .file("l/secret", "x"),
        ),
        (
            "hard link out",
            Tar::default().pax(&[("linkpath", name.as_bytes())]).hardlink("h", "").file("h", "x"),
        ),
        ("exchanged directory", Tar::default().dir("l").symlink("l", out).file("l/secret", "x")),
        (
            "duplicate names",
            Tar::default().symlink("f", &format!("{out}/secret")).file("f", "x").file("f", "y"),
        ),
        ("marker through a link", Tar::default().symlink("l", out).file("l/.wh.secret", "")),
        ("device below, directory above", Tar::default().file("dev/x", "x")),
        (
            "huge extension",
            Tar::default().raw(&crate::archive::header(b"x", b'x', 1 << 40, b""), b""),
        ),
        ("huge file", Tar::default().raw(&crate::archive::header(b"x", b'0', 1 << 50, b""), b"")),
    ];
    let device = |h: &mut tar::Header| {
        h.set_device_major(1).unwrap();
        h.set_device_minor(3).unwrap();
    };
    f.layer("base", None, Tar::default().with("dev", b'3', device).symlink("lower", out)).await;
    f.layer("lower link", Some("base"), Tar::default().file("lower/secret", "x")).await;
    for (n, (what, archive)) in attempts.into_iter().enumerate() {
        // Refused or placed inside: both are right, anything outside is not.
        let _ = f.apply(&format!("k{n}"), Some("base"), &archive.end()).await;
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret", "{what}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{what}");
        assert_eq!(outside.join("secret").metadata().unwrap().nlink(), 1, "{what}");
    }
}

/// Check 59.
pub async fn the_root_may_have_any_name(f: &mut Fixture) {
    let root = f.beside().join("sp ace,com:ma\\back\u{e4}");
    let odd = f.on(root, Place::Lent).await;
    odd.driver.recover(&cx()).await.unwrap();
    odd.layer("base", None, Tar::default().file("a", "")).await;
    odd.layer("top", Some("base"), Tar::default().file("b", "")).await;
    let mount = odd.writable("key", Some("top")).await;
    fs::write(path_of(&mount).join("c"), "").unwrap();
    assert!(exists(path_of(&mount).join("a")) && exists(path_of(&mount).join("b")));
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("{:.0?}/{:.0?}", at(50), at(99))
}

/// Check 60: figures, not judged.
pub async fn speed_is_reported(f: &mut Fixture) {
    let mut done = 0;
    for depth in [1, 16, 64] {
        while done < depth {
            let parent = (done > 0).then(|| format!("l{done}"));
            done += 1;
            f.layer(&format!("l{done}"), parent.as_deref(), Tar::default().file("a", "")).await;
        }
        let parent = format!("l{depth}");
        let mut times: [Vec<Duration>; 4] = Default::default();
        for n in 0..50 {
            let (key, name) = (format!("k{n}"), format!("n{n}"));
            let start = Instant::now();
            let plan = f.prepare(&key, Some(&parent)).await.unwrap();
            times[0].push(start.elapsed());
            let start = Instant::now();
            drop(f.mount(&plan).await);
            times[1].push(start.elapsed());
            let start = Instant::now();
            f.driver.commit(&cx(), &key, &name).await.unwrap();
            times[2].push(start.elapsed());
            let start = Instant::now();
            f.driver.remove(&cx(), &name).await.unwrap();
            times[3].push(start.elapsed());
        }
        let figures = ["prepare", "mount", "commit", "remove"].into_iter().zip(&mut times);
        let figures: Vec<String> =
            figures.map(|(what, times)| format!("{what} {}", percentiles(times))).collect();
        f.note(format!("{depth} layers, p50/p99: {}", figures.join(", ")));
    }
}
