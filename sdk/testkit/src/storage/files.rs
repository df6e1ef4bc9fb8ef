//! Checks 13–24: what files do across layers.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use gantry_sdk::kinds::storage::LayerState;

use gantry_sdk::kinds::storage::LayerForm;

use super::{Fixture, cx, exists, path_of};
use crate::archive::Tar;

fn base() -> Tar {
    Tar::default()
        .dir("./")
        .dir("d")
        .file("d/1", "one")
        .file("d/2", "two")
        .dir("d/sub")
        .file("d/sub/3", "three")
        .file("f", "file")
        .symlink("l", "f")
        .member("c", b'3', "", b"")
        .dir("e")
}

/// Check 13.
pub async fn files_are_added_changed_truncated_and_deleted(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    let mount = f.writable("key", Some("base")).await;
    let root = path_of(&mount);
    fs::write(root.join("d/new"), "new").unwrap();
    fs::write(root.join("d/1"), "longer than before").unwrap();
    fs::File::options().write(true).open(root.join("d/2")).unwrap().set_len(1).unwrap();
    fs::remove_file(root.join("f")).unwrap();
    fs::remove_dir_all(root.join("d/sub")).unwrap();
    fs::create_dir(root.join("d/sub")).unwrap();
    drop(mount);
    f.driver.commit(&cx(), "key", "top").await.unwrap();
    let mount = f.open("top").await;
    let root = path_of(&mount);
    assert_eq!(fs::read_to_string(root.join("d/new")).unwrap(), "new");
    assert_eq!(fs::read_to_string(root.join("d/1")).unwrap(), "longer than before");
    assert_eq!(fs::read_to_string(root.join("d/2")).unwrap(), "t");
    assert!(!exists(root.join("f")) && !exists(root.join("d/sub/3")));
    let mount = f.open("base").await;
    assert_eq!(fs::read_to_string(path_of(&mount).join("d/1")).unwrap(), "one");
    assert_eq!(f.driver.stat(&cx(), "top").await.unwrap().state, LayerState::Committed);
}

/// Check 14.
pub async fn a_whiteout_hides_any_type_of_entry(f: &mut Fixture) {
    let null = |h: &mut tar::Header| {
        h.set_device_major(1).unwrap();
        h.set_device_minor(3).unwrap();
    };
    let lower = Tar::default().dir("d").file("d/x", "").file("f", "").symlink("l", "nowhere");
    let lower = lower.with("c", b'3', null).with("p", b'6', |_| ());
    f.layer("base", None, lower).await;
    let markers = ["d", "f", "l", "c", "p"];
    let gone =
        markers.iter().fold(Tar::default(), |tar, name| tar.file(&format!(".wh.{name}"), ""));
    f.layer("gone", Some("base"), gone.clone()).await;
    let mount = f.open("gone").await;
    assert_eq!(fs::read_dir(path_of(&mount)).unwrap().count(), 0);

    let again = gone.file("d", "now a file").dir("f").symlink("c", "link").dir("l").file("l/x", "");
    f.layer("again", Some("base"), again).await;
    let mount = f.open("again").await;
    let root = path_of(&mount);
    assert!(root.join("d").is_file() && root.join("f").is_dir() && root.join("c").is_symlink());
    assert!(exists(root.join("l/x")) && !exists(root.join("p")));
    assert_eq!(fs::read_dir(root.join("f")).unwrap().count(), 0);
}

/// Check 15.
pub async fn an_opaque_directory_shows_nothing_from_below(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    let opaque = Tar::default().dir("d").file("d/.wh..wh..opq", "").file("d/new", "");
    f.layer("tar", Some("base"), opaque).await;
    let mount = f.writable("key", Some("base")).await;
    fs::remove_dir_all(path_of(&mount).join("d")).unwrap();
    fs::create_dir(path_of(&mount).join("d")).unwrap();
    fs::write(path_of(&mount).join("d/new"), "").unwrap();
    drop(mount);
    f.driver.commit(&cx(), "key", "written").await.unwrap();
    for layer in ["tar", "written"] {
        f.layer(&format!("on {layer}"), Some(layer), Tar::default().file("d/later", "")).await;
        let mount = f.open(&format!("on {layer}")).await;
        let mut names: Vec<_> = fs::read_dir(path_of(&mount).join("d"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["later", "new"], "{layer}");
    }
}

/// Check 16.
pub async fn opaque_markers_and_whiteouts_work_side_by_side(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    let both = Tar::default().file("d/.wh.1", "").file("d/.wh..wh..opq", "").file("d/.wh.2", "");
    f.layer("top", Some("base"), both.file("d/sub/new", "")).await;
    let mount = f.open("top").await;
    let root = path_of(&mount);
    assert!(
        !exists(root.join("d/1")) && !exists(root.join("d/2")) && !exists(root.join("d/sub/3"))
    );
    assert!(exists(root.join("d/sub/new")) && exists(root.join("f")));
}

/// Check 17.
pub async fn a_whiteout_of_nothing_is_harmless(f: &mut Fixture) {
    let markers = Tar::default().file("a", "").file(".wh.none", "").file("x/y/.wh.none", "");
    f.layer("base", None, markers.clone()).await;
    f.layer("top", Some("base"), markers).await;
    let mount = f.open("top").await;
    let mut names: Vec<_> =
        fs::read_dir(path_of(&mount)).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "x"]);
    assert_eq!(fs::read_dir(path_of(&mount).join("x/y")).unwrap().count(), 0);
}

/// Check 18.
pub async fn names_like_markers_are_never_misread(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    for name in ["d/.wh.", "d/.wh..", "d/.wh...", ".wh.d/x"] {
        let outcome = f.apply("bad", Some("base"), &Tar::default().file(name, "").end()).await;
        assert!(outcome.is_err(), "{name} was taken");
    }
    f.layer("top", Some("base"), Tar::default().file(".why", "").file("d/x.wh.1", "")).await;
    let mount = f.open("top").await;
    assert!(exists(path_of(&mount).join(".why")) && exists(path_of(&mount).join("d/1")));
    // Written by a container it is a file; in a layer it could not be told from a marker.
    let mount = f.writable("key", Some("base")).await;
    if let Err(refused) = fs::write(path_of(&mount).join(".wh.f"), "") {
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    }
    assert!(exists(path_of(&mount).join("f")));
}

/// Check 19.
pub async fn renames_over_lower_entries_work(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    let mount = f.writable("key", Some("base")).await;
    let root = path_of(&mount);
    fs::write(root.join("new"), "new").unwrap();
    fs::rename(root.join("new"), root.join("d/1")).unwrap();
    fs::create_dir(root.join("newdir")).unwrap();
    fs::write(root.join("newdir/x"), "x").unwrap();
    fs::rename(root.join("newdir"), root.join("e")).unwrap();
    fs::rename(root.join("d/2"), root.join("f")).unwrap();
    drop(mount);
    let mount = f.open("key").await;
    let root = path_of(&mount);
    assert_eq!(fs::read_to_string(root.join("d/1")).unwrap(), "new");
    assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "two");
    assert!(exists(root.join("e/x")) && !exists(root.join("d/2")));
}

/// Check 20.
pub async fn a_merged_directory_is_renamed_or_refused(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    let mount = f.writable("key", Some("base")).await;
    let root = path_of(&mount);
    match fs::rename(root.join("d"), root.join("moved")) {
        Ok(()) => assert!(exists(root.join("moved/sub/3")) && !exists(root.join("d"))),
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::CrossesDevices);
            assert!(exists(root.join("d/sub/3")) && !exists(root.join("moved")));
        }
    }
}

/// Check 21.
pub async fn a_hard_link_within_a_layer_is_one_file(f: &mut Fixture) {
    let links = Tar::default().file("a", "x").hardlink("b", "a").dir("d").hardlink("d/c", "b");
    f.layer("base", None, links).await;
    let mount = f.open("base").await;
    let root = path_of(&mount);
    let meta = ["a", "b", "d/c"].map(|name| root.join(name).metadata().unwrap());
    assert!(meta.iter().all(|m| m.ino() == meta[0].ino() && m.nlink() == 3), "{meta:?}");
}

/// Check 22.
pub async fn a_hard_link_to_a_lower_file_has_the_right_content(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    f.layer("tar", Some("base"), Tar::default().hardlink("h", "d/1")).await;
    for (key, parent) in [("own", "base"), ("from tar", "tar")] {
        let mount = f.writable(key, Some(parent)).await;
        let root = path_of(&mount);
        if key == "own" {
            fs::hard_link(root.join("d/1"), root.join("h")).unwrap();
        }
        assert_eq!(fs::read_to_string(root.join("h")).unwrap(), "one");
        // fuse-overlayfs counts the names that it has come across so far.
        let links = root.join("h").metadata().unwrap().nlink();
        let counts_later = f.info().form == LayerForm::OverlayDirectory && !f.info().native_diff;
        assert!(links == 2 || (links == 1 && counts_later), "{key}: {links} links");
        fs::write(root.join("h"), "by h").unwrap();
        let (a, b) = (fs::read_to_string(root.join("d/1")), fs::read_to_string(root.join("h")));
        assert_eq!(b.unwrap(), "by h");
        // Without an inode index a link that was broken by copy-up keeps the old content.
        assert!(["by h", "one"].contains(&a.unwrap().as_str()), "{key}");
    }
}

/// Check 23.
pub async fn symbolic_links_are_kept_as_they_are(f: &mut Fixture) {
    let long = format!("{}x", "y/".repeat(2047));
    let targets = [
        ("absolute", "/etc/passwd"),
        ("dangling", "no/where"),
        ("loop", "loop"),
        ("up", "../../../.."),
        ("odd", "a b//c/./"),
    ];
    let tar = targets.iter().fold(Tar::default(), |tar, (name, to)| tar.symlink(name, to));
    let tar = tar.pax(&[("linkpath", long.as_bytes())]).symlink("long", "cut");
    f.layer("base", None, tar).await;
    let mount = f.open("base").await;
    for (name, to) in targets.into_iter().chain([("long", long.as_str())]) {
        assert_eq!(fs::read_link(path_of(&mount).join(name)).unwrap().to_str(), Some(to));
    }
    let mount = f.writable("key", Some("base")).await;
    symlink("over", path_of(&mount).join("new")).unwrap();
    fs::remove_file(path_of(&mount).join("loop")).unwrap();
    symlink("other", path_of(&mount).join("loop")).unwrap();
    assert_eq!(fs::read_link(path_of(&mount).join("loop")).unwrap().to_str(), Some("other"));
}

/// Check 24.
pub async fn a_parent_that_is_a_link_below_stays_inside(f: &mut Fixture) {
    let outside = f.beside().join("outside");
    fs::create_dir(&outside).unwrap();
    let outside_name = outside.to_str().unwrap();
    let lower = Tar::default().dir("usr").dir("usr/lib").symlink("lib", "usr/lib");
    let lower = lower.symlink("out", outside_name).symlink("up", "../../../../..");
    f.layer("base", None, lower).await;
    let upper = Tar::default().file("lib/a", "a").file("out/b", "b").file("up/c", "c");
    f.layer("top", Some("base"), upper).await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let mount = f.open("top").await;
    let root = path_of(&mount);
    assert!(exists(root.join("usr/lib/a")) && root.join("lib").is_symlink());
    assert!(exists(root.join("c")), "a link that climbs ends at the top");
    assert!(exists(root.join(outside_name.trim_start_matches('/')).join("b")));
}
