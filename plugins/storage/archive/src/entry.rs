//! What a member of an archive is, once its headers have been understood.

use std::collections::BTreeMap;

use rustix::fs::{Timespec, Timestamps};

/// The type of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of an earlier file.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// Whether data blocks follow the header. Other kinds have none, whatever their size field
    /// says; reading it differently than other implementations would let one archive mean two
    /// things.
    pub(crate) fn has_data(self) -> bool {
        self == Self::File
    }
}

/// A point in time; `nanos` counts forward from `seconds`, also before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970-01-01, may be negative.
    pub seconds: i64,
    /// 0 … 999 999 999.
    pub nanos: u32,
}

impl Time {
    /// The same for `utimensat(2)`, as access and modification time.
    pub(crate) fn stamps(self) -> Timestamps {
        let spec = Timespec { tv_sec: self.seconds, tv_nsec: self.nanos.into() };
        Timestamps { last_access: spec, last_modification: spec }
    }
}

/// A run of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it goes in the file.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

/// Where the data of a sparse file belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Ascending, not overlapping, in stream order.
    pub runs: Vec<Run>,
    /// Apparent size of the file.
    pub size: u64,
}

/// One member. Names are as written: not cleaned, not checked.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// Target of a link, empty otherwise.
    pub link: Vec<u8>,
    /// Its type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky; never the type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Bytes of data that follow in the stream.
    pub size: u64,
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Set for a sparse file.
    pub sparse: Option<Sparse>,
}

impl Entry {
    /// A member without data, owned by root; for writers.
    pub fn new(kind: Kind, name: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self {
            name: name.into(),
            link: Vec::new(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            device: (0, 0),
            xattrs: BTreeMap::new(),
            sparse: None,
        }
    }

    /// Apparent size of the file.
    pub fn file_size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.size, |sparse| sparse.size)
    }
}
