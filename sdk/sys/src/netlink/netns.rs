//! Network namespaces, held by descriptor.
//!
//! Nothing is left in the file system: a namespace lives as long as a descriptor or a process holds
//! it, so a daemon that dies between creating one and starting a process in it leaks nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::{Error, IfName, LinkChange, Request, Route};

/// Which namespace: device and inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetNsId {
    device: u64,
    inode: u64,
}

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
}

impl NetNs {
    /// Creates a namespace with `lo` up.
    ///
    /// # Errors
    ///
    /// What unshare(2) reports: `EPERM`, `ENOSPC` (limit of namespaces), `ENOMEM`.
    pub fn new() -> Result<Self, Error> {
        Self::create(|_, _| Ok(())).map(|(netns, ())| netns)
    }

    /// Creates a namespace with `lo` up and runs `setup` inside it: on a thread of its own, which is
    /// in the new namespace, with a connection to its links.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and what `setup` returns.
    pub fn create<T, E>(
        setup: impl FnOnce(&Self, &mut Route) -> Result<T, E> + Send,
    ) -> Result<(Self, T), E>
    where
        T: Send,
        E: From<Error> + Send,
    {
        on_thread(|| {
            // SAFETY: CLONE_NEWNET changes what this thread sees of the network and nothing about
            // memory or descriptors; the thread ends right after.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| Error::os("create a network namespace", errno, None))?;
            let netns = Self::current()?;
            let mut inside = Route::open()?;
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            inside.apply(&[Request::Change((&IfName::new("lo")?).into(), up)])?;
            let made = setup(&netns, &mut inside)?;
            Ok((netns, made))
        })
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or no descriptor is free.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace behind a file such as `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    ///
    /// The file cannot be opened: the process is gone.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        match File::open(path) {
            Ok(file) => Ok(Self { fd: file.into() }),
            Err(error) => Err(Error::os(
                format!("open the network namespace {}", path.display()),
                errno_of(&error),
                None,
            )),
        }
    }

    /// Which namespace this is.
    ///
    /// # Errors
    ///
    /// What fstat(2) reports.
    pub fn id(&self) -> Result<NetNsId, Error> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|errno| Error::os("look at a network namespace", errno, None))?;
        Ok(NetNsId { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Runs `work` inside this namespace: [`in_netns`].
    ///
    /// # Errors
    ///
    /// As [`in_netns`].
    pub fn run<T: Send, E: From<Error> + Send>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        in_netns(self.fd.as_fd(), work)
    }

    /// A second handle to the same namespace.
    ///
    /// # Errors
    ///
    /// No descriptor is free.
    pub fn try_clone(&self) -> Result<Self, Error> {
        match self.fd.try_clone() {
            Ok(fd) => Ok(Self { fd }),
            Err(error) => {
                Err(Error::os("duplicate a namespace descriptor", errno_of(&error), None))
            }
        }
    }

    /// The descriptor, for a runtime that puts a process into the namespace.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for NetNs {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

/// Runs `work` on a thread of its own inside the namespace `netns`, and waits for it.
///
/// The caller's thread never changes its namespace, so a worker of an async runtime that calls this
/// (from a blocking section) is safe to be reused. A panic in `work` continues in the caller.
///
/// # Errors
///
/// `EINVAL`: `netns` is no network namespace; `EPERM`; and what `work` returns.
pub fn in_netns<T: Send, E: From<Error> + Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    on_thread(|| {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .map_err(|errno| Error::os("enter a network namespace", errno, None))?;
        work()
    })
}

fn on_thread<T: Send, E: From<Error> + Send>(
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(256 << 10)
            .spawn_scoped(scope, work);
        match spawned {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(error) => Err(Error::os("start a thread", errno_of(&error), None).into()),
        }
    })
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
