//! Lists of pieces, sound and hostile.

use std::fs::File;
use std::io::{self, Read};

use super::{file, gzip, segment};
use crate::tarsplit::{Assembly, Pieces, crc64};

fn assembled(text: &str) -> io::Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("a"), b"aaa")?;
    let list = gzip(text);
    let open = |name: &[u8]| File::open(dir.path().join(String::from_utf8_lossy(name).as_ref()));
    let mut out = Vec::new();
    Assembly::new(Pieces::new(&*list), open).read_to_end(&mut out)?;
    assert_eq!(Pieces::new(&*list).total()?, out.len() as u64);
    Ok(out)
}

#[test]
fn archives_are_segments_and_files_in_order() {
    let raw = r#"{"type":1,"name_raw":"YQ==","size":2,"payload":null,"position":9}"#;
    let text = segment(b"<") + &file("a", b"aaa") + &segment(b"") + raw + "\n" + &segment(b">");
    assert_eq!(assembled(&text).unwrap(), b"<aaaaa>");
    assert_eq!(assembled("").unwrap(), b"");
}

#[test]
fn damaged_lists_are_errors() {
    let huge = format!(r#"{{"type":1,"name":"a","size":{}}}"#, u64::MAX / 2);
    let cases = [
        "x",
        "{}",
        r#"{"type":3}"#,
        r#"{"type":2,"payload":"*"}"#,
        r#"{"type":1,"name_raw":"*","size":1}"#,
        r#"{"type":1,"name":"a","size":-1}"#,
        r#"{"type":1,"name":"a","size":4}"#,
        r#"{"type":1,"name":"missing","size":1}"#,
        huge.as_str(),
    ];
    for text in cases {
        assert!(assembled(text).is_err(), "{text}");
    }
    let cut = &gzip(&segment(b"abc"))[..20];
    assert!(Pieces::new(cut).total().is_err());
}

#[test]
fn a_line_without_an_end_is_not_read_whole() {
    let line = format!("{{\"type\":2,\"payload\":\"{}", "A".repeat(40 << 20));
    assert!(Pieces::new(&*gzip(&line)).total().is_err());
}

#[test]
fn checksums_are_those_of_the_standard() {
    // The check value of CRC-64/GO-ISO.
    assert_eq!(crc64(b"123456789".as_slice()).unwrap(), 0xb909_56c7_75a4_1001);
}
