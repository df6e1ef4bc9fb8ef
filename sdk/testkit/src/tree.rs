//! Everything about a directory tree that layers must keep, in a form that can be compared.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

/// One entry, as text: type, mode, owner, time, and what is in it.
pub type Node = String;

/// Every entry below `root` and the top itself (as `.`), by escaped path.
///
/// # Errors
///
/// What the file system reported.
pub fn snapshot(root: &Path) -> io::Result<BTreeMap<String, Node>> {
    let mut nodes = BTreeMap::new();
    let mut first = HashMap::new();
    visit(root, b".", &mut nodes, &mut first)?;
    Ok(nodes)
}

type First = HashMap<(u64, u64), String>;

fn visit(
    path: &Path,
    name: &[u8],
    nodes: &mut BTreeMap<String, Node>,
    first: &mut First,
) -> io::Result<()> {
    let meta = path.symlink_metadata()?;
    let shown = name.escape_ascii().to_string();
    let kind = meta.file_type();
    let what = if kind.is_file() {
        let (size, hash) = (meta.len(), content_hash(path, meta.len())?);
        let id = (meta.dev(), meta.ino());
        match first.get(&id) {
            Some(other) => format!("link to {other}"),
            None => {
                first.insert(id, shown.clone());
                format!("file {size} {hash}")
            }
        }
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path)?.into_os_string().into_vec();
        format!("symlink {}", target.escape_ascii())
    } else if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_fifo() {
        "pipe".to_owned()
    } else if kind.is_socket() {
        "socket".to_owned()
    } else {
        let letter = if kind.is_char_device() { 'c' } else { 'b' };
        format!("device {letter} {:x}", meta.rdev())
    };
    let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
    let time = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
    nodes.insert(shown, format!("{what} {mode:04o} {uid}:{gid} {time}{}", xattrs(path)?));
    if kind.is_dir() {
        let mut names: Vec<_> =
            std::fs::read_dir(path)?.map(|e| Ok(e?.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        for child in names {
            let child_name = [name, b"/", child.as_bytes()].concat();
            visit(&path.join(&child), &child_name, nodes, first)?;
        }
    }
    Ok(())
}

/// Of the data; of holes only that they are zeros, so files of a terabyte can be compared.
fn content_hash(path: &Path, size: u64) -> io::Result<String> {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; 64 << 10];
    let mut at = 0;
    while at < size {
        match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => at = start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        }
        // Whole blocks of zeros are as good as holes.
        at -= at % 4096;
        let end = seek(&file, SeekFrom::Hole(at))?;
        while at < end {
            let n = file.read_at(&mut buf[..4096], at)?;
            if n == 0 {
                break;
            }
            if buf[..n].iter().any(|byte| *byte != 0) {
                hash.update(at.to_le_bytes());
                hash.update(&buf[..n]);
            }
            at += n as u64;
        }
    }
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// All attributes but those that overlayfs keeps for itself.
fn xattrs(path: &Path) -> io::Result<String> {
    let mut buf = vec![0; 64 << 10];
    let n = match rustix::fs::llistxattr(path, buf.as_mut_slice()) {
        Ok(n) => n,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    let mut names: Vec<&[u8]> = buf[..n].split(|byte| *byte == 0).collect();
    names.retain(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."));
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 64 << 10];
        let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice())?;
        text.push_str(&format!(" {}={}", name.escape_ascii(), value[..n].escape_ascii()));
    }
    Ok(text)
}

/// Panics with the differing lines only.
///
/// # Panics
///
/// If the two differ.
pub fn assert_same(a: &BTreeMap<String, Node>, b: &BTreeMap<String, Node>, what: &str) {
    let mut lines = Vec::new();
    for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
        if a.get(key) != b.get(key) {
            lines.push(format!("{key}\n  {:?}\n  {:?}", a.get(key), b.get(key)));
        }
    }
    assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
}
