//! Checks 32–36: content of every shape.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

use gantry_sdk::kinds::storage::LayerForm;
use rustix::fs::{FallocateFlags, Mode, OFlags};

use super::{Fixture, exists, path_of};
use crate::archive::{Tar, header};

const TIB: u64 = 1 << 40;

/// Check 32.
pub async fn a_sparse_file_stays_small(f: &mut Fixture) {
    // PAX sparse format 1.0: the map, then the data.
    let mut data = format!("2\n4096\n4\n{}\n4\n", TIB - 4).into_bytes();
    data.resize(512, 0);
    data.extend_from_slice(b"headtail");
    let size = TIB.to_string();
    let tar = Tar::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .raw(&header(b"GNUSparseFile.0/sparse", b'0', data.len() as u64, b""), &data);
    let zeros = vec![0; 8 << 20];
    f.layer("base", None, tar.member("zeros", b'0', "", &zeros)).await;
    f.layer("top", Some("base"), Tar::default().file("x", "")).await;
    let mount = f.open("top").await;
    let file = fs::File::open(path_of(&mount).join("sparse")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), TIB);
    let stored = gantry_sys::path::usage(fs::File::open(&f.root).unwrap()).unwrap().bytes;
    assert!(stored < 1 << 20, "{stored} bytes");
    // EROFS does not know how much of a file is holes.
    let tells_blocks = f.info().form != LayerForm::ErofsImage;
    assert!(!tells_blocks || meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let mut buf = [0; 4];
    for (at, expected) in [(4096, b"head"), (TIB - 4, b"tail"), (1 << 30, b"\0\0\0\0")] {
        file.read_exact_at(&mut buf, at).unwrap();
        assert_eq!(&buf, expected, "at {at}");
    }
    let zeros = path_of(&mount).join("zeros").metadata().unwrap();
    assert_eq!(zeros.len(), 8 << 20);
    assert!(!tells_blocks || zeros.blocks() == 0, "{} blocks", zeros.blocks());
}

/// Check 33, without a file of 4 GiB (sizes beyond 32 bits are in check 32).
pub async fn odd_names_and_sizes_are_kept(f: &mut Fixture) {
    let long = "n".repeat(255);
    let names: [&[u8]; 6] =
        [b"new\nline", b"bad\xff\xfeutf8", b"sp ace", b"-dash", b"\\back", long.as_bytes()];
    let mut tar = Tar::default().file("empty", "").file("one", "1");
    for name in names {
        tar = tar.pax(&[("path", name)]).file("cut", "content");
    }
    let exact = vec![b'x'; 512];
    f.layer("base", None, tar.member("block", b'0', "", &exact)).await;
    let mount = f.open("base").await;
    let root = path_of(&mount);
    for name in names {
        let path = root.join(OsStr::from_bytes(name));
        assert_eq!(fs::read_to_string(path).unwrap(), "content", "{}", name.escape_ascii());
    }
    let length = |name| root.join(name).metadata().unwrap().len();
    assert_eq!([length("empty"), length("one"), length("block")], [0, 1, 512]);
}

/// Check 34, with 20 000 files: the number that makes slow algorithms visible.
pub async fn many_files_and_deep_paths_work(f: &mut Fixture) {
    const MANY: usize = 20_000;
    let deep = (0..200).map(|n| format!("d{n}")).collect::<Vec<_>>().join("/");
    let mut tar = Tar::default();
    for n in 0..MANY {
        tar = tar.file(&format!("many/{n}"), "");
    }
    let file = format!("{deep}/file");
    f.layer("base", None, tar.pax(&[("path", file.as_bytes())]).file("cut", "deep")).await;
    let mount = f.open("base").await;
    let root = path_of(&mount);
    assert_eq!(fs::read_dir(root.join("many")).unwrap().count(), MANY);
    assert_eq!(fs::read_to_string(root.join(&file)).unwrap(), "deep");
}

/// Check 35. A handle that was there before the first write may still show the lower file: overlays
/// document that.
pub async fn a_shared_mapping_is_seen_through_another_handle(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("f", &"old ".repeat(2000))).await;
    let mount = f.writable("key", Some("base")).await;
    let path = path_of(&mount).join("f");
    let writing = fs::File::options().read(true).write(true).open(&path).unwrap();
    let reading = fs::File::open(&path).unwrap();
    gantry_sys::file::write_mapped(&writing, b"new!").unwrap();
    let mut start = [0; 8];
    reading.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"new!old ");
    drop((writing, reading, mount));
    assert!(
        fs::read_to_string(path_of(&f.open("key").await).join("f")).unwrap().starts_with("new!")
    );
    assert!(
        fs::read_to_string(path_of(&f.open("base").await).join("f")).unwrap().starts_with("old ")
    );
}

/// Check 36.
pub async fn special_ways_of_writing_work(f: &mut Fixture) {
    let content = "c".repeat(64 << 10);
    f.layer("base", None, Tar::default().file("f", &content)).await;
    let mount = f.writable("key", Some("base")).await;
    let root = path_of(&mount);
    let writable = fs::File::options().read(true).write(true).open(root.join("f")).unwrap();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&writable, flags, 0, 4096).unwrap();
    let mut start = [1; 2];
    writable.read_exact_at(&mut start, 4095).unwrap();
    assert_eq!(start, [0, b'c']);

    let copy = fs::File::create(root.join("copy")).unwrap();
    let mut left = content.len();
    while left > 0 {
        let n = rustix::fs::copy_file_range(&writable, None, &copy, None, left).unwrap();
        assert!(n > 0);
        left -= n;
    }
    assert_eq!(root.join("copy").metadata().unwrap().len(), content.len() as u64);

    let unnamed = rustix::fs::open(&root, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    match unnamed {
        Ok(file) => {
            rustix::io::write(&file, b"named later").unwrap();
            let at = gantry_sys::path::proc_fd(&file);
            let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(rustix::fs::CWD, at, rustix::fs::CWD, root.join("named"), follow)
                .unwrap();
            assert_eq!(fs::read_to_string(root.join("named")).unwrap(), "named later");
        }
        // Overlays before Linux 6.1 have no unnamed files.
        Err(error) => assert_eq!(error, rustix::io::Errno::OPNOTSUPP),
    }
    drop(mount);
    let mount = f.open("base").await;
    assert_eq!(fs::read_to_string(path_of(&mount).join("f")).unwrap(), content);
    assert!(!exists(path_of(&mount).join("copy")));
}
