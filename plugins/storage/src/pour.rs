//! The blocking part of unpacking: bytes from an archive into what a driver has mounted.

use std::io::Read;
use std::os::fd::AsFd;

use gantry_archive::{
    ArchiveError, ExtractOptions, Limits, Passed, Summary, Whiteouts, extract, extract_to_end,
};
use gantry_sdk::kinds::storage::LayerForm;
use gantry_sdk::mounts::MountFd;
use gantry_sdk::{Error, ErrorKind, Result};

/// No archive may unpack to more than this many times its own bytes: a little more than what the
/// format allows that nearly all layers have. Source: zlib's technical notes, "Maximum Compression
/// Factor", 1032.
const MOST_RATIO: u64 = 1100;
/// Small archives may unpack to this whatever their ratio.
const ANY_RATIO: u64 = 1 << 30;

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

/// The bounds of an archive of `total` bytes; 0: unknown.
pub(crate) fn limits(total: u64) -> Limits {
    let mut limits = Limits::default();
    if total > 0 {
        let most = total.saturating_mul(MOST_RATIO).max(ANY_RATIO);
        limits.stream_bytes = limits.stream_bytes.min(most);
    }
    limits
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
    limits: Limits,
    hash_raw: bool,
) -> Result<Poured, ArchiveError> {
    let whiteouts = match (form, sight) {
        (LayerForm::MergedTree, _) | (_, Sight::Over) => Whiteouts::Remove,
        _ => Whiteouts::Overlay,
    };
    let below = match sight {
        Sight::Below(tree) if whiteouts == Whiteouts::Overlay => Some(tree.as_fd()),
        _ => None,
    };
    let standalone = whiteouts == Whiteouts::Overlay && matches!(sight, Sight::Alone);
    let options = ExtractOptions {
        limits,
        whiteouts,
        below,
        standalone,
        hash_raw,
        ..ExtractOptions::default()
    };
    extract(source, target.as_fd(), &options).map(Poured::of)
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
    let whiteouts = Whiteouts::Overlay;
    let options = ExtractOptions { whiteouts, standalone: true, ..ExtractOptions::default() };
    let (summary, stream) = extract_to_end(source, target.as_fd(), &options)?;
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
    below: &MountFd,
    poured: &Poured,
) -> Result<(), ArchiveError> {
    let Poured { implied, top_given, .. } = poured;
    gantry_archive::settle_standalone(target.as_fd(), below.as_fd(), implied, *top_given)
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

    #[test]
    fn the_bound_grows_with_the_archive() {
        let most = Limits::default().stream_bytes;
        let cases = [
            ("unknown", 0, most),
            ("small", 1000, ANY_RATIO),
            ("larger", 10 << 20, (10 << 20) * MOST_RATIO),
            ("huge", u64::MAX, most),
        ];
        for (what, total, expected) in cases {
            assert_eq!(limits(total).stream_bytes, expected, "{what}");
        }
    }
}
