//! What an inode has besides its data, and how its extended attributes are written.

use std::collections::BTreeMap;

use gantry_archive::xattr::{ACCESS_ACL, DEFAULT_ACL, is_kept};
use gantry_archive::{ArchiveError, Entry, Result, Time};

use crate::disk::XATTR_HEADER;
use crate::tree::Kind;

/// Attributes of one inode together: the format counts their words in 16 bits.
const MOST_BYTES: usize = XATTR_HEADER + 4 * (u16::MAX as usize - 1);

/// What an inode has besides its data.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Encoded; empty for none.
    pub(crate) xattrs: Box<[u8]>,
}

impl Attributes {
    /// Owned by root, nothing special.
    pub(crate) fn plain(mode: u16, mtime: Time) -> Self {
        Self { mode, uid: 0, gid: 0, mtime, xattrs: Box::default() }
    }

    /// Those of a member that becomes a `kind`, and how many of its extended attributes do not
    /// travel.
    ///
    /// # Errors
    ///
    /// `Refused` for a malformed access list, and for more than an image can hold.
    pub(crate) fn of_entry(entry: &Entry, kind: Kind, path: &[u8]) -> Result<(Self, u64)> {
        let mode = (entry.mode & 0o7777) as u16;
        let mut attributes =
            Self { mode, uid: entry.uid, gid: entry.gid, ..Self::plain(mode, entry.mtime) };
        let skipped = attributes.set_xattrs(&entry.xattrs, kind, path)?;
        Ok((attributes, skipped))
    }

    /// Takes over the extended attributes that a `kind` can have.
    pub(crate) fn set_xattrs(
        &mut self,
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
        kind: Kind,
        path: &[u8],
    ) -> Result<u64> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        let mut out = Vec::new();
        let mut skipped = 0;
        for (name, value) in xattrs {
            if !is_kept(name) || !can_have(kind, name) {
                // A directory's list on something else is dropped without a word, as when unpacking.
                skipped += u64::from(name != DEFAULT_ACL);
                continue;
            }
            if name == ACCESS_ACL || name == DEFAULT_ACL {
                let parsed = parse_acl(value)
                    .ok_or_else(|| ArchiveError::refused(path, "its access list is malformed"))?;
                if name == ACCESS_ACL {
                    self.mode = self.mode & !0o777 | parsed.mode;
                    // It says no more than the mode does.
                    if parsed.is_minimal {
                        continue;
                    }
                }
            }
            encode(name, value, &mut out)
                .ok_or_else(|| ArchiveError::refused(path, "an extended attribute is too large"))?;
        }
        if XATTR_HEADER + out.len() > MOST_BYTES {
            return Err(ArchiveError::refused(path, "its extended attributes are too large"));
        }
        self.xattrs = out.into_boxed_slice();
        Ok(skipped)
    }
}

/// Whether the kernel lets a `kind` have the attribute. Source: xattr(7), acl(5).
fn can_have(kind: Kind, name: &[u8]) -> bool {
    let has_content = matches!(kind, Kind::File | Kind::Directory);
    match name {
        _ if name == DEFAULT_ACL => kind == Kind::Directory,
        _ if name == ACCESS_ACL => kind != Kind::Symlink,
        _ => has_content || !name.starts_with(b"user."),
    }
}

/// Appends one attribute; None if the format cannot hold it.
pub(crate) fn encode(name: &[u8], value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (index, rest) = match name {
        _ if name == ACCESS_ACL => (2, &[][..]),
        _ if name == DEFAULT_ACL => (3, &[][..]),
        _ => [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
            .into_iter()
            .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))?,
    };
    out.extend_from_slice(&[u8::try_from(rest.len()).ok()?, index]);
    out.extend_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    Some(())
}

/// What an access list says about the mode.
#[derive(Debug, PartialEq, Eq)]
struct Acl {
    mode: u16,
    /// Only owner, group and others.
    is_minimal: bool,
}

/// Reads an access list in the form of its extended attribute, as strictly as the kernel does.
/// Source: Linux, `include/uapi/linux/posix_acl_xattr.h`.
fn parse_acl(value: &[u8]) -> Option<Acl> {
    let (version, entries) = value.split_at_checked(4)?;
    if version != 2u32.to_le_bytes() || entries.len() % 8 != 0 {
        return None;
    }
    let (mut owner, mut group, mut others, mut mask) = (None, None, None, None);
    let mut is_minimal = true;
    let mut last = (0, 0);
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let bits = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let is_named = matches!(tag, 0x02 | 0x08);
        let order = (tag, if is_named { id } else { 0 });
        let fresh = match tag {
            0x01 => owner.replace(bits).is_none(),
            0x04 => group.replace(bits).is_none(),
            0x10 => mask.replace(bits).is_none(),
            0x20 => others.replace(bits).is_none(),
            _ => is_named,
        };
        if bits > 7 || !fresh || order.0 < last.0 {
            return None;
        }
        is_minimal &= !is_named && tag != 0x10;
        last = order;
    }
    if !is_minimal && mask.is_none() {
        return None;
    }
    let mode = owner? << 6 | mask.or(group)? << 3 | others?;
    group.map(|_| Acl { mode, is_minimal })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&bits.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    #[test]
    fn access_lists_are_understood_or_refused() {
        let any = u32::MAX;
        let minimal = acl(&[(1, 7, any), (4, 5, any), (0x20, 1, any)]);
        assert_eq!(parse_acl(&minimal), Some(Acl { mode: 0o751, is_minimal: true }));
        let named = acl(&[(1, 6, any), (2, 7, 1000), (4, 7, any), (0x10, 4, any), (0x20, 0, any)]);
        assert_eq!(parse_acl(&named), Some(Acl { mode: 0o640, is_minimal: false }));
        let bad = [
            Vec::new(),
            vec![1, 0, 0, 0],
            acl(&[(1, 7, any)]),
            acl(&[(1, 7, any), (2, 7, 1), (4, 7, any), (0x20, 0, any)]),
            acl(&[(1, 9, any), (4, 5, any), (0x20, 1, any)]),
            acl(&[(1, 7, any), (1, 7, any), (4, 5, any), (0x20, 1, any)]),
            acl(&[(4, 5, any), (1, 7, any), (0x20, 1, any)]),
            minimal[..minimal.len() - 1].to_vec(),
        ];
        for value in bad {
            assert_eq!(parse_acl(&value), None, "{value:?}");
        }
    }

    #[test]
    fn attributes_are_written_by_their_prefix() {
        let mut out = Vec::new();
        encode(b"user.a", b"xyz", &mut out).unwrap();
        assert_eq!(out, b"\x01\x01\x03\0axyz");
        out.clear();
        encode(b"system.posix_acl_default", b"v", &mut out).unwrap();
        assert_eq!(out, b"\0\x03\x01\0v\0\0\0");
        assert!(encode(b"system.other", b"", &mut out).is_none());
        assert!(encode(b"user.a", &[0; 65_536], &mut out).is_none());
    }
}
