//! A host with a few storage instances, which survives restarts of the store.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_content::blobs::FileBlobs;
use gantry_layer_dirs::Layers;
use gantry_sdk::Ctx;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::BlobStore;
use gantry_sdk::kinds::layers::{Chain, ChainLayer, LayerStore};
use gantry_sdk::kinds::storage::{Storage, StorageDriver};
use gantry_sdk::mounts::{Grants, MountFd};
use gantry_sdk::registry::Registry;
use gantry_sdk::tasks::Tasks;
use gantry_storage::{Parts, open};
use gantry_testkit::archive::Tar;
use gantry_testkit::fakes::{Blobs, Metadata};
use gantry_testkit::mounts::Mounter;
use tokio_util::sync::CancellationToken;

/// See the module's text.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    pub(crate) blobs: Arc<Blobs>,
    metadata: Arc<Metadata>,
    stop: CancellationToken,
}

pub(crate) fn cx() -> Ctx {
    Ctx::background()
}

impl Host {
    pub(crate) fn new() -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (blobs, metadata) = (Arc::default(), Arc::default());
        Some(Self { dir, blobs, metadata, stop: CancellationToken::new() })
    }

    pub(crate) fn root(&self, instance: &str) -> PathBuf {
        self.dir.path().join(instance)
    }

    pub(crate) async fn start(&self) -> Arc<dyn LayerStore> {
        self.start_on(self.blobs.clone()).await
    }

    pub(crate) async fn start_on(&self, blobs: Arc<dyn BlobStore>) -> Arc<dyn LayerStore> {
        let registry = Arc::new(Registry::default());
        let provide = |name: &str, driver: Arc<dyn StorageDriver>, steps| {
            let grants = Grants::on_root(self.root(name), steps);
            registry.provide::<Storage>(name, driver, grants, false).unwrap();
        };
        let layers = |name| Arc::new(Layers::open(&self.root(name)).unwrap());
        let overlay2 = gantry_storage_overlay2::Overlay2::new(layers("overlay2"));
        provide("overlay2", Arc::new(overlay2), gantry_storage_overlay2::STEPS);
        let vfs = gantry_storage_vfs::Vfs::new(layers("vfs"));
        provide("vfs", Arc::new(vfs), gantry_storage_vfs::STEPS);
        let erofs = gantry_storage_erofs::Erofs::new(layers("erofs"));
        provide("erofs", Arc::new(erofs), gantry_storage_erofs::STEPS);
        open(Parts {
            registry,
            mounts: Arc::new(Mounter),
            blobs,
            metadata: self.metadata.clone(),
            tasks: Tasks::new("test", &self.stop),
            default: "overlay2".to_owned(),
            rules: gantry_storage::Rules::default(),
        })
        .await
        .unwrap()
    }

    /// A blob store on disk, which can be written while it is read.
    pub(crate) fn arriving(&self) -> Arc<FileBlobs> {
        let registry = Arc::new(Registry::default());
        Arc::new(FileBlobs::open(&self.dir.path().join("blobs"), registry).unwrap())
    }

    /// A layer whose blob is compressed.
    pub(crate) fn layer(&self, tar: Tar) -> ChainLayer {
        let (diff_id, blob) = compressed(tar);
        ChainLayer { diff_id, blob: self.blobs.put(blob) }
    }

    pub(crate) fn chain(&self) -> Chain {
        let base = Tar::default().dir("./").dir("d").file("d/a", "base").file("d/gone", "");
        let top = Tar::default().dir("d").file("d/.wh.gone", "").file("d/b", "top");
        Chain(vec![self.layer(base), self.layer(top)])
    }

    /// Layers that are being made, or were left behind.
    pub(crate) fn drafts(&self, instance: &str) -> usize {
        let records = std::fs::read_dir(self.root(instance).join("r")).unwrap();
        let is_draft = |path: PathBuf| {
            let record = std::fs::read_link(path).unwrap_or_default();
            record.to_string_lossy().contains("/unpack-")
        };
        records.filter(|entry| is_draft(entry.as_ref().unwrap().path())).count()
    }

    /// Waits until no layer is being made.
    pub(crate) async fn settled(&self, instance: &str) {
        for _ in 0..1000 {
            if self.drafts(instance) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} half made layers stay", self.drafts(instance));
    }
}

/// The diff id of an archive, and the archive compressed.
pub(crate) fn compressed(tar: Tar) -> (Digest, Vec<u8>) {
    let tar = tar.end();
    let diff_id = Blobs::default().put(tar.clone());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    (diff_id, gzip.finish().unwrap())
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t0\t")
}

/// A path into a mount, as long as the mount is kept.
pub(crate) fn path(mount: &MountFd, rel: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{rel}", mount.as_fd().as_raw_fd()))
}

pub(crate) fn names(mount: &MountFd, dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(path(mount, dir)).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn read(mount: &MountFd, file: &str) -> String {
    std::fs::read_to_string(path(mount, file)).unwrap()
}

pub(crate) fn write(mount: &MountFd, file: &str, text: &str) {
    std::fs::write(path(mount, file), text).unwrap();
}
