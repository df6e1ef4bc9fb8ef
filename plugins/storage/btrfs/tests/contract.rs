//! The contract of storage drivers, on `btrfs`.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use gantry_archive::{CreateOptions, ExtractOptions, Limits, Source, Whiteouts};
use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::{LayerForm, StorageDriver};
use gantry_storage_btrfs::{Btrfs, STEPS};
use gantry_testkit::storage::{Fixture, Mover};

mod common;

/// As the layer store moves bytes.
struct Archives;

impl Mover for Archives {
    fn apply(
        &self,
        archive: &[u8],
        target: BorrowedFd<'_>,
        below: Option<BorrowedFd<'_>>,
        form: LayerForm,
    ) -> Result<(), String> {
        let whiteouts = match form {
            LayerForm::OverlayDirectory => Whiteouts::Overlay,
            LayerForm::MergedTree => Whiteouts::Remove,
            LayerForm::ErofsImage => return Err("not a form of this driver".to_owned()),
        };
        // Small file systems must be filled to the end.
        let limits = Limits { reserve_bytes: 0, ..Limits::default() };
        let options = ExtractOptions { limits, whiteouts, below, ..ExtractOptions::default() };
        gantry_archive::extract(archive, target, &options).map(drop).map_err(|e| format!("{e:?}"))
    }

    fn diff(
        &self,
        layer: BorrowedFd<'_>,
        below: Option<BorrowedFd<'_>>,
        form: LayerForm,
    ) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        let written = match form {
            LayerForm::OverlayDirectory => {
                let source = Source::OverlayUpper;
                let options = CreateOptions { source, ..CreateOptions::default() };
                gantry_archive::create(layer, &mut out, &options)
            }
            LayerForm::ErofsImage => return Err("not a form of this driver".to_owned()),
            LayerForm::MergedTree => gantry_archive::create_from_changes(below, layer, &mut out),
        };
        written.map(|_| out).map_err(|e| format!("{e:?}"))
    }
}

fn driver(root: &Path) -> Arc<dyn StorageDriver> {
    Arc::new(Btrfs::new(Arc::new(Layers::open(root).unwrap())))
}

fn fixture() -> Fixture {
    Fixture::mounted(driver, STEPS, Arc::new(Archives), common::mount)
}

gantry_testkit::storage_driver_contract!(fixture, if common::is_possible());
