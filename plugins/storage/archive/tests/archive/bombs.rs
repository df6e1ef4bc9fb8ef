//! Archives that ask for too much: every bound is a bound, and what is within them costs what it
//! should.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Place, open};
use gantry_archive::{ArchiveError, ExtractOptions, Limits, Result, Summary, Whiteouts, extract};
use gantry_testkit::archive::{Tar, header};

fn within(limits: Limits, archive: &[u8]) -> Result<Summary> {
    let place = Place::new();
    let options = ExtractOptions { limits, ..ExtractOptions::default() };
    extract(archive, open(&place.root()).as_fd(), &options)
}

fn files(count: usize) -> Tar {
    (0..count).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), "data"))
}

#[test]
fn each_limit_is_kept_to_the_last_unit() {
    let deep = "d/".repeat(20);
    let sparse = |size: &str| {
        Tar::default()
            .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", size.as_bytes())])
            .file("s", "x")
            .end()
    };
    let usual = Limits::default;
    let cases: Vec<(&str, bool, Limits, Vec<u8>)> = vec![
        ("entries", true, Limits { entries: 10, ..usual() }, files(10).end()),
        ("entries", false, Limits { entries: 10, ..usual() }, files(11).end()),
        ("stream", true, Limits { stream_bytes: 3072, ..usual() }, files(2).end()),
        ("stream", false, Limits { stream_bytes: 3071, ..usual() }, files(2).end()),
        ("depth", true, Limits { depth: 20, ..usual() }, Tar::default().dir(&deep).end()),
        ("depth", false, Limits { depth: 19, ..usual() }, Tar::default().dir(&deep).end()),
        ("file", true, Limits { file_bytes: 4, ..usual() }, files(1).end()),
        ("file", false, Limits { file_bytes: 3, ..usual() }, files(1).end()),
        ("sparse file", true, Limits { file_bytes: 1 << 30, ..usual() }, sparse("1073741824")),
        ("sparse file", false, Limits { file_bytes: 1 << 30, ..usual() }, sparse("1073741825")),
        (
            "extension",
            true,
            Limits { extension_bytes: 111, ..usual() },
            Tar::default().pax(&[("comment", &[b'x'; 98])]).file("a", "").end(),
        ),
        (
            "extension",
            false,
            Limits { extension_bytes: 110, ..usual() },
            Tar::default().pax(&[("comment", &[b'x'; 98])]).file("a", "").end(),
        ),
        ("free space", false, Limits { reserve_bytes: u64::MAX, ..usual() }, files(1).end()),
    ];
    for (what, allowed, limits, archive) in cases {
        let outcome = within(limits, &archive);
        assert_eq!(outcome.is_ok(), allowed, "{what}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(error.is_bad_archive() || error.is_no_space(), "{what}: {error:?}");
        }
    }
}

#[test]
fn a_declared_size_is_refused_before_anything_is_written() {
    let mut huge = header(b"huge", b'0', 0, b"");
    huge.set_size(1 << 41);
    huge.set_cksum();
    let place = Place::new();
    let archive = Tar::default().raw(&huge, b"").end();
    let outcome = place.extract(&archive, Whiteouts::Literal);
    assert!(matches!(outcome, Err(ArchiveError::Limit { .. })), "{outcome:?}");
    assert!(!place.root().join("huge").exists());
}

#[test]
fn floods_of_headers_are_refused() {
    let records = |count| (0..count).fold(Tar::default(), |tar, _| tar.pax(&[("comment", b"x")]));
    let global = |count: usize| {
        (0..count).fold(Tar::default(), |tar, _| tar.raw(&header(b"g", b'g', 0, b""), b""))
    };
    let names = |count: usize| {
        (0..count).fold(Tar::default(), |tar, _| tar.raw(&header(b"l", b'L', 2, b""), b"a\0"))
    };
    for (what, flood) in [("records", records(100)), ("global", global(100)), ("names", names(100))]
    {
        let outcome = Place::new().extract(&flood.file("a", "").end(), Whiteouts::Literal);
        assert!(matches!(outcome, Err(ArchiveError::Malformed { .. })), "{what}: {outcome:?}");
    }
    for few in [records(16), global(16), names(16)] {
        Place::new().extract(&few.file("a", "").end(), Whiteouts::Literal).unwrap();
    }
}

#[test]
fn a_sparse_file_takes_no_more_than_its_data() {
    let place = Place::new();
    let size = (1u64 << 40).to_string();
    let archive = Tar::default()
        .pax(&[("GNU.sparse.map", b"0,1,1048576,1"), ("GNU.sparse.size", size.as_bytes())])
        .file("s", "xy")
        .end();
    place.extract(&archive, Whiteouts::Literal).unwrap();
    let meta = place.root().join("s").metadata().unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() < 1024, "{}", meta.blocks());
    // A map of more runs than any file needs.
    let map = (0..70_000u64).map(|n| format!("{},0", n * 2)).collect::<Vec<_>>().join(",");
    let map = Tar::default()
        .pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())])
        .file("s", "")
        .end();
    let outcome = Place::new().extract(&map, Whiteouts::Literal);
    assert!(outcome.is_err_and(|error| error.is_bad_archive()));
}

#[test]
fn of_duplicates_the_last_counts_and_costs_one_file() {
    let place = Place::new();
    let mut tar = Tar::default();
    for n in 0..300 {
        tar = match n % 3 {
            0 => tar.file("x", &n.to_string()),
            1 => tar.dir("x").file("x/y", "").file("x/z/w", ""),
            _ => tar.symlink("x", "../outside"),
        };
    }
    let archive = tar.file("x", "last").end();
    for style in [Whiteouts::Literal, Whiteouts::Remove] {
        place.extract(&archive, style).unwrap();
        place.assert_outside_untouched("duplicates");
        assert_eq!(std::fs::read_to_string(place.root().join("x")).unwrap(), "last");
        assert_eq!(std::fs::read_dir(place.root()).unwrap().count(), 1);
    }
}

#[test]
fn more_attributes_than_a_file_can_have_are_an_answer() {
    let value = [b'v'; 60_000];
    let names: Vec<String> = (0..15).map(|n| format!("SCHILY.xattr.user.n{n}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &value[..])).collect();
    let archive = Tar::default().pax(&records).file("a", "").end();
    match Place::new().extract(&archive, Whiteouts::Literal) {
        Ok(_) | Err(ArchiveError::Io { .. }) => {}
        Err(other) => panic!("{other:?}"),
    }
}

/// Somebody works in the directory at the same time and exchanges directories for links that lead
/// out.
#[test]
fn swapping_directories_for_links_meanwhile_does_not_lead_out() {
    let place = Place::new();
    let root = place.root();
    let mut tar = Tar::default();
    for n in 0..400 {
        tar = tar
            .dir("d")
            .file(&format!("d/secret{}", n % 7), "x")
            .file("d/e/secret", "x")
            .hardlink("d/e/h", "d/e/secret")
            .file("d/.wh.secret", "");
    }
    let archive = tar.end();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
            while !done.load(Ordering::Relaxed) {
                // Both names exist at any time; what they mean alternates.
                let _ = std::fs::create_dir(root.join("d"));
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    root.join("d"),
                    rustix::fs::CWD,
                    root.join("link"),
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        for round in 0..10 {
            let style = [Whiteouts::Literal, Whiteouts::Remove][round % 2];
            // It may fail: what is checked is where it has been.
            let _ = place.extract(&archive, style);
        }
        done.store(true, Ordering::Relaxed);
    });
    place.assert_outside_untouched("swaps");
}
