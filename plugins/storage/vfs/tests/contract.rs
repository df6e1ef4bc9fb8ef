//! The contract of storage drivers, on `vfs`.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::path::Path;
use std::sync::Arc;

use gantry_kit::Archives;
use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::StorageDriver;
use gantry_storage_vfs::{STEPS, Vfs};
use gantry_testkit::storage::Subject;

fn driver(root: &Path) -> Arc<dyn StorageDriver> {
    Arc::new(Vfs::new(Arc::new(Layers::open(root).unwrap())))
}

fn subject() -> Subject {
    Subject::new(driver, STEPS, Arc::new(Archives))
}

gantry_testkit::storage_driver_contract!(subject);
