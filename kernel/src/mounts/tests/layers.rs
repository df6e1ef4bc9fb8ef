//! Owners seen through a map, and overlays that a program serves.

use super::*;

#[test]
fn maps_of_owners_are_checked() {
    let grants = Grants::on_root("/nowhere", ALL);
    let plan = |steps, ids| MountPlan::of(steps).with_ids(ids);
    assert!(Executor.check(&plan(vec![bind(at("a"))], ids(1)), &grants).is_ok());
    let none = IdMap { users: Vec::new(), ..ids(1) };
    let empty = IdRange { stored: 0, seen: 0, count: 0 };
    let empty = IdMap { groups: vec![empty], ..ids(1) };
    for (kind, steps, map) in [
        (ErrorKind::InvalidArgument, vec![bind(at("a"))], none),
        (ErrorKind::InvalidArgument, vec![bind(at("a"))], empty),
        (ErrorKind::InvalidArgument, vec![bind(at("a"))], ids(u32::MAX - 65_534)),
        (ErrorKind::Unsupported, vec![fuse_overlay(vec![at("a")], None)], ids(1)),
    ] {
        let error = Executor.check(&plan(steps, map), &grants).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(error.chain().starts_with("mount plan"), "{}", error.chain());
    }
}

/// Runs as root only.
#[tokio::test]
async fn root_owners_are_seen_through_a_map_and_stored_without_it() {
    if !is_root() {
        return;
    }
    use std::os::unix::fs::{MetadataExt, chown};
    let dir = Scratch::new("ids");
    for name in ["a/file", "b/other", "l/upper/mine", "l/work/x"] {
        dir.write(name, "x");
    }
    let layered = Step::Overlay {
        lowers: vec![at("a"), at("b")],
        upper: Some(at("l/upper")),
        work: Some(at("l/work")),
        flags: OverlayFlags::default(),
    };
    for (steps, stored) in [(vec![bind(at("a"))], "a/file"), (vec![layered], "l/upper/file")] {
        let plan = MountPlan::of(steps).with_ids(ids(100_000));
        let mount = match Executor.mount(&Ctx::background(), &plan, &dir.grants()).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                eprintln!("skipped: {}", error.chain());
                return;
            }
            answer => answer.unwrap(),
        };
        let file = proc_fd(&mount).join("file");
        let owner = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.gid())
        };
        assert_eq!(owner(&file), (100_000, 100_000), "{stored}");
        chown(&file, Some(100_001), Some(100_002)).unwrap();
        assert_eq!(owner(&dir.0.join(stored)), (1, 2), "{stored}");
        assert!(chown(&file, Some(5), Some(5)).is_err(), "an id that no range has was stored");
        chown(&file, Some(100_000), Some(100_000)).unwrap();
    }
    assert_eq!(mounts_of(&dir), []);
}

/// Runs as root only, with fuse-overlayfs.
#[tokio::test]
async fn root_an_overlay_can_be_served_by_a_program() {
    let is_there = |path: &str| Path::new(path).exists();
    if !is_root() || !is_there("/usr/bin/fuse-overlayfs") || !is_there("/dev/fuse") {
        eprintln!("skipped: needs root and fuse-overlayfs");
        return;
    }
    let dir = Scratch::new("fuse");
    for name in ["a/file", "b/other", "upper/mine", "work/x"] {
        dir.write(name, "x");
    }
    let step = fuse_overlay(vec![at("a"), at("b")], Some("upper"));
    let mount = run(vec![step], &dir.grants()).await.unwrap();
    assert_eq!((read(&mount, "file"), read(&mount, "other")), ("x".into(), "x".into()));
    fs::write(proc_fd(&mount).join("file"), "y").unwrap();
    assert_eq!(fs::read_to_string(dir.0.join("upper/file")).unwrap(), "y");
    let read_only = run(vec![fuse_overlay(vec![at("a")], None)], &dir.grants()).await.unwrap();
    assert!(fs::write(proc_fd(&read_only).join("file"), "z").is_err());
    assert_eq!(mounts_of(&dir), []);
}
