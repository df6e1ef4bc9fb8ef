//! What building a specification asks about the host's files.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use gantry_sdk::{Error, Result};

/// Most devices that one request can bring in: a directory is taken with everything below it.
pub const MAX_DEVICES: usize = 4096;
/// How deep directories of devices are followed.
const MAX_DEPTH: u32 = 16;
/// The longest mount table that is read, bytes.
const MAX_MOUNT_TABLE: usize = 16 << 20;

/// The kind of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Block device.
    Block,
    /// Character device.
    Char,
    /// Named pipe.
    Pipe,
}

/// A device node of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Its path on the host.
    pub path: PathBuf,
    /// Its kind.
    pub kind: NodeKind,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What was found at a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DevicesAt {
    /// The path with all links followed.
    pub root: PathBuf,
    /// The device itself, or the devices below.
    pub nodes: Vec<DeviceNode>,
}

/// How the mount that holds a path spreads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// It sends mounts to its peers.
    pub is_shared: bool,
    /// It receives mounts from a master.
    pub is_slave: bool,
}

/// The questions. Implementations may block.
pub trait HostView {
    /// The device at `path`, a symbolic link followed, or all devices below it if it is a directory.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: nothing there, or no device.
    fn devices(&self, path: &str) -> Result<DevicesAt>;

    /// Every device of the host that a privileged container gets.
    ///
    /// # Errors
    ///
    /// `/dev` cannot be read.
    fn all_devices(&self) -> Result<Vec<DeviceNode>>;

    /// How the mount that holds `path` spreads.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: nothing there.
    fn sharing(&self, path: &Path) -> Result<Sharing>;
}

/// The host as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemView;

/// Below `/dev`, but no devices of the host: file systems of their own, and what a container gets
/// anew. Source: the reference engine.
const SKIPPED: [&str; 8] =
    ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"];

impl HostView for SystemView {
    fn devices(&self, path: &str) -> Result<DevicesAt> {
        let refuse = |why: &dyn std::fmt::Display| {
            Error::invalid(format!(
                "error gathering device information while adding custom device {path:?}: {why}"
            ))
        };
        let real = fs::canonicalize(path).map_err(|error| refuse(&error))?;
        let facts = fs::symlink_metadata(&real).map_err(|error| refuse(&error))?;
        if let Some(node) = node_of(&real, &facts) {
            return Ok(DevicesAt { root: real, nodes: vec![node] });
        }
        let mut found = Vec::new();
        if facts.is_dir() {
            collect(&real, 0, &|_| true, &mut found)?;
        }
        if found.is_empty() {
            return Err(refuse(&"not a device node"));
        }
        Ok(DevicesAt { root: real, nodes: found })
    }

    fn all_devices(&self) -> Result<Vec<DeviceNode>> {
        let mut found = Vec::new();
        let is_wanted = |name: &OsStr| !SKIPPED.iter().any(|skipped| name == *skipped);
        collect(Path::new("/dev"), 0, &is_wanted, &mut found)?;
        Ok(found)
    }

    fn sharing(&self, path: &Path) -> Result<Sharing> {
        let real = fs::canonicalize(path)
            .map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?;
        let table = fs::read("/proc/self/mountinfo")
            .map_err(|error| Error::io("read", "/proc/self/mountinfo", error))?;
        if table.len() > MAX_MOUNT_TABLE {
            return Err(Error::unsupported("the host's mount table is too long"));
        }
        find_mount(&table, &real)
            .ok_or_else(|| Error::invalid(format!("Can't find mount point of {}", path.display())))
    }
}

fn node_of(path: &Path, facts: &Metadata) -> Option<DeviceNode> {
    let kind = facts.file_type();
    let kind = if kind.is_block_device() {
        NodeKind::Block
    } else if kind.is_char_device() {
        NodeKind::Char
    } else if kind.is_fifo() {
        NodeKind::Pipe
    } else {
        return None;
    };
    let (major, minor) = split_device(facts.rdev());
    Some(DeviceNode {
        path: path.to_owned(),
        kind,
        major,
        minor,
        mode: facts.mode() & 0o7777,
        uid: facts.uid(),
        gid: facts.gid(),
    })
}

/// Takes a device number apart. Source: makedev(3).
fn split_device(device: u64) -> (i64, i64) {
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & 0xffff_f000);
    let minor = (device & 0xff) | ((device >> 12) & 0xffff_ff00);
    (i64::from(major as u32), i64::from(minor as u32))
}

/// Devices below `directory`, links not followed. What vanishes meanwhile is left out.
fn collect(
    directory: &Path,
    depth: u32,
    is_wanted: &dyn Fn(&OsStr) -> bool,
    found: &mut Vec<DeviceNode>,
) -> Result<()> {
    let entries =
        fs::read_dir(directory).map_err(|error| Error::io("read", directory.display(), error))?;
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        if depth == 0 && !is_wanted(&name) {
            continue;
        }
        let Ok(facts) = entry.metadata() else { continue };
        if facts.is_dir() && depth < MAX_DEPTH {
            collect(&entry.path(), depth + 1, is_wanted, found)?;
        } else if let Some(node) = node_of(&entry.path(), &facts) {
            found.push(node);
        }
        if found.len() > MAX_DEVICES {
            return Err(Error::invalid(format!(
                "{} holds more than {MAX_DEVICES} devices",
                directory.display()
            )));
        }
    }
    Ok(())
}

/// The last mount of the longest mount point above `path`. Source: proc_pid_mountinfo(5).
fn find_mount(table: &[u8], path: &Path) -> Option<Sharing> {
    let mut best: Option<Sharing> = None;
    for line in table.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let Some(mount_point) = fields.nth(4) else { continue };
        let mount_point = PathBuf::from(OsStr::from_bytes(&unescape(mount_point)));
        let longest = best.as_ref().map_or(0, |best| best.mount_point.as_os_str().len());
        if !path.starts_with(&mount_point) || mount_point.as_os_str().len() < longest {
            continue;
        }
        let optional = fields.skip(1).take_while(|field| *field != b"-");
        let mut sharing = Sharing { mount_point, ..Sharing::default() };
        for field in optional {
            sharing.is_shared |= field.starts_with(b"shared:");
            sharing.is_slave |= field.starts_with(b"master:");
        }
        best = Some(sharing);
    }
    best
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let digits = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) => {
                plain.push(value);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_counts() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            23 22 0:5 / /a rw master:3 - tmpfs t rw\n\
            24 22 0:5 / /a rw shared:4 master:3 - tmpfs t rw\n\
            25 22 0:6 / /b\\040c rw - tmpfs t rw\n\
            garbage\n";
        let find = |path: &str| find_mount(table, Path::new(path)).unwrap();
        let root = find("/ab");
        assert_eq!((root.mount_point.to_str(), root.is_shared), (Some("/"), true));
        let a = find("/a/x");
        assert_eq!((a.mount_point.to_str(), a.is_shared, a.is_slave), (Some("/a"), true, true));
        let blank = find("/b c/x");
        assert_eq!((blank.is_shared, blank.is_slave), (false, false));
    }

    #[test]
    fn real_devices_are_seen() {
        let null = SystemView.devices("/dev/null").unwrap().nodes;
        assert_eq!((null[0].kind, null[0].major, null[0].minor), (NodeKind::Char, 1, 3));
        let all = SystemView.all_devices().unwrap();
        assert!(all.iter().any(|node| node.path == Path::new("/dev/zero")));
        assert!(!all.iter().any(|node| node.path.starts_with("/dev/pts")));
        for path in ["/etc/hostname", "/proc/self", "/no/such/file"] {
            let error = SystemView.devices(path).unwrap_err().to_string();
            assert!(error.starts_with("error gathering device information"), "{error}");
        }
        assert!(SystemView.sharing(Path::new("/")).is_ok());
    }

    #[test]
    fn large_device_numbers() {
        assert_eq!(split_device(0x0103), (1, 3));
        assert_eq!(split_device(0x0010_0822), (8, 0x122));
    }
}
