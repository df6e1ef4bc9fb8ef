//! What is particular to layers that are subvolumes. Needs root and Btrfs; skipped without.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::StorageDriver;
use gantry_sdk::mounts::MountFd;
use gantry_sdk::{Ctx, ErrorKind, Labels, Result};
use gantry_storage_btrfs::Btrfs;
use gantry_sys::mount::create_subvolume;
use gantry_sys::path::proc_fd;

mod common;
#[path = "common/disk.rs"]
mod disk;

struct Place {
    mount: MountFd,
    layers: Arc<Layers>,
    driver: Btrfs,
}

impl Place {
    /// As after a start.
    async fn new(options: &[(&str, &str)]) -> Option<Self> {
        if !common::is_possible() {
            eprintln!("skipped: needs root and btrfs");
            return None;
        }
        let mount = disk::mount();
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let layers = Layers::open(&proc_fd(&mount).join("root")).unwrap().with_options(options);
        let layers = Arc::new(layers);
        let driver = Btrfs::new(layers.clone());
        driver.recover(&Ctx::background()).await.unwrap();
        Some(Self { mount, driver, layers })
    }

    fn content(&self, key: &str) -> PathBuf {
        proc_fd(&self.mount).join("root").join(self.layers.get(key).unwrap().content())
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, size: Option<&str>) -> Result<()> {
        let options = size.map(|size| ("size".to_owned(), size.to_owned()));
        let options: Labels = options.into_iter().collect();
        self.driver.prepare(&Ctx::background(), key, parent, &options).await.map(drop)
    }

    async fn base(&self) {
        self.prepare("making", None, None).await.unwrap();
        fs::write(self.content("making").join("file"), vec![1; 1 << 20]).unwrap();
        self.driver.commit(&Ctx::background(), "making", "base").await.unwrap();
    }
}

fn fill(dir: &std::path::Path) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(dir.join("filling"))?;
    for n in 0..64u8 {
        // Nothing that compresses or is shared.
        let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i ^ (i >> 7)) as u8 ^ n).collect();
        file.write_all(&block)?;
    }
    file.sync_all()
}

#[tokio::test]
async fn committed_layers_cannot_be_written_to_and_children_can() {
    let Some(place) = Place::new(&[]).await else { return };
    place.base().await;
    assert!(fs::write(place.content("base").join("new"), "x").is_err());
    place.prepare("child", Some("base"), None).await.unwrap();
    fs::write(place.content("child").join("new"), "x").unwrap();
    assert!(!place.content("base").join("new").exists());
    assert_eq!(place.driver.usage(&Ctx::background(), "child").await.unwrap(), (1, 1));

    // A start finishes what a crash between the record and the freezing left.
    let content = fs::File::open(place.content("base")).unwrap();
    gantry_sys::mount::set_subvolume_read_only(&content, false).unwrap();
    place.driver.recover(&Ctx::background()).await.unwrap();
    assert!(fs::write(place.content("base").join("new"), "x").is_err());
}

#[tokio::test]
async fn subvolumes_that_a_container_made_go_with_it() {
    let Some(place) = Place::new(&[]).await else { return };
    place.base().await;
    place.prepare("child", Some("base"), None).await.unwrap();
    let content = place.content("child");
    let within = |dir: &str, name: &str| {
        fs::create_dir_all(content.join(dir)).unwrap();
        let dir = fs::File::open(content.join(dir)).unwrap();
        create_subvolume(dir, OsStr::new(name)).unwrap();
    };
    within("", "top");
    within("some/where deep", "a");
    within("some/where deep/a/dir", "b");
    within("some/where deep/a", "c");
    for n in 0..300 {
        within("many", &n.to_string());
    }
    fs::write(content.join("some/where deep/a/dir/b/file"), "x").unwrap();
    let frozen = fs::File::open(content.join("some/where deep/a")).unwrap();
    gantry_sys::mount::set_subvolume_read_only(&frozen, true).unwrap();
    drop(frozen);
    let cx = Ctx::background();
    place.driver.remove(&cx, "child").await.unwrap();
    assert_eq!(place.driver.removing(&cx).await.unwrap(), (1 << 20) + 1);
    place.layers.empty_trash().unwrap();
    let trash = proc_fd(&place.mount).join("root/t");
    assert_eq!(fs::read_dir(trash).unwrap().count(), 0);
    place.driver.remove(&cx, "base").await.unwrap();
    place.layers.empty_trash().unwrap();
}

#[tokio::test]
async fn a_size_is_kept_and_its_minimum_too() {
    let Some(place) = Place::new(&[("min_space", "8m")]).await else { return };
    place.base().await;
    let small = place.prepare("small", Some("base"), Some("7m")).await.unwrap_err();
    assert_eq!(small.kind(), ErrorKind::InvalidArgument);
    assert!(small.chain().contains("btrfs.min_space"), "{small:?}");
    place.prepare("limited", Some("base"), Some("16m")).await.unwrap();
    place.prepare("free", Some("base"), None).await.unwrap();
    let error = fill(&place.content("limited")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::DQUOT.raw_os_error()), "{error}");
    fill(&place.content("free")).unwrap();
    place.driver.remove(&Ctx::background(), "limited").await.unwrap();
    place.layers.empty_trash().unwrap();
    place.prepare("again", Some("base"), Some("16m")).await.unwrap();
    assert!(fill(&place.content("again")).is_err());
    let unknown = Labels::from([("inodes".to_owned(), "1".to_owned())]);
    let answer = place.driver.prepare(&Ctx::background(), "x", None, &unknown).await;
    assert!(answer.unwrap_err().chain().contains("inodes"));
}
