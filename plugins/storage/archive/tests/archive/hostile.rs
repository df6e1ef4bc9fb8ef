//! Archives that mean harm stay inside, are refused, or both; none makes us panic.

use crate::common::Place;
use gantry_archive::{ArchiveError, Whiteouts};
use gantry_testkit::archive::{Tar, header};
use proptest::prelude::*;

const STYLES: [Whiteouts; 3] = [Whiteouts::Literal, Whiteouts::Overlay, Whiteouts::Remove];

/// Every archive, and whether it may be unpacked at all.
fn attempts() -> Vec<(&'static str, bool, Vec<u8>)> {
    let secret = "/../outside/secret";
    vec![
        ("absolute name", true, Tar::default().file("/outside/secret", "x").end()),
        ("name that climbs", false, Tar::default().file("../outside/secret", "x").end()),
        ("name that climbs later", false, Tar::default().file("a/../../outside/x", "x").end()),
        (
            "link out, then through it",
            true,
            Tar::default().symlink("out", "../outside").file("out/secret", "x").end(),
        ),
        (
            "absolute link, then through it",
            true,
            Tar::default().symlink("out", "/").file("out/outside/secret", "x").end(),
        ),
        (
            "chain of links, then through it",
            true,
            Tar::default()
                .dir("a")
                .symlink("a/up", "..")
                .symlink("b", "a/up/a/up/..")
                .file("b/outside/secret", "x")
                .end(),
        ),
        (
            "a directory exchanged for a link",
            true,
            Tar::default().dir("d").symlink("d", "../outside").file("d/secret", "x").end(),
        ),
        (
            "a file over a link",
            true,
            Tar::default().symlink("l", "../outside/secret").file("l", "x").end(),
        ),
        ("hard link that climbs", false, Tar::default().hardlink("h", "../outside/secret").end()),
        ("hard link to an absolute name", false, Tar::default().hardlink("h", secret).end()),
        (
            "hard link through a link",
            false,
            Tar::default().symlink("out", "../outside").hardlink("h", "out/secret").end(),
        ),
        (
            "hard link to a link, then written",
            true,
            Tar::default()
                .symlink("l", "../outside/secret")
                .hardlink("h", "l")
                .file("h", "x")
                .end(),
        ),
        ("links in a circle", false, Tar::default().symlink("l", "l").file("l/x", "x").end()),
        (
            "the top is a file",
            false,
            Tar::default().file("./", "").member(".", b'2', "x", b"").end(),
        ),
        ("hard link to the top", false, Tar::default().hardlink("h", ".").end()),
        ("marker that climbs", false, Tar::default().file("a/../../.wh.outside", "").end()),
        (
            "marker through a link",
            true,
            Tar::default().symlink("out", "../outside").file("out/.wh.secret", "").end(),
        ),
        (
            "opaque marker through a link",
            true,
            Tar::default().symlink("out", "../outside").file("out/.wh..wh..opq", "").end(),
        ),
    ]
}

#[test]
fn hostile_names_and_links_stay_inside() {
    for (what, may_succeed, archive) in attempts() {
        for style in STYLES {
            let place = Place::new();
            let outcome = place.extract(&archive, style);
            place.assert_outside_untouched(what);
            assert!(may_succeed || outcome.is_err(), "{what} ({style:?}): {outcome:?}");
            if let Err(error) = outcome {
                assert!(error.is_bad_archive() || may_succeed, "{what}: {error}");
            }
        }
    }
}

#[test]
fn markers_without_a_name_are_refused() {
    for name in ["a/.wh.", "a/.wh..", "a/.wh...", ".wh.x/y"] {
        for style in [Whiteouts::Overlay, Whiteouts::Remove] {
            let outcome = Place::new().extract(&Tar::default().file(name, "").end(), style);
            assert!(matches!(outcome, Err(ArchiveError::Refused { .. })), "{name}: {outcome:?}");
        }
    }
}

#[test]
fn damaged_headers_are_errors_that_say_where() {
    let mut wrong_sum = Tar::default().file("a", "x").end();
    wrong_sum[0] = b'b';
    let mut huge = header(b"a", b'0', 0, b"");
    huge.as_old_mut().size.copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    huge.set_cksum();
    let mut negative = header(b"a", b'0', 0, b"");
    negative.as_old_mut().size.copy_from_slice(&[0xff; 12]);
    negative.set_cksum();
    let long = header(b"x", b'x', 2 << 20, b"");
    let lone = [&[0; 512][..], &Tar::default().file("a", "").end()].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("wrong checksum", wrong_sum),
        ("huge size", Tar::default().raw(&huge, b"").end()),
        ("negative size", Tar::default().raw(&negative, b"").end()),
        ("long extension", Tar::default().raw(&long, b"").end()),
        (
            "huge PAX size",
            Tar::default().pax(&[("size", b"18446744073709551615")]).file("a", "").end(),
        ),
        ("unknown type", Tar::default().member("a", b'Q', "", b"").end()),
        ("cut short", Tar::default().file("a", "some data").unfinished()[..515].to_vec()),
        ("lone zero block", lone),
        (
            "attribute too large",
            Tar::default().pax(&[("SCHILY.xattr.user.x", &[b'x'; 70_000])]).file("a", "").end(),
        ),
        ("owner too large", Tar::default().pax(&[("uid", b"4294967296")]).file("a", "").end()),
        ("name with NUL", Tar::default().pax(&[("path", b"a\0b")]).file("a", "").end()),
        (
            "sparse map out of order",
            Tar::default()
                .pax(&[("GNU.sparse.map", b"4096,1,0,1"), ("GNU.sparse.size", b"8192")])
                .file("a", "xy")
                .end(),
        ),
        (
            "sparse map beyond the data",
            Tar::default()
                .pax(&[("GNU.sparse.map", b"0,100"), ("GNU.sparse.size", b"8192")])
                .file("a", "xy")
                .end(),
        ),
    ];
    for (what, archive) in cases {
        let error = Place::new().extract(&archive, Whiteouts::Literal).unwrap_err();
        assert!(error.is_bad_archive() || what == "cut short", "{what}: {error:?}");
    }
}

#[test]
fn a_size_record_moves_the_next_header_too() {
    // A reader that takes the size from the header would take the data for a header.
    let inner = Tar::default().file("smuggled", "x").unfinished();
    let size = inner.len().to_string();
    let archive = Tar::default()
        .pax(&[("size", size.as_bytes())])
        .raw(&header(b"outer", b'0', 0, b""), &inner)
        .file("after", "y")
        .end();
    let place = Place::new();
    place.extract(&archive, Whiteouts::Literal).unwrap();
    assert!(!place.root().join("smuggled").exists());
    assert!(place.root().join("after").exists());
    assert_eq!(std::fs::metadata(place.root().join("outer")).unwrap().len(), inner.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever bytes are flipped in a good archive: an answer, and nothing outside.
    #[test]
    fn flipped_bytes_never_break_out(flips in prop::collection::vec((0usize..6144, any::<u8>()), 1..6)) {
        let mut archive = Tar::default()
            .dir("d").file("d/f", "data").symlink("d/l", "f").hardlink("d/h", "d/f")
            .pax(&[("path", b"d/long"), ("SCHILY.xattr.user.x", b"v")]).file("x", "y")
            .file("d/.wh.gone", "")
            .end();
        for (at, value) in flips {
            let at = at % archive.len();
            archive[at] = value;
        }
        // Make the checksums right again, or nothing but the checksum is tested.
        for block in archive.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let place = Place::new();
        let _ = place.extract(&archive, Whiteouts::Remove);
        place.assert_outside_untouched("flipped bytes");
    }

    #[test]
    fn arbitrary_bytes_are_no_archive_and_no_harm(data in prop::collection::vec(any::<u8>(), 0..4096)) {
        let place = Place::new();
        let _ = place.extract(&data, Whiteouts::Overlay);
        place.assert_outside_untouched("arbitrary bytes");
    }
}
