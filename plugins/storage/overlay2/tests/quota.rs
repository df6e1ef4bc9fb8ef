//! Sizes of layers, on file systems with project quotas. Needs root, mkfs and a kernel with quotas;
//! says that it skips without.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::fs::{self, File};
use std::io::{ErrorKind as Io, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::StorageDriver;
use gantry_sdk::mounts::{Grants, MountExecutor, MountFd};
use gantry_sdk::{Ctx, ErrorKind, Labels, Result};
use gantry_storage_overlay2::{Overlay2, STEPS};
use gantry_sys::mount::{
    FsContext, LoopDevice, MountAttrFlags, attach, enter_private_namespace, own_project,
    project_usage,
};
use gantry_sys::path::proc_fd;
use gantry_testkit::mounts::Mounter;

const MIB: u64 = 1 << 20;

/// A file system, its maker, and the mount option that has it keep limits.
const KINDS: [(&str, &[&str], &str); 2] = [
    ("xfs", &["mkfs.xfs", "-q"], "pquota"),
    ("ext4", &["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"], "prjquota"),
];

/// Mounts a file system of its kind at `at`, in the thread's own namespace; none if it cannot be.
fn mount(kind: &str, make: &[&str], option: &str, at: &Path) -> Option<()> {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(512 * MIB).unwrap();
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let made = Command::new(make[0])
        .args(&make[1..])
        .arg(image.path())
        .env("PATH", path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return None;
    }
    let device = LoopDevice::attach(image.as_file(), false).ok()?;
    let context = FsContext::open(kind).ok()?;
    context.set_string("source", device.path()).unwrap();
    if !option.is_empty() {
        context.set_flag(option).ok()?;
    }
    context.create().ok()?;
    let mount = context.mount(MountAttrFlags::empty()).unwrap();
    attach(mount, rustix::fs::CWD, at).unwrap();
    Some(())
}

/// Runs `check` for every kind of file system, each in a mount namespace of its own.
fn on_each(option: bool, check: fn(&str, &Place)) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    for (kind, make, with) in KINDS {
        let run = move || {
            enter_private_namespace().unwrap();
            let dir = tempfile::tempdir().unwrap();
            match mount(kind, make, if option { with } else { "" }, dir.path()) {
                None => eprintln!("skipped: no {kind} with {with} here"),
                Some(()) => check(kind, &Place::new(dir.path())),
            }
            let _ = gantry_sys::mount::detach(dir.path());
        };
        std::thread::spawn(run).join().unwrap();
    }
}

struct Place {
    root: PathBuf,
    layers: Arc<Layers>,
    driver: Overlay2,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new(dir: &Path) -> Self {
        let root = dir.join("root");
        let layers = Arc::new(Layers::open(&root).unwrap());
        layers.recover().unwrap();
        let driver = Overlay2::new(layers.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { root, layers, driver, runtime }
    }

    fn prepare(&self, key: &str, size: &str) -> Result<MountFd> {
        let cx = Ctx::background();
        let options: Labels = match size {
            "" => Labels::new(),
            size => Labels::from([("size".to_owned(), size.to_owned())]),
        };
        self.runtime.block_on(async {
            if self.driver.stat(&cx, "base").await.is_err() {
                self.driver.prepare(&cx, "making", None, &Labels::new()).await?;
                let content = self.root.join(self.layers.get("making")?.content());
                fs::write(content.join("large"), vec![1; 6 << 20]).unwrap();
                self.driver.commit(&cx, "making", "base").await?;
            }
            let plan = self.driver.prepare(&cx, key, Some("base"), &options).await?;
            Mounter.mount(&cx, &plan, &Grants::on_root(&self.root, STEPS)).await
        })
    }

    fn project(&self, key: &str) -> Option<u32> {
        let dir = self.root.join("l").join(self.layers.get(key).unwrap().id.to_string());
        own_project(File::open(dir).unwrap()).unwrap()
    }
}

fn write(mount: &MountFd, name: &str, bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(proc_fd(mount).join(name))?;
    for n in 0..bytes / MIB {
        file.write_all(&[n as u8; MIB as usize])?;
    }
    file.sync_all()
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), Io::StorageFull | Io::QuotaExceeded)
}

#[test]
fn root_a_layer_holds_what_it_may_and_others_do_not_notice() {
    on_each(true, |kind, place| {
        let (a, b) = (place.prepare("a", "16m").unwrap(), place.prepare("b", "16m").unwrap());
        let free = place.prepare("free", "").unwrap();
        write(&a, "fits", 8 * MIB).unwrap();
        let error = write(&a, "more", 16 * MIB).unwrap_err();
        assert!(is_full(&error), "{kind}: {error}");
        write(&b, "fits", 12 * MIB).unwrap();
        write(&free, "large", 64 * MIB).unwrap();
        fs::remove_file(proc_fd(&a).join("more")).unwrap();
        // A copy of a file from below counts, and so does the scratch space it is made in.
        assert!(write(&a, "large", 0).is_ok(), "{kind}: emptying needs no space");
        write(&a, "again", 4 * MIB).unwrap();
        let copy = File::options().append(true).open(proc_fd(&b).join("large"));
        assert!(copy.is_err_and(|error| is_full(&error)), "{kind}: 12 and 6 of 16");

        let (first, second) = (place.project("a").unwrap(), place.project("b").unwrap());
        assert!(first != second && place.project("free").is_none(), "{kind}");
        let used = project_usage(File::open(&place.root).unwrap(), first).unwrap();
        assert!((12 * MIB..=16 * MIB).contains(&used.bytes), "{kind}: {used:?}");
        assert_eq!(used.limit.bytes, 16 * MIB, "{kind}");
    });
}

#[test]
fn root_an_id_is_free_when_nothing_counts_on_it_any_more() {
    on_each(true, |kind, place| {
        let mount = place.prepare("a", "16m").unwrap();
        write(&mount, "kept", MIB).unwrap();
        let open = File::open(proc_fd(&mount).join("kept")).unwrap();
        let id = place.project("a").unwrap();
        let usage = || project_usage(File::open(&place.root).unwrap(), id).unwrap();
        drop(mount);
        place.runtime.block_on(place.driver.remove(&Ctx::background(), "a")).unwrap();
        place.layers.empty_trash().unwrap();
        assert_eq!(usage().limit.bytes, 0, "{kind}");
        assert!(usage().inodes > 0, "{kind}: a deleted file is still open");

        // Another instance on the same file system looks in the same places.
        let other = Place::new(&place.root.join("other"));
        let ids: Vec<u32> = (0..4)
            .map(|n| {
                other.prepare(&format!("k{n}"), "16m").unwrap();
                place.prepare(&format!("k{n}"), "16m").unwrap();
                [other.project(&format!("k{n}")), place.project(&format!("k{n}"))]
            })
            .flat_map(|pair| pair.map(Option::unwrap))
            .collect();
        let different: std::collections::BTreeSet<u32> = ids.iter().copied().collect();
        assert_eq!(different.len(), ids.len(), "{kind}: {ids:?}");
        assert!(!different.contains(&id), "{kind}: an id in use was given away");
        drop(open);

        // What is removed in a project goes to the trash, which is in none.
        place.runtime.block_on(place.driver.remove(&Ctx::background(), "k0")).unwrap();
        assert_eq!(fs::read_dir(place.root.join("t")).unwrap().count(), 1, "{kind}");
    });
}

#[test]
fn root_where_nothing_keeps_limits_the_message_says_what_would() {
    on_each(false, |kind, place| {
        let error = place.prepare("a", "16m").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let help = if kind == "xfs" { "pquota" } else { "tune2fs" };
        assert!(error.chain().contains(help), "{kind}: {}", error.chain());
        assert!(place.prepare("a", "").is_ok() && place.prepare("b", "0").is_ok());
    });
}

#[test]
fn root_a_volatile_layer_can_be_mounted_again_and_is_lost_with_the_power() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let mounted = gantry_sys::mount::FsContext::open("tmpfs").unwrap();
    mounted.create().unwrap();
    let tmpfs = mounted.mount(MountAttrFlags::empty()).unwrap();
    let run = move || {
        enter_private_namespace().unwrap();
        let dir = tempfile::tempdir().unwrap();
        attach(tmpfs, rustix::fs::CWD, dir.path()).unwrap();
        let place = Place::new(dir.path());
        drop(place.prepare("plain", "").unwrap());
        let cx = Ctx::background();
        let options = Labels::from([("volatile".to_owned(), "true".to_owned())]);
        let grants = Grants::on_root(&place.root, STEPS);
        place.layers.sync().unwrap();
        for n in 0..3 {
            let mount = place.runtime.block_on(async {
                let plan = place.driver.prepare(&cx, "v", Some("base"), &options).await.unwrap();
                Mounter.mount(&cx, &plan, &grants).await.unwrap()
            });
            fs::write(proc_fd(&mount).join(n.to_string()), "x").unwrap();
        }
        let wrong = Labels::from([("volatile".to_owned(), "maybe".to_owned())]);
        let answer = place.runtime.block_on(place.driver.prepare(&cx, "w", None, &wrong));
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::InvalidArgument);
        fs::write(place.root.join("boot"), "another boot").unwrap();
        let after = Layers::open(&place.root).unwrap();
        assert_eq!(after.recover().unwrap(), ["v"]);
        assert!(after.get("plain").is_ok());
        drop(place);
        let _ = gantry_sys::mount::detach(dir.path());
    };
    std::thread::spawn(run).join().unwrap();
}
