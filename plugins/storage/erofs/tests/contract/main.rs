//! The contract of storage drivers, on `erofs`.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use gantry_archive::{CreateOptions, ExtractOptions, Limits, Source, Whiteouts};
use gantry_erofs::{ConvertOptions, convert};
use gantry_layer_dirs::Layers;
use gantry_sdk::kinds::storage::{EROFS_LAYER, LayerForm, StorageDriver};
use gantry_storage_erofs::{Erofs, STEPS};
use gantry_sys::mount::{FsContext, MountAttrFlags};
use gantry_testkit::storage::{Fixture, Mover};
use rustix::fs::{Mode, OFlags};

/// As the layer store moves bytes.
struct Images;

impl Mover for Images {
    fn apply(
        &self,
        archive: &[u8],
        target: BorrowedFd<'_>,
        below: Option<BorrowedFd<'_>>,
        form: LayerForm,
    ) -> Result<(), String> {
        // Small file systems must be filled to the end.
        let limits = Limits { reserve_bytes: 0, ..Limits::default() };
        if form != LayerForm::ErofsImage {
            // A plain directory that shows what the layers should show.
            let whiteouts = Whiteouts::Remove;
            let options = ExtractOptions { limits, whiteouts, ..ExtractOptions::default() };
            let extracted = gantry_archive::extract(archive, target, &options);
            return extracted.map(drop).map_err(|e| format!("{e:?}"));
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let image = rustix::fs::openat(target, EROFS_LAYER, flags, Mode::from_raw_mode(0o600));
        let image = File::from(image.map_err(|e| e.to_string())?);
        let options = ConvertOptions { limits, below, ..ConvertOptions::default() };
        convert(archive, &image, &options).map(drop).map_err(|e| format!("{e:?}"))
    }

    fn diff(
        &self,
        layer: BorrowedFd<'_>,
        _: Option<BorrowedFd<'_>>,
        form: LayerForm,
    ) -> Result<Vec<u8>, String> {
        assert_eq!(form, LayerForm::ErofsImage);
        let mut out = Vec::new();
        let options = CreateOptions { source: Source::OverlayUpper, ..CreateOptions::default() };
        let written = match rustix::fs::openat(layer, EROFS_LAYER, OFlags::RDONLY, Mode::empty()) {
            // A layer that was unpacked, and not one that was written to.
            Ok(image) => {
                let mount = mount(&image).map_err(|e| e.to_string())?;
                gantry_archive::create(mount.as_fd(), &mut out, &options)
            }
            Err(_) => gantry_archive::create(layer, &mut out, &options),
        };
        written.map(|_| out).map_err(|e| format!("{e:?}"))
    }
}

fn mount(image: &OwnedFd) -> gantry_sys::Result<OwnedFd> {
    let context = FsContext::open("erofs")?;
    context.set_string("source", gantry_sys::path::proc_fd(image))?;
    context.set_flag("ro")?;
    context.create()?;
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn driver(root: &Path) -> Arc<dyn StorageDriver> {
    Arc::new(Erofs::new(Arc::new(Layers::open(root).unwrap())))
}

fn fixture() -> Fixture {
    Fixture::new(driver, STEPS, Arc::new(Images))
}

gantry_testkit::storage_driver_contract!(fixture);

mod forms;
