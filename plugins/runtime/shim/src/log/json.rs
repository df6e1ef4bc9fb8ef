//! One entry of the `json-file` format, byte for byte as the reference writes it.

use super::Stream;
use crate::clock::write_rfc3339_nano;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends `{"log":…,"stream":…,"attrs":…,"time":…}` and a newline.
pub(super) fn write_entry(
    out: &mut Vec<u8>,
    stream: Stream,
    line: &[u8],
    whole: bool,
    attrs: &str,
    at: u64,
) {
    out.extend_from_slice(b"{\"log\":\"");
    write_escaped(out, line);
    if whole {
        out.extend_from_slice(b"\\n");
    }
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.push(b'"');
    if !attrs.is_empty() {
        out.extend_from_slice(b",\"attrs\":");
        out.extend_from_slice(attrs.as_bytes());
    }
    out.extend_from_slice(b",\"time\":\"");
    write_rfc3339_nano(out, at);
    out.extend_from_slice(b"\"}\n");
}

/// Escapes as the reference's JSON log does: also `<`, `>`, `&` and the two line separators of
/// Unicode; bytes that are no UTF-8 become U+FFFD, one each.
fn write_escaped(out: &mut Vec<u8>, mut bytes: &[u8]) {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => return write_text(out, text),
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                write_text(out, std::str::from_utf8(valid).unwrap_or_default());
                out.extend_from_slice(b"\\ufffd");
                bytes = rest.get(1..).unwrap_or_default();
            }
        }
    }
}

/// Bytes that need a look: control characters, what is escaped, and the first byte of the two
/// separators.
static SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    let others = [b'"', b'\\', b'<', b'>', b'&', SEPARATOR];
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

/// First byte of U+2028 and U+2029, and of many harmless characters.
const SEPARATOR: u8 = 0xE2;

fn write_text(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| SPECIAL[usize::from(*byte)]) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        let (escaped, length) = escape(special);
        match escaped {
            Some(escaped) => out.extend_from_slice(escaped.as_bytes()),
            None => out.extend_from_slice(special.get(..length).unwrap_or_default()),
        }
        rest = special.get(length..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}

/// What the first character of `bytes` is written as, if it is not itself, and its length.
fn escape(bytes: &[u8]) -> (Option<String>, usize) {
    match bytes {
        [b'"', ..] => (Some("\\\"".to_owned()), 1),
        [b'\\', ..] => (Some("\\\\".to_owned()), 1),
        [b'\n', ..] => (Some("\\n".to_owned()), 1),
        [b'\r', ..] => (Some("\\r".to_owned()), 1),
        [SEPARATOR, 0x80, last @ (0xA8 | 0xA9), ..] => {
            (Some(format!("\\u202{}", char::from(HEX[usize::from(last & 0xF)]))), 3)
        }
        [SEPARATOR, ..] => (None, 1),
        [byte, ..] => {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xF)]];
            (Some(format!("\\u00{}", String::from_utf8_lossy(&digits))), 1)
        }
        [] => (None, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: &[u8], whole: bool, attrs: &str) -> String {
        let mut out = Vec::new();
        write_entry(&mut out, Stream::Stdout, line, whole, attrs, 1_700_000_000_120_000_000);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_entry_is_what_the_reference_writes() {
        assert_eq!(
            entry(b"hello", true, ""),
            "{\"log\":\"hello\\n\",\"stream\":\"stdout\",\"time\":\"2023-11-14T22:13:20.12Z\"}\n"
        );
        assert_eq!(
            entry(b"x", false, "{\"tag\":\"t\"}"),
            "{\"log\":\"x\",\"stream\":\"stdout\",\"attrs\":{\"tag\":\"t\"},\"time\":\"2023-11-14T22:13:20.12Z\"}\n"
        );
    }

    #[test]
    fn text_is_escaped_for_json_and_html() {
        for (raw, escaped) in [
            (&b"a\"b\\c"[..], "a\\\"b\\\\c"),
            (b"<&>", "\\u003c\\u0026\\u003e"),
            (b"\t\x1b[0m\r", "\\u0009\\u001b[0m\\r"),
            ("é\u{2028}\u{2029}z".as_bytes(), "é\\u2028\\u2029z"),
            (b"a\xffb\xe2\x80", "a\\ufffdb\\ufffd\\ufffd"),
            (b"\xe2\x80\xa6", "\u{2026}"),
            (b"\x7f", "\x7f"),
        ] {
            let mut out = Vec::new();
            write_escaped(&mut out, raw);
            assert_eq!(String::from_utf8(out).unwrap(), escaped);
        }
    }
}
