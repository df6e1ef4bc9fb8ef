//! Checks 51–53: processes that are killed, and machines that lose power.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use gantry_sdk::kinds::storage::LayerState;

use super::child::{Point, STEPS, archive, base, kill_a_holder, live};
use super::disks::{Disk, Wish};
use super::fixture::{Fixture, cx, exists, path_of};
use super::subject::Subject;
use crate::archive::Tar;
use crate::tree::assert_same;

/// Unpacking has as many calls as the archive has members; of these so many are tried.
const POINTS_IN_UNPACKING: usize = 12;
/// How many power cuts are tried.
const POWER_CUTS: u32 = 4;

/// Where to kill: before every call that changes something, and before some of those of unpacking.
fn points(calls: &[Vec<String>]) -> Vec<Point> {
    let mut points = Vec::new();
    for (step, calls) in calls.iter().enumerate() {
        let is_unpacking = STEPS.get(step) == Some(&"apply");
        let every = if is_unpacking { calls.len().div_ceil(POINTS_IN_UNPACKING).max(1) } else { 1 };
        points.extend((0..calls.len()).step_by(every).map(|after| Point { step, after }));
    }
    points
}

/// What may be there when the process was killed in `step`: before it, or after it.
fn may_be(step: &str) -> &'static [&'static [(&'static str, LayerState)]] {
    use LayerState::{Active, Committed};
    const BASE: (&str, LayerState) = ("base", Committed);
    const KEY: &[(&str, LayerState)] = &[BASE, ("key", Active)];
    const TOP: &[(&str, LayerState)] = &[BASE, ("top", Committed)];
    const RW: &[(&str, LayerState)] = &[BASE, ("rw", Active), ("top", Committed)];
    match step {
        "prepare" => &[&[BASE], KEY],
        "apply" => &[KEY],
        "commit" => &[KEY, TOP],
        "sync" => &[TOP],
        "prepare a container" | "remove it" => &[TOP, RW],
        "remove" => &[TOP, &[BASE]],
        _ => &[&[BASE]],
    }
}

/// Check 51.
pub async fn a_process_killed_anywhere_leaves_before_or_after(f: &mut Fixture) {
    f.layer("base", None, base()).await;
    // So that no step has to do it, and all lives have the same calls.
    f.driver.sync(&cx(), "base").await.unwrap();
    f.restart().await;
    f.apply("key", Some("base"), &archive()).await.unwrap();
    f.driver.commit(&cx(), "key", "top").await.unwrap();
    let whole = f.snapshot("top").await;
    f.driver.remove(&cx(), "top").await.unwrap();
    f.empty_trash();
    let clean = f.entries();
    let Some(calls) = live(f, None) else { return f.skip("no way to start a child is given") };
    f.empty_trash();
    let points = points(&calls);
    for point in &points {
        let step = STEPS[point.step];
        let call = &calls[point.step][point.after];
        let here = format!("killed in {step:?} before call {}, {call}", point.after + 1);
        let lived = live(f, Some(*point)).unwrap_or_default();
        // It may need a call less than the first time, and come to its end.
        let step = if lived.len() == STEPS.len() { "end" } else { step };
        let dropped = f.restart().await;
        let states = f.states().await;
        let found: Vec<_> = states.iter().map(|(key, state)| (key.as_str(), *state)).collect();
        assert!(may_be(step).contains(&found.as_slice()), "{here}: {found:?}, dropped {dropped:?}");
        if found.contains(&("top", LayerState::Committed)) {
            assert_same(&whole, &f.snapshot("top").await, &here);
        }
        assert_eq!(f.restart().await, [""; 0], "{here}: recovering again found more");
        for key in ["rw", "key", "top"] {
            let removed = f.driver.remove(&cx(), key).await;
            removed.unwrap_or_else(|e| panic!("{here}: cannot remove {key}: {}", e.chain()));
        }
        f.empty_trash();
        assert_eq!(f.entries(), clean, "{here}: files are left");
    }
    let counts: Vec<String> =
        STEPS.iter().zip(&calls).map(|(step, calls)| format!("{step} {}", calls.len())).collect();
    f.note(format!("killed at {} points; changing calls: {}", points.len(), counts.join(", ")));
}

/// A copy of a disk as it is in this moment: what a machine finds that lost power now.
struct Moment {
    image: File,
    /// Layers that were durable.
    synced: Vec<String>,
}

/// Check 52. The disk is a file on a file system that copies files in an instant. A copy has the writes
/// that had reached the disk and none that the page cache still held; it is mounted like after a power
/// cut, by a machine with another boot id.
pub async fn a_synced_layer_survives_a_power_cut(f: &mut Fixture) {
    let outer = match Disk::make("xfs", &f.subject.scratch, Wish::Room)
        .or_else(|_| Disk::make("btrfs", &f.subject.scratch, Wish::Room))
    {
        Ok(outer) => outer,
        Err(why) => return f.skip(format!("nothing here copies files in an instant: {why}")),
    };
    let directory = path_of(&outer.mount);
    let (mut tried, mut why_not) = (Vec::new(), Vec::new());
    for kind in f.kinds() {
        match Disk::make(&kind, &directory, Wish::Bytes(512 << 20)) {
            Ok(disk) => {
                lose_power(f.on_disk(disk).await, &kind, &directory).await;
                tried.push(kind);
            }
            Err(why) => why_not.push(why),
        }
    }
    if tried.is_empty() {
        return f.skip(why_not.join("; "));
    }
    f.note(format!("{POWER_CUTS} power cuts each on {}", tried.join(", ")));
}

async fn lose_power(f: Fixture, kind: &str, directory: &std::path::Path) {
    f.driver.recover(&cx()).await.unwrap();
    f.layer("base", None, base()).await;
    let mut trees = BTreeMap::new();
    let mut moments = Vec::new();
    let mut synced = Vec::new();
    for n in 0..POWER_CUTS {
        let (name, parent) = (format!("synced{n}"), synced.last().cloned());
        let large = char::from(b'a' + n as u8).to_string().repeat(1 << 20);
        let tar = Tar::default().dir("d").file(&format!("d/{n}"), &large).file(".wh.gone", "");
        f.layer(&name, Some(parent.as_deref().unwrap_or("base")), tar).await;
        f.driver.sync(&cx(), &name).await.unwrap();
        trees.insert(name.clone(), f.snapshot(&name).await);
        synced.push(name.clone());
        // And more that nobody has synced, at work until the power fails.
        let unsynced = format!("unsynced{n}");
        let more = Tar::default().file("more", &large).file("a", "changed");
        f.layer(&unsynced, Some(&name), more).await;
        trees.insert(unsynced, f.snapshot(&format!("unsynced{n}")).await);
        let writing = f.writable(&format!("rw{n}"), Some(&name)).await;
        fs::write(path_of(&writing).join("half"), &large).unwrap();
        let image = tempfile::tempfile_in(directory).unwrap();
        let source = f.image().expect("a disk in a file");
        gantry_sys::file::reflink(source, &image).expect("copy the disk in an instant");
        moments.push(Moment { image, synced: synced.clone() });
    }
    let subject = f.subject.clone();
    // Its copies have the same identity, and some file systems keep those apart only when it is gone.
    drop(f);
    for (n, moment) in moments.into_iter().enumerate() {
        let (subject, kind, trees) = (subject.clone(), kind.to_owned(), trees.clone());
        let on = kind.clone();
        let after = std::thread::spawn(move || start_again(&subject, &kind, moment, &trees));
        if let Err(panic) = after.join() {
            let why = gantry_sdk::guard::panic_text(panic.as_ref());
            panic!("power cut {n} on {on}: {why}");
        }
    }
}

/// Runs on a thread of its own, because another boot id is seen only in a mount namespace of one's own.
fn start_again(
    subject: &Subject,
    kind: &str,
    moment: Moment,
    trees: &BTreeMap<String, BTreeMap<String, String>>,
) {
    gantry_sys::mount::enter_private_namespace().expect("a mount namespace");
    let boot = tempfile::NamedTempFile::new().expect("a file");
    fs::write(boot.path(), "00000000-0000-4000-8000-000000000000\n").expect("a boot id");
    let boot_file = File::open(boot.path()).expect("a file");
    let bound = gantry_sys::mount::clone_tree(&boot_file, false).expect("bind");
    let id = std::path::Path::new("/proc/sys/kernel/random/boot_id");
    gantry_sys::mount::attach(bound, rustix::fs::CWD, id).expect("another boot id");
    let disk = Disk::of(kind, moment.image, Wish::Room).expect("mount the disk again");
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let given = path_of(&disk.mount).join("root");
        let place = super::fixture::Place::Disk(disk);
        let f = subject.on(given, place).await.expect("make the driver again");
        let dropped = f.driver.recover(&cx()).await.expect("recover");
        let states = f.states().await;
        for name in &moment.synced {
            let is_there = states.contains(&(name.clone(), LayerState::Committed));
            assert!(is_there, "{name} was synced and is lost; dropped {dropped:?}");
        }
        for (name, state) in states {
            // Whatever passes for committed is whole, whether it was synced or not.
            if state == LayerState::Committed
                && let Some(tree) = trees.get(&name)
            {
                assert_same(tree, &f.snapshot(&name).await, &name);
            }
        }
        assert_eq!(f.driver.recover(&cx()).await.expect("recover"), [""; 0]);
    });
    let _ = gantry_sys::mount::detach(id);
}

/// Files behind loop devices, as the kernel names them.
fn loop_files() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let file = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file"));
    devices.filter_map(|entry| file(entry).ok()).collect()
}

/// Check 53.
pub async fn what_a_dead_process_held_is_released(f: &mut Fixture) {
    f.layer("base", None, Tar::default().file("a", "a")).await;
    if !kill_a_holder(f) {
        return f.skip("no way to start a child is given");
    }
    assert_eq!(f.restart().await, [""; 0]);
    let root = f.root.display().to_string();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let mounts = gantry_sys::mount::read_mountinfo().unwrap();
        let mount = mounts.iter().find(|mount| mount.mount_point.starts_with(&f.root));
        let device = loop_files().into_iter().find(|file| file.starts_with(&root));
        match (mount, device) {
            (None, None) => break,
            left => assert!(Instant::now() < deadline, "still held: {left:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What the dead process wrote is there, and can be written to again.
    let mount = f.open("rw").await;
    assert!(exists(path_of(&mount).join("written")) && exists(path_of(&mount).join("a")));
    fs::write(path_of(&mount).join("more"), "x").unwrap();
    drop(mount);
    for key in ["rw", "making", "base"] {
        f.driver.remove(&cx(), key).await.unwrap_or_else(|e| panic!("{key}: {}", e.chain()));
    }
}
