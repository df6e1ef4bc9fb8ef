//! Reading back what this crate has written: a few inodes, by name.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::BorrowedFd;

use gantry_archive::{ArchiveError, Result, Time};
use rustix::io::Errno;

use crate::attributes::Attributes;
use crate::below::Below;
use crate::disk::{
    BLOCK, COMPACT, DIRENT, EXTENDED, SLOT, SUPER, SUPER_AT, Super, XATTR_HEADER, decode_note,
    u16_at, u32_at, u64_at,
};
use crate::sink::write_all;
use crate::tree::Kind;

/// Largest directory that is looked through.
const DIRECTORY_BYTES: u64 = 256 << 20;

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Lengths of files and links, each once.
    pub bytes: u64,
    /// Inodes, the top directory included.
    pub inodes: u64,
    /// Permission bits of the top directory.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was changed.
    pub mtime: Time,
}

/// What `image`, which [`convert`](crate::convert) has written to its end, holds.
///
/// # Errors
///
/// `Malformed` for anything else; `Io`.
pub fn inspect(image: &File) -> Result<Info> {
    let image = Image::open(image)?;
    let mut note = [0; SLOT as usize];
    image.read(image.meta, &mut note)?;
    let (bytes, inodes) = decode_note(&note).ok_or_else(not_ours)?;
    let top = image.inode(image.root)?;
    let extended = top.extended.ok_or_else(not_ours)?;
    Ok(Info {
        bytes,
        inodes,
        mode: u32::from(top.mode & 0o7777),
        uid: u32_at(&extended, 24),
        gid: u32_at(&extended, 28),
        mtime: Time { seconds: u64_at(&extended, 32) as i64, nanos: u32_at(&extended, 40) },
    })
}

/// Finishes an image that was written with [`ConvertOptions::standalone`], now that `below`, the
/// merged tree of the layers below, is there: `implied` directories, and the top unless it was
/// `top_given`, get owner, mode and time of their counterparts. Both come from the image's
/// [`Summary`](gantry_archive::Summary). May be repeated; not while the image is mounted. Blocking.
///
/// # Errors
///
/// [`ArchiveError::NeedsBelow`], before anything is changed, if something else than a directory lies
/// below in the place of one, or a directory with extended attributes, for which the image has no
/// room: the image must be written again, with `below` in view. `Malformed` if the file is no image;
/// [`ArchiveError::Io`] otherwise.
///
/// [`ConvertOptions::standalone`]: crate::ConvertOptions::standalone
pub fn settle_standalone(
    image: &File,
    below: BorrowedFd<'_>,
    implied: &[Vec<u8>],
    top_given: bool,
) -> Result<()> {
    let (file, image) = (image, Image::open(image)?);
    let names: HashSet<&[u8]> = implied.iter().map(Vec::as_slice).collect();
    let below = Below(below);
    let mut changes = Vec::new();
    let top: &[u8] = b"";
    let wanted = (!top_given).then_some(top).into_iter().chain(implied.iter().map(Vec::as_slice));
    for name in wanted {
        let Some(attributes) = counterpart(&below, name, &names)? else { continue };
        if !attributes.xattrs.is_empty() {
            return Err(ArchiveError::needs_below(name));
        }
        let inode = image.find(name)?;
        // Those of them that the archive has removed again are no directories any more.
        if let Some(inode) = inode.filter(|inode| inode.extended.is_some()) {
            changes.push((inode, attributes));
        }
    }
    changes.iter().try_for_each(|(inode, attributes)| dress(file, inode, attributes))
}

/// What the directory `name` has below; None if there is none.
fn counterpart(
    below: &Below<'_>,
    name: &[u8],
    implied: &HashSet<&[u8]>,
) -> Result<Option<Attributes>> {
    let find = |name: &[u8]| {
        let fail = |errno| ArchiveError::io("open the layers below at", name, errno);
        below.find(name).map_err(fail)
    };
    match find(name)? {
        Some(found) if found.kind == Kind::Directory => return found.attributes(name).map(Some),
        Some(_) => return Err(ArchiveError::needs_below(name)),
        None => {}
    }
    // Something else on the way decides what the archive meant, unless the archive itself has put a
    // directory in its place.
    let ends = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for part in ends.map(|end| &name[..end]) {
        match find(part)? {
            Some(found) if found.kind == Kind::Directory => {}
            Some(_) if implied.contains(part) => return Err(ArchiveError::needs_below(name)),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Changes an inode in place.
fn dress(file: &File, inode: &Inode, wanted: &Attributes) -> Result<()> {
    let put = |at: u64, bytes: &[u8]| {
        let fail = |errno| ArchiveError::io("write the image at", b"", errno);
        write_all(file, bytes, inode.at + at).map_err(fail)
    };
    put(4, &(inode.mode & !0o7777 | wanted.mode).to_le_bytes())?;
    let mut owner_and_time = [0; 20];
    owner_and_time[..4].copy_from_slice(&wanted.uid.to_le_bytes());
    owner_and_time[4..8].copy_from_slice(&wanted.gid.to_le_bytes());
    owner_and_time[8..16].copy_from_slice(&wanted.mtime.seconds.to_le_bytes());
    owner_and_time[16..].copy_from_slice(&wanted.mtime.nanos.to_le_bytes());
    put(24, &owner_and_time)
}

fn not_ours() -> ArchiveError {
    ArchiveError::Malformed { offset: 0, what: "it is no image of a layer" }
}

/// An image of our own making.
struct Image<'a> {
    file: &'a File,
    /// Where the slots begin.
    meta: u64,
    root: u64,
}

/// An inode in it.
struct Inode {
    /// Where it begins.
    at: u64,
    mode: u16,
    size: u64,
    /// Whether its data are behind it, and where they are otherwise.
    is_inline: bool,
    block: u32,
    /// Bytes of it and its attributes.
    bytes: u64,
    /// All its fields, if it has all.
    extended: Option<[u8; EXTENDED]>,
}

impl<'a> Image<'a> {
    fn open(file: &'a File) -> Result<Self> {
        let image = Self { file, meta: 0, root: 0 };
        let mut bytes = [0; SUPER];
        image.read(SUPER_AT, &mut bytes)?;
        let found = Super::decode(&bytes).ok_or_else(not_ours)?;
        Ok(Self { file, meta: u64::from(found.meta) * BLOCK, root: u64::from(found.root) })
    }

    /// Fills `buffer`; beyond the end of the file are zeros.
    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match rustix::io::pread(self.file, &mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ArchiveError::io("read the image at", b"", errno)),
            }
        }
        Ok(())
    }

    fn inode(&self, slot: u64) -> Result<Inode> {
        let at = self.meta.saturating_add(slot.saturating_mul(SLOT));
        let mut bytes = [0; EXTENDED];
        self.read(at, &mut bytes)?;
        let format = u16_at(&bytes, 0);
        let is_extended = format & 1 != 0;
        let own = if is_extended { EXTENDED } else { COMPACT };
        let xattrs = match usize::from(u16_at(&bytes, 2)) {
            0 => 0,
            words => XATTR_HEADER + 4 * (words - 1),
        };
        Ok(Inode {
            at,
            mode: u16_at(&bytes, 4),
            size: if is_extended { u64_at(&bytes, 8) } else { u32_at(&bytes, 8).into() },
            is_inline: format >> 1 == 2,
            block: u32_at(&bytes, 16),
            bytes: (own + xattrs) as u64,
            extended: is_extended.then_some(bytes),
        })
    }

    /// The directory `path`; None if it is not there, or is something else.
    fn find(&self, path: &[u8]) -> Result<Option<Inode>> {
        let mut inode = self.inode(self.root)?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match self.look_up(&inode, name)? {
                Some(slot) => inode = self.inode(slot)?,
                None => return Ok(None),
            }
        }
        Ok((inode.mode & 0o170_000 == Kind::Directory.bits()).then_some(inode))
    }

    fn look_up(&self, dir: &Inode, name: &[u8]) -> Result<Option<u64>> {
        if dir.mode & 0o170_000 != Kind::Directory.bits() {
            return Ok(None);
        }
        let start = match dir.is_inline {
            true => dir.at + dir.bytes,
            false => u64::from(dir.block) * BLOCK,
        };
        if dir.size > DIRECTORY_BYTES {
            return Err(not_ours());
        }
        let mut block = [0; BLOCK as usize];
        let mut done = 0;
        while done < dir.size {
            let used = usize::try_from((dir.size - done).min(BLOCK)).unwrap_or(0);
            self.read(start + done, &mut block[..used])?;
            if let Some(slot) = search(&block[..used], name) {
                return Ok(Some(slot));
            }
            done += BLOCK;
        }
        Ok(None)
    }
}

/// Looks for a name in one block of a directory.
fn search(block: &[u8], name: &[u8]) -> Option<u64> {
    let count = usize::from(u16_at(block, 8)) / DIRENT;
    (0..count).find_map(|n| {
        let entry = block.get(n * DIRENT..(n + 1) * DIRENT)?;
        let start = usize::from(u16_at(entry, 8));
        let rest = block.get(start..)?;
        let length = match n + 1 < count {
            true => usize::from(u16_at(block, (n + 1) * DIRENT + 8)).checked_sub(start)?,
            false => rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len()),
        };
        (rest.get(..length)? == name).then(|| u64_at(entry, 0))
    })
}
