//! Checks 46 and 50: sizes, and owners seen through a map.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};

use gantry_sdk::mounts::{IdMap, IdRange, MountExecutor};
use gantry_sdk::{ErrorKind, Labels};

use super::{Fixture, cx, path_of};
use crate::archive::Tar;
use crate::mounts::Mounter;

const MIB: usize = 1 << 20;

fn fill(path: &std::path::Path, megabytes: usize) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for n in 0..megabytes {
        // Nothing that compresses.
        let block: Vec<u8> = (0..MIB).map(|i| (i ^ (i >> 8) ^ (i >> 13) ^ n) as u8).collect();
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// Check 46. Where the file system beneath cannot limit anything, asking for it must be an error.
pub async fn a_size_is_kept_or_refused(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "1")).await;
    let size = Labels::from([("size".to_owned(), "16m".to_owned())]);
    let answer = f.driver.prepare(&cx(), "limited", Some("base"), &size).await;
    let plan = match answer {
        Ok(plan) => plan,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", error.chain());
            assert!(error.chain().contains("size"), "{}", error.chain());
            println!("sizes are refused here: {}", error.chain());
            assert!(f.driver.stat(&cx(), "limited").await.is_err(), "something was left");
            return;
        }
    };
    assert!(f.info().options.iter().any(|option| option == "size"), "honoured but not declared");
    let limited = f.mount(&plan).await;
    fill(&path_of(&limited).join("fits"), 8).unwrap();
    let error = fill(&path_of(&limited).join("more"), 32).unwrap_err();
    let kinds = [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded];
    assert!(kinds.contains(&error.kind()), "{error}");
    let free = f.writable("free", Some("base")).await;
    fill(&path_of(&free).join("more"), 32).unwrap();
}

/// Check 50, for drivers that declare it.
pub async fn owners_are_seen_through_a_map(f: &mut Fixture) {
    let owned = |h: &mut tar::Header| h.set_uid(33);
    f.layer("base", None, Tar::default().with("theirs", b'0', owned).file("root", "x")).await;
    f.layer("top", Some("base"), Tar::default().file("b", "")).await;
    let plan = f.prepare("key", Some("top")).await.unwrap();
    if !f.info().id_maps {
        println!("the driver maps no owners");
        return;
    }
    let ranges = vec![IdRange { stored: 0, seen: 100_000, count: 65_536 }];
    let ids = IdMap { users: ranges.clone(), groups: ranges };
    let mapped = match Mounter.mount(&cx(), &plan.clone().with_ids(ids), &f.grants).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            println!("skipped: {}", error.chain());
            return;
        }
        answer => answer.unwrap(),
    };
    let owner = |path: &std::path::Path| path.symlink_metadata().unwrap().uid();
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
