//! Layers mean what the specification says, and the same in both styles.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::common::{Place, is_root, open};
use gantry_archive::{
    ArchiveError, CreateOptions, Created, ExtractOptions, Result, Source, Whiteouts, copy_tree,
    create, create_from_changes, extract, settle_standalone,
};
use gantry_sys::mount::Overlay;
use gantry_testkit::archive::Tar;
use proptest::prelude::*;

fn archive(root: &OwnedFd) -> (Created, Vec<u8>) {
    let mut out = Vec::new();
    let options = CreateOptions { root_entry: true, ..CreateOptions::default() };
    let created = create(root.as_fd(), &mut out, &options).unwrap();
    (created, out)
}

/// Names, types and sizes, for messages.
fn listing(tar: &[u8]) -> Vec<String> {
    let mut reader = gantry_archive::Reader::new(tar, gantry_archive::Limits::default());
    let mut lines = Vec::new();
    while let Some(e) = reader.next_entry().unwrap() {
        lines.push(format!(
            "{} {:?} {:o} {}:{} {} {:?} {:?} {:?}",
            e.name.escape_ascii(),
            e.kind,
            e.mode,
            e.uid,
            e.gid,
            e.size,
            e.mtime,
            e.link.escape_ascii().to_string(),
            e.xattrs
        ));
    }
    lines
}

/// A snapshot that also tells which directories are opaque; when something was marked as deleted
/// does not matter.
fn with_marks(root: &Path) -> std::collections::BTreeMap<String, String> {
    let mut nodes = gantry_testkit::tree::snapshot(root).unwrap();
    for (name, node) in &mut nodes {
        let mut value = [0; 4];
        let mark = rustix::fs::lgetxattr(root.join(name), "trusted.overlay.opaque", &mut value[..]);
        node.push_str(if mark.is_ok() { " opaque" } else { "" });
        if node.starts_with("device c 0 ") {
            "deleted".clone_into(node);
        }
    }
    nodes
}

/// Unpacks layers both ways: each into its own overlay directory, and over a copy of the last one.
struct Both {
    dir: tempfile::TempDir,
    count: usize,
    /// Whether each layer could be unpacked in view of those below it.
    outcomes: Vec<bool>,
    /// Whether each but the first could be unpacked out of their view.
    alone: Vec<bool>,
}

impl Both {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, count: 0, outcomes: Vec::new(), alone: Vec::new() }
    }

    fn make(&self, name: &str) -> OwnedFd {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        open(&path)
    }

    fn layer(&self, n: usize) -> OwnedFd {
        open(&self.dir.path().join(format!("over{n}")))
    }

    fn merged(&self, layers: usize) -> Option<OwnedFd> {
        if layers < 2 {
            return (layers == 1).then(|| self.layer(0));
        }
        let fds: Vec<OwnedFd> = (0..layers).rev().map(|n| self.layer(n)).collect();
        let lowers = fds.iter().map(AsFd::as_fd).collect();
        Some(Overlay { lowers, ..Overlay::default() }.mount().unwrap())
    }

    fn tree(&self, n: usize) -> OwnedFd {
        open(&self.dir.path().join(format!("tree{n}")))
    }

    /// Unpacks `layer` on its own and settles it; the same directory with the layers below in view
    /// must be equal. False if it cannot be done without them.
    fn stands_alone(&mut self, n: usize, layer: &[u8], below: &OwnedFd) -> bool {
        let alone = self.make(&format!("alone{n}"));
        let options = ExtractOptions {
            whiteouts: Whiteouts::Overlay,
            standalone: true,
            hash_raw: false,
            ..ExtractOptions::default()
        };
        let settled = extract(layer, alone.as_fd(), &options).and_then(|summary| {
            let (implied, top_given) = (&summary.implied, summary.top_given);
            assert!(implied.is_sorted());
            settle_standalone(alone.as_fd(), below.as_fd(), implied, top_given)
        });
        let with_below = self.outcomes.last().copied();
        match settled {
            Err(ArchiveError::NeedsBelow { .. }) => return false,
            Err(error) => assert_eq!(with_below, Some(false), "only alone: {error:?}"),
            Ok(()) => {
                assert_eq!(with_below, Some(true), "only with the layers below");
                let at = |name: &str| with_marks(&self.dir.path().join(format!("{name}{n}")));
                gantry_testkit::tree::assert_same(&at("over"), &at("alone"), "alone");
            }
        }
        true
    }

    fn push(&mut self, layer: &[u8]) -> (Result<()>, Result<()>) {
        let n = self.count;
        self.count += 1;
        let over = self.make(&format!("over{n}"));
        let below = self.merged(n);
        let overlay = ExtractOptions {
            whiteouts: Whiteouts::Overlay,
            below: below.as_ref().map(AsFd::as_fd),
            ..ExtractOptions::default()
        };
        let first = extract(layer, over.as_fd(), &overlay).map(drop);
        self.outcomes.push(first.is_ok());
        if let Some(below) = &below {
            let alone = self.stands_alone(n, layer, below);
            self.alone.push(alone);
        }

        let tree = self.make(&format!("tree{n}"));
        if n > 0 {
            copy_tree(self.tree(n - 1).as_fd(), tree.as_fd()).unwrap();
        }
        let remove = ExtractOptions { whiteouts: Whiteouts::Remove, ..ExtractOptions::default() };
        let second = extract(layer, tree.as_fd(), &remove).map(drop);
        (first, second)
    }

    fn assert_same(&self, what: &str) {
        let merged = self.merged(self.count).unwrap();
        let (overlay, overlay_tar) = archive(&merged);
        let (tree, tree_tar) = archive(&self.tree(self.count - 1));
        assert_eq!(listing(&overlay_tar), listing(&tree_tar), "{what}");
        assert_eq!(overlay.diff_id, tree.diff_id, "{what}");
    }

    fn merged_path(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("tree{}", self.count - 1)).join(path)
    }
}

#[test]
fn root_layers_mean_the_same_in_both_styles() {
    if !is_root() {
        return;
    }
    let base = || {
        Tar::default()
            .dir("./")
            .dir("usr/")
            .dir("usr/lib/")
            .file("usr/lib/a", "a")
            .file("usr/lib/b", "b")
            .symlink("lib", "usr/lib")
            .dir("opt/")
            .dir("opt/x/")
            .file("opt/x/1", "1")
            .file("opt/2", "2")
            .end()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("whiteout of a file", Tar::default().file("usr/lib/.wh.a", "").end()),
        ("whiteout of a directory", Tar::default().file(".wh.opt", "").end()),
        ("whiteout of a link", Tar::default().file(".wh.lib", "").end()),
        ("whiteout of nothing", Tar::default().file("usr/.wh.none", "").end()),
        (
            "deleted, then made again",
            Tar::default().file(".wh.opt", "").dir("opt").file("opt/n", "").end(),
        ),
        (
            "made again, then deleted",
            Tar::default().dir("opt").file("opt/n", "").file(".wh.opt", "").end(),
        ),
        ("deleted, then another type", Tar::default().file(".wh.opt", "").file("opt", "x").end()),
        ("opaque", Tar::default().dir("opt").file("opt/.wh..wh..opq", "").file("opt/n", "").end()),
        (
            "opaque at the end",
            Tar::default().dir("opt").file("opt/x/n", "").file("opt/.wh..wh..opq", "").end(),
        ),
        (
            "opaque and whiteout",
            Tar::default()
                .file("opt/.wh..wh..opq", "")
                .file("opt/.wh.2", "")
                .file("opt/x/3", "")
                .end(),
        ),
        (
            "opaque top",
            Tar::default()
                .file("n", "")
                .file(".wh..wh..opq", "")
                .dir("opt")
                .file("opt/n", "")
                .end(),
        ),
        ("parent is a link below", Tar::default().file("lib/c", "c").file("lib/.wh.a", "").end()),
        ("directory over link", Tar::default().dir("lib").file("lib/c", "c").end()),
        ("file over directory", Tar::default().file("opt", "x").end()),
        ("file over directory, then back", Tar::default().file("opt", "x").dir("opt").end()),
        ("hard link to a file below", Tar::default().hardlink("usr/lib/h", "usr/lib/a").end()),
        (
            "hard link below, through a link",
            Tar::default().hardlink("h", "lib/b").file("lib/.wh.b", "").end(),
        ),
        (
            "parents not mentioned",
            Tar::default().file("opt/x/y/z", "z").file("var/log/x", "x").end(),
        ),
        ("device 0:0 as marker", Tar::default().member("opt", b'3', "", b"").end()),
        ("dangling parent", Tar::default().symlink("d", "no/where").file("d/x", "x").end()),
    ];
    for (what, layer) in cases {
        let mut both = Both::new();
        for layer in [&base(), &layer] {
            let (overlay, remove) = both.push(layer);
            overlay.unwrap_or_else(|e| panic!("{what}: {e:?}"));
            remove.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        }
        both.assert_same(what);
        let gone = |path| both.merged_path(path).symlink_metadata().is_err();
        match what {
            "whiteout of a file" => assert!(gone("usr/lib/a") && !gone("usr/lib/b")),
            "deleted, then made again" | "made again, then deleted" => {
                assert!(gone("opt/2") && !gone("opt/n"), "{what}");
            }
            "opaque and whiteout" => assert!(gone("opt/x/1") && !gone("opt/x/3")),
            "opaque top" => assert!(gone("usr") && !gone("opt/n") && gone("opt/2")),
            "parent is a link below" => {
                assert!(
                    both.merged_path("lib").is_symlink() && !gone("usr/lib/c") && gone("usr/lib/a")
                );
            }
            "directory over link" => assert!(gone("lib/a") && !gone("lib/c")),
            "hard link to a file below" => {
                assert_eq!(both.merged_path("usr/lib/h").metadata().unwrap().nlink(), 2);
            }
            _ => {}
        }
    }
}

#[test]
fn root_what_is_put_into_a_directory_has_the_attributes_it_was_given() {
    if !is_root() {
        return;
    }
    let shared = |h: &mut gantry_testkit::archive::Header| {
        h.set_mode(0o2775);
        h.set_gid(50);
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("top", Tar::default().with("./", b'5', shared).dir("d").file("f", "").end()),
        (
            "implied, then given",
            Tar::default().file("a/x", "").with("a", b'5', shared).dir("a/d").file("a/f", "").end(),
        ),
        (
            "through a link",
            Tar::default()
                .dir("a")
                .symlink("l", "a")
                .file("l/x", "")
                .with("a", b'5', shared)
                .dir("l/d")
                .file("l/f", "")
                .end(),
        ),
        (
            "given twice",
            Tar::default()
                .with("a", b'5', shared)
                .file("a/x", "")
                .dir("a")
                .dir("a/d")
                .with("a", b'5', shared)
                .file("a/f", "")
                .end(),
        ),
    ];
    for (what, layer) in cases {
        for whiteouts in [Whiteouts::Overlay, Whiteouts::Remove] {
            let place = Place::new();
            place.extract(&layer, whiteouts).unwrap();
            let top = if what == "top" { place.root() } else { place.root().join("a") };
            let mode_and_group = |path: &Path| {
                let meta = path.metadata().unwrap();
                (meta.mode() & 0o7777, meta.gid())
            };
            assert_eq!(mode_and_group(&top), (0o2775, 50), "{what}");
            assert_eq!(mode_and_group(&top.join("d")), (0o755, 0), "{what}");
            assert_eq!(mode_and_group(&top.join("f")), (0o644, 0), "{what}");
        }
    }
}

#[test]
fn root_a_default_list_goes_with_the_entry_that_does_not_have_it() {
    if !is_root() {
        return;
    }
    let any = u32::MAX.to_le_bytes();
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits) in [(1u8, 7u8), (4, 5), (0x20, 1)] {
        acl.extend_from_slice(&[tag, 0, bits, 0]);
        acl.extend_from_slice(&any);
    }
    let name = "SCHILY.xattr.system.posix_acl_default";
    let base = Tar::default().pax(&[(name, &acl)]).dir("./").pax(&[(name, &acl)]).dir("a").end();
    let has_list = |path: &Path| {
        let answer = rustix::fs::lgetxattr(path, "system.posix_acl_default", &mut [0u8; 64][..]);
        answer.is_ok()
    };
    let mut both = Both::new();
    for layer in [&base, &Tar::default().dir("./").file("a/x", "").dir("a").dir("a/d").end()] {
        let (overlay, remove) = both.push(layer);
        overlay.unwrap();
        remove.unwrap();
    }
    both.assert_same("lists");
    assert!(has_list(&both.dir.path().join("over0/a")));
    for path in ["over1", "over1/a", "over1/a/d", "tree1", "tree1/a", "tree1/a/d"] {
        assert!(!has_list(&both.dir.path().join(path)), "{path}");
    }
}

fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|p| p.join("/"))
}

type Member = (u8, String, String);

fn any_layer() -> impl Strategy<Value = Vec<Member>> {
    prop::collection::vec((0u8..7, any_path(), any_path()), 0..12)
}

fn build(members: &[Member]) -> Vec<u8> {
    let mut tar = Tar::default();
    for (kind, path, other) in members {
        let (dir, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(d, n)| (d, n));
        let at = |name: &str| format!("{dir}/{name}").trim_start_matches('/').to_owned();
        tar = match kind {
            0 => tar.with(path, b'5', |h| {
                h.set_mode(if other.starts_with('b') { 0o2750 } else { 0o755 });
                h.set_mtime(1_600_000_000 + other.len() as u64);
                h.set_gid(other.len() as u64);
            }),
            1 | 2 => tar.file(path, other),
            3 if other.len() > 3 => tar.symlink(path, &format!("/{other}")),
            3 => tar.symlink(path, other),
            4 => tar.hardlink(path, other),
            5 => tar.file(&at(&format!(".wh.{name}")), ""),
            _ => tar.file(&format!("{path}/.wh..wh..opq"), ""),
        };
    }
    tar.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariant 2 of the crate, for layers of any content in any order.
    #[test]
    fn root_any_layers_mean_the_same_in_both_styles(layers in prop::collection::vec(any_layer(), 1..4)) {
        if !is_root() {
            return Ok(());
        }
        let mut both = Both::new();
        both.push(&Tar::default().dir("./").end()).0.unwrap();
        for layer in &layers {
            let (overlay, remove) = both.push(&build(layer));
            prop_assert_eq!(overlay.is_ok(), remove.is_ok(), "{:?} / {:?}", overlay, remove);
            if overlay.is_err() {
                return Ok(());
            }
        }
        both.assert_same("any layers");
    }
}

#[test]
fn root_what_needs_the_layers_below_says_so() {
    if !is_root() {
        return;
    }
    let own = |h: &mut gantry_testkit::archive::Header| {
        h.set_mode(0o2751);
        h.set_uid(1000);
    };
    let base = Tar::default()
        .with("./", b'5', own)
        .dir("usr/")
        .pax(&[("SCHILY.xattr.user.note", b"kept")])
        .with("usr/lib/", b'5', own)
        .file("usr/lib/a", "a")
        .symlink("lib", "usr/lib")
        .file("plain", "x")
        .end();
    let cases: Vec<(&str, bool, Vec<u8>)> = vec![
        ("described", true, Tar::default().dir("usr").dir("usr/lib").file("usr/lib/b", "").end()),
        ("implied", true, Tar::default().file("usr/lib/b", "").file("usr/new/c", "").end()),
        ("implied and opaque", true, Tar::default().file("usr/lib/.wh..wh..opq", "").end()),
        ("markers", true, Tar::default().file("usr/lib/.wh.a", "").file(".wh.plain", "").end()),
        ("in place of a link", true, Tar::default().dir("lib").file("lib/x/y", "").end()),
        ("own links", true, Tar::default().symlink("l", "usr/lib").file("l/x", "").end()),
        ("own hard link", true, Tar::default().file("f", "").hardlink("h", "f").end()),
        ("through a link", false, Tar::default().file("lib/b", "").end()),
        ("hard link below", false, Tar::default().hardlink("h", "plain").end()),
        ("beneath a file", false, Tar::default().file("plain/x", "").end()),
        ("opaque top", false, Tar::default().file(".wh..wh..opq", "").end()),
        ("described late", false, Tar::default().file("usr/x", "").dir("usr").end()),
        ("removed again", false, Tar::default().file("usr/x", "").file("usr", "").end()),
        ("link to used", false, Tar::default().file("usr/x", "").hardlink("h", "usr").end()),
    ];
    for (what, alone, layer) in cases {
        let mut both = Both::new();
        both.push(&base).0.unwrap();
        drop(both.push(&layer));
        assert_eq!(both.alone, [alone], "{what}");
    }
}

/// What [`root_any_layers_mean_the_same_in_both_styles`] found once.
#[test]
fn root_a_link_that_was_used_can_be_replaced() {
    if !is_root() {
        return;
    }
    let link = Tar::default().dir("./").symlink("c", "a").end();
    let through_it = [
        ("by a directory", Tar::default().dir("c/a").dir("c").end(), "a/a", "c"),
        ("by its content", Tar::default().dir("c/a").dir("c").file("c/b", "").end(), "a/a", "c/b"),
        (
            "after a whiteout",
            Tar::default().dir("c/a").file(".wh.c", "").dir("c/x").end(),
            "a/a",
            "c/x",
        ),
    ];
    for (what, layer, first, second) in through_it {
        let mut both = Both::new();
        for layer in [&link, &layer] {
            let (overlay, remove) = both.push(layer);
            overlay.unwrap_or_else(|e| panic!("{what}: {e:?}"));
            remove.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        }
        both.assert_same(what);
        for path in [first, second] {
            assert!(both.merged_path(path).symlink_metadata().is_ok(), "{what}: {path}");
        }
    }
}

#[test]
fn root_everything_survives_an_archive_and_back() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let from = place.root();
    let script = r#"
        set -e; cd "$1"
        mkdir -p d/sub empty; echo hi > d/f; ln d/f d/hard; ln -s ../x d/sym
        mknod null c 1 3; mknod blk b 7 9; mkfifo pipe
        chown 65534:1000 d/f; chown -h 4294967294:2147483648 d/sym
        install -m 4755 /bin/true suid; chmod 2775 d; chmod 1777 empty
        touch -d '1965-03-04 05:06:07.123456789 UTC' d/f
        touch -h -d '2040-01-01 00:00:00.5 UTC' d/sym
        truncate -s 1G sparse; echo x | dd of=sparse bs=1 seek=500000000 conv=notrunc status=none
        touch "$(printf 'new\nline')" "$(printf 'bad\377utf8')" "$(printf '%0.sx' $(seq 255))"
        python3 - <<'PY'
import os, struct
os.setxattr('d/f', 'user.note', b'bin\0\xff')
os.setxattr('d/f', 'user.empty', b'')
os.setxattr('d', 'trusted.kept', b'yes')
os.setxattr('suid', 'security.capability', bytes.fromhex('0100000200200000000000000000000000000000'))
ids = struct.pack('<I', 2) + b''.join(struct.pack('<HHI', t, p, i) for t, p, i in
    [(1, 7, 2**32-1), (2, 6, 1000), (4, 5, 2**32-1), (16, 7, 2**32-1), (32, 0, 2**32-1)])
os.setxattr('empty', 'system.posix_acl_default', ids)
PY
        touch -d '2001-02-03 04:05:06.7 UTC' d empty .
    "#;
    let status = Command::new("bash").args(["-c", script, "bash"]).arg(&from).status().unwrap();
    assert!(status.success());

    let (created, tar) = archive(&open(&from));
    let target = Place::new();
    let summary = target.extract(&tar, Whiteouts::Overlay).unwrap();
    assert_eq!(summary.stream.diff_id, created.diff_id);
    assert_eq!(summary.skipped_xattrs, 0);
    let (again, _) = archive(&open(&target.root()));
    assert_eq!(again.diff_id, created.diff_id);

    let meta = |path: &str| target.root().join(path).symlink_metadata().unwrap();
    assert!(meta("sparse").blocks() < 1024, "holes were filled");
    assert_eq!(meta("suid").permissions().mode() & 0o7777, 0o4755);
    assert_eq!((meta("d/f").mtime(), meta("d/f").mtime_nsec()), (-152_391_233, 123_456_789));
    assert!(meta("null").file_type().is_char_device());
    assert_eq!(meta("d/hard").ino(), meta("d/f").ino());

    let copy = Place::new();
    copy_tree(open(&from).as_fd(), open(&copy.root()).as_fd()).unwrap();
    assert_eq!(archive(&open(&copy.root())).0.diff_id, created.diff_id);
    assert!(copy.root().join("sparse").metadata().unwrap().blocks() < 1024);
}

#[test]
fn root_a_changed_overlay_and_a_comparison_give_working_layers() {
    if !is_root() {
        return;
    }
    let mut both = Both::new();
    let base = Tar::default()
        .dir("./")
        .dir("a")
        .file("a/1", "1")
        .file("a/2", "2")
        .dir("b")
        .file("b/x", "x")
        .file("c", "c");
    let (overlay, remove) = both.push(&base.end());
    overlay.and(remove).unwrap();

    let (upper, work) = (both.make("upper"), both.make("work"));
    let lower = both.layer(0);
    let overlay = Overlay {
        lowers: vec![lower.as_fd()],
        upper: Some((upper.as_fd(), work.as_fd())),
        ..Overlay::default()
    };
    let mount = overlay.mount().unwrap();
    let at = gantry_sys::path::proc_fd(&mount);
    let change = |root: &Path| {
        std::fs::remove_file(root.join("a/1")).unwrap();
        std::fs::write(root.join("a/2"), "changed").unwrap();
        std::fs::remove_dir_all(root.join("b")).unwrap();
        std::fs::create_dir(root.join("b")).unwrap();
        std::fs::write(root.join("b/new"), "new").unwrap();
        std::fs::hard_link(root.join("c"), root.join("linked")).unwrap();
    };
    change(&at);
    let mut layer = Vec::new();
    let options = CreateOptions { source: Source::OverlayUpper, ..CreateOptions::default() };
    create(upper.as_fd(), &mut layer, &options).unwrap();
    let changes = gantry_archive::overlay_changes(upper.as_fd(), Some(lower.as_fd())).unwrap();
    let shown: Vec<_> =
        changes.iter().map(|(p, k)| format!("{k:?} {}", p.escape_ascii())).collect();
    let expected = [
        "Modified a",
        "Deleted a/1",
        "Modified a/2",
        "Modified b",
        "Added b/new",
        "Deleted b/x",
        "Modified c",
        "Added linked",
    ];
    assert_eq!(shown, expected);

    let (overlay, remove) = both.push(&layer);
    overlay.and(remove).unwrap();
    both.assert_same("from an overlay");
    let read = |path| std::fs::read_to_string(both.merged_path(path)).ok();
    assert_eq!([read("a/1"), read("b/x")], [None, None]);
    assert_eq!(read("a/2").as_deref(), Some("changed"));
    assert_eq!(read("b/new").as_deref(), Some("new"));
    assert_eq!(both.merged_path("linked").metadata().unwrap().nlink(), 2);

    // The same from two trees.
    let (old, new) = (both.tree(0), both.tree(1));
    let mut compared = Vec::new();
    create_from_changes(Some(old.as_fd()), new.as_fd(), &mut compared).unwrap();
    let rebuilt = Place::new();
    copy_tree(old.as_fd(), open(&rebuilt.root()).as_fd()).unwrap();
    rebuilt.extract(&compared, Whiteouts::Remove).unwrap();
    let same =
        |a: &OwnedFd, b: &OwnedFd| assert_eq!(listing(&archive(a).1), listing(&archive(b).1));
    same(&open(&rebuilt.root()), &new);

    let mut nothing = Vec::new();
    let created = create_from_changes(Some(new.as_fd()), new.as_fd(), &mut nothing).unwrap();
    assert_eq!(created.entries, 0);
}

/// Unpacks `archive` with GNU tar and with us; both trees must be the same.
fn compare_with_gnu_tar(archive: &[u8]) {
    let (theirs, ours) = (Place::new(), Place::new());
    let file = theirs.dir.path().join("archive.tar");
    std::fs::write(&file, archive).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-p", "-f"]);
    assert!(tar.arg(&file).arg("-C").arg(theirs.root()).status().unwrap().success());
    ours.extract(archive, Whiteouts::Literal).unwrap();
    let snapshot = |place: &Place| gantry_testkit::tree::snapshot(&place.root()).unwrap();
    gantry_testkit::tree::assert_same(&snapshot(&theirs), &snapshot(&ours), "GNU tar and ours");
}

#[test]
fn root_gnu_tar_reads_and_writes_what_we_do() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let script = r#"
        set -e; cd "$1"; mkdir -p a/b/c; echo x > a/b/c/file; ln a/b/c/file a/hard; ln -s ../../x a/b/link
        mknod a/null c 1 3; mkfifo a/pipe; install -m 4711 -o 1000 -g 1000 /bin/true a/suid
        head -c 300000 /dev/urandom > a/data; truncate -s 3M a/holes; echo end >> a/holes
        long=$(printf 'd%.0s' $(seq 90)); mkdir -p "$long/$long"; echo deep > "$long/$long/f"
        ln -s "$(printf 't%.0s' $(seq 200))" a/longlink; touch -d '1969-12-31 23:59:58.25 UTC' a/data
        setfattr -n user.note -v hello a/data 2>/dev/null || true
        touch -d '2020-01-01 UTC' "$long/$long" "$long" a/b/c a/b a .
    "#;
    let status = Command::new("bash").args(["-c", script, "bash"]).arg(place.root()).status();
    assert!(status.unwrap().success());
    compare_with_gnu_tar(&archive(&open(&place.root())).1);
    for format in [
        "gnu",
        "pax",
        "gnu --sparse",
        "pax --sparse",
        "pax --sparse --sparse-version=0.1",
        "pax --sparse --sparse-version=0.0",
        "ustar",
    ] {
        let command = format!("tar --format={format} --xattrs --numeric-owner -cf - .");
        let out = Command::new("bash").args(["-c", &command]).current_dir(place.root()).output();
        let out = out.unwrap();
        // The ustar format cannot hold everything; what it does hold is compared.
        assert!(out.status.success() || format == "ustar", "{format}");
        compare_with_gnu_tar(&out.stdout);
    }
}
