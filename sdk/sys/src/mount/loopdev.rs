//! Files as block devices. Source: loop(4), `linux/loop.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Between learning of a free device and taking it, somebody else may have taken it.
const TRIES: u32 = 64;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A block device on a file.
///
/// The kernel takes it apart when nobody has it open and nothing on it is mounted any more, so the
/// value is to be kept until the mount is made, and may be dropped then.
#[derive(Debug)]
pub struct LoopDevice {
    device: OwnedFd,
    path: PathBuf,
}

impl LoopDevice {
    /// Makes a block device of `file`, which is open for reading, and for writing unless `read_only`.
    ///
    /// # Errors
    ///
    /// `ENOENT`: the kernel has no loop devices. `ENOSYS` or `EINVAL`: Linux before 5.8.
    pub fn attach(file: impl AsFd, read_only: bool) -> Result<Self> {
        let failed = |error: io::Error| Error::new("attach", "loop device", error);
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let control = rustix::fs::open("/dev/loop-control", flags, Mode::empty())
            .map_err(|errno| failed(errno.into()))?;
        for _ in 0..TRIES {
            let number = free_number(&control).map_err(failed)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
            let device = rustix::fs::open(&path, access | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| Error::at("open", &path, errno))?;
            match configure(&device, file.as_fd(), read_only) {
                Ok(()) => return Ok(Self { device, path }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(Error::at("configure", &path, error)),
            }
        }
        Err(failed(Errno::BUSY.into()))
    }

    /// Its path, which means this device for as long as the value or a mount of it lives.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn free_number(control: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: the command takes no argument and touches none of our memory.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

fn configure(device: &OwnedFd, file: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 },
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = file.as_raw_fd().unsigned_abs();
    let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the command reads one `struct loop_config`, whose layout `LoopConfig` has, from `config`,
    // which outlives the call; both descriptors are borrowed for it.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_size() {
        assert_eq!((size_of::<LoopInfo>(), size_of::<LoopConfig>()), (232, 304));
    }

    /// Runs as root only.
    #[test]
    fn root_a_device_shows_its_file_and_goes_with_its_last_user() {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: needs root and loop devices");
            return;
        }
        let dir = crate::testing::Scratch::new("loop");
        dir.write("image", &[7; 4096]);
        let device = LoopDevice::attach(dir.open("image"), true).unwrap();
        assert_eq!(std::fs::read(device.path()).unwrap(), vec![7; 4096]);
        let name = device.path().file_name().unwrap().to_owned();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        let is_ours = || {
            let file = std::fs::read_to_string(&backing).unwrap_or_default();
            Path::new(file.trim()) == dir.path().join("image")
        };
        assert!(is_ours());
        drop(device);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while is_ours() {
            assert!(std::time::Instant::now() < deadline, "the device stays");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
