//! Files in memory, sealed against change.
//!
//! A sealed copy of a program can be executed by a container without the container ever holding a
//! writable way to the host's file (CVE-2019-5736), and a sealed message can be handed to another
//! process, which may map it without fear of it shrinking.
//!
//! Source: memfd_create(2), fcntl(2) `F_ADD_SEALS`.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Whether the file may be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executable {
    /// A program.
    Yes,
    /// Data.
    No,
}

/// Creates an empty file in memory that can be sealed. `name` is seen in `/proc/*/fd` only.
pub fn create(name: &str, executable: Executable) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let wanted = match executable {
        Executable::Yes => MemfdFlags::EXEC,
        Executable::No => MemfdFlags::NOEXEC_SEAL,
    };
    match memfd_create(name, flags | wanted) {
        // Before Linux 6.3 there are no such flags, and every file is executable.
        Err(Errno::INVAL) => memfd_create(name, flags),
        answer => answer,
    }
    .map_err(|errno| Error::new("create memory file", name, errno))
}

/// Seals the file for good: neither content nor size nor seals change any more.
pub fn seal(file: impl AsFd) -> Result<()> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(file, seals).map_err(|errno| Error::new("seal", "memory file", errno))
}

/// A sealed file with these bytes, positioned at its beginning.
pub fn sealed(name: &str, content: &[u8], executable: Executable) -> Result<OwnedFd> {
    let mut file = File::from(create(name, executable)?);
    file.write_all(content)
        .and_then(|()| file.rewind())
        .map_err(|error| Error::new("write memory file", name, error))?;
    seal(&file)?;
    Ok(file.into())
}

/// A sealed copy of the file at `path`, of at most `max` bytes, positioned at its beginning.
pub fn sealed_copy_of(path: &Path, max: u64, executable: Executable) -> Result<OwnedFd> {
    let failed = |error| Error::at("copy to memory", path, error);
    let source = File::open(path).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut copy = File::from(create(&name, executable)?);
    let mut bounded = std::io::Read::take(source, max.saturating_add(1));
    let length = std::io::copy(&mut bounded, &mut copy).map_err(failed)?;
    if length > max {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    copy.rewind().map_err(failed)?;
    seal(&copy)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_sealed_file_holds_its_bytes_and_refuses_others() {
        let mut file = File::from(sealed("test", b"bytes", Executable::No).unwrap());
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "bytes");
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
        assert!(fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).is_err());
    }

    #[test]
    fn a_program_runs_from_its_sealed_copy() {
        let copy = sealed_copy_of(Path::new("/bin/true"), 64 << 20, Executable::Yes).unwrap();
        let status = std::process::Command::new(crate::path::proc_fd(&copy)).status().unwrap();
        assert!(status.success());
        let error = sealed_copy_of(Path::new("/bin/true"), 10, Executable::Yes).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
    }
}
