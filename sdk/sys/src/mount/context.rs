//! A file system that is being configured, before it is mounted.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick,
};

use crate::error::{Error, Result};

/// One message of the kernel is at most this long (`FC_LOG` entries are short sentences).
const MESSAGE_MAX: usize = 1024;

/// The kernel keeps eight messages per context (`struct fc_log`); reading stops there.
const MESSAGES_MAX: usize = 8;

/// A file-system context of `fsopen(2)`.
///
/// Every failure carries what the kernel wrote into the context's log, which is far more telling
/// than the error number alone (`EINVAL` means forty things in overlayfs).
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
    kind: String,
}

impl FsContext {
    /// Starts to configure a new instance of the file system `kind`.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the kernel does not know this file system. `EPERM`: no `CAP_SYS_ADMIN`.
    pub fn open(kind: &str) -> Result<Self> {
        let fd = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| Error::new("open file system", kind, errno))?;
        Ok(Self { fd, kind: kind.to_owned() })
    }

    /// Picks the file system behind a mount, to reconfigure it.
    pub fn pick(mount: impl AsFd, name: &str) -> Result<Self> {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let fd = fspick(mount, c"", flags)
            .map_err(|errno| Error::new("pick file system of", name, errno))?;
        Ok(Self { fd, kind: name.to_owned() })
    }

    /// Sets `key=value`. The kernel takes at most 255 bytes.
    pub fn set_string(&self, key: &str, value: impl AsRef<OsStr>) -> Result<()> {
        let answer = fsconfig_set_string(&self.fd, key, value.as_ref());
        answer.map_err(|errno| self.failed("set option of", key, errno))
    }

    /// Sets an option that takes no value.
    pub fn set_flag(&self, key: &str) -> Result<()> {
        let answer = fsconfig_set_flag(&self.fd, key);
        answer.map_err(|errno| self.failed("set option of", key, errno))
    }

    /// Sets an option to a descriptor.
    pub fn set_fd(&self, key: &str, value: impl AsFd) -> Result<()> {
        let answer = fsconfig_set_fd(&self.fd, key, value);
        answer.map_err(|errno| self.failed("set option of", key, errno))
    }

    /// Creates the file system instance from what was set.
    pub fn create(&self) -> Result<()> {
        fsconfig_create(&self.fd).map_err(|errno| self.failed("create", "", errno))
    }

    /// Changes the picked file system to what was set.
    pub fn reconfigure(&self) -> Result<()> {
        fsconfig_reconfigure(&self.fd).map_err(|errno| self.failed("reconfigure", "", errno))
    }

    /// Makes a detached mount of the created instance. It lives as long as the descriptor, or until
    /// it is attached.
    pub fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd> {
        fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| self.failed("mount", "", errno))
    }

    /// Takes the messages the kernel has written since the last call, joined by `; `.
    pub fn take_messages(&self) -> String {
        let mut messages = Vec::new();
        let mut buffer = [0; MESSAGE_MAX];
        for _ in 0..MESSAGES_MAX {
            // One read is one message; `ENODATA` says there is none left.
            let Ok(length) = rustix::io::read(&self.fd, &mut buffer) else { break };
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            // A message begins with its level: `e `, `w ` or `i `.
            let text = text.trim();
            let text =
                text.split_once(' ').filter(|(level, _)| level.len() == 1).map_or(text, |p| p.1);
            messages.push(text.to_owned());
        }
        messages.join("; ")
    }

    fn failed(&self, doing: &'static str, key: &str, errno: Errno) -> Error {
        let object = match key {
            "" => self.kind.clone(),
            key => format!("{}: {key}", self.kind),
        };
        Error::new(doing, object, errno).with_detail(self.take_messages())
    }
}

impl AsFd for FsContext {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
