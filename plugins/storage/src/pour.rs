//! The blocking part of unpacking: bytes from an archive into what a driver has mounted.

use std::fs::File;
use std::io::{BufWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use gantry_archive::{
    ArchiveError, CreateOptions, ExtractOptions, Passed, Summary, Whiteouts, copy_tree, create,
    extract, extract_to_end,
};
use gantry_erofs::{ConvertOptions, convert, convert_to_end};
use gantry_sdk::kinds::storage::{EROFS_LAYER, LayerForm};
use gantry_sdk::mounts::MountFd;
use gantry_sdk::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Where layers are merged before they become an image.
const TREE: &str = "tree";
/// Bytes handed over at once on the way there.
const BUFFER: usize = 256 << 10;

/// What is known of the layers below while a layer is unpacked.
pub(crate) enum Sight {
    /// There are none.
    Bottom,
    /// There are some, and they are not there yet.
    Alone,
    /// Their merged tree.
    Below(MountFd),
    /// The directory holds a copy of them.
    Over,
}

/// A layer that has been unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Poured {
    /// Apparent bytes of its files.
    pub(crate) file_bytes: u64,
    /// What [`settle`] needs to know.
    pub(crate) implied: Vec<Vec<u8>>,
    /// Likewise.
    pub(crate) top_given: bool,
    /// Digests and sizes of the archive.
    pub(crate) stream: Passed,
}

impl Poured {
    fn of(summary: Summary) -> Self {
        let Summary { file_bytes, implied, top_given, stream, .. } = summary;
        Self { file_bytes, implied, top_given, stream }
    }
}

/// Unpacks `source` into `target`, the directory of a layer of that form. Blocking.
///
/// # Errors
///
/// [`ArchiveError::NeedsBelow`] with [`Sight::Alone`]: the layer must be unpacked with the others in
/// sight.
pub(crate) fn pour(
    source: impl Read + Send,
    target: &MountFd,
    form: LayerForm,
    sight: &Sight,
) -> Result<Poured, ArchiveError> {
    let is_merged = form == LayerForm::MergedTree || matches!(sight, Sight::Over);
    let standalone = !is_merged && matches!(sight, Sight::Alone);
    let below = match sight {
        Sight::Below(tree) if !is_merged => Some(tree.as_fd()),
        _ => None,
    };
    // The diff id tells whether the content is right, and who wrote the blob has checked its digest.
    let hash_raw = false;
    if form == LayerForm::ErofsImage && !is_merged {
        let options = ConvertOptions { below, standalone, hash_raw, ..ConvertOptions::default() };
        return convert(source, &image_in(target)?, &options).map(Poured::of);
    }
    let whiteouts = if is_merged { Whiteouts::Remove } else { Whiteouts::Overlay };
    let options =
        ExtractOptions { whiteouts, below, standalone, hash_raw, ..ExtractOptions::default() };
    let tree = tree_in(target, form)?;
    extract(source, tree.as_fd(), &options).map(Poured::of)
}

/// As [`pour`] with [`Sight::Alone`], but reads to the end whatever the layer needs. Blocking.
///
/// # Errors
///
/// The outer one is about the stream, the inner one about the layer.
pub(crate) fn pour_to_end(
    source: impl Read + Send,
    target: &MountFd,
    form: LayerForm,
) -> Result<(Result<Poured, ArchiveError>, Passed), ArchiveError> {
    let (summary, stream) = if form == LayerForm::ErofsImage {
        let options = ConvertOptions { standalone: true, ..ConvertOptions::default() };
        convert_to_end(source, &image_in(target)?, &options)?
    } else {
        let whiteouts = Whiteouts::Overlay;
        let options = ExtractOptions { whiteouts, standalone: true, ..ExtractOptions::default() };
        extract_to_end(source, target.as_fd(), &options)?
    };
    Ok((summary.map(Poured::of), stream))
}

/// Makes a layer that was unpacked alone into `target` right for what it stands on, the merged tree
/// `below`. Blocking.
///
/// # Errors
///
/// [`ArchiveError::NeedsBelow`], as in [`pour`].
pub(crate) fn settle(
    target: &MountFd,
    form: LayerForm,
    below: &MountFd,
    poured: &Poured,
) -> Result<(), ArchiveError> {
    let Poured { implied, top_given, .. } = poured;
    let below = below.as_fd();
    if form == LayerForm::ErofsImage {
        return gantry_erofs::settle_standalone(&image_in(target)?, below, implied, *top_given);
    }
    gantry_archive::settle_standalone(target.as_fd(), below, implied, *top_given)
}

/// Begins a layer into which several are merged: with a copy of the tree `from`. Blocking.
pub(crate) fn begin_merged(
    target: &MountFd,
    form: LayerForm,
    from: &MountFd,
) -> Result<(), ArchiveError> {
    copy_tree(from.as_fd(), tree_in(target, form)?.as_fd())
}

/// Ends a layer into which several have been poured [`Sight::Over`] each other. Blocking.
pub(crate) fn end_merged(target: &MountFd, form: LayerForm) -> Result<(), ArchiveError> {
    if form != LayerForm::ErofsImage {
        return Ok(());
    }
    let (tree, image) = (tree_in(target, form)?, image_in(target)?);
    let (reader, writer) = std::io::pipe().map_err(ArchiveError::Read)?;
    std::thread::scope(|scope| {
        let tree = tree.as_fd();
        let archiving = scope.spawn(move || {
            let options = CreateOptions { root_entry: true, ..CreateOptions::default() };
            create(tree, BufWriter::with_capacity(BUFFER, writer), &options)
        });
        let options = ConvertOptions { hash_raw: false, ..ConvertOptions::default() };
        let converted = convert(reader, &image, &options);
        let Ok(archived) = archiving.join() else {
            return Err(ArchiveError::Read(std::io::Error::other("the archiving thread died")));
        };
        // If converting ends early, archiving finds nobody to write to.
        converted?;
        archived.map(drop)
    })?;
    gantry_sys::path::remove_tree_beneath(target, Path::new(TREE)).map_err(|error| {
        ArchiveError::Io {
            doing: "remove",
            entry: TREE.to_owned(),
            source: std::io::Error::other(error),
        }
    })
}

/// The file that becomes a layer's image.
fn image_in(target: &MountFd) -> Result<File, ArchiveError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(target, EROFS_LAYER, flags, Mode::from_raw_mode(0o600))
        .map(File::from)
        .map_err(|errno| ArchiveError::io("open", EROFS_LAYER.as_bytes(), errno))
}

/// The directory that holds a tree: beside its image, for a layer that becomes one.
fn tree_in(target: &MountFd, form: LayerForm) -> Result<OwnedFd, ArchiveError> {
    let fail = |errno| ArchiveError::io("open", TREE.as_bytes(), errno);
    let mut name = ".";
    if form == LayerForm::ErofsImage {
        name = TREE;
        match rustix::fs::mkdirat(target, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(target, name, flags, Mode::empty()).map_err(fail)
}

/// An archive's error as the daemon's.
pub(crate) fn explain(error: ArchiveError) -> Error {
    let kind = match &error {
        error if error.is_no_space() => ErrorKind::NoSpace,
        error if error.is_bad_archive() => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    };
    let message = error.to_string();
    match std::error::Error::source(&error).map(ToString::to_string) {
        Some(cause) => Error::new(kind, message).caused_by(cause),
        None => Error::new(kind, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_testkit::archive::Tar;

    fn target(dir: &tempfile::TempDir) -> MountFd {
        MountFd::new(OwnedFd::from(File::open(dir.path()).unwrap()))
    }

    fn pour_into(target: &MountFd, tar: Tar, sight: Sight) -> Poured {
        pour(&tar.end()[..], target, LayerForm::ErofsImage, &sight).unwrap()
    }

    #[test]
    fn an_image_is_made_from_one_layer_or_from_several() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(&dir);
        let lower = || Tar::default().dir("d").file("d/gone", "gone").file("kept", "kept");
        let upper = || Tar::default().file("d/.wh.gone", "").file("d/new", "new one");
        let alone = pour_into(&target, upper(), Sight::Alone);
        assert_eq!((alone.implied, alone.top_given), (vec![b"d".to_vec()], false));
        let image = File::open(dir.path().join(EROFS_LAYER)).unwrap();
        assert_eq!(gantry_erofs::inspect(&image).unwrap().bytes, 7);

        pour_into(&target, lower(), Sight::Over);
        pour_into(&target, upper(), Sight::Over);
        end_merged(&target, LayerForm::ErofsImage).unwrap();
        assert_eq!(gantry_erofs::inspect(&image).unwrap().bytes, 4 + 7);
        assert!(!dir.path().join(TREE).exists());
    }
}
