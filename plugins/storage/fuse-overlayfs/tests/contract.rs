//! The contract of storage drivers, on `fuse-overlayfs`.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::path::Path;
use std::sync::Arc;

use gantry_kit::Archives;
use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::StorageDriver;
use gantry_storage_fuse_overlayfs::{FuseOverlayfs, STEPS};
use gantry_testkit::storage::Subject;

fn driver(root: &Path) -> Arc<dyn StorageDriver> {
    Arc::new(FuseOverlayfs::new(Arc::new(Layers::open(root).unwrap())))
}

fn subject() -> Subject {
    Subject::new(driver, STEPS, Arc::new(Archives))
}

fn is_possible() -> bool {
    ["/usr/bin/fuse-overlayfs", "/dev/fuse"].iter().all(|path| Path::new(path).exists())
}

gantry_testkit::storage_driver_contract!(subject, if is_possible());
