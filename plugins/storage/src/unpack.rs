//! From a blob to a committed layer.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use gantry_archive::{ExtractOptions, extract};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::LayerProgress;
use gantry_sdk::kinds::storage::Whiteouts;
use gantry_sdk::mounts::MountFd;
use gantry_sdk::{Error, ErrorKind, Result};
use gantry_sys::path::{Links, Mode, OFlags, open_beneath};

/// Unpacks `blob` into the mounted tree `target` and checks that it is the layer `diff_id`.
///
/// `below` is the merged tree of the layers underneath, if there are any. Blocking.
///
/// # Errors
///
/// `InvalidArgument` for a bad archive or a wrong digest, `NoSpace`, `Internal`.
pub fn unpack(
    blob: File,
    diff_id: &Digest,
    target: &MountFd,
    below: Option<&MountFd>,
    whiteouts: Whiteouts,
    progress: Option<LayerProgress>,
) -> Result<()> {
    let total = blob.metadata().map_or(0, |m| m.len());
    let reader = Counted { blob, done: 0, total, diff_id: diff_id.clone(), progress };
    let root = open_root(target)?;
    let below = below.map(open_root).transpose()?;
    let options = ExtractOptions {
        whiteouts: match whiteouts {
            Whiteouts::OverlayChardev => gantry_archive::Whiteouts::Overlay,
            Whiteouts::Remove => gantry_archive::Whiteouts::Remove,
        },
        below: match whiteouts {
            Whiteouts::OverlayChardev => below.as_ref().map(AsFd::as_fd),
            Whiteouts::Remove => None, // the target is the merged tree
        },
        ..ExtractOptions::default()
    };
    let summary = extract(reader, root.as_fd(), &options).map_err(|e| {
        let kind = if e.is_no_space() {
            ErrorKind::NoSpace
        } else if e.is_bad_archive() {
            ErrorKind::InvalidArgument
        } else {
            ErrorKind::Internal
        };
        Error::new(kind, format!("cannot unpack layer {diff_id}")).caused_by(e)
    })?;
    let found = &summary.stream.diff_id;
    if found.as_str() != diff_id.as_str() {
        return Err(Error::invalid(format!("layer {diff_id} has content with digest {found}")));
    }
    Ok(())
}

/// A mount descriptor as a directory that can be read.
fn open_root(mount: &MountFd) -> Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    open_beneath(mount, std::path::Path::new(""), flags, Mode::empty(), Links::Refuse)
        .map_err(|e| Error::internal("cannot open a mounted layer", e))
}

/// Tells how far reading has come.
struct Counted {
    blob: File,
    done: u64,
    total: u64,
    diff_id: Digest,
    progress: Option<LayerProgress>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.blob.read(buffer)?;
        self.done += n as u64;
        if let Some(progress) = &self.progress {
            progress(&self.diff_id, self.done, self.total);
        }
        Ok(n)
    }
}
