//! PAX extension records: `"%d %s=%s\n"`, length first.
//!
//! Sources: POSIX.1-2017 *pax*, "pax Extended Header"; GNU tar manual, "Storing Sparse Files" and
//! "Extended attributes" (`SCHILY.xattr.`).

use std::collections::BTreeMap;

use crate::entry::{Entry, Kind, Run, Sparse, Time};
use crate::limits::XATTR_BYTES;

/// Records of one extended header; of equal keys the last one counts, except the repeated ones of
/// the oldest sparse format, which are kept in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse_runs: Vec<u64>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Records {
    /// From the data of an extended header.
    pub(crate) fn parse(mut data: &[u8]) -> Result<Self, &'static str> {
        let mut records = Self::default();
        while !data.is_empty() {
            let (key, value, rest) =
                record(data).ok_or("an extended header record is malformed")?;
            data = rest;
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    records.sparse_runs.push(decimal(value).ok_or("a sparse map is malformed")?);
                }
                _ => drop(records.values.insert(key.to_vec(), value.to_vec())),
            }
        }
        Ok(records)
    }

    fn get(&self, key: &str) -> Option<&[u8]> {
        // An empty value deletes the record (POSIX), so it is as good as absent.
        self.values.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    fn number(&self, key: &str) -> Result<Option<u64>, &'static str> {
        let malformed = "a number in an extended header is malformed";
        self.get(key).map(|value| decimal(value).ok_or(malformed)).transpose()
    }

    /// Lays the records over what the plain header said.
    pub(crate) fn apply(&self, entry: &mut Entry) -> Result<(), &'static str> {
        if let Some(name) = self.get("path") {
            entry.name = name.to_vec();
        }
        if let Some(link) = self.get("linkpath") {
            entry.link = link.to_vec();
        }
        let id =
            |n: u64| u32::try_from(n).map_err(|_| "an owner in an extended header is too large");
        if let Some(uid) = self.number("uid")? {
            entry.uid = id(uid)?;
        }
        if let Some(gid) = self.number("gid")? {
            entry.gid = id(gid)?;
        }
        if let Some(size) = self.number("size")? {
            entry.size = if entry.kind.has_data() { size } else { 0 };
        }
        if let Some(mtime) = self.get("mtime") {
            entry.mtime = time(mtime).ok_or("a time in an extended header is malformed")?;
        }
        for (key, value) in &self.values {
            let Some(name) = key.strip_prefix(XATTR) else { continue };
            if value.len() > XATTR_BYTES {
                return Err("an extended attribute is too large");
            }
            entry.xattrs.insert(name.to_vec(), value.clone());
        }
        Ok(())
    }

    /// The sparse map, when the records hold one. `Ok(None)`: not sparse, or a map that precedes
    /// the data (version 1.0, see [`Self::has_leading_map`]).
    pub(crate) fn sparse(&self, entry: &mut Entry) -> Result<Option<Sparse>, &'static str> {
        if entry.kind != Kind::File {
            return Ok(None);
        }
        let numbers = match self.get("GNU.sparse.map") {
            Some(map) => map
                .split(|byte| *byte == b',')
                .map(|n| decimal(n).ok_or("a sparse map is malformed"))
                .collect::<Result<Vec<_>, _>>()?,
            None if self.get("GNU.sparse.numblocks").is_some() => self.sparse_runs.clone(),
            None => return Ok(None),
        };
        self.rename(entry);
        let size = self.number("GNU.sparse.size")?.ok_or("a sparse file has no size")?;
        Ok(Some(Sparse { runs: runs(&numbers)?, size }))
    }

    /// The apparent size of a file whose sparse map precedes its data (version 1.0).
    pub(crate) fn has_leading_map(&self, entry: &mut Entry) -> Result<Option<u64>, &'static str> {
        if entry.kind != Kind::File || self.get("GNU.sparse.major") != Some(b"1") {
            return Ok(None);
        }
        self.rename(entry);
        self.number("GNU.sparse.realsize")?.ok_or("a sparse file has no size").map(Some)
    }

    /// A sparse member's `path` is a made-up one for readers that do not know the format.
    fn rename(&self, entry: &mut Entry) {
        if let Some(name) = self.get("GNU.sparse.name") {
            entry.name = name.to_vec();
        }
    }
}

/// Pairs of offset and length.
pub(crate) fn runs(numbers: &[u64]) -> Result<Vec<Run>, &'static str> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a sparse map is malformed");
    }
    Ok(pairs.iter().map(|[offset, length]| Run { offset: *offset, length: *length }).collect())
}

/// Splits off the first record: key, value, rest.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    let body = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    // A NUL would end the name early in some readers and not in others. Attributes are binary.
    let has_nul = key.contains(&0) || (!key.starts_with(XATTR) && value.contains(&0));
    (!key.is_empty() && !has_nul).then_some((key, value, &data[length..]))
}

/// Decimal digits, nothing else.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `[-]seconds[.fraction]`; digits past nanoseconds are dropped.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..9 {
            nanos = nanos * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
        }
    }
    Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos },
        (true, _) => Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// Appends one record; its length counts its own digits.
pub(crate) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3; // space, equals sign, line feed
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The `mtime` record's value.
pub(crate) fn format_time(time: Time) -> String {
    match (time.seconds < 0, time.nanos) {
        (_, 0) => time.seconds.to_string(),
        (false, nanos) => format!("{}.{nanos:09}", time.seconds),
        (true, nanos) => format!("-{}.{:09}", -(time.seconds + 1), 1_000_000_000 - nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_both_ways() {
        let cases = [
            ("0", 0, 0),
            ("1700000000.123456789", 1_700_000_000, 123_456_789),
            ("-1.500000000", -2, 500_000_000),
            ("-0.000000001", -1, 999_999_999),
            ("-7", -7, 0),
        ];
        for (text, seconds, nanos) in cases {
            let expected = Time { seconds, nanos };
            assert_eq!(time(text.as_bytes()), Some(expected), "{text}");
            assert_eq!(format_time(expected), text);
        }
        for text in ["", "-", "1.x", "1e5", "99999999999999999999"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn records_keep_their_length_and_refuse_damage() {
        for size in [0, 1, 5, 83, 84, 85, 86, 982, 983, 984, 985, 9981, 9982] {
            let mut data = Vec::new();
            push_record(&mut data, b"path", &vec![b'x'; size]);
            push_record(&mut data, b"uid", b"7");
            let records = Records::parse(&data).unwrap();
            assert_eq!(records.get("uid"), Some(&b"7"[..]), "{size}");
        }
        let damaged: [&[u8]; 6] =
            [b"5 a=b", b"99 a=b\n", b"0 a=b\n", b"x a=b\n", b"8 =abcd\n", b"9 path=\0\n"];
        for data in damaged {
            assert!(Records::parse(data).is_err(), "{}", data.escape_ascii());
        }
    }
}
