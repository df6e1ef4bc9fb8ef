//! Btrfs subvolumes. Source: `linux/btrfs.h`, btrfs-subvolume(8).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::error::{Error, Result};
use crate::file::plain_name;

const BTRFS_IOC_SNAP_CREATE_V2: libc::c_ulong = 0x5000_9417;
const BTRFS_IOC_SUBVOL_CREATE_V2: libc::c_ulong = 0x5000_9418;

const BTRFS_SUBVOL_RDONLY: u64 = 1 << 1;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_kernels_size() {
        assert_eq!(size_of::<VolumeArgs>(), 4096);
    }

    #[test]
    fn elsewhere_than_on_btrfs_it_is_an_error() {
        let dir = crate::testing::Scratch::on_tmpfs("subvolume");
        let error = create_subvolume(dir.fd(), OsStr::new("x")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTTY));
        assert!(create_subvolume(dir.fd(), OsStr::new("../x")).is_err());
    }
}
