//! Names of members, made into paths beneath a root.

use crate::limits::{NAME_BYTES, PATH_BYTES};
use crate::{ArchiveError, Result};

/// A name's meaning: relative, `/`-separated, no empty, `.` or `..` component; empty is the root.
///
/// Cleaning is lexical, as the reference does it: `a/../b` is `b` whatever `a` is.
///
/// # Errors
///
/// [`ArchiveError::Refused`] for a name that leaves the root, holds a NUL, or is too long or deep.
pub fn clean(name: &[u8], depth: usize) -> Result<Vec<u8>> {
    if is_clean(name) && name.len() <= PATH_BYTES {
        let mut components = 0;
        let mut longest = 0;
        for part in name.split(|byte| *byte == b'/') {
            components += 1;
            longest = longest.max(part.len());
        }
        if components <= depth && longest <= NAME_BYTES {
            return Ok(name.strip_suffix(b"/").unwrap_or(name).to_vec());
        }
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts
                    .pop()
                    .ok_or_else(|| ArchiveError::refused(name, "it leaves the directory"))?;
            }
            _ if part.len() > NAME_BYTES => {
                return Err(ArchiveError::refused(name, "a component is too long"));
            }
            _ if part.contains(&0) => {
                return Err(ArchiveError::refused(name, "its name holds a NUL"));
            }
            _ => parts.push(part),
        }
    }
    if parts.len() > depth {
        return Err(ArchiveError::refused(name, "it is too deep"));
    }
    let path = parts.join(&b'/');
    if path.len() > PATH_BYTES {
        return Err(ArchiveError::refused(name, "its name is too long"));
    }
    Ok(path)
}

/// Whether cleaning changes nothing but a final slash; most names are like that.
fn is_clean(name: &[u8]) -> bool {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    !name.is_empty()
        && !name.contains(&0)
        && name.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

/// Directory and last component of a clean path.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// `dir` and `name` as one path.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The prefix of markers. Source: OCI image specification, "Whiteouts".
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// The marker of an opaque directory.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// The prefix of what AUFS kept for itself; such members mean nothing to others.
const AUFS: &[u8] = b".wh..wh.";

/// What a member's name says about the layers below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// Nothing: an ordinary member.
    None,
    /// This name is gone.
    Whiteout(&'a [u8]),
    /// Nothing of this directory shines through.
    Opaque,
    /// To be skipped.
    Ignored,
}

/// Reads the marker in a clean path.
///
/// # Errors
///
/// [`ArchiveError::Refused`] for a marker of nothing, of `.` or `..`, or one that is used as a
/// directory.
pub fn marker(path: &[u8]) -> Result<Marker<'_>> {
    let (dir, name) = split(path);
    if !path.windows(WHITEOUT.len()).any(|window| window == WHITEOUT) {
        return Ok(Marker::None);
    }
    let is_aufs = |part: &[u8]| part.starts_with(AUFS) && part != OPAQUE;
    if is_aufs(name) || dir.split(|byte| *byte == b'/').any(is_aufs) {
        return Ok(Marker::Ignored);
    }
    if dir.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT)) {
        return Err(ArchiveError::refused(path, "a deletion marker cannot be a directory"));
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Marker::None),
        Some(_) if name == OPAQUE => Ok(Marker::Opaque),
        Some(b"" | b"." | b"..") => {
            Err(ArchiveError::refused(path, "a deletion marker without a name"))
        }
        Some(hidden) => Ok(Marker::Whiteout(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_never_leave() {
        let cases: [(&str, Option<&str>); 12] = [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("/etc/passwd", Some("etc/passwd")),
            ("", Some("")),
            ("./", Some("")),
            ("/", Some("")),
            ("a/../b", Some("b")),
            ("a/..", Some("")),
            ("..", None),
            ("a/../../b", None),
            ("/../x", None),
            ("a\0b", None),
        ];
        for (name, expected) in cases {
            let cleaned = clean(name.as_bytes(), 16).ok();
            assert_eq!(cleaned.as_deref(), expected.map(str::as_bytes), "{name:?}");
        }
        assert!(clean("a/".repeat(17).as_bytes(), 16).is_err());
        assert!(clean(&[b'x'; 256], 16).is_err());
        assert!(clean("ab/".repeat(1400).as_bytes(), 4096).is_err());
    }

    #[test]
    fn markers_are_never_misread() {
        let cases: [(&str, Option<Marker<'_>>); 12] = [
            ("a/b", Some(Marker::None)),
            ("a/.why", Some(Marker::None)),
            ("a/x.wh.y", Some(Marker::None)),
            ("a/.wh.b", Some(Marker::Whiteout(b"b"))),
            ("a/.wh.wh", Some(Marker::Whiteout(b"wh"))),
            ("a/.wh..wh..opq", Some(Marker::Opaque)),
            (".wh..wh.plnk", Some(Marker::Ignored)),
            (".wh..wh.plnk/1.2", Some(Marker::Ignored)),
            ("a/.wh.", None),
            ("a/.wh..", None),
            ("a/.wh...", None),
            ("a/.wh.b/c", None),
        ];
        for (path, expected) in cases {
            assert_eq!(marker(path.as_bytes()).ok(), expected, "{path}");
        }
    }
}
