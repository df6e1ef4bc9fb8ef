//! Directories for this crate's tests.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};

/// A directory that is removed with the value.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    fd: OwnedFd,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        Self::beneath(&std::env::temp_dir(), name)
    }

    /// On a file system that overlayfs takes as an upper layer, and with holes.
    pub(crate) fn on_tmpfs(name: &str) -> Self {
        Self::beneath(Path::new("/dev/shm"), name)
    }

    fn beneath(parent: &Path, name: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("gantry-test-{name}-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let fd = open(&path);
        Self { path, fd }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn make(&self, name: &str) {
        std::fs::create_dir_all(self.path.join(name)).unwrap();
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let path = self.path.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn open(&self, name: &str) -> OwnedFd {
        open(&self.path.join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}
