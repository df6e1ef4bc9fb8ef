//! Plans that must be refused, plans that must work, and what is left afterwards: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use gantry_sdk::context::Ctx;
use gantry_sdk::mounts::{
    FsKind, Grants, IdMap, IdRange, MAX_LOWERS, MAX_STEPS, MountExecutor, MountFd, MountPlan,
    OverlayFlags, PathRef, Place, Step,
};
use gantry_sdk::{ErrorKind, Labels, Result};
use gantry_sys::mount::{MountInfo, read_mountinfo};
use gantry_sys::path::proc_fd;

mod layers;

use super::Executor;
use super::options::parse_host;

const ALL: &[&str] = &[
    "mkdir",
    "bind",
    "overlay",
    "fuse-overlay",
    "tmpfs",
    "loop",
    "fs",
    "host",
    "quota",
    "subvol",
    "premounted",
];

fn path(rel: &str) -> PathRef {
    PathRef::new("root", rel)
}

fn at(rel: &str) -> Place {
    Place::Path(path(rel))
}

fn tmpfs() -> Step {
    Step::Tmpfs { bytes: 1 << 20, inodes: 0, mode: 0o755, uid: 0, gid: 0 }
}

fn mkdir(rel: &str) -> Step {
    Step::Mkdir { at: path(rel), uid: 0, gid: 0, mode: 0o711 }
}

fn bind(source: Place) -> Step {
    Step::Bind { source, read_only: false, recursive: false }
}

fn overlay(lowers: Vec<Place>, upper: Option<&str>) -> Step {
    let (upper, work) = (upper.map(at), upper.map(|_| at("work")));
    Step::Overlay { lowers, upper, work, flags: OverlayFlags::default() }
}

fn fuse_overlay(lowers: Vec<Place>, upper: Option<&str>) -> Step {
    Step::FuseOverlay { lowers, upper: upper.map(path), work: upper.map(|_| path("work")) }
}

fn ids(seen: u32) -> IdMap {
    let range = IdRange { stored: 0, seen, count: 65_536 };
    IdMap { users: vec![range], groups: vec![range] }
}

fn file_system(kind: FsKind, device: Place, read_only: bool, option: Option<(&str, &str)>) -> Step {
    let options: Labels =
        option.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Step::Fs { kind, device, read_only, options }
}

fn loop_of(rel: &str, read_only: bool) -> Step {
    Step::Loop { file: path(rel), read_only }
}

fn host(fs_type: &str, device: &str, options: &str) -> Step {
    Step::Host { fs_type: fs_type.into(), device: device.into(), options: options.into() }
}

fn verdict(steps: Vec<Step>, grants: &Grants) -> Option<(ErrorKind, String)> {
    let answer = Executor.check(&MountPlan::of(steps), grants);
    answer.err().map(|error| (error.kind(), error.chain()))
}

#[test]
fn malformed_plans_are_refused_and_the_step_is_named() {
    let grants = Grants::on_root("/nowhere", ALL);
    let upper_only = Step::Overlay {
        lowers: vec![at("a")],
        upper: Some(at("u")),
        work: None,
        flags: OverlayFlags::default(),
    };
    let volatile = Step::Overlay {
        lowers: vec![at("a")],
        upper: None,
        work: None,
        flags: OverlayFlags { volatile: true, ..OverlayFlags::default() },
    };
    let cases: Vec<(&str, Vec<Step>)> = vec![
        ("no steps", vec![]),
        ("too many steps", vec![tmpfs(); MAX_STEPS + 1]),
        ("root is no mount", vec![mkdir("a")]),
        ("a forward reference", vec![bind(Place::Step(1)), tmpfs()]),
        ("a reference to itself", vec![bind(Place::Step(0))]),
        ("a reference to a directory", vec![mkdir("a"), bind(Place::Step(0))]),
        ("a bind of a device", vec![loop_of("a", true), bind(Place::Step(0))]),
        ("a climbing path", vec![bind(at("../a"))]),
        ("a climbing path inside", vec![bind(at("a/../../b"))]),
        ("an absolute path", vec![bind(at("/etc"))]),
        ("a zero byte", vec![bind(at("a\0b"))]),
        ("no lowers", vec![overlay(vec![], None)]),
        ("too many lowers", vec![overlay(vec![at("a"); MAX_LOWERS + 1], None)]),
        ("upper without work", vec![upper_only]),
        ("upper is work", vec![overlay(vec![at("a")], Some("work"))]),
        ("volatile without upper", vec![volatile]),
        (
            "a mode with more",
            vec![Step::Mkdir { at: path("a"), uid: 0, gid: 0, mode: 0o10000 }, tmpfs()],
        ),
        (
            "a file system on a mount",
            vec![tmpfs(), file_system(FsKind::Ext4, Place::Step(0), true, None)],
        ),
        ("ext4 without a device", vec![file_system(FsKind::Ext4, at("a"), true, None)]),
        ("a writable erofs", vec![file_system(FsKind::Erofs, at("a"), false, None)]),
        (
            "a writable file system on a read-only device",
            vec![loop_of("a", true), file_system(FsKind::Ext4, Place::Step(0), false, None)],
        ),
        (
            "an option off the list",
            vec![file_system(FsKind::Erofs, at("a"), true, Some(("device", "x")))],
        ),
        (
            "a comma",
            vec![file_system(FsKind::Erofs, at("a"), true, Some(("cache_strategy", "a,suid")))],
        ),
        ("a strange type", vec![host("ext4,x", "d", "")]),
        ("a relative bind", vec![host("none", "etc", "bind")]),
        ("nothing of nothing", vec![host("none", "/etc", "")]),
        ("a remount", vec![host("tmpfs", "", "remount")]),
        ("a quota of nothing", vec![Step::Quota { at: at("a"), bytes: 0, inodes: 0 }, tmpfs()]),
        ("a relative host path", vec![Step::Premounted { host_path: "a".into() }]),
        ("a climbing host path", vec![Step::Premounted { host_path: "/a/../b".into() }]),
    ];
    for (what, steps) in cases {
        let (kind, text) = verdict(steps, &grants).unwrap_or_else(|| panic!("{what} passes"));
        assert_eq!(kind, ErrorKind::InvalidArgument, "{what}: {text}");
        assert!(text.starts_with("mount plan"), "{what}: {text}");
    }
}

#[test]
fn what_was_not_granted_is_forbidden() {
    for step in ALL {
        let others: Vec<&'static str> = ALL.iter().copied().filter(|it| it != step).collect();
        let grants = Grants::on_root("/nowhere", &others);
        let steps = one_of_each();
        let wanted = steps.iter().find(|it| it.name() == *step).unwrap().clone();
        let (kind, text) = verdict(vec![tmpfs(), wanted], &grants).unwrap();
        assert_eq!(kind, ErrorKind::Forbidden, "{text}");
        assert!(text.contains(step), "{text}");
    }
    let grants = Grants::on_root("/nowhere", ALL);
    let other = Place::Path(PathRef::new("other", ""));
    assert_eq!(verdict(vec![bind(other)], &grants).unwrap().0, ErrorKind::Forbidden);
}

fn one_of_each() -> Vec<Step> {
    vec![
        mkdir("upper"),
        bind(at("a")),
        overlay(vec![at("a"), at("b")], Some("upper")),
        fuse_overlay(vec![at("a")], Some("upper")),
        tmpfs(),
        loop_of("image", true),
        file_system(FsKind::Erofs, at("image"), true, None),
        host("nfs", ":/export", "addr=server,vers=4,password=secret"),
        Step::Quota { at: at("a"), bytes: 1, inodes: 0 },
        Step::Subvol { source: None, target: path("v/new"), read_only: false },
        Step::Premounted { host_path: "/mnt/x".into() },
    ]
}

#[test]
fn well_formed_plans_pass() {
    let grants = Grants::on_root("/nowhere", ALL);
    let cases: Vec<Vec<Step>> = vec![
        one_of_each(),
        vec![overlay(vec![at("a"); MAX_LOWERS], None)],
        vec![tmpfs(); MAX_STEPS],
        vec![bind(at(""))],
        vec![
            loop_of("x", false),
            file_system(FsKind::Ext4, Place::Step(0), false, Some(("commit", "30"))),
            bind(Place::Step(1)),
        ],
        vec![host("none", "/etc", "bind,ro,rprivate")],
    ];
    for steps in cases {
        assert_eq!(verdict(steps.clone(), &grants), None, "{steps:?}");
    }
}

#[test]
fn words_of_mount_are_understood() {
    let options =
        parse_host("defaults,ro,,nosuid,suid,noatime,relatime,vers=4,soft,rw,rslave").unwrap();
    assert_eq!(options.common, ["rw"]);
    assert!(options.attributes.is_empty(), "{options:?}");
    assert_eq!(
        options.data,
        [("vers".to_owned(), Some("4".to_owned())), ("soft".to_owned(), None)]
    );
    assert!(options.propagation.is_some_and(|(_, recursive)| recursive));
    let bound = parse_host("rbind,ro,noexec").unwrap();
    assert!(bound.bind && bound.recursive && !bound.attributes.is_empty());
    let long = format!("password={}", "s".repeat(300));
    for (words, secret) in [("bind,vers=4", ""), ("loop", ""), ("=x", ""), (long.as_str(), "sss")] {
        let why = parse_host(words).unwrap_err();
        assert!(secret.is_empty() || !why.contains(secret), "{why}");
    }
}

/// Plans from a fixed sequence of random numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64: enough to wander through the cases, and the same every time.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[usize::try_from(self.below(words.len() as u64)).unwrap()]
    }

    fn path(&mut self) -> PathRef {
        let root = self.of(&["root", "root", "root", "root", "other"]);
        PathRef::new(
            root,
            self.of(&["a", "b/c", "", ".", "a/./b", "../x", "/etc", "a/../..", "a\0"]),
        )
    }

    fn place(&mut self) -> Place {
        if self.below(2) == 0 {
            Place::Path(self.path())
        } else {
            Place::Step(u16::try_from(self.below(8)).unwrap())
        }
    }

    fn step(&mut self) -> Step {
        let flag = self.below(2) == 0;
        match self.below(9) {
            0 => Step::Mkdir { at: self.path(), uid: 0, gid: 0, mode: 0o755 },
            1 => Step::Bind { source: self.place(), read_only: flag, recursive: false },
            2 => {
                let count = self.below(4);
                Step::Overlay {
                    lowers: (0..count).map(|_| self.place()).collect(),
                    upper: flag.then(|| self.place()),
                    work: flag.then(|| self.place()),
                    flags: OverlayFlags { volatile: self.below(2) == 0, ..OverlayFlags::default() },
                }
            }
            3 => tmpfs(),
            4 => Step::Loop { file: self.path(), read_only: flag },
            5 => {
                let kind = if flag { FsKind::Ext4 } else { FsKind::Erofs };
                file_system(kind, self.place(), self.below(2) == 0, None)
            }
            6 => Step::Quota { at: self.place(), bytes: self.below(2), inodes: 0 },
            7 => Step::Subvol {
                source: flag.then(|| self.path()),
                target: self.path(),
                read_only: flag,
            },
            _ => Step::Premounted { host_path: self.of(&["/a", "a", "/a/../b", "/"]).into() },
        }
    }

    fn plan(&mut self) -> MountPlan {
        let steps = (0..self.below(8)).map(|_| self.step()).collect();
        MountPlan { steps, root: u16::try_from(self.below(8)).unwrap(), ids: None }
    }
}

/// What the check promises, said again in a second way.
fn is_sound(plan: &MountPlan, grants: &Grants) -> bool {
    let makes_mount = |index: u16| {
        let name = plan.steps.get(usize::from(index)).map(Step::name);
        matches!(
            name,
            Some("bind" | "overlay" | "fuse-overlay" | "tmpfs" | "fs" | "host" | "premounted")
        )
    };
    let text = serde_json::to_string(plan).unwrap();
    let backwards = plan.steps.iter().enumerate().all(|(index, step)| {
        let places: Vec<&Place> = match step {
            Step::Bind { source, .. } => vec![source],
            Step::Overlay { lowers, upper, work, .. } => {
                lowers.iter().chain(upper).chain(work).collect()
            }
            Step::Fs { device, .. } => vec![device],
            Step::Quota { at, .. } => vec![at],
            _ => Vec::new(),
        };
        places.iter().all(|place| match place {
            Place::Step(earlier) => usize::from(*earlier) < index,
            Place::Path(path) => grants.roots.contains_key(&path.root),
        })
    });
    let granted = plan.steps.iter().all(|step| grants.steps.contains(step.name()));
    makes_mount(plan.root)
        && backwards
        && granted
        && !text.contains("..")
        && !text.contains("\\u0000")
}

#[test]
fn whatever_passes_refers_backwards_stays_beneath_and_ends_in_a_mount() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..200_000 {
        let plan = dice.plan();
        let dropped = dice.of(ALL);
        let steps: Vec<&'static str> = ALL.iter().copied().filter(|it| *it != dropped).collect();
        let grants = Grants::on_root("/nowhere", &steps);
        match Executor.check(&plan, &grants) {
            Ok(()) => {
                passed += 1;
                assert!(is_sound(&plan, &grants), "{plan:?}");
            }
            Err(error) => {
                refused += 1;
                assert!(error.chain().starts_with("mount plan"), "{}", error.chain());
            }
        }
    }
    assert!(passed > 500 && refused > 500, "{passed} passed, {refused} refused");
}

/// A directory on a file system that takes every kind of attribute, removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = format!("/dev/shm/gantry-test-mounts-{name}-{}-{count}", std::process::id());
        fs::create_dir_all(&dir).unwrap();
        Self(dir.into())
    }

    fn write(&self, rel: &str, content: &str) {
        let path = self.0.join(rel);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn grants(&self) -> Grants {
        Grants::on_root(&self.0, ALL)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_root() -> bool {
    let root =
        fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Mounts of this thread's namespace that a test could have left, without those of other tests.
fn mounts_of(dir: &Scratch) -> Vec<MountInfo> {
    let name = dir.0.display().to_string();
    let mut mounts = read_mountinfo().unwrap();
    mounts.retain(|it| it.mount_point.starts_with(&dir.0) || it.super_options.contains(&name));
    mounts
}

async fn run(steps: Vec<Step>, grants: &Grants) -> Result<MountFd> {
    Executor.mount(&Ctx::background(), &MountPlan::of(steps), grants).await
}

fn read(mount: &MountFd, rel: &str) -> String {
    fs::read_to_string(proc_fd(mount).join(rel)).unwrap()
}

/// Runs as root only.
#[tokio::test]
async fn root_an_overlay_is_mounted_written_to_and_gone() {
    if !is_root() {
        return;
    }
    let dir = Scratch::new("overlay");
    for layer in ["one", "two"] {
        dir.write(&format!("{layer}/name"), layer);
        dir.write(&format!("{layer}/of-{layer}"), layer);
    }
    let before = mounts_of(&dir);
    let steps = vec![mkdir("c/upper"), mkdir("c/work"), {
        let (upper, work) = (Some(at("c/upper")), Some(at("c/work")));
        let lowers = vec![at("two"), at("one")];
        Step::Overlay { lowers, upper, work, flags: OverlayFlags::default() }
    }];
    let mount = run(steps, &dir.grants()).await.unwrap();
    assert_eq!(read(&mount, "name"), "two");
    assert_eq!(read(&mount, "of-one"), "one");
    fs::write(proc_fd(&mount).join("name"), "changed").unwrap();
    assert_eq!(fs::read_to_string(dir.0.join("c/upper/name")).unwrap(), "changed");
    assert_eq!(mounts_of(&dir), before);
    drop(mount);
    assert_eq!(mounts_of(&dir), before);
    fs::remove_dir_all(dir.0.join("c")).unwrap();
}

/// Runs as root only.
#[tokio::test]
async fn root_five_hundred_lowers_and_a_file_to_bind() {
    if !is_root() {
        return;
    }
    let dir = Scratch::new("many");
    let lowers: Vec<Place> = (0..MAX_LOWERS)
        .map(|index| {
            // Long names, as chains of digests have: one page of options could never hold them.
            let name = format!("{index:064x}/{index}");
            dir.write(&name, "x");
            at(Path::new(&name).parent().unwrap().to_str().unwrap())
        })
        .collect();
    let mount = run(vec![overlay(lowers, None)], &dir.grants()).await.unwrap();
    assert_eq!(fs::read_dir(proc_fd(&mount)).unwrap().count(), MAX_LOWERS);

    dir.write("file", "content");
    let file = Step::Bind { source: at("file"), read_only: true, recursive: false };
    let mount = run(vec![file], &dir.grants()).await.unwrap();
    assert_eq!(fs::read_to_string(proc_fd(&mount)).unwrap(), "content");
    assert!(fs::write(proc_fd(&mount), "x").is_err());
    assert_eq!(mounts_of(&dir), []);
}

/// Runs as root only.
#[tokio::test]
async fn root_images_are_mounted_through_loop_devices_that_go_away() {
    if !is_root() || !Path::new("/dev/loop-control").exists() {
        return;
    }
    let dir = Scratch::new("image");
    let image = dir.0.join("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-qF").arg(&image).output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs mkfs.ext4");
        return;
    }
    let mounted = |read_only: bool| {
        let file_system = file_system(FsKind::Ext4, Place::Step(0), read_only, None);
        vec![loop_of("image", read_only), file_system]
    };
    let mount = run(mounted(false), &dir.grants()).await.unwrap();
    fs::write(proc_fd(&mount).join("file"), "kept").unwrap();
    drop(mount);
    // As the lower layer of an overlay whose upper is in memory: three file systems, one result.
    let mut steps = mounted(true);
    steps.push(tmpfs());
    steps.push(overlay(vec![Place::Step(1), Place::Step(2)], None));
    let mount = run(steps, &dir.grants()).await.unwrap();
    assert_eq!(read(&mount, "file"), "kept");
    drop(mount);

    let is_attached = || {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        let mut files =
            devices.filter_map(|it| fs::read_to_string(it.path().join("loop/backing_file")).ok());
        files.any(|file| Path::new(file.trim()) == image)
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while is_attached() {
        assert!(std::time::Instant::now() < deadline, "the loop device stays");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Runs as root only.
#[tokio::test]
async fn root_images_are_mounted_from_files_wherever_these_are() {
    if !is_root() {
        return;
    }
    // From memory the kernel mounts no file, and a loop device takes its place.
    let in_memory = Scratch::new("erofs");
    let on_disk = std::env::temp_dir().join(format!("gantry-test-erofs-{}", std::process::id()));
    fs::create_dir_all(&on_disk).unwrap();
    for dir in [in_memory, Scratch(on_disk)] {
        dir.write("source/file", "x");
        let (image, source) = (dir.0.join("image"), dir.0.join("source"));
        let made = Command::new("mkfs.erofs").args([&image, &source]).output();
        if !made.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: needs mkfs.erofs");
            return;
        }
        let image = || file_system(FsKind::Erofs, at("image"), true, None);
        let layers = vec![Place::Step(0), Place::Step(1)];
        let steps = vec![image(), tmpfs(), overlay(layers, None)];
        let mount = run(steps, &dir.grants()).await.unwrap();
        assert_eq!(read(&mount, "file"), "x");
    }
}

/// Runs as root only.
#[tokio::test]
async fn root_subvolumes_are_made_and_snapshotted() {
    if !is_root() || !Path::new("/dev/loop-control").exists() {
        return;
    }
    let dir = Scratch::new("btrfs");
    let image = dir.0.join("image");
    fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    let made = Command::new("mkfs.btrfs").arg("-qf").arg(&image).output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs mkfs.btrfs");
        return;
    }
    let steps = vec![
        loop_of("image", false),
        file_system(FsKind::Btrfs, Place::Step(0), false, Some(("compress", "zstd:3"))),
    ];
    let mount = run(steps, &dir.grants()).await.unwrap();
    // The granted root is the mount itself, by its descriptor's name.
    let roots = BTreeMap::from([("root".to_owned(), proc_fd(&mount))]);
    let grants = Grants { roots, ..dir.grants() };
    let subvol = |source: Option<&str>, target: &str, read_only: bool| Step::Subvol {
        source: source.map(path),
        target: path(target),
        read_only,
    };
    run(vec![subvol(None, "base", false), bind(at("base"))], &grants).await.unwrap();
    fs::write(proc_fd(&mount).join("base/file"), "v1").unwrap();
    let steps = vec![subvol(Some("base"), "frozen", true), bind(at("frozen"))];
    let frozen = run(steps, &grants).await.unwrap();
    assert_eq!(read(&frozen, "file"), "v1");
    assert!(fs::write(proc_fd(&frozen).join("file"), "v2").is_err());
    let again = run(vec![subvol(None, "base", false), tmpfs()], &grants).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists);
}

/// Runs as root only.
#[tokio::test]
async fn root_the_operators_words_become_mounts() {
    if !is_root() {
        return;
    }
    let dir = Scratch::new("host");
    dir.write("source/file", "x");
    let grants = dir.grants();
    let mount = run(vec![host("tmpfs", "tmpfs", "size=64k,mode=1700,nosuid,noexec,ro")], &grants)
        .await
        .unwrap();
    assert!(fs::write(proc_fd(&mount).join("file"), "x").is_err());
    let source = dir.0.join("source").display().to_string();
    let mount = run(vec![host("none", &source, "bind,ro,private")], &grants).await.unwrap();
    assert_eq!(read(&mount, "file"), "x");
    assert!(fs::write(proc_fd(&mount).join("file"), "y").is_err());

    let unknown = run(vec![host("tmpfs", "", "password=secret")], &grants).await.unwrap_err();
    assert!(unknown.chain().contains("password"), "{}", unknown.chain());
    assert!(!unknown.chain().contains("secret"), "{}", unknown.chain());
    let none = run(vec![host("nosuchfs", "", "")], &grants).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Unsupported);
    assert_eq!(mounts_of(&dir), []);
}

/// Runs as root only.
#[tokio::test]
async fn root_failures_have_a_kind_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let dir = Scratch::new("failures");
    dir.write("a/file", "x");
    dir.write("image", "not a file system");
    std::os::unix::fs::symlink("/etc", dir.0.join("out")).unwrap();
    std::os::unix::fs::symlink("a", dir.0.join("inside")).unwrap();
    let _ = Command::new("mknod").arg(dir.0.join("disk")).args(["b", "7", "0"]).output();
    let image = |file: &str| {
        vec![loop_of(file, true), file_system(FsKind::Erofs, Place::Step(0), true, None)]
    };
    let cases = [
        (ErrorKind::NotFound, vec![tmpfs(), bind(at("absent"))]),
        (ErrorKind::Forbidden, vec![bind(at("out/passwd"))]),
        (
            ErrorKind::Forbidden,
            vec![Step::Mkdir { at: path("out/x"), uid: 0, gid: 0, mode: 0o755 }, tmpfs()],
        ),
        (ErrorKind::InvalidArgument, vec![overlay(vec![at("a/file"), at("a")], None)]),
        (ErrorKind::InvalidArgument, image("disk")),
        (ErrorKind::InvalidArgument, vec![mkdir("a/file/x"), tmpfs()]),
        (ErrorKind::Internal, image("image")),
        (
            ErrorKind::Unsupported,
            vec![Step::Quota { at: at("a"), bytes: 1, inodes: 0 }, bind(at("a"))],
        ),
        (
            ErrorKind::Unsupported,
            vec![Step::Subvol { source: None, target: path("v"), read_only: false }, tmpfs()],
        ),
    ];
    for (kind, steps) in cases {
        let error = run(steps.clone(), &dir.grants()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{steps:?}: {}", error.chain());
        assert!(error.chain().starts_with("mount plan step"), "{}", error.chain());
    }
    assert!(run(vec![bind(at("inside/file"))], &dir.grants()).await.is_ok());
    let whole = Grants::on_root("/", ALL);
    let through_absolute_link = format!("{}/out/passwd", dir.0.display());
    let through_absolute_link = through_absolute_link.trim_start_matches('/');
    assert!(run(vec![bind(at(through_absolute_link))], &whole).await.is_ok());
    assert_eq!(mounts_of(&dir), []);
}

/// Runs as root only.
#[tokio::test]
async fn root_premounted_directories_come_with_what_is_in_them() {
    if !is_root() {
        return;
    }
    let dir = Scratch::new("premounted");
    dir.write("x/file", "x");
    let step = Step::Premounted { host_path: dir.0.join("x") };
    let mount = run(vec![step], &dir.grants()).await.unwrap();
    assert_eq!(read(&mount, "file"), "x");
    let clone = mount.clone();
    drop(mount);
    assert!(clone.as_fd().try_clone_to_owned().is_ok());
    assert_eq!(read(&clone, "file"), "x");
}

#[tokio::test]
async fn a_deadline_that_has_passed_ends_the_wait() {
    let mut cx = Ctx::background();
    cx.cancelled.cancel();
    let grants = Grants::on_root("/nowhere", ALL);
    let answer = Executor.mount(&cx, &MountPlan::of(vec![bind(at("a"))]), &grants).await;
    assert!(answer.is_err());
    cx = Ctx::background();
    cx.deadline = Some(std::time::Instant::now());
    assert!(Executor.mount(&cx, &MountPlan::of(vec![bind(at("a"))]), &grants).await.is_err());
}
