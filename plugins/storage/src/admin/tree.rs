//! Two directory trees side by side: everything that a layer must keep, entry by entry.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use gantry_sdk::{Error, Result};
use gantry_sys::file::data_ranges;
use gantry_sys::path::proc_fd;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, openat,
    readlinkat, statat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

/// The deepest tree that is compared: each level holds descriptors open.
const DEPTH: usize = 400;
/// Differences that are told one by one; the others are counted.
const TOLD: usize = 20;
/// What content is hashed by; holes and zeros are the same.
const BLOCK: usize = 4096;

/// Extended attributes by name.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a layer keeps of one entry, content aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: FileType,
    /// Permission bits; 0 for a symbolic link, which has none.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Of a regular file, otherwise 0.
    pub(crate) size: u64,
    /// Seconds and nanoseconds; none is not compared.
    pub(crate) mtime: Option<(i64, i64)>,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Target of a symbolic link.
    pub(crate) target: Vec<u8>,
    /// Those that travel in layers.
    pub(crate) xattrs: Xattrs,
}

impl Node {
    /// What of `found` is not as it is here, in words; empty if nothing.
    pub(crate) fn differences(&self, found: &Self) -> String {
        if self.kind != found.kind {
            return format!("is a {}, not a {}", word(found.kind), word(self.kind));
        }
        let mut words = Vec::new();
        let mut check = |is_same: bool, word: &'static str| {
            if !is_same {
                words.push(word);
            }
        };
        check(self.mode == found.mode, "mode");
        check(self.owner == found.owner, "owner");
        check(self.size == found.size, "size");
        check(self.mtime.is_none() || found.mtime.is_none() || self.mtime == found.mtime, "time");
        check(self.device == found.device, "device numbers");
        check(self.target == found.target, "target");
        check(self.xattrs == found.xattrs, "extended attributes");
        words.join(", ")
    }
}

const fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::Unknown => "thing",
    }
}

/// Whether an attribute belongs to the content of a layer, and not to the host.
fn travels(name: &[u8]) -> bool {
    let own = |space: &[u8], overlay: &[u8]| name.starts_with(space) && !name.starts_with(overlay);
    name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
        || own(b"user.", b"user.overlay.")
        || own(b"trusted.", b"trusted.overlay.")
}

/// Of the given attributes those that travel.
pub(crate) fn travelling(xattrs: &Xattrs) -> Xattrs {
    xattrs.iter().filter(|(name, _)| travels(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

fn failed(doing: &str, path: &[u8], error: impl Into<std::io::Error>) -> Error {
    Error::io(doing, show(path), error.into())
}

/// A path as people read it.
pub(crate) fn show(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Opens the top of a tree for reading; what mounts are handed around by cannot be read.
pub(crate) fn open_top(tree: impl AsFd) -> Result<OwnedFd> {
    open_dir(tree, b".", b"")
}

/// Opens a directory, following nothing.
pub(crate) fn open_dir(dir: impl AsFd, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).map_err(|e| failed("open", path, e))
}

/// The names in a directory, sorted.
pub(crate) fn names(dir: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let entries = Dir::read_from(dir).map_err(|e| failed("list", path, e))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| failed("list", path, e))?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads an entry; `.` is the directory itself. None if there is no such entry.
pub(crate) fn read(dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Option<Node>> {
    let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed("read", path, errno)),
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_link = kind == FileType::Symlink;
    let target = if is_link {
        readlinkat(dir, name, Vec::new()).map_err(|e| failed("read", path, e))?.into_bytes()
    } else {
        Vec::new()
    };
    Ok(Some(Node {
        kind,
        mode: if is_link { 0 } else { stat.st_mode & 0o7777 },
        owner: (stat.st_uid, stat.st_gid),
        size: size_of(kind, &stat),
        mtime: Some((stat.st_mtime, stat.st_mtime_nsec.cast_signed())),
        device: device_of(kind, &stat),
        target,
        xattrs: xattrs(dir, name).map_err(|e| failed("read the attributes of", path, e))?,
    }))
}

fn size_of(kind: FileType, stat: &Stat) -> u64 {
    let size = if kind == FileType::RegularFile { stat.st_size } else { 0 };
    u64::try_from(size).unwrap_or(0)
}

fn device_of(kind: FileType, stat: &Stat) -> (u32, u32) {
    match kind {
        FileType::CharacterDevice | FileType::BlockDevice => {
            (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
        }
        _ => (0, 0),
    }
}

/// The longest list of names and the longest value. Source: xattr(7).
const XATTR_BYTES: usize = 64 << 10;

fn xattrs(dir: &OwnedFd, name: &[u8]) -> Result<Xattrs, Errno> {
    let path = proc_fd(dir).join(OsStr::from_bytes(name));
    let mut found = Xattrs::new();
    // Most entries have none: a small buffer is enough for them.
    let mut list = vec![0; 256];
    let length = match rustix::fs::llistxattr(&path, list.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => return Ok(found),
        Err(Errno::RANGE) => {
            list.resize(XATTR_BYTES, 0);
            rustix::fs::llistxattr(&path, list.as_mut_slice())?
        }
        answer => answer?,
    };
    for key in list[..length].split(|byte| *byte == 0).filter(|name| travels(name)) {
        let mut value = vec![0; XATTR_BYTES];
        match rustix::fs::lgetxattr(&path, key, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                found.insert(key.to_vec(), value);
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Hashes content by blocks that are not zero, with their places: files with other holes and the
/// same content are equal, and a terabyte of holes costs nothing.
#[derive(Default)]
pub(crate) struct BlockHash {
    hash: Sha256,
    block: Vec<u8>,
    at: u64,
}

impl BlockHash {
    /// Content at `offset`; offsets ascend.
    pub(crate) fn write_at(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = usize::try_from(offset % BLOCK as u64).unwrap_or(0);
            let start = offset - within as u64;
            if start != self.at {
                self.flush();
                self.at = start;
            }
            let n = bytes.len().min(BLOCK - within);
            self.block.resize(within.max(self.block.len()), 0);
            self.block.extend_from_slice(&bytes[..n]);
            (offset, bytes) = (offset + n as u64, &bytes[n..]);
        }
    }

    fn flush(&mut self) {
        if self.block.iter().any(|byte| *byte != 0) {
            self.block.resize(BLOCK, 0);
            self.hash.update(self.at.to_le_bytes());
            self.hash.update(&self.block);
        }
        self.block.clear();
    }

    pub(crate) fn finish(mut self) -> [u8; 32] {
        self.flush();
        self.hash.finalize().into()
    }
}

/// The hash of a file's content.
pub(crate) fn hash_file(
    dir: &OwnedFd,
    name: &[u8],
    path: &[u8],
    cancel: &CancellationToken,
) -> Result<[u8; 32]> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).map_err(|e| failed("open", path, e))?;
    let size = rustix::fs::fstat(&file).map_err(|e| failed("read", path, e))?.st_size;
    let mut hash = BlockHash::default();
    let mut buf = vec![0; 128 << 10];
    for range in data_ranges(&file, u64::try_from(size).unwrap_or(0)) {
        let range = range.map_err(|e| failed("read", path, std::io::Error::other(e)))?;
        let (mut at, end) = range;
        while at < end {
            check(cancel)?;
            let most = usize::try_from(end - at).map_or(buf.len(), |n| n.min(buf.len()));
            let n = rustix::io::pread(&file, &mut buf[..most], at)
                .map_err(|e| failed("read", path, e))?;
            if n == 0 {
                break;
            }
            hash.write_at(at, &buf[..n]);
            at += n as u64;
        }
    }
    Ok(hash.finish())
}

/// Fails once nobody wants the result any more.
pub(crate) fn check(cancel: &CancellationToken) -> Result<()> {
    if cancel.is_cancelled() { Err(Error::unavailable("cancelled")) } else { Ok(()) }
}

/// What is not as it should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Differences {
    /// The first of them, as text.
    pub(crate) told: Vec<String>,
    /// How many there are.
    pub(crate) count: u64,
}

impl Differences {
    pub(crate) fn add(&mut self, path: &[u8], what: &str) {
        self.count += 1;
        if self.told.len() < TOLD {
            self.told.push(format!("{}: {what}", show(path)));
        }
    }
}

/// Compares the tree `new` with the tree `old`, after giving directories of `new` the attributes of
/// those of `old`, which an archive of changes does not always carry.
pub(crate) fn mend_and_compare(
    old: impl AsFd,
    new: impl AsFd,
    deep: bool,
    cancel: &CancellationToken,
) -> Result<Differences> {
    let (old, new) = (open_top(old)?, open_top(new)?);
    let mut pair = Pair { deep, cancel, found: Differences::default() };
    pair.directory(&old, &new, b"", 0)?;
    pair.itself(&old, &new, b".", b"")?;
    Ok(pair.found)
}

struct Pair<'a> {
    deep: bool,
    cancel: &'a CancellationToken,
    found: Differences,
}

impl Pair<'_> {
    fn directory(&mut self, old: &OwnedFd, new: &OwnedFd, path: &[u8], depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::invalid(format!("{} is too deep", show(path))));
        }
        check(self.cancel)?;
        let (wanted, there) = (names(old, path)?, names(new, path)?);
        for name in there.iter().filter(|name| wanted.binary_search(name).is_err()) {
            self.found.add(&join(path, name), "should not be there");
        }
        for name in &wanted {
            let child = join(path, name);
            let Some(node) = read(old, name, &child)? else { continue };
            if there.binary_search(name).is_err() {
                // An archive cannot hold a socket, and nobody listens on it any more.
                if node.kind != FileType::Socket {
                    self.found.add(&child, "is missing");
                }
                continue;
            }
            if node.kind == FileType::Directory && is_directory(new, name) {
                let (old, new) = (open_dir(old, name, &child)?, open_dir(new, name, &child)?);
                self.directory(&old, &new, &child, depth + 1)?;
            }
            self.itself(old, new, name, &child)?;
        }
        Ok(())
    }

    /// Compares one entry with its counterpart.
    fn itself(&mut self, old: &OwnedFd, new: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        let (Some(want), Some(mut have)) = (read(old, name, path)?, read(new, name, path)?) else {
            return Ok(());
        };
        let is_directory = want.kind == FileType::Directory && have.kind == FileType::Directory;
        if is_directory && want != have {
            let open = open_dir(new, name, path)?;
            mend(&open, &want, &have).map_err(|e| failed("mend", path, e))?;
            have = read(new, name, path)?.unwrap_or(have);
        }
        let differences = want.differences(&have);
        if !differences.is_empty() {
            self.found.add(path, &differences);
        } else if self.deep
            && want.kind == FileType::RegularFile
            && hash_file(old, name, path, self.cancel)? != hash_file(new, name, path, self.cancel)?
        {
            self.found.add(path, "content");
        }
        Ok(())
    }
}

fn is_directory(dir: &OwnedFd, name: &[u8]) -> bool {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Gives a directory the attributes `want`.
fn mend(dir: &OwnedFd, want: &Node, have: &Node) -> Result<(), Errno> {
    if want.owner != have.owner {
        let (uid, gid) = want.owner;
        rustix::fs::fchown(dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if (want.owner, want.mode) != (have.owner, have.mode) {
        rustix::fs::fchmod(dir, Mode::from_raw_mode(want.mode))?;
    }
    for (name, value) in &want.xattrs {
        if have.xattrs.get(name) != Some(value) {
            rustix::fs::fsetxattr(dir, name.as_slice(), value, XattrFlags::empty())?;
        }
    }
    for name in have.xattrs.keys().filter(|name| !want.xattrs.contains_key(*name)) {
        rustix::fs::fremovexattr(dir, name.as_slice())?;
    }
    if let Some((tv_sec, tv_nsec)) = want.mtime {
        let time = Timespec { tv_sec, tv_nsec };
        rustix::fs::futimens(dir, &Timestamps { last_access: time, last_modification: time })?;
    }
    Ok(())
}

/// Writes everything of the file system that a tree lies on to the disk.
pub(crate) fn sync(tree: impl AsFd) -> Result<()> {
    rustix::fs::syncfs(open_top(tree)?).map_err(|e| failed("sync", b"", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sys::file::{Time, set_times_at};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    fn open(path: &Path) -> OwnedFd {
        std::fs::File::open(path).unwrap().into()
    }

    fn tree(dir: &Path) {
        std::fs::create_dir_all(dir.join("d/e")).unwrap();
        std::fs::write(dir.join("d/f"), "content").unwrap();
        symlink("d/f", dir.join("link")).unwrap();
        let stamp = Time::At(1_000, 5);
        for (dir, name) in [(dir.join("d"), "f"), (dir.to_owned(), "link")] {
            set_times_at(open(&dir), OsStr::new(name), stamp, stamp).unwrap();
        }
    }

    fn compare(a: &Path, b: &Path, deep: bool) -> Vec<String> {
        let cancel = CancellationToken::new();
        mend_and_compare(open(a), open(b), deep, &cancel).unwrap().told
    }

    #[test]
    fn directories_are_mended_and_everything_else_is_told() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        tree(a.path());
        tree(b.path());
        let mode = std::fs::Permissions::from_mode(0o2750);
        std::fs::set_permissions(a.path().join("d/e"), mode).unwrap();
        assert_eq!(compare(a.path(), b.path(), true), Vec::<String>::new());
        let mended = std::fs::metadata(b.path().join("d/e")).unwrap();
        assert_eq!(mended.permissions().mode() & 0o7777, 0o2750);

        let stamp = Time::At(1_000, 5);
        std::fs::write(b.path().join("d/f"), "c0ntent").unwrap();
        set_times_at(open(&b.path().join("d")), OsStr::new("f"), stamp, stamp).unwrap();
        assert_eq!(compare(a.path(), b.path(), false), Vec::<String>::new());
        assert_eq!(compare(a.path(), b.path(), true), ["/d/f: content"]);
        std::fs::write(b.path().join("d/more"), "").unwrap();
        std::fs::remove_file(b.path().join("link")).unwrap();
        std::fs::create_dir(b.path().join("link")).unwrap();
        std::fs::remove_file(b.path().join("d/f")).unwrap();
        let expected = [
            "/d/more: should not be there",
            "/d/f: is missing",
            "/link: is a directory, not a symbolic link",
        ];
        assert_eq!(compare(a.path(), b.path(), true), expected);
    }

    #[test]
    fn holes_are_zeros() {
        let hash = |parts: &[(u64, &[u8])]| {
            let mut hash = BlockHash::default();
            parts.iter().for_each(|(at, bytes)| hash.write_at(*at, bytes));
            hash.finish()
        };
        let sparse = hash(&[(10_000, b"x")]);
        assert_eq!(sparse, hash(&[(0, &[0; 10_000]), (10_000, b"x")]));
        assert_eq!(sparse, hash(&[(4096, &[0; 5904]), (10_000, b"x"), (10_001, &[0; 9000])]));
        assert_ne!(sparse, hash(&[(10_001, b"x")]));
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        std::os::unix::fs::FileExt::write_at(&file, b"x", 10_000).unwrap();
        file.set_len(1 << 40).unwrap();
        let cancel = CancellationToken::new();
        assert_eq!(hash_file(&open(dir.path()), b"f", b"f", &cancel).unwrap(), sparse);
    }
}
