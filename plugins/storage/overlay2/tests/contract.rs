//! The contract of storage drivers, on `overlay2`.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::path::Path;
use std::sync::Arc;

use gantry_kit::Archives;
use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::StorageDriver;
use gantry_storage_overlay2::{Overlay2, STEPS};
use gantry_testkit::storage::Subject;

fn driver(root: &Path) -> Arc<dyn StorageDriver> {
    Arc::new(Overlay2::new(Arc::new(Layers::open(root).unwrap())))
}

fn subject() -> Subject {
    Subject::new(driver, STEPS, Arc::new(Archives))
}

gantry_testkit::storage_driver_contract!(subject);
