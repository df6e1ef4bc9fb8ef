//! Where the archives of tests are unpacked.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_archive::{ExtractOptions, Result, Summary, Whiteouts, extract};
use rustix::fs::{Mode, OFlags};

/// A directory to unpack into, beside one that must stay as it is.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Self { dir }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn extract(&self, archive: &[u8], whiteouts: Whiteouts) -> Result<Summary> {
        let root = open(&self.root());
        let options = ExtractOptions { whiteouts, ..ExtractOptions::default() };
        extract(archive, root.as_fd(), &options)
    }

    /// Panics if anything beside the root changed.
    pub(crate) fn assert_outside_untouched(&self, what: &str) {
        let names: Vec<_> = std::fs::read_dir(self.dir.path().join("outside"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["secret"], "{what}");
        let secret = self.dir.path().join("outside/secret");
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret", "{what}");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(&secret).unwrap().nlink(), 1, "{what}");
        assert_eq!(std::fs::read_dir(self.dir.path()).unwrap().count(), 2, "{what}");
    }
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub(crate) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: needs root");
    }
    is_root
}
