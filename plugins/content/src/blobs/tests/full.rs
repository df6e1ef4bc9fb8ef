//! A disk that is full: a small tmpfs, mounted nowhere.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

use gantry_sys::mount::FsContext;
use serde_json::json;

use super::*;
use crate::governor::Governor;
use crate::settings::Settings;

/// A file system of `bytes` that ends with this value, and a path to it within this process.
fn small_disk(bytes: u64) -> Option<(OwnedFd, PathBuf)> {
    let make = || -> gantry_sys::Result<OwnedFd> {
        let context = FsContext::open("tmpfs")?;
        context.set_string("size", bytes.to_string())?;
        context.create()?;
        context.mount(rustix::mount::MountAttrFlags::empty())
    };
    match make() {
        Ok(mount) => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
            Some((mount, path))
        }
        Err(error) => {
            eprintln!("SKIPPED: needs to mount a tmpfs: {error}");
            None
        }
    }
}

const MIB: usize = 1 << 20;

#[tokio::test]
async fn root_a_full_disk_is_reported_and_the_download_goes_on_when_there_is_space() {
    let Some((_disk, path)) = small_disk(8 << 20) else { return };
    let world = World::new();
    let blobs = open(&path, &world.registry, Retention::Keep);
    let world = World { blobs, ..world };
    let ballast = world.put(&noise(1, 4 * MIB), None).await.unwrap();
    let content = noise(2, 6 * MIB);
    let mut writer = world.resume(&content).await.unwrap();
    let error = writer.write_all(&content).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(Error::io("write", "a blob", error).kind(), ErrorKind::NoSpace);
    let reached = writer.offset();
    assert!(reached > 0 && reached < 6 << 20);
    drop(writer);
    // What could not be written at all leaves nothing behind.
    let mut other = world.blobs.writer(&world.cx, &world.lease().await).await.unwrap();
    assert!(other.write_all(&noise(3, 4 * MIB)).is_err());
    drop(other);
    assert_eq!(fs::read_dir(path.join("ingest")).unwrap().count(), 1);

    world.blobs.remove(&world.cx, &ballast.digest).await.unwrap();
    let mut writer = world.resume(&content).await.unwrap();
    assert_eq!(writer.offset(), reached);
    writer.write_all(&content[usize::try_from(reached).unwrap()..]).unwrap();
    writer.commit(None).unwrap();
}

#[tokio::test]
async fn root_the_governor_frees_in_order_and_stops_at_the_low_mark() {
    let Some((_disk, path)) = small_disk(20 << 20) else { return };
    let world = World::new();
    let blobs = open(&path, &world.registry, Retention::DropIfRemote);
    let world = World { blobs, ..world };
    let (registry, retention) = (world.registry.clone(), Retention::DropIfRemote);
    let marks = json!({"governor": {"high": "80%", "low": "60%", "partials-after": "1h"}});
    let marks = Settings::parse(&marks).unwrap().governor;
    let governor =
        Governor { blobs: world.blobs.clone(), registry, root: path.clone(), marks, retention };
    let relieve = async || governor.relieve(&world.cx, marks.unwrap()).await.unwrap();

    let kept = world.put(&noise(1, 8 * MIB), None).await.unwrap().digest;
    let remote = world.put(&noise(2, MIB), None).await.unwrap().digest;
    for digest in [&kept, &remote] {
        world.owner.want(digest);
    }
    world.owner.offer(&remote, false, true);
    let mut partials = Vec::new();
    for (seed, hours) in [(3, 3), (4, 2), (5, 0)] {
        let digest = world.leave_half(&noise(seed, 5 * MIB)).await;
        let file = File::open(path.join(format!("ingest/{}.partial", digest.hex()))).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600 + 60)).unwrap();
        world.owner.want(&digest);
        partials.push(digest);
    }
    let left = async || {
        let partials = world.blobs.partials(&world.cx).await.unwrap();
        partials.into_iter().map(|info| info.digest).collect::<BTreeSet<_>>()
    };

    // 16.5 of 20 MiB: above 80 %, and the oldest two partials bring it below 60 %.
    let explanation = governor.explain(&world.cx).await.unwrap();
    assert!(explanation.to_free > 4 << 20, "{explanation:?}");
    let order: Vec<_> = explanation.items.iter().map(|item| &item.digest).collect();
    assert_eq!(order[..3], [&partials[0], &partials[1], &remote]);
    assert!(!relieve().await);
    assert_eq!(left().await, BTreeSet::from([partials[2].clone()]));
    assert!(world.is_here(&remote).await, "it stopped before");
    assert!(!relieve().await, "between the marks nothing happens");
    assert!(world.is_here(&remote).await);

    // Unreferenced blobs and droppable ones go next, and what is wanted stays however full it is.
    let garbage = world.put(&noise(6, 5 * MIB), None).await.unwrap().digest;
    assert!(!relieve().await);
    assert!(!world.is_here(&garbage).await && !world.is_here(&remote).await);
    assert!(world.is_here(&kept).await);
    let more = world.put(&noise(7, 7 * MIB), None).await.unwrap().digest;
    world.owner.want(&more);
    assert!(relieve().await, "nothing more can go");
    assert!(world.is_here(&more).await && world.is_here(&kept).await);
}
