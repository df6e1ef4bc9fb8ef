//! One header block: the fields of the old, ustar and GNU formats.
//!
//! Sources: POSIX.1-2017 *pax*, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

use crate::entry::{Kind, Time};

/// Headers and data come in blocks of this many bytes.
pub(crate) const BLOCK: usize = 512;

/// One block, not yet understood.
pub(crate) struct Block(pub(crate) [u8; BLOCK]);

/// Which of the dialects a header is written in; decides what its last fields mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Old,
    Ustar,
    Gnu,
}

impl Block {
    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Whether the checksum matches, counted with unsigned bytes or (old writers) signed ones.
    pub(crate) fn has_valid_checksum(&self) -> bool {
        let Some(stored) = octal(&self.0[148..156]) else { return false };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        stored == unsigned || stored == signed
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar\x0000" => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::Old,
        }
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Old | Dialect::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Option<u32> {
        number(&self.0[100..108]).and_then(|n| u32::try_from(n).ok())
    }

    pub(crate) fn uid(&self) -> Option<u32> {
        number(&self.0[108..116]).and_then(|n| u32::try_from(n).ok())
    }

    pub(crate) fn gid(&self) -> Option<u32> {
        number(&self.0[116..124]).and_then(|n| u32::try_from(n).ok())
    }

    pub(crate) fn size(&self) -> Option<u64> {
        number(&self.0[124..136]).and_then(|n| u64::try_from(n).ok())
    }

    pub(crate) fn mtime(&self) -> Option<Time> {
        number(&self.0[136..148]).map(|seconds| Time { seconds, nanos: 0 })
    }

    /// Major and minor number; zero where the dialect has none.
    pub(crate) fn device(&self) -> Option<(u32, u32)> {
        if self.dialect() == Dialect::Old {
            return Some((0, 0));
        }
        let field = |bytes| number(bytes).and_then(|n| u32::try_from(n).ok());
        Some((field(&self.0[329..337])?, field(&self.0[337..345])?))
    }

    /// The kind of a member, None for extension headers and unknown flags.
    pub(crate) fn kind(&self) -> Option<Kind> {
        Some(match self.type_flag() {
            b'\0' if self.name().ends_with(b"/") => Kind::Directory,
            b'\0' | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return None,
        })
    }
}

/// Up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A numeric field: octal digits, or base 256 when the first bit is set (GNU; two's complement).
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    let negative = first & 0x40 != 0;
    // The marker bit is not part of the value; the sign bit is extended into its place.
    let head = if negative { first } else { first & 0x7f };
    let mut value: i128 = i128::from(head.cast_signed());
    for byte in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
    }
    i64::try_from(value).ok()
}

/// Octal digits between spaces and NULs; an empty field is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let cases: [(&[u8], Option<i64>); 8] = [
            (b"0000644\0", Some(0o644)),
            (b"   755 \0", Some(0o755)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000648\0", None),
            (b"\x80\0\0\0\0\0\0\x2a", Some(42)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\xff\xff\xff\xfe", Some(0xffff_fffe)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field), expected, "{field:x?}");
        }
    }
}
