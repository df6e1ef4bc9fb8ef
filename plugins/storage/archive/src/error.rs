//! What can go wrong with an archive, and whose fault it is.

use std::io;

use rustix::io::Errno;

/// An error of reading, placing or writing an archive. Names the entry it is about.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream could not be read or decompressed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),

    /// The stream could not be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),

    /// The bytes are not a valid archive.
    #[error("the archive is damaged at byte {offset}: {what}")]
    Malformed {
        /// Where, in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },

    /// The entry is readable, and we will not place it (or cannot express it).
    #[error("archive entry {entry}: {what}")]
    Refused {
        /// The entry's name, escaped.
        entry: String,
        /// Why.
        what: &'static str,
    },

    /// A bound was exceeded.
    #[error("the archive exceeds the limit of {limit} {unit}")]
    Limit {
        /// The bound.
        limit: u64,
        /// What it counts.
        unit: &'static str,
    },

    /// A file system operation failed.
    #[error("cannot {doing} {entry}")]
    Io {
        /// The action.
        doing: &'static str,
        /// The entry's name, escaped.
        entry: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },

    /// The file system is (nearly) full.
    #[error("not enough space: {available} bytes are left and {reserve} must stay free")]
    NoSpace {
        /// Bytes available.
        available: u64,
        /// Bytes that must stay available.
        reserve: u64,
    },

    /// The layers below decide about the entry, and they are not in view. The archive may be fine:
    /// unpack it again with them.
    #[error("archive entry {entry} cannot be placed without the layers below")]
    NeedsBelow {
        /// The entry's name, escaped.
        entry: String,
    },
}

impl ArchiveError {
    /// Whether the archive itself is at fault, not this machine.
    pub fn is_bad_archive(&self) -> bool {
        match self {
            Self::Malformed { .. } | Self::Refused { .. } | Self::Limit { .. } => true,
            Self::Read(error) => {
                matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
            }
            Self::Write(_) | Self::Io { .. } | Self::NoSpace { .. } => false,
            Self::NeedsBelow { .. } => false,
        }
    }

    /// Whether the file system is out of space, inodes or quota.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } | Self::Write(source) => {
                matches!(Errno::from_io_error(source), Some(Errno::NOSPC | Errno::DQUOT))
            }
            _ => false,
        }
    }

    /// A failed operation on `entry`.
    pub fn io(doing: &'static str, entry: &[u8], errno: Errno) -> Self {
        Self::Io { doing, entry: show(entry), source: errno.into() }
    }

    /// An entry whose meaning the layers below decide.
    pub fn needs_below(entry: &[u8]) -> Self {
        Self::NeedsBelow { entry: show(entry) }
    }

    /// An entry that is not placed.
    pub fn refused(entry: &[u8], what: &'static str) -> Self {
        Self::Refused { entry: show(entry), what }
    }
}

/// A name as it may stand in a message: one line, printable, bounded.
pub(crate) fn show(name: &[u8]) -> String {
    const LONGEST: usize = 256;
    if name.is_empty() {
        return "\"/\"".to_owned();
    }
    let cut = &name[..name.len().min(LONGEST)];
    let dots = if name.len() > LONGEST { "…" } else { "" };
    format!("\"{}{dots}\"", cut.escape_ascii())
}

/// Shorthand of this crate.
pub type Result<T, E = ArchiveError> = std::result::Result<T, E>;
