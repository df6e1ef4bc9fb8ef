//! One line of the file: `{"log":"…","stream":"stdout","attrs":{…},"time":"…"}`.

use std::borrow::Cow;
use std::time::SystemTime;

use gantry_sdk::Labels;
use gantry_sdk::kinds::logs::LogLine;
use jiff::Timestamp;
use serde::Deserialize;

/// A line in whatever order and spelling JSON allows.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow, default)]
    log: Cow<'a, str>,
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(default)]
    attrs: Option<Labels>,
}

/// Decodes a line without its newline; none if it is damaged.
pub fn decode(line: &[u8]) -> Option<LogLine> {
    plain(line).or_else(|| any(line))
}

fn any(line: &[u8]) -> Option<LogLine> {
    let entry: Entry<'_> = serde_json::from_slice(line).ok()?;
    Some(LogLine {
        at: time(entry.time.as_bytes())?,
        stderr: entry.stream == "stderr",
        data: entry.log.into_owned().into_bytes(),
        attrs: entry.attrs.unwrap_or_default(),
    })
}

/// The form that nearly every line has, in one pass; none leaves it to [`any`].
fn plain(line: &[u8]) -> Option<LogLine> {
    let (data, rest) = string(line.strip_prefix(b"{\"log\":\"")?)?;
    let rest = rest.strip_prefix(b",\"stream\":\"std")?;
    let (stderr, rest) = match rest.strip_prefix(b"out") {
        Some(rest) => (false, rest),
        None => (true, rest.strip_prefix(b"err")?),
    };
    let stamp = rest.strip_prefix(b"\",\"time\":\"")?.strip_suffix(b"\"}")?;
    Some(LogLine { at: time(stamp)?, stderr, data, attrs: Labels::new() })
}

/// The content of a string up to its closing quote, and what follows.
fn string(mut text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut content = Vec::with_capacity(text.len().saturating_sub(64).clamp(16, 32 << 10));
    loop {
        let at = memchr::memchr2(b'"', b'\\', text)?;
        let (before, special) = text.split_at_checked(at)?;
        content.extend_from_slice(before);
        if *special.first()? == b'"' {
            return Some((content, special.get(1..)?));
        }
        let mut length = 2;
        match *special.get(1)? {
            b'n' => content.push(b'\n'),
            b'r' => content.push(b'\r'),
            b't' => content.push(b'\t'),
            b'b' => content.push(8),
            b'f' => content.push(12),
            other @ (b'"' | b'\\' | b'/') => content.push(other),
            b'u' => {
                let digits = std::str::from_utf8(special.get(2..6)?).ok()?;
                // Half of a surrogate pair is no character: left to the general decoder.
                let letter = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                content.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                length = 6;
            }
            _ => return None,
        }
        text = special.get(length..)?;
    }
}

/// The time of a line, without the rest of it.
pub fn time_of(line: &[u8]) -> Option<SystemTime> {
    decode(line).map(|line| line.at)
}

/// RFC 3339, in any zone.
fn time(text: &[u8]) -> Option<SystemTime> {
    let at: Timestamp = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(at.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_decoders_agree() {
        let lines = [
            r#"{"log":"hello\n","stream":"stdout","time":"2023-11-14T22:13:20.123456789Z"}"#,
            r#"{"log":"a\"b\\c\u003cd\u2028\ttab\n","stream":"stderr","time":"2023-11-14T22:13:20Z"}"#,
            r#"{"log":"","stream":"stdout","time":"2023-11-14T22:13:20+02:00"}"#,
            r#"{"log":"é😀\ufffd","stream":"stdout","time":"2023-11-14T22:13:20Z"}"#,
        ];
        for line in lines {
            let fast = plain(line.as_bytes()).unwrap();
            assert_eq!(fast, any(line.as_bytes()).unwrap(), "{line}");
        }
    }

    #[test]
    fn unusual_lines_are_understood() {
        let odd =
            br#"{"stream":"stderr","time":"2023-11-14T22:13:20Z","log":"x","attrs":{"a":"b"}}"#;
        let line = decode(odd).unwrap();
        assert!(line.stderr && line.data == b"x" && line.attrs["a"] == "b");
        let pair = br#"{"log":"\ud83d\ude00","stream":"stdout","time":"2023-11-14T22:13:20Z"}"#;
        assert_eq!(decode(pair).unwrap().data, "😀".as_bytes());
    }

    #[test]
    fn damaged_lines_are_none() {
        for line in [
            "",
            "{",
            r#"{"log":"x"#,
            r#"{"log":"x","stream":"stdout","time":"yesterday"}"#,
            r#"{"log":"\x","stream":"stdout","time":"2023-11-14T22:13:20Z"}"#,
            "\0\0\0\0",
        ] {
            assert_eq!(decode(line.as_bytes()), None, "{line}");
        }
    }
}
