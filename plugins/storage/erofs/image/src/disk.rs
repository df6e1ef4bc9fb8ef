//! The format: what stands where. Numbers are little-endian.
//!
//! Source: Linux, `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`. Only what all
//! kernels since 5.15 understand is used.

use gantry_archive::Time;

/// Bytes in a block.
pub(crate) const BLOCK: u64 = 4096;
/// Inodes are counted in slots of this size.
pub(crate) const SLOT: u64 = 32;
/// Where the superblock begins.
pub(crate) const SUPER_AT: u64 = 1024;
/// Bytes of the superblock.
pub(crate) const SUPER: usize = 128;
/// Bytes of an inode that has all fields.
pub(crate) const EXTENDED: usize = 64;
/// Bytes of an inode whose time is the image's and whose numbers are small.
pub(crate) const COMPACT: usize = 32;
/// A chunk that is a hole.
pub(crate) const HOLE: u32 = u32::MAX;
/// Bytes before the first extended attribute.
pub(crate) const XATTR_HEADER: usize = 12;
/// Bytes of an entry in a directory, without its name.
pub(crate) const DIRENT: usize = 12;

const MAGIC: u32 = 0xe0f5_e1e2;
/// Extended inodes hold the modification time.
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED: u32 = 0x4;

/// The first slot of the inodes is nobody's, so that no inode has the number 0, which many programs
/// take for "deleted". It holds our own note: this mark, the bytes of files and links, the inodes.
const NOTE: &[u8; 8] = b"gantry\0\x01";

/// The layouts of an inode's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Blocks in a row.
    Plain = 0,
    /// Behind the inode and its attributes.
    Inline = 2,
    /// A table of chunks behind the inode and its attributes.
    Chunks = 4,
}

/// An inode's fields.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) layout: Layout,
    /// Type and permissions as `stat(2)` has them.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) nlink: u32,
    pub(crate) size: u64,
    /// The first block, the device, or the chunk format.
    pub(crate) word: u32,
    /// Unique in the image.
    pub(crate) number: u32,
    /// Bytes of the attributes, their header included; 0 for none.
    pub(crate) xattr_bytes: usize,
}

impl Inode {
    /// Whether a compact inode can hold it in an image of `time`.
    pub(crate) fn is_small(&self, time: Time) -> bool {
        let short = |number: u32| u16::try_from(number).is_ok();
        self.mtime == time
            && short(self.uid)
            && short(self.gid)
            && short(self.nlink)
            && u32::try_from(self.size).is_ok()
    }

    /// Appends it to `out`, compact or extended.
    pub(crate) fn encode(&self, compact: bool, out: &mut Vec<u8>) {
        let format = (self.layout as u16) << 1 | u16::from(!compact);
        let xattrs = match self.xattr_bytes.checked_sub(XATTR_HEADER) {
            None => 0,
            Some(bytes) => bytes / 4 + 1,
        };
        let short = |number: u32| (number as u16).to_le_bytes();
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&(xattrs as u16).to_le_bytes());
        out.extend_from_slice(&self.mode.to_le_bytes());
        if compact {
            out.extend_from_slice(&short(self.nlink));
            out.extend_from_slice(&(self.size as u32).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        } else {
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&self.size.to_le_bytes());
        }
        out.extend_from_slice(&self.word.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        if compact {
            out.extend_from_slice(&short(self.uid));
            out.extend_from_slice(&short(self.gid));
            out.extend_from_slice(&[0; 4]);
        } else {
            out.extend_from_slice(&self.uid.to_le_bytes());
            out.extend_from_slice(&self.gid.to_le_bytes());
            out.extend_from_slice(&self.mtime.seconds.to_le_bytes());
            out.extend_from_slice(&self.mtime.nanos.to_le_bytes());
            out.extend_from_slice(&self.nlink.to_le_bytes());
            out.extend_from_slice(&[0; 16]);
        }
    }
}

/// What the superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Super {
    /// The slot of the top directory.
    pub(crate) root: u16,
    /// Inodes in the image.
    pub(crate) inodes: u64,
    /// The time of compact inodes.
    pub(crate) time: Time,
    /// All blocks.
    pub(crate) blocks: u32,
    /// The first block of the inodes.
    pub(crate) meta: u32,
    pub(crate) uuid: [u8; 16],
    /// Whether there are tables of chunks.
    pub(crate) has_chunks: bool,
}

impl Super {
    pub(crate) fn encode(&self) -> [u8; SUPER] {
        let mut out = [0; SUPER];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &COMPAT_MTIME.to_le_bytes());
        put(12, &[BLOCK.trailing_zeros() as u8]);
        put(14, &self.root.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &self.time.seconds.to_le_bytes());
        put(32, &self.time.nanos.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta.to_le_bytes());
        put(48, &self.uuid);
        let incompat = if self.has_chunks { INCOMPAT_CHUNKED } else { 0 };
        put(80, &incompat.to_le_bytes());
        out
    }

    /// None if it is no image of this crate's making.
    pub(crate) fn decode(bytes: &[u8; SUPER]) -> Option<Self> {
        let incompat = u32_at(bytes, 80);
        let is_ours = u32_at(bytes, 0) == MAGIC
            && u64::from(bytes[12]) == u64::from(BLOCK.trailing_zeros())
            && incompat & !INCOMPAT_CHUNKED == 0;
        is_ours.then(|| Self {
            root: u16_at(bytes, 14),
            inodes: u64_at(bytes, 16),
            time: Time { seconds: u64_at(bytes, 24) as i64, nanos: u32_at(bytes, 32) },
            blocks: u32_at(bytes, 36),
            meta: u32_at(bytes, 40),
            uuid: std::array::from_fn(|n| bytes[48 + n]),
            has_chunks: incompat != 0,
        })
    }
}

/// Our note in the first slot.
pub(crate) fn encode_note(bytes: u64, inodes: u64) -> [u8; SLOT as usize] {
    let mut note = [0; SLOT as usize];
    note[..8].copy_from_slice(NOTE);
    note[8..16].copy_from_slice(&bytes.to_le_bytes());
    note[16..24].copy_from_slice(&inodes.to_le_bytes());
    note
}

/// Bytes and inodes, if that is our note.
pub(crate) fn decode_note(note: &[u8; SLOT as usize]) -> Option<(u64, u64)> {
    note.starts_with(NOTE).then(|| (u64_at(note, 8), u64_at(note, 16)))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes.get(at + n).copied().unwrap_or(0))
}

/// The number at `at`; what is beyond the end counts as zero.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a [u8],
    /// The slot of the inode.
    pub(crate) slot: u64,
    /// Its type, as the format numbers them.
    pub(crate) kind: u8,
}

/// How many of the entries (in order) fit into a block, and the bytes they take there.
pub(crate) fn fill_block<'a>(names: impl Iterator<Item = &'a [u8]>) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for name in names {
        let more = DIRENT + name.len();
        if bytes + more > BLOCK as usize {
            break;
        }
        count += 1;
        bytes += more;
    }
    (count, bytes)
}

/// A block of a directory: the entries, then their names.
pub(crate) fn encode_block(entries: &[Dirent<'_>], out: &mut Vec<u8>) {
    let mut name_at = entries.len() * DIRENT;
    for entry in entries {
        out.extend_from_slice(&entry.slot.to_le_bytes());
        out.extend_from_slice(&(name_at as u16).to_le_bytes());
        out.extend_from_slice(&[entry.kind, 0]);
        name_at += entry.name.len();
    }
    entries.iter().for_each(|entry| out.extend_from_slice(entry.name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_size_and_survive() {
        let whole = Super {
            root: 1,
            inodes: 7,
            time: Time { seconds: -5, nanos: 9 },
            blocks: 100,
            meta: 50,
            uuid: [3; 16],
            has_chunks: true,
        };
        assert_eq!(Super::decode(&whole.encode()), Some(whole));
        assert_eq!(Super::decode(&[0; SUPER]), None);
        let inode = Inode {
            layout: Layout::Inline,
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            mtime: Time::default(),
            nlink: 1,
            size: 5,
            word: 0,
            number: 1,
            xattr_bytes: 0,
        };
        for (compact, length) in [(true, COMPACT), (false, EXTENDED)] {
            let mut out = Vec::new();
            inode.encode(compact, &mut out);
            assert_eq!((out.len(), out[0]), (length, 4 | u8::from(!compact)));
        }
        assert!(inode.is_small(Time::default()));
        assert!(!Inode { uid: 70_000, ..inode.clone() }.is_small(Time::default()));
        assert!(!Inode { size: 1 << 32, ..inode }.is_small(Time::default()));
        assert_eq!(decode_note(&encode_note(5, 6)), Some((5, 6)));
        assert_eq!(decode_note(&[0; 32]), None);
    }

    #[test]
    fn blocks_of_directories_are_filled_to_the_end() {
        let long = [b'x'; 255];
        assert_eq!(fill_block(std::iter::repeat_n(&long[..], 100)), (15, 15 * 267));
        let exact = [b'x'; 244]; // 16 entries of 256 bytes
        assert_eq!(fill_block(std::iter::repeat_n(&exact[..], 100)), (16, 4096));
        let mut out = Vec::new();
        let entry = |name| Dirent { name, slot: 3, kind: 2 };
        encode_block(&[entry(b"."), entry(b"..")], &mut out);
        assert_eq!((out.len(), u16_at(&out, 8), u16_at(&out, 20)), (27, 24, 25));
    }
}
