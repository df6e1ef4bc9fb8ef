//! A layer's image on disk.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use gantry_erofs::{Info, inspect};
use gantry_layer_dirs::{Layers, Record};
use gantry_sdk::kinds::storage::EROFS_LAYER;
use gantry_sdk::{Error, Result};
use gantry_sys::path::{Links, open_beneath};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, fchmod, fchown, fstat,
    futimens, statat,
};
use rustix::io::Errno;

/// A committed layer's image, relative to the root.
pub(crate) fn path_of(record: &Record) -> String {
    format!("l/{}/{EROFS_LAYER}", record.id)
}

/// Whether the layer is an image.
pub(crate) fn is_image(layers: &Layers, record: &Record) -> Result<bool> {
    exists(layers, record, &path_of(record))
}

fn exists(layers: &Layers, record: &Record, path: &str) -> Result<bool> {
    match statat(layers.root_fd(), path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(failed("examine", record)(errno)),
    }
}

fn failed(doing: &'static str, record: &Record) -> impl FnOnce(Errno) -> Error {
    let what = format!("image of layer {}", record.key);
    move |errno| Error::io(doing, what, errno.into())
}

/// What the committed layer's image holds.
pub(crate) fn info(layers: &Layers, record: &Record) -> Result<Info> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
    let path = path_of(record);
    let file =
        open_beneath(layers.root_fd(), Path::new(&path), flags, Mode::empty(), Links::Refuse)
            .map_err(|e| Error::internal(format!("cannot open layer {}", record.key), e))?;
    read(&File::from(file), record)
}

fn read(file: &File, record: &Record) -> Result<Info> {
    let what = format!("the image of layer {} is not complete", record.key);
    inspect(file).map_err(|error| Error::internal(what, error))
}

/// Whether overlayfs has mounted the active layer for writing: it makes this directory then.
fn was_mounted(layers: &Layers, record: &Record) -> Result<bool> {
    exists(layers, record, &format!("{}/work", record.work()))
}

/// Whether an image is, or was, written into the active layer.
pub(crate) fn is_awaited(layers: &Layers, record: &Record) -> Result<bool> {
    let written = format!("{}/{EROFS_LAYER}", record.content());
    Ok(!was_mounted(layers, record)? && exists(layers, record, &written)?)
}

/// Takes the image of an active layer, if it has one, from where it was written to where it stays,
/// and gives the directory beside it the attributes of the image's top: layers above begin with
/// those. Says whether there was one.
///
/// # Errors
///
/// `Internal` for an image that was not written to its end; what the file system reported.
pub(crate) fn adopt(layers: &Layers, record: &Record) -> Result<bool> {
    if was_mounted(layers, record)? {
        return Ok(false);
    }
    let content = layers.open_content(record)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: OwnedFd = match rustix::fs::openat(&content, EROFS_LAYER, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return is_image(layers, record),
        Err(errno) => return Err(failed("open", record)(errno)),
    };
    let stat = fstat(&file).map_err(failed("examine", record))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::invalid(format!("the image of layer {} is no file", record.key)));
    }
    let info = read(&File::from(file), record)?;
    dress(&content, &info).map_err(failed("take the attributes of", record))?;
    rustix::fs::renameat(&content, EROFS_LAYER, layers.root_fd(), path_of(record))
        .map_err(failed("move", record))?;
    Ok(true)
}

/// Puts the image of a layer that stays active back.
pub(crate) fn give_back(layers: &Layers, record: &Record) -> Result<()> {
    let content = layers.open_content(record)?;
    rustix::fs::renameat(layers.root_fd(), path_of(record), &content, EROFS_LAYER)
        .map_err(failed("move", record))
}

fn dress(directory: &OwnedFd, info: &Info) -> Result<(), Errno> {
    fchown(directory, Some(Uid::from_raw(info.uid)), Some(Gid::from_raw(info.gid)))?;
    fchmod(directory, Mode::from_raw_mode(info.mode))?;
    let time = Timespec { tv_sec: info.mtime.seconds, tv_nsec: info.mtime.nanos.into() };
    futimens(directory, &Timestamps { last_access: time, last_modification: time })
}

/// Bytes of removed layers that are still on disk.
pub(crate) fn trash_bytes(layers: &Layers) -> Result<u64> {
    let trash = layers.root().join("t");
    let failed = |e| Error::io("list", trash.display(), e);
    let mut sum = 0u64;
    for entry in std::fs::read_dir(&trash).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // The apparent size of an image is that of its address space, so its own count is asked.
        let image = File::open(path.join(EROFS_LAYER)).ok().and_then(|file| inspect(&file).ok());
        let bytes = match image {
            Some(info) => info.bytes,
            // Somebody is emptying it meanwhile: what is gone is nothing.
            None => File::open(&path)
                .ok()
                .and_then(|dir| gantry_sys::path::usage(dir).ok())
                .map_or(0, |usage| usage.apparent_bytes),
        };
        sum = sum.saturating_add(bytes);
    }
    Ok(sum)
}
