//! Layers of both forms, and files that look like one.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_kit::Archives;
use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::{EROFS_LAYER, LayerForm, StorageDriver};
use gantry_sdk::mounts::{Grants, MountExecutor, MountFd, Step};
use gantry_sdk::{Ctx, ErrorKind, Labels};
use gantry_storage_erofs::{Erofs, STEPS};
use gantry_testkit::archive::Tar;
use gantry_testkit::mounts::Mounter;
use gantry_testkit::storage::Mover;

struct Place {
    dir: tempfile::TempDir,
    driver: Erofs,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = Erofs::new(Arc::new(Layers::open(dir.path()).unwrap()));
        Self { dir, driver }
    }

    fn grants(&self) -> Grants {
        Grants::on_root(self.dir.path(), STEPS)
    }

    async fn open(&self, key: &str) -> MountFd {
        let cx = Ctx::background();
        let plan = self.driver.plan(&cx, key).await.unwrap();
        Mounter.mount(&cx, &plan, &self.grants()).await.unwrap()
    }

    async fn writable(&self, key: &str, parent: Option<&str>) -> MountFd {
        let cx = Ctx::background();
        let plan = self.driver.prepare(&cx, key, parent, &Labels::new()).await.unwrap();
        Mounter.mount(&cx, &plan, &self.grants()).await.unwrap()
    }

    async fn write_image(&self, key: &str, parent: Option<&str>, tar: Tar) {
        let cx = Ctx::background();
        self.driver.prepare(&cx, key, parent, &Labels::new()).await.unwrap();
        let plan = self.driver.unpack_plan(&cx, key).await.unwrap();
        let target = Mounter.mount(&cx, &plan, &self.grants()).await.unwrap();
        let below = match parent {
            Some(parent) => Some(self.open(parent).await),
            None => None,
        };
        let below = below.as_ref().map(AsFd::as_fd);
        Archives.apply(&tar.end(), target.as_fd(), below, LayerForm::ErofsImage).unwrap();
    }

    async fn image(&self, name: &str, parent: Option<&str>, tar: Tar) {
        self.write_image("making", parent, tar).await;
        self.driver.commit(&Ctx::background(), "making", name).await.unwrap();
    }
}

fn path_of(mount: &MountFd) -> PathBuf {
    gantry_sys::path::proc_fd(mount).join(".")
}

fn read(mount: &MountFd, path: &str) -> Option<String> {
    fs::read_to_string(path_of(mount).join(path)).ok()
}

fn can_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: needs root");
    }
    is_root
}

#[tokio::test]
async fn root_images_and_directories_stack_on_each_other() {
    if !can_mount() {
        return;
    }
    let (place, cx) = (Place::new(), Ctx::background());
    place.image("one", None, Tar::default().dir("d").file("d/a", "a").file("b", "b")).await;
    let mount = place.writable("rw", Some("one")).await;
    fs::write(path_of(&mount).join("d/c"), "c").unwrap();
    fs::remove_file(path_of(&mount).join("b")).unwrap();
    drop(mount);
    place.driver.commit(&cx, "rw", "two").await.unwrap();
    place.image("three", Some("two"), Tar::default().file("d/.wh.a", "").file("e", "e")).await;

    let mount = place.open("three").await;
    let shown = ["d/a", "b", "d/c", "e"].map(|path| read(&mount, path));
    assert_eq!(shown, [None, None, Some("c".to_owned()), Some("e".to_owned())]);
    let plan = place.driver.plan(&cx, "three").await.unwrap();
    let images = plan.steps.iter().filter(|step| matches!(step, Step::Fs { .. })).count();
    assert_eq!(images, 2);
    // The file, and what takes no bytes: its directory, and the mark of the deletion.
    assert_eq!(place.driver.usage(&cx, "one").await.unwrap(), (2, 3));
    assert_eq!(place.driver.usage(&cx, "three").await.unwrap(), (1, 3));
    let details = place.driver.details(&cx, "three").await.unwrap();
    assert!(details["UpperDir"].ends_with(EROFS_LAYER) && details["LowerDir"].contains("/fs:"));
}

#[tokio::test]
async fn root_a_container_may_call_a_file_like_an_image() {
    if !can_mount() {
        return;
    }
    let (place, cx) = (Place::new(), Ctx::background());
    place.image("base", None, Tar::default().file("real", "real")).await;
    let image = place.dir.path().join("l/1").join(EROFS_LAYER);
    assert!(image.is_file(), "the test looks in the wrong place");
    for parent in [None, Some("base")] {
        let mount = place.writable("rw", parent).await;
        fs::copy(&image, path_of(&mount).join(EROFS_LAYER)).unwrap();
        drop(mount);
        let name = format!("committed on {parent:?}");
        place.driver.commit(&cx, "rw", &name).await.unwrap();
        let mount = place.open(&name).await;
        assert!(path_of(&mount).join(EROFS_LAYER).is_file(), "{name}");
        assert_eq!(read(&mount, "real").is_some(), parent.is_some(), "{name}");
    }
}

#[tokio::test]
async fn root_an_image_is_mounted_when_it_is_committed_and_never_half() {
    if !can_mount() {
        return;
    }
    let (place, cx) = (Place::new(), Ctx::background());
    place.write_image("key", None, Tar::default().file("a", "a")).await;
    let early = place.driver.plan(&cx, "key").await.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::Conflict);
    let written = place.dir.path().join("l/1/fs").join(EROFS_LAYER);
    let whole = fs::read(&written).unwrap();
    fs::write(&written, vec![0; whole.len()]).unwrap();
    place.driver.commit(&cx, "key", "name").await.unwrap_err();
    assert!(place.driver.stat(&cx, "name").await.is_err());
    fs::write(&written, &whole).unwrap();
    place.driver.commit(&cx, "key", "name").await.unwrap();
    assert_eq!(read(&place.open("name").await, "a").as_deref(), Some("a"));
    assert_eq!(place.driver.removing(&cx).await.unwrap(), 0);
    place.driver.remove(&cx, "name").await.unwrap();
    assert_eq!(place.driver.removing(&cx).await.unwrap(), 1);
}

#[tokio::test]
async fn root_an_image_on_a_file_system_in_memory_is_mounted_by_a_device() {
    if !can_mount() || !Path::new("/dev/loop-control").exists() {
        return;
    }
    let memory = Path::new("/dev/shm");
    let Ok(dir) = tempfile::tempdir_in(memory) else { return };
    let driver = Erofs::new(Arc::new(Layers::open(dir.path()).unwrap()));
    let place = Place { dir, driver };
    place.image("base", None, Tar::default().dir("./").file("a", "a")).await;
    let mount = place.writable("rw", Some("base")).await;
    assert_eq!(read(&mount, "a").as_deref(), Some("a"));
    assert_eq!(path_of(&mount).metadata().unwrap().mode() & 0o7777, 0o755);
}

#[tokio::test]
#[ignore = "prints figures; run by hand"]
async fn root_mounting_twenty_layers_of_either_form() {
    if !can_mount() {
        return;
    }
    let (place, cx) = (Place::new(), Ctx::background());
    for form in ["images", "directories"] {
        let name = |n: u32| format!("{form} {n}");
        for n in 0..20 {
            let parent = (n > 0).then(|| name(n - 1));
            if form == "images" {
                let tar = Tar::default().file(&format!("f{n}"), "x");
                place.image(&name(n), parent.as_deref(), tar).await;
                continue;
            }
            let mount = place.writable("making", parent.as_deref()).await;
            fs::write(path_of(&mount).join(format!("f{n}")), "x").unwrap();
            drop(mount);
            place.driver.commit(&cx, "making", &name(n)).await.unwrap();
        }
        let [mut plans, mut mounts] = [Duration::MAX; 2];
        place.driver.prepare(&cx, "rw", Some(&name(19)), &Labels::new()).await.unwrap();
        for _ in 0..50 {
            let start = Instant::now();
            let plan = place.driver.plan(&cx, "rw").await.unwrap();
            plans = plans.min(start.elapsed());
            let start = Instant::now();
            let mount = Mounter.mount(&cx, &plan, &place.grants()).await.unwrap();
            mounts = mounts.min(start.elapsed());
            assert!(read(&mount, "f0").is_some());
        }
        println!("{form}: plan {plans:.0?}, mount {mounts:.0?}");
        place.driver.remove(&cx, "rw").await.unwrap();
    }
}
