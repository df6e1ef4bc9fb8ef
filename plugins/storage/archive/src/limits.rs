//! Bounds on what one archive may ask of us.

/// Bounds on one archive. The defaults are far above any real layer and far below trouble.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Uncompressed bytes of the stream.
    pub stream_bytes: u64,
    /// Entries, extension headers not counted.
    pub entries: u64,
    /// Components of a name.
    pub depth: usize,
    /// Apparent size of one file: a sparse file may be far larger than the stream.
    pub file_bytes: u64,
    /// Bytes of one extension header (long name, PAX records, sparse map). The reference reader
    /// has the same bound.
    pub extension_bytes: u64,
    /// Bytes that must stay available on the file system, checked now and then.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stream_bytes: 1 << 40,
            entries: 16 << 20,
            depth: 1024,
            file_bytes: 1 << 44,
            extension_bytes: 1 << 20,
            reserve_bytes: 16 << 20,
        }
    }
}

/// The longest path, without the final NUL. Source: Linux, `PATH_MAX`.
pub(crate) const PATH_BYTES: usize = 4095;
/// The longest component. Source: Linux, `NAME_MAX`.
pub(crate) const NAME_BYTES: usize = 255;
/// The longest extended attribute. Source: xattr(7).
pub(crate) const XATTR_BYTES: usize = 64 << 10;
