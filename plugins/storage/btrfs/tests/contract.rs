//! The contract of storage drivers, on `btrfs`.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::path::Path;
use std::sync::Arc;

use gantry_kit::Archives;
use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::StorageDriver;
use gantry_storage_btrfs::{Btrfs, STEPS};
use gantry_testkit::storage::Subject;

mod common;

fn driver(root: &Path) -> Arc<dyn StorageDriver> {
    Arc::new(Btrfs::new(Arc::new(Layers::open(root).unwrap())))
}

fn subject() -> Subject {
    Subject::new(driver, STEPS, Arc::new(Archives)).only_on("btrfs")
}

gantry_testkit::storage_driver_contract!(subject, if common::is_possible());
