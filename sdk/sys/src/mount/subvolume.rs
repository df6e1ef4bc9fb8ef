//! Btrfs subvolumes. Source: `linux/btrfs.h`, btrfs-subvolume(8).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::file::plain_name;
use crate::path::{Links, open_beneath};

const BTRFS_IOC_SYNC: libc::c_ulong = 0x9408;
const BTRFS_IOC_SNAP_DESTROY: libc::c_ulong = 0x5000_940F;
const BTRFS_IOC_INO_LOOKUP: libc::c_ulong = 0xD000_9412;
const BTRFS_IOC_SNAP_CREATE_V2: libc::c_ulong = 0x5000_9417;
const BTRFS_IOC_SUBVOL_CREATE_V2: libc::c_ulong = 0x5000_9418;
const BTRFS_IOC_SUBVOL_GETFLAGS: libc::c_ulong = 0x8008_9419;
const BTRFS_IOC_SUBVOL_SETFLAGS: libc::c_ulong = 0x4008_941A;
const BTRFS_IOC_QUOTA_CTL: libc::c_ulong = 0xC010_9428;
const BTRFS_IOC_QGROUP_CREATE: libc::c_ulong = 0x4010_942A;
const BTRFS_IOC_QGROUP_LIMIT: libc::c_ulong = 0x8030_942B;
const BTRFS_IOC_QUOTA_RESCAN_WAIT: libc::c_ulong = 0x942E;
const BTRFS_IOC_GET_SUBVOL_ROOTREF: libc::c_ulong = 0xD000_943D;

const BTRFS_SUBVOL_RDONLY: u64 = 1 << 1;
const BTRFS_QUOTA_CTL_ENABLE: u64 = 1;
const BTRFS_QGROUP_LIMIT_MAX_RFER: u64 = 1;

/// `BTRFS_FIRST_FREE_OBJECTID`: the inode number of every subvolume's top.
const TOP_INODE: u64 = 256;

/// `BTRFS_SUPER_MAGIC`.
const MAGIC: i64 = 0x9123_683E;

/// Subvolumes within subvolumes are removed that deep.
const NESTING_MAX: usize = 64;

/// `BTRFS_SUBVOL_NAME_MAX`, with the terminator within the 4040 bytes.
const NAME_SPACE: usize = 4040;

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_SPACE],
}

/// Makes the empty subvolume `name` in the directory `parent` (open for reading).
///
/// # Errors
///
/// `ENOTTY`: `parent` is not on Btrfs. `EEXIST`: there is something of this name.
pub fn create_subvolume(parent: impl AsFd, name: &OsStr) -> Result<()> {
    call(parent.as_fd(), None, name, 0, BTRFS_IOC_SUBVOL_CREATE_V2)
        .map_err(|error| Error::new("make subvolume", name.to_string_lossy(), error))
}

/// Makes `name` in `parent` (open for reading) a snapshot of the subvolume `source` (open for reading).
///
/// # Errors
///
/// `ENOTTY`: not on Btrfs. `EINVAL`: `source` is not the root of a subvolume. `EXDEV`: it is on another
/// file system.
pub fn snapshot_subvolume(
    parent: impl AsFd,
    name: &OsStr,
    source: impl AsFd,
    read_only: bool,
) -> Result<()> {
    let flags = if read_only { BTRFS_SUBVOL_RDONLY } else { 0 };
    call(parent.as_fd(), Some(source.as_fd()), name, flags, BTRFS_IOC_SNAP_CREATE_V2)
        .map_err(|error| Error::new("make snapshot", name.to_string_lossy(), error))
}

fn call(
    parent: BorrowedFd<'_>,
    source: Option<BorrowedFd<'_>>,
    name: &OsStr,
    flags: u64,
    command: libc::c_ulong,
) -> io::Result<()> {
    let plain = plain_name(name).map_err(io::Error::from)?;
    let mut args = Box::new(VolumeArgs {
        fd: source.map_or(0, |fd| i64::from(fd.as_raw_fd())),
        transid: 0,
        flags,
        unused: [0; 4],
        name: [0; NAME_SPACE],
    });
    let bytes = plain.as_bytes_with_nul();
    let space = args.name.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidFilename)?;
    space.copy_from_slice(bytes);
    // SAFETY: both commands read one `struct btrfs_ioctl_vol_args_v2` of 4096 bytes, whose layout
    // `VolumeArgs` has, and may write the transaction id into it; it is exclusively borrowed and
    // outlives the call. On other file systems the command is unknown and nothing is read.
    let answer = unsafe { libc::ioctl(parent.as_raw_fd(), command as _, &raw mut *args) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct NameArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct LookupArgs {
    tree: u64,
    inode: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct ReferenceArgs {
    from: u64,
    /// Tree of a subvolume beneath, and inode of the directory that it lies in.
    found: [[u64; 2]; 255],
    count: u8,
    pad: [u8; 7],
}

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct QuotaArgs {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct GroupArgs {
    create: u64,
    id: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct LimitArgs {
    id: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// One command with one structure.
///
/// # Safety
///
/// `T` is the structure that `command` reads or fills.
unsafe fn control<T>(fd: BorrowedFd<'_>, command: libc::c_ulong, args: &mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the type; it is exclusively borrowed and outlives the call. On
    // other file systems the command is unknown and nothing is touched.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), command as _, std::ptr::from_mut(args)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the file system that `file` lies on is Btrfs.
///
/// # Errors
///
/// What the kernel reported.
pub fn is_btrfs(file: impl AsFd) -> Result<bool> {
    let stat =
        rustix::fs::fstatfs(file).map_err(|errno| Error::new("examine", "file system", errno))?;
    // The type's width differs between machines.
    #[allow(clippy::unnecessary_cast, reason = "64 bits here, 32 elsewhere")]
    Ok(stat.f_type as i64 == MAGIC)
}

/// Whether the directory `dir` is the top of a Btrfs subvolume.
///
/// # Errors
///
/// What the kernel reported.
pub fn is_subvolume(dir: impl AsFd) -> Result<bool> {
    let stat =
        rustix::fs::fstat(&dir).map_err(|errno| Error::new("examine", "directory", errno))?;
    Ok(stat.st_ino == TOP_INODE && is_btrfs(dir)?)
}

/// Makes the subvolume `subvolume` (its top, open for reading) read-only, or writable again.
///
/// # Errors
///
/// `EINVAL`: it is not the top of a subvolume.
pub fn set_subvolume_read_only(subvolume: impl AsFd, read_only: bool) -> Result<()> {
    let failed = |e| Error::new("change", "flags of subvolume", e);
    let subvolume = subvolume.as_fd();
    let mut flags = 0u64;
    // SAFETY: the command fills 64 bits.
    unsafe { control(subvolume, BTRFS_IOC_SUBVOL_GETFLAGS, &mut flags) }.map_err(failed)?;
    let mut wanted = flags & !BTRFS_SUBVOL_RDONLY;
    if read_only {
        wanted |= BTRFS_SUBVOL_RDONLY;
    }
    if wanted == flags {
        return Ok(());
    }
    // SAFETY: the command reads 64 bits.
    unsafe { control(subvolume, BTRFS_IOC_SUBVOL_SETFLAGS, &mut wanted) }.map_err(failed)
}

/// Removes the subvolume `name` in `parent` (open for reading) with every subvolume within it, which
/// whoever could write into it may have made; nothing there is success. The file system frees the space
/// by and by.
///
/// # Errors
///
/// `EINVAL`: `name` is not a subvolume. `EBUSY`: it is mounted by itself. `EROFS`: `parent` is
/// read-only.
pub fn remove_subvolume(parent: impl AsFd, name: &OsStr) -> Result<()> {
    remove_with_nested(parent.as_fd(), name, 0)
        .map_err(|error| Error::new("remove subvolume", name.to_string_lossy(), error))
}

fn remove_with_nested(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    match destroy(parent, name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) && depth < NESTING_MAX => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        answer => return answer,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // Nothing can be taken out of a read-only one, and it goes anyway.
    set_subvolume_read_only(&top, false)?;
    for directory in directories_with_subvolumes(&top)? {
        let directory = open_beneath(&top, &directory, flags, Mode::empty(), Links::Refuse)?;
        for nested in subvolumes_in(&directory)? {
            remove_with_nested(directory.as_fd(), &nested, depth + 1)?;
        }
    }
    destroy(parent, name)
}

fn destroy(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let plain = plain_name(name).map_err(io::Error::from)?;
    let mut args = Box::new(NameArgs { fd: 0, name: [0; 4088] });
    let bytes = plain.as_bytes_with_nul();
    let space = args.name.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidFilename)?;
    space.copy_from_slice(bytes);
    // SAFETY: the command reads one `struct btrfs_ioctl_vol_args`, whose layout `NameArgs` has.
    unsafe { control(parent, BTRFS_IOC_SNAP_DESTROY, &mut *args) }
}

/// The directories, relative to `top`, in which other subvolumes lie. (Linux 4.18.)
fn directories_with_subvolumes(top: &OwnedFd) -> io::Result<Vec<PathBuf>> {
    let mut inodes = std::collections::BTreeSet::new();
    let mut args = Box::new(ReferenceArgs { from: 0, found: [[0; 2]; 255], count: 0, pad: [0; 7] });
    loop {
        // SAFETY: the command reads and fills one `struct btrfs_ioctl_get_subvol_rootref_args`, whose
        // layout `ReferenceArgs` has.
        let answer = unsafe { control(top.as_fd(), BTRFS_IOC_GET_SUBVOL_ROOTREF, &mut *args) };
        let is_last = match answer {
            Ok(()) => true,
            // There are more than fit.
            Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => false,
            Err(error) => return Err(error),
        };
        inodes.extend(args.found.iter().take(args.count.into()).map(|[_, inode]| *inode));
        if is_last || args.count == 0 {
            break;
        }
    }
    inodes.into_iter().map(|inode| path_of_inode(top, inode)).collect()
}

fn path_of_inode(top: &OwnedFd, inode: u64) -> io::Result<PathBuf> {
    let mut args = Box::new(LookupArgs { tree: 0, inode, name: [0; 4080] });
    // SAFETY: the command reads and fills one `struct btrfs_ioctl_ino_lookup_args`, whose layout
    // `LookupArgs` has.
    unsafe { control(top.as_fd(), BTRFS_IOC_INO_LOOKUP, &mut *args) }?;
    let length = args.name.iter().position(|byte| *byte == 0).unwrap_or(args.name.len());
    let name = args.name.get(..length).unwrap_or_default();
    Ok(PathBuf::from(OsStr::from_bytes(name)))
}

fn subvolumes_in(directory: &OwnedFd) -> io::Result<Vec<std::ffi::OsString>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statat(directory, name, flags) {
            Ok(stat) if stat.st_ino == TOP_INODE => found.push(name.to_owned()),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found)
}

/// Has the file system of `file` begin to take removed subvolumes apart now, which it does half a minute
/// later otherwise. Does not wait for the end of that.
///
/// # Errors
///
/// `ENOTTY`: not on Btrfs.
pub fn hurry_removed_subvolumes(file: impl AsFd) -> Result<()> {
    // SAFETY: the command takes no structure and ignores its argument.
    unsafe { control(file.as_fd(), BTRFS_IOC_SYNC, &mut 0u64) }
        .map_err(|error| Error::new("sync", "file system", error))
}

/// The number of the subvolume that `file`, open for reading, lies in.
///
/// # Errors
///
/// `ENOTTY`: not on Btrfs.
pub fn subvolume_id(file: impl AsFd) -> Result<u64> {
    let mut args = Box::new(LookupArgs { tree: 0, inode: TOP_INODE, name: [0; 4080] });
    // SAFETY: the command reads and fills one `struct btrfs_ioctl_ino_lookup_args`, whose layout
    // `LookupArgs` has.
    unsafe { control(file.as_fd(), BTRFS_IOC_INO_LOOKUP, &mut *args) }
        .map_err(|error| Error::new("read", "number of subvolume", error))?;
    Ok(args.tree)
}

/// Limits the bytes that the subvolume `subvolume` (open for reading) may refer to, shared ones
/// included; 0 is no limit. Quotas are enabled on the file system if they are not, which reads its
/// metadata once.
///
/// # Errors
///
/// `ENOTTY`: not on Btrfs. `EPERM`: no privilege.
pub fn limit_subvolume(subvolume: impl AsFd, bytes: u64) -> Result<()> {
    let subvolume = subvolume.as_fd();
    let failed = |e| Error::new("limit", "subvolume", e);
    let id = subvolume_id(subvolume)?;
    let mut args = LimitArgs {
        id,
        flags: BTRFS_QGROUP_LIMIT_MAX_RFER,
        max_referenced: if bytes == 0 { u64::MAX } else { bytes },
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: the command reads one `struct btrfs_ioctl_qgroup_limit_args`, whose layout `LimitArgs`
    // has.
    match unsafe { control(subvolume, BTRFS_IOC_QGROUP_LIMIT, &mut args) } {
        Ok(()) => return Ok(()),
        Err(error) => match error.raw_os_error() {
            // No quotas yet, or no group: it was made while there were none.
            Some(libc::ENOTCONN | libc::ENOENT | libc::EINVAL) => {}
            _ => return Err(failed(error)),
        },
    }
    let mut enable = QuotaArgs { command: BTRFS_QUOTA_CTL_ENABLE, status: 0 };
    // SAFETY: the command reads one `struct btrfs_ioctl_quota_ctl_args`, whose layout `QuotaArgs` has.
    match unsafe { control(subvolume, BTRFS_IOC_QUOTA_CTL, &mut enable) } {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    // SAFETY: the command takes no structure and ignores its argument.
    unsafe { control(subvolume, BTRFS_IOC_QUOTA_RESCAN_WAIT, &mut 0u64) }.map_err(failed)?;
    // SAFETY: as above.
    unsafe { control(subvolume, BTRFS_IOC_QGROUP_LIMIT, &mut args) }.map_err(failed)
}

/// Forgets the limit and the counters of the removed subvolume `id` on the file system of `file`;
/// nothing there is success.
///
/// # Errors
///
/// `EBUSY`: the file system still takes the subvolume apart.
pub fn forget_subvolume_limit(file: impl AsFd, id: u64) -> Result<()> {
    let mut args = GroupArgs { create: 0, id };
    // SAFETY: the command reads one `struct btrfs_ioctl_qgroup_create_args`, whose layout `GroupArgs`
    // has.
    match unsafe { control(file.as_fd(), BTRFS_IOC_QGROUP_CREATE, &mut args) } {
        Ok(()) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTCONN | libc::EINVAL) => Ok(()),
            _ => Err(Error::new("forget", format!("limit of subvolume {id}"), error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        let sizes = [
            size_of::<VolumeArgs>(),
            size_of::<NameArgs>(),
            size_of::<LookupArgs>(),
            size_of::<ReferenceArgs>(),
        ];
        assert_eq!(sizes, [4096; 4]);
        assert_eq!(size_of::<LimitArgs>(), 48);
    }

    #[test]
    fn elsewhere_than_on_btrfs_it_is_an_error() {
        let dir = crate::testing::Scratch::on_tmpfs("subvolume");
        let error = create_subvolume(dir.fd(), OsStr::new("x")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTTY));
        assert!(create_subvolume(dir.fd(), OsStr::new("../x")).is_err());
    }
}
