//! Checks 42–45: there and back, and the same on every driver.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use gantry_sdk::kinds::storage::LayerForm;

use super::{Fixture, cx, path_of};
use crate::archive::Tar;
use crate::tree::{assert_same, snapshot};

fn base() -> Tar {
    let odd = |h: &mut tar::Header| {
        h.set_mode(0o2751);
        h.set_uid(1000);
        h.set_gid(50);
    };
    Tar::default()
        .dir("./")
        .with("d", b'5', odd)
        .pax(&[("mtime", b"123.456"), ("SCHILY.xattr.user.x", b"y")])
        .file("d/1", "one")
        .hardlink("d/hard", "d/1")
        .file("d/2", "two")
        .dir("e")
        .file("e/3", "three")
        .symlink("l", "d/1")
        .with("p", b'6', |_| ())
}

fn change(root: &Path) {
    fs::write(root.join("d/1"), "changed").unwrap();
    fs::remove_file(root.join("d/2")).unwrap();
    fs::remove_dir_all(root.join("e")).unwrap();
    fs::create_dir(root.join("e")).unwrap();
    fs::write(root.join("e/new"), "new").unwrap();
    fs::remove_file(root.join("l")).unwrap();
    symlink("elsewhere", root.join("l")).unwrap();
    fs::write(root.join("n"), "n").unwrap();
    fs::hard_link(root.join("n"), root.join("n2")).unwrap();
}

async fn changed(f: &Fixture, key: &str) {
    f.layer("base", None, base()).await;
    let mount = f.writable(key, Some("base")).await;
    change(&path_of(&mount));
}

/// Check 42.
pub async fn what_was_archived_unpacks_to_the_same_tree(f: &mut Fixture) {
    changed(f, "key").await;
    let before = f.snapshot("key").await;
    let archive = f.diff("key", Some("base")).await;
    f.layer_from("again", Some("base"), &archive).await;
    let mut after = f.snapshot("again").await;
    // The top has no entry in a diff that does not change its owner or mode, so its time is the parent's.
    after.insert(".".to_owned(), before["."].clone());
    assert_same(&before, &after, "the layer, and its archive unpacked");
}

/// Check 43.
pub async fn archiving_twice_gives_the_same_bytes(f: &mut Fixture) {
    changed(f, "key").await;
    let first = f.diff("key", Some("base")).await;
    f.apply("again", Some("base"), &first).await.unwrap();
    let second = f.diff("again", Some("base")).await;
    assert!(first == second, "an archive of {} bytes became one of {}", first.len(), second.len());
}

/// Check 44.
pub async fn an_untouched_layer_has_nothing_to_archive(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    let mount = f.writable("key", Some("base")).await;
    snapshot(&path_of(&mount)).unwrap(); // reads everything
    drop(mount);
    let archive = f.diff("key", Some("base")).await;
    assert!(archive.iter().all(|byte| *byte == 0), "reading made a change");
}

/// Check 45: against a plain directory, which is what every driver has to show. A link to a file that
/// has two names below is left out: copying up one of them parts it from the other, as overlays do.
pub async fn layers_mean_what_a_plain_directory_shows(f: &mut Fixture) {
    let layers = [
        base(),
        Tar::default().dir("./").file("d/.wh.2", "").file("x/y/z", "z").file(".wh.l", ""),
        Tar::default()
            .file("e/.wh..wh..opq", "")
            .file("e/x", "x")
            .hardlink("h", "x/y/z")
            .file("p", "a file"),
        Tar::default().symlink("x/y/link", "/d").file("x/y/link/through", "t").file(".wh.e", ""),
        Tar::default().dir("e").file("e/back", "").file("d", "a file now"),
    ];
    let plain = f.beside().join("plain");
    fs::create_dir(&plain).unwrap();
    let mut parent: Option<String> = None;
    for (n, layer) in layers.into_iter().enumerate() {
        let archive = layer.end();
        let dir = fs::File::open(&plain).unwrap();
        f.subject.mover.apply(&archive, dir.as_fd(), None, LayerForm::MergedTree).unwrap();
        let name = format!("l{n}");
        f.layer_from(&name, parent.as_deref(), &archive).await;
        assert_same(&snapshot(&plain).unwrap(), &f.snapshot(&name).await, &name);
        parent = Some(name);
    }
    f.driver.sync(&cx(), "l4").await.unwrap();
}
