//! Archives for tests, written by the `tar` crate or by hand, and what they unpack to.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_archive::{ExtractOptions, Result, Summary, Whiteouts, extract};
use rustix::fs::{Mode, OFlags};

/// One header by hand: the name is taken as it is, unlike the `tar` crate's setters do.
pub(crate) fn header(name: &[u8], flag: u8, size: u64, link: &[u8]) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name);
    old.linkname[..link.len()].copy_from_slice(link);
    old.linkflag = [flag];
    header.set_size(size);
    header.set_mode(if flag == b'5' { 0o755 } else { 0o644 });
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    header
}

/// An archive of members by hand.
#[derive(Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn raw(mut self, header: &tar::Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn member(self, name: &str, flag: u8, link: &str, data: &[u8]) -> Self {
        let header = header(name.as_bytes(), flag, data.len() as u64, link.as_bytes());
        self.raw(&header, data)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.member(name, b'5', "", b"")
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.member(name, b'0', "", data.as_bytes())
    }

    pub(crate) fn symlink(self, name: &str, to: &str) -> Self {
        self.member(name, b'2', to, b"")
    }

    pub(crate) fn hardlink(self, name: &str, to: &str) -> Self {
        self.member(name, b'1', to, b"")
    }

    /// PAX records for the next member.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(&header(b"pax", b'x', data.len() as u64, b""), &data)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

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
