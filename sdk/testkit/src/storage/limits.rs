//! Checks 46, 50 and 58: sizes, owners seen through a map, and labels.

use std::fs::{self, File};
use std::io::{ErrorKind as Io, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use gantry_sdk::mounts::{IdMap, IdRange};
use gantry_sdk::{ErrorKind, Labels};

use super::disks::{Disk, Wish};
use super::fixture::{Fixture, cx, path_of};
use crate::archive::Tar;

const MIB: usize = 1 << 20;
/// What an image's label option is called, as in `docker run --security-opt label=…`.
const LABEL: &str = "mount-label";

fn fill(path: &Path, megabytes: usize) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for n in 0..megabytes {
        // Nothing that compresses.
        let block: Vec<u8> = (0..MIB).map(|i| (i ^ (i >> 8) ^ (i >> 13) ^ n) as u8).collect();
        file.write_all(&block)?;
    }
    file.sync_all()
}

fn size(text: &str) -> Labels {
    Labels::from([("size".to_owned(), text.to_owned())])
}

/// Check 46. Where the file system beneath cannot limit anything, asking for it must be an error.
pub async fn a_size_is_kept_or_refused(f: &mut Fixture) {
    if !f.info().options.iter().any(|option| option == "size") {
        let error = f.driver.prepare(&cx(), "limited", None, &size("16m")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", error.chain());
        return f.skip("the driver does not declare the option \"size\"");
    }
    f.layer("base", None, Tar::default().file("a", "1")).await;
    if let Err(error) = f.driver.prepare(&cx(), "limited", Some("base"), &size("16m")).await {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", error.chain());
        assert!(error.chain().contains("size"), "{}", error.chain());
        assert!(f.driver.stat(&cx(), "limited").await.is_err(), "something was left");
    }
    let (mut tried, mut why_not) = (Vec::new(), Vec::new());
    for kind in f.kinds() {
        match Disk::make(&kind, &f.subject.scratch, Wish::Limits(512 << 20)) {
            Ok(disk) => {
                limits_on(&f.on_disk(disk).await, &kind).await;
                tried.push(kind);
            }
            Err(why) => why_not.push(why),
        }
    }
    match tried.is_empty() {
        true => f.skip(why_not.join("; ")),
        false => f.note(format!("sizes are kept on {}", tried.join(", "))),
    }
}

async fn limits_on(f: &Fixture, kind: &str) {
    f.driver.recover(&cx()).await.unwrap();
    f.layer("base", None, Tar::default().file("a", "1")).await;
    for (key, limit, fits, more) in [("small", "16m", 8, 32), ("large", "64m", 48, 32)] {
        let prepared = f.driver.prepare(&cx(), key, Some("base"), &size(limit)).await;
        let plan = prepared.unwrap_or_else(|e| panic!("{kind}: {key}: {}", e.chain()));
        let limited = f.mount(&plan).await;
        fill(&path_of(&limited).join("fits"), fits)
            .unwrap_or_else(|e| panic!("{kind}: {key}: {e}"));
        let (bytes, _) = f.driver.usage(&cx(), key).await.unwrap();
        let expected = (fits * MIB) as u64;
        let is_near = bytes.abs_diff(expected) <= expected / 100;
        assert!(is_near, "{kind}: {key}: {bytes} bytes, {expected} were written");
        let error = fill(&path_of(&limited).join("more"), more).unwrap_err();
        let is_full = [Io::StorageFull, Io::QuotaExceeded].contains(&error.kind());
        assert!(is_full, "{kind}: {key}: {error}");
        // Whoever has no limit, and the machine, do not notice.
        fs::remove_file(path_of(&limited).join("more")).unwrap();
    }
    let free = f.writable("free", Some("base")).await;
    fill(&path_of(&free).join("more"), 80).unwrap_or_else(|e| panic!("{kind}: no limit: {e}"));
    fill(&f.beside().join("host"), 8).unwrap_or_else(|e| panic!("{kind}: the host: {e}"));
}

/// Check 50, for drivers that declare it.
pub async fn owners_are_seen_through_a_map(f: &mut Fixture) {
    if !f.info().id_maps {
        return f.skip("the driver does not declare that it maps owners");
    }
    let owned = |h: &mut tar::Header| h.set_uid(33);
    f.layer("base", None, Tar::default().with("theirs", b'0', owned).file("root", "x")).await;
    f.layer("top", Some("base"), Tar::default().file("b", "")).await;
    let plan = f.prepare("key", Some("top")).await.unwrap();
    let ranges = vec![IdRange { stored: 0, seen: 100_000, count: 65_536 }];
    let ids = IdMap { users: ranges.clone(), groups: ranges };
    let mapped = match f.subject.mounts.mount(&cx(), &plan.clone().with_ids(ids), &f.grants).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => return f.skip(error.chain()),
        answer => answer.unwrap(),
    };
    let owner = |path: &Path| path.symlink_metadata().unwrap().uid();
    let root = path_of(&mapped);
    assert_eq!((owner(&root.join("root")), owner(&root.join("theirs"))), (100_000, 100_033));
    chown(root.join("root"), Some(100_007), Some(100_008)).unwrap();
    fs::write(root.join("b"), "changed").unwrap();
    // Whoever is not in the map cannot be written down.
    assert!(chown(root.join("b"), Some(7), None).is_err());
    drop(mapped);
    let plain = f.mount(&plan).await;
    let root = path_of(&plain);
    let found = root.join("root").symlink_metadata().unwrap();
    assert_eq!((found.uid(), found.gid(), owner(&root.join("b"))), (7, 8, 0));
}

/// Check 58, for drivers that declare the option, on machines that label files.
pub async fn new_files_have_the_label_that_was_asked_for(f: &mut Fixture) {
    if !f.info().options.iter().any(|option| option == LABEL) {
        return f.skip(format!("the driver does not declare the option {LABEL:?}"));
    }
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        return f.skip("SELinux is off on this machine");
    }
    const WANTED: &str = "system_u:object_r:container_file_t:s0:c1,c2";
    f.layer("base", None, Tar::default().file("a", "")).await;
    let options = Labels::from([(LABEL.to_owned(), WANTED.to_owned())]);
    let plan = f.driver.prepare(&cx(), "key", Some("base"), &options).await.unwrap();
    let mount = f.mount(&plan).await;
    fs::write(path_of(&mount).join("new"), "").unwrap();
    let mut label = vec![0; 256];
    let path = path_of(&mount).join("new");
    let n = rustix::fs::lgetxattr(path, "security.selinux", label.as_mut_slice()).unwrap();
    assert_eq!(String::from_utf8_lossy(&label[..n]).trim_end_matches('\0'), WANTED);
}
