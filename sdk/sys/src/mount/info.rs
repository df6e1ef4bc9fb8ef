//! What is mounted where, as `/proc/self/mountinfo` tells it. Source: proc_pid_mountinfo(5).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::path::read_file_bounded;

/// A hundred thousand mounts, `fs.mount-max`, at a few hundred bytes each.
const MOUNTINFO_MAX: usize = 64 << 20;

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Id of the mount, unique while it exists.
    pub id: u64,
    /// Id of the mount it is attached to.
    pub parent: u64,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// The directory of the file system that forms the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted, as seen from the process's root.
    pub mount_point: PathBuf,
    /// Options of the mount, comma separated.
    pub options: String,
    /// Peer group, when the mount is shared.
    pub shared: Option<u64>,
    /// Peer group it receives events from.
    pub master: Option<u64>,
    /// Whether the mount refuses to be cloned.
    pub unbindable: bool,
    /// File system, with its subtype: `ext4`, `fuse.sshfs`.
    pub fs_type: String,
    /// Source, a device or whatever the file system was told.
    pub source: OsString,
    /// Options of the file system, comma separated.
    pub super_options: String,
}

impl MountInfo {
    /// Whether the file system has this option: `name`, or `name=` with any value.
    pub fn has_super_option(&self, name: &str) -> bool {
        let is_it = |option: &str| option.split('=').next() == Some(name);
        self.super_options.split(',').any(is_it)
    }
}

/// Reads the mounts of this thread's mount namespace, in the kernel's order.
pub fn read_mountinfo() -> Result<Vec<MountInfo>> {
    read_mountinfo_of(Path::new("/proc/thread-self/mountinfo"))
}

/// Reads another process's mounts from its `mountinfo` file.
pub fn read_mountinfo_of(file: &Path) -> Result<Vec<MountInfo>> {
    parse_mountinfo(&read_file_bounded(file, MOUNTINFO_MAX)?)
}

/// Parses the content of a `mountinfo` file.
///
/// # Errors
///
/// A line that does not have the documented form, quoted in the message.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<MountInfo>> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                Error::refused("parse mountinfo line", String::from_utf8_lossy(line), "malformed")
            })
        })
        .collect()
}

/// The mount that `path` lies on: the one mounted last on the longest prefix of `path`.
pub fn mount_of<'a>(mounts: &'a [MountInfo], path: &Path) -> Option<&'a MountInfo> {
    let candidates = mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
    candidates.max_by_key(|mount| mount.mount_point.components().count())
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = text(fields.next()?)?.split_once(':')?;
    let root = PathBuf::from(unescape(fields.next()?));
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let options = text(fields.next()?)?.to_owned();

    let (mut shared, mut master, mut unbindable) = (None, None, false);
    loop {
        // Optional fields of any number, of which new ones may appear, closed by a lone dash.
        match text(fields.next()?)? {
            "-" => break,
            "unbindable" => unbindable = true,
            tagged => match tagged.split_once(':') {
                Some(("shared", group)) => shared = Some(group.parse().ok()?),
                Some(("master", group)) => master = Some(group.parse().ok()?),
                _ => {}
            },
        }
    }
    Some(MountInfo {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        mount_point,
        options,
        shared,
        master,
        unbindable,
        fs_type: text(fields.next()?)?.to_owned(),
        // The source may be the empty string, and then the field is empty.
        source: unescape(fields.next()?),
        // Options may hold paths in any bytes; they are for reading, so a lossy copy will do.
        super_options: String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned(),
    })
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

fn number(field: &[u8]) -> Option<u64> {
    text(field)?.parse().ok()
}

/// Undoes the kernel's `\ooo` for space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> OsString {
    if !field.contains(&b'\\') {
        return OsStr::from_bytes(field).to_owned();
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        match digits.and_then(octal) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 new:field - ext3 \
                     /dev/root rw,errors=continue\n40 36 0:5 / /x ro unbindable - tmpfs  rw\n";
        let mounts = parse_mountinfo(text).unwrap();
        assert_eq!(mounts.len(), 2);
        let first = &mounts[0];
        assert_eq!((first.id, first.parent, first.device), (36, 35, (98, 0)));
        assert_eq!(first.mount_point, Path::new("/mnt 2"));
        assert_eq!((first.shared, first.master), (Some(7), Some(1)));
        assert!(first.has_super_option("errors") && !first.has_super_option("err"));
        assert!(mounts[1].unbindable);
        assert_eq!(mounts[1].source, "");
    }

    #[test]
    fn escapes_are_undone_and_everything_else_is_kept() {
        let cases: [(&[u8], &[u8]); 5] = [
            (b"a\\134b", b"a\\b"),
            (b"\\012\\011\\043", b"\n\t#"),
            (b"\\9zz", b"\\9zz"),
            (b"end\\04", b"end\\04"),
            (b"\\777", b"\\777"),
        ];
        for (escaped, plain) in cases {
            assert_eq!(unescape(escaped).as_bytes(), plain);
        }
    }

    #[test]
    fn malformed_lines_are_refused() {
        for line in
            ["", "1", "1 2 3 / / rw - x", "a b 0:1 / / rw - t s o", "1 2 0:1 / / rw shared:1"]
        {
            let answer = parse_mountinfo(format!("{line}\n").as_bytes());
            assert_eq!(answer.is_ok(), line.is_empty(), "{line}");
        }
    }

    #[test]
    fn the_mount_of_a_path_is_the_last_on_the_longest_prefix() {
        let text = b"1 0 8:1 / / rw - ext4 a rw\n2 1 0:2 / /var rw - tmpfs b rw\n\
                     3 2 0:3 / /var rw - tmpfs c rw\n4 1 0:4 / /variable rw - tmpfs d rw\n";
        let mounts = parse_mountinfo(text).unwrap();
        let id = |path: &str| mount_of(&mounts, Path::new(path)).map(|mount| mount.id);
        assert_eq!(id("/var/lib"), Some(3));
        assert_eq!(id("/vari"), Some(1));
    }

    #[test]
    fn this_machines_mounts_parse() {
        assert!(!read_mountinfo().unwrap().is_empty());
    }
}
