//! Moving bytes between archives and layers of every form, as the layer store does.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gantry_archive::{CreateOptions, ExtractOptions, Limits, Source, Whiteouts};
use gantry_erofs::{ConvertOptions, convert};
use gantry_sdk::kinds::storage::{EROFS_LAYER, LayerForm};
use gantry_sys::mount::{FsContext, MountAttrFlags};
use gantry_testkit::storage::Mover;
use rustix::fs::{Mode, OFlags};

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Archives;

impl Mover for Archives {
    fn apply(
        &self,
        archive: &[u8],
        target: BorrowedFd<'_>,
        below: Option<BorrowedFd<'_>>,
        form: LayerForm,
    ) -> Result<(), String> {
        // Small file systems must be filled to the end.
        let limits = Limits { reserve_bytes: 0, ..Limits::default() };
        let whiteouts = match form {
            LayerForm::OverlayDirectory => Whiteouts::Overlay,
            LayerForm::MergedTree => Whiteouts::Remove,
            LayerForm::ErofsImage => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                let image = rustix::fs::openat(target, EROFS_LAYER, flags, mode);
                let image = File::from(image.map_err(|e| e.to_string())?);
                let options = ConvertOptions { limits, below, ..ConvertOptions::default() };
                return convert(archive, &image, &options).map(drop).map_err(|e| format!("{e:?}"));
            }
        };
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
        let options = CreateOptions { source: Source::OverlayUpper, ..CreateOptions::default() };
        let written = match form {
            LayerForm::MergedTree => gantry_archive::create_from_changes(below, layer, &mut out),
            LayerForm::OverlayDirectory => gantry_archive::create(layer, &mut out, &options),
            LayerForm::ErofsImage => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                match rustix::fs::openat(layer, EROFS_LAYER, flags, Mode::empty()) {
                    // A layer that was unpacked, and not one that was written to.
                    Ok(image) => {
                        let mount = mount(&image).map_err(|e| e.to_string())?;
                        gantry_archive::create(mount.as_fd(), &mut out, &options)
                    }
                    Err(_) => gantry_archive::create(layer, &mut out, &options),
                }
            }
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
