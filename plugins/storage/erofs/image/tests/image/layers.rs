//! A layer's image holds what its directory would hold.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use gantry_archive::{ArchiveError, ExtractOptions, Result, Whiteouts, extract};
use gantry_erofs::{ConvertOptions, convert, inspect, settle_standalone};
use gantry_sys::mount::Overlay;
use gantry_testkit::archive::{Header, Tar};
use gantry_testkit::tree::assert_same;
use proptest::prelude::*;

use crate::common::{can_mount, check, create, mount, open, path_of, with_marks};

/// Layers as directories and as images, each in view of its own kind.
struct Both {
    dir: tempfile::TempDir,
    count: usize,
    images: Vec<OwnedFd>,
    /// Whether each but the first could be written out of view of the others.
    alone: Vec<bool>,
}

impl Both {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, count: 0, images: Vec::new(), alone: Vec::new() }
    }

    fn at(&self, name: &str, n: usize) -> PathBuf {
        self.dir.path().join(format!("{name}{n}"))
    }

    fn stack(lowers: &[OwnedFd]) -> Option<OwnedFd> {
        match lowers {
            [] => None,
            [one] => Some(one.try_clone().unwrap()),
            many => {
                let lowers = many.iter().rev().map(AsFd::as_fd).collect();
                Some(Overlay { lowers, ..Overlay::default() }.mount().unwrap())
            }
        }
    }

    /// Unpacks `layer` both ways. The outcomes and, if there are some, the trees must be equal.
    fn push(&mut self, what: &str, layer: &[u8]) -> bool {
        let n = self.count;
        self.count += 1;
        let dirs: Vec<OwnedFd> = (0..n).map(|n| open(&self.at("dir", n))).collect();
        let below = Self::stack(&dirs);
        std::fs::create_dir(self.at("dir", n)).unwrap();
        let options = ExtractOptions {
            whiteouts: Whiteouts::Overlay,
            below: below.as_ref().map(AsFd::as_fd),
            ..ExtractOptions::default()
        };
        let first = extract(layer, open(&self.at("dir", n)).as_fd(), &options);

        let below = Self::stack(&self.images);
        let image = create(&self.at("image", n));
        let options =
            ConvertOptions { below: below.as_ref().map(AsFd::as_fd), ..ConvertOptions::default() };
        let second = convert(layer, &image, &options);
        match (first, second) {
            (Ok(first), Ok(second)) => assert_eq!(first, second, "{what}"),
            (Err(_), Err(_)) => return false,
            (first, second) => panic!("{what}: {first:?} / {second:?}"),
        }
        check(&self.at("image", n));
        let mounted = mount(&self.at("image", n));
        let marks = with_marks(&path_of(&mounted));
        assert_same(&with_marks(&self.at("dir", n)), &marks, what);
        let (info, used) = (inspect(&image).unwrap(), gantry_sys::path::usage(&mounted).unwrap());
        assert_eq!((info.bytes, info.inodes), (used.apparent_bytes, used.inodes), "{what}");
        if let Some(below) = &below {
            let alone = self.stands_alone(n, layer, below);
            match alone {
                Ok(()) => {
                    let settled = mount(&self.at("alone", n));
                    assert_same(&marks, &with_marks(&path_of(&settled)), what);
                }
                Err(ArchiveError::NeedsBelow { .. }) => {}
                Err(ref error) => panic!("{what}, alone: {error:?}"),
            }
            self.alone.push(alone.is_ok());
        }
        self.images.push(mounted);
        true
    }

    fn stands_alone(&self, n: usize, layer: &[u8], below: &OwnedFd) -> Result<()> {
        let image = create(&self.at("alone", n));
        let options = ConvertOptions { standalone: true, ..ConvertOptions::default() };
        let summary = convert(layer, &image, &options)?;
        let (implied, top_given) = (&summary.implied, summary.top_given);
        for _ in 0..2 {
            settle_standalone(&image, below.as_fd(), implied, top_given)?;
        }
        check(&self.at("alone", n));
        Ok(())
    }
}

fn base() -> Vec<u8> {
    let own = |h: &mut Header| {
        h.set_mode(0o1751);
        h.set_uid(100_000);
    };
    Tar::default()
        .with("./", b'5', own)
        .dir("usr/")
        .with("usr/lib/", b'5', own)
        .file("usr/lib/a", "a")
        .file("usr/lib/b", "b")
        .symlink("lib", "usr/lib")
        .dir("opt/")
        .dir("opt/x/")
        .file("opt/x/1", "1")
        .file("opt/2", "2")
        .file("plain", "x")
        .pax(&[("SCHILY.xattr.user.note", b"kept")])
        .with("noted/", b'5', own)
        .end()
}

#[test]
fn root_layers_mean_in_an_image_what_they_mean_in_a_directory() {
    if !can_mount() {
        return;
    }
    let t = Tar::default;
    let shared = |h: &mut Header| {
        h.set_mode(0o2775);
        h.set_gid(50);
    };
    // What each is, whether it can be written alone, and the layer.
    let cases: Vec<(&str, bool, Tar)> = vec![
        ("described", true, t().dir("usr").dir("usr/lib").file("usr/lib/b", "")),
        ("implied", true, t().file("usr/lib/b", "").file("usr/new/c", "")),
        ("implied with attributes", false, t().file("noted/b", "")),
        ("implied and opaque", true, t().file("usr/lib/.wh..wh..opq", "")),
        ("markers", true, t().file("usr/lib/.wh.a", "").file(".wh.plain", "")),
        ("whiteout of a directory", true, t().file(".wh.opt", "")),
        ("whiteout of nothing", true, t().file("usr/.wh.none", "")),
        ("deleted, made again", true, t().file(".wh.opt", "").dir("opt").file("opt/n", "")),
        ("made again, deleted", true, t().dir("opt").file("opt/n", "").file(".wh.opt", "")),
        ("deleted, another type", true, t().file(".wh.opt", "").file("opt", "x")),
        ("opaque", true, t().dir("opt").file("opt/.wh..wh..opq", "").file("opt/n", "")),
        ("opaque at the end", true, t().file("opt/x/n", "").file("opt/.wh..wh..opq", "")),
        ("in place of a link", true, t().dir("lib").file("lib/x/y", "")),
        ("file over directory, back", true, t().file("opt", "x").dir("opt")),
        ("own links", true, t().symlink("l", "usr/lib").file("l/x", "")),
        ("own hard link", true, t().file("f", "").hardlink("h", "f").file("f", "later")),
        ("a link to itself", true, t().file("f", "x").hardlink("f", "./f")),
        ("a link made twice", true, t().file("f", "x").hardlink("h", "f").hardlink("h", "f")),
        ("twice", true, t().file("f", "old").file("f", "new").symlink("f", "x").dir("f")),
        ("device 0:0 as marker", true, t().member("opt", b'3', "", b"")),
        ("dangling parent", true, t().symlink("d", "no/where").file("d/x", "x")),
        ("through a link", false, t().file("lib/c", "c").file("lib/.wh.a", "")),
        ("hard link below", false, t().hardlink("usr/lib/h", "usr/lib/a")),
        ("hard link, then hidden", false, t().hardlink("h", "lib/b").file("lib/.wh.b", "")),
        ("hard link to a link below", false, t().hardlink("h", "lib")),
        ("opaque top", false, t().file("n", "").file(".wh..wh..opq", "").dir("opt")),
        ("described late", false, t().file("usr/x", "").dir("usr")),
        ("setgid top", true, t().with("./", b'5', shared).dir("d").file("f", "").file("d/f", "")),
        (
            "setgid in the end",
            true,
            t().dir("s").file("s/x", "").with("s", b'5', shared).dir("s/d").file("s/f", ""),
        ),
    ];
    for (what, alone, layer) in cases {
        let mut both = Both::new();
        assert!(both.push("base", &base()));
        assert!(both.push(what, &layer.end()), "{what}");
        assert_eq!(both.alone, [alone], "{what}");
    }
}

#[test]
fn root_bad_layers_are_refused_as_in_a_directory() {
    if !can_mount() {
        return;
    }
    let t = Tar::default;
    let cases: Vec<(&str, Tar)> = vec![
        ("climbing", t().file("../x", "")),
        ("hard link to a directory", t().hardlink("h", "usr")),
        ("hard link to nothing", t().hardlink("h", "nothing")),
        ("hard link to the top", t().hardlink("h", ".")),
        ("hard link into what it replaces", t().dir("d").file("d/f", "").hardlink("d", "d/f")),
        ("beneath a file", t().file("plain/x", "")),
        ("links in a circle", t().symlink("l", "l").file("l/x", "")),
        ("empty link", t().symlink("l", "")),
        ("marker of nothing", t().file(".wh.", "")),
        ("top is a file", t().file("./", "")),
        (
            "cut",
            Tar::default()
                .file("f", "x")
                .raw(&gantry_testkit::archive::header(b"g", b'0', 9000, b""), b"short"),
        ),
    ];
    for (what, layer) in cases {
        let mut both = Both::new();
        assert!(both.push("base", &base()));
        assert!(!both.push(what, &layer.unfinished()), "{what}");
    }
}

fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|p| p.join("/"))
}

type Member = (u8, String, String);

fn build(members: &[Member]) -> Vec<u8> {
    let mut tar = Tar::default();
    for (kind, path, other) in members {
        let (dir, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(d, n)| (d, n));
        let at = |name: &str| format!("{dir}/{name}").trim_start_matches('/').to_owned();
        let odd = |h: &mut Header| {
            h.set_mode(if other.starts_with('b') { 0o2750 } else { 0o755 });
            h.set_mtime(1_600_000_000 + other.len() as u64);
            h.set_gid(other.len() as u64);
        };
        tar = match kind {
            0 if other.ends_with('c') => {
                tar.pax(&[("SCHILY.xattr.user.note", b"x")]).with(path, b'5', odd)
            }
            0 => tar.with(path, b'5', odd),
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
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn root_any_layers_mean_the_same(
        layers in prop::collection::vec(
            prop::collection::vec((0u8..7, any_path(), any_path()), 0..12), 1..4)
    ) {
        if !can_mount() {
            return Ok(());
        }
        let mut both = Both::new();
        assert!(both.push("base", &Tar::default().dir("./").end()));
        for layer in &layers {
            if !both.push("any", &build(layer)) {
                return Ok(());
            }
        }
    }
}
