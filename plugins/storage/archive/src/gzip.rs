//! gzip (RFC 1952), one or more members, decompressed in place.
//!
//! The fastest decoder without foreign code at hand is one for zlib's framing; inside is the same
//! deflate. It gets the two bytes that zlib's begins with and no checksum to compare: gzip's own,
//! CRC-32 and length, are compared here. It reads ahead, up to [`AHEAD`] bytes beyond the four that
//! it takes for its checksum and that are ours: exactly as many where there was more input at hand,
//! and otherwise so many that both fields match.

use std::collections::VecDeque;
use std::io::{self, BufRead};

use crc32fast::Hasher as Crc;
use fdeflate::Decompressor;

/// The farthest that a match reaches back. Source: RFC 1951, 2.
pub(crate) const WINDOW: usize = 32 << 10;
/// Bytes that the decoder takes and does not need: its bit buffer holds 56 to 63 bits when it takes
/// the 32 of the checksum out.
const AHEAD: usize = 3;
/// Members of one stream. Tools that make files seekable begin one per file or per 64 KiB.
const MEMBERS: u64 = 4 << 20;
/// Bytes of a name or comment.
const TEXT: usize = 64 << 10;
/// A zlib header: deflate, a window of 32 KiB, no dictionary. Source: RFC 1950, 2.2.
const ZLIB: [u8; 2] = [0x78, 0x01];

/// Decompresses what `input` gives.
pub(crate) struct Gunzip<R> {
    input: R,
    /// Taken from `input` and not used yet.
    back: VecDeque<u8>,
    member: Option<Member>,
    members: u64,
}

/// A member being read.
struct Member {
    decoder: Decompressor,
    crc: Crc,
    bytes: u64,
    /// The last bytes that the decoder took.
    last: VecDeque<u8>,
    /// Whether there was more that it did not take.
    is_full: bool,
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: BufRead> Gunzip<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, back: VecDeque::new(), member: None, members: 0 }
    }

    /// Decompresses into `out` from `at` on, until it is full or the stream ends; returns where.
    /// The up to [`WINDOW`] bytes before `at` are those that were decompressed last.
    pub(crate) fn fill(&mut self, out: &mut [u8], mut at: usize) -> io::Result<usize> {
        while at < out.len() {
            let Some(member) = &mut self.member else {
                if !self.header()? {
                    break;
                }
                continue;
            };
            // Out of the decoder's sight: what an earlier member has left.
            let start = at - member.window();
            at += member.decode(&mut self.input, &mut self.back, &mut out[start..], at - start)?;
            if member.decoder.is_done() {
                self.trailer()?;
            }
        }
        Ok(at)
    }

    /// The next byte, None at the end.
    fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.peek()?;
        if self.back.pop_front().is_none() && byte.is_some() {
            self.input.consume(1);
        }
        Ok(byte)
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        match self.back.front() {
            Some(byte) => Ok(Some(*byte)),
            None => Ok(fill_buf(&mut self.input)?.first().copied()),
        }
    }

    /// Reads a member's header; false at the end of the stream. Source: RFC 1952, 2.3.
    fn header(&mut self) -> io::Result<bool> {
        let Some(first) = self.byte()? else { return Ok(false) };
        let mut crc = Crc::new();
        crc.update(&[first]);
        let mut next = |this: &mut Self| -> io::Result<u8> {
            let byte = this.byte()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            crc.update(&[byte]);
            Ok(byte)
        };
        let mut fixed = [first; 10];
        for byte in &mut fixed[1..] {
            *byte = next(self)?;
        }
        let [0x1f, 0x8b, 8, flags, ..] = fixed else {
            return Err(damaged("not a gzip header"));
        };
        if flags & 0xe0 != 0 {
            return Err(damaged("a gzip header has unknown flags"));
        }
        if flags & 4 != 0 {
            let length = u16::from_le_bytes([next(self)?, next(self)?]);
            for _ in 0..length {
                next(self)?;
            }
        }
        for text in [8, 16] {
            let mut bytes = 0;
            while flags & text != 0 && next(self)? != 0 {
                bytes += 1;
                if bytes > TEXT {
                    return Err(damaged("a text in a gzip header is too long"));
                }
            }
        }
        if flags & 2 != 0 {
            let expected = (crc.clone().finalize() & 0xffff).to_le_bytes();
            let found = [self.byte()?, self.byte()?];
            if found != [Some(expected[0]), Some(expected[1])] {
                return Err(damaged("the checksum of a gzip header is wrong"));
            }
        }
        self.members += 1;
        if self.members > MEMBERS {
            return Err(damaged("a gzip stream has too many members"));
        }
        self.member = Some(Member::new()?);
        Ok(true)
    }

    /// Compares checksum and length of the member that has ended, and leaves what the decoder took
    /// too much for the next. Source: RFC 1952, 2.3.1.
    fn trailer(&mut self) -> io::Result<()> {
        let Some(member) = self.member.take() else { return Ok(()) };
        let mut taken: Vec<u8> = member.last.into();
        let end = taken.len();
        for _ in 0..4 {
            taken.extend(self.byte()?);
        }
        let mut expected = member.crc.finalize().to_le_bytes().to_vec();
        // The length modulo 2^32.
        expected.extend_from_slice(&member.bytes.to_le_bytes()[..4]);
        let least = if member.is_full { AHEAD } else { 0 };
        for ahead in least..=AHEAD {
            let Some(start) = end.checked_sub(ahead + 4) else { break };
            if !taken[start..].starts_with(&expected) {
                continue;
            }
            // An empty member's fields are zeros, and may match at several places.
            let next = match taken.get(start + 8) {
                Some(byte) => Some(*byte),
                None => self.peek()?,
            };
            if member.is_full || matches!(next, None | Some(0x1f)) {
                for byte in taken.drain(start + 8..).rev() {
                    self.back.push_front(byte);
                }
                return Ok(());
            }
        }
        match taken.len() - end {
            4 => Err(damaged("the checksum of a gzip member is wrong")),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Member {
    fn new() -> io::Result<Self> {
        let mut decoder = Decompressor::new();
        decoder.ignore_adler32();
        decoder.read(&ZLIB, &mut [], 0, false).map_err(broken)?;
        Ok(Self { decoder, crc: Crc::new(), bytes: 0, last: VecDeque::new(), is_full: false })
    }

    /// Bytes of this member that a match may reach.
    fn window(&self) -> usize {
        usize::try_from(self.bytes).map_or(WINDOW, |bytes| bytes.min(WINDOW))
    }

    /// Decompresses the input at hand into `out` from `at` on; returns how much came out.
    fn decode(
        &mut self,
        input: &mut impl BufRead,
        back: &mut VecDeque<u8>,
        out: &mut [u8],
        at: usize,
    ) -> io::Result<usize> {
        let (taken, made) = if back.is_empty() {
            let data = fill_buf(input)?;
            let (taken, made) =
                self.decoder.read(data, out, at, data.is_empty()).map_err(broken)?;
            self.is_full = taken < data.len();
            self.remember(&data[..taken]);
            input.consume(taken);
            (taken, made)
        } else {
            let data = back.make_contiguous();
            let (taken, made) = self.decoder.read(data, out, at, false).map_err(broken)?;
            self.is_full = taken < data.len();
            self.remember(&data[..taken]);
            back.drain(..taken);
            (taken, made)
        };
        if (taken, made) == (0, 0) && !self.decoder.is_done() && at < out.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.crc.update(&out[at..at + made]);
        self.bytes += made as u64;
        Ok(made)
    }

    /// Keeps the bytes in which the trailer may begin.
    fn remember(&mut self, taken: &[u8]) {
        self.last.extend(&taken[taken.len().saturating_sub(AHEAD + 4)..]);
        let excess = self.last.len().saturating_sub(AHEAD + 4);
        self.last.drain(..excess);
    }
}

/// [`BufRead::fill_buf`], asked again when a signal came in between.
fn fill_buf(input: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    input.fill_buf()
}

fn broken(error: fdeflate::DecompressionError) -> io::Error {
    match error {
        fdeflate::DecompressionError::InsufficientInput => io::ErrorKind::UnexpectedEof.into(),
        error => io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the deflate stream is damaged: {error:?}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    fn gzip(data: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = flate2::GzBuilder::new()
            .filename("name")
            .comment("comment")
            .extra(vec![1, 2, 3])
            .write(Vec::new(), flate2::Compression::new(level));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Gives `input` in pieces, takes the output in chunks.
    fn gunzip(input: &[u8], piece: usize, chunk: usize) -> io::Result<Vec<u8>> {
        let mut decoder = Gunzip::new(io::BufReader::with_capacity(piece, input));
        let mut all = Vec::new();
        let mut out = vec![0; WINDOW + chunk];
        loop {
            let end = decoder.fill(&mut out, WINDOW)?;
            if end == WINDOW {
                return Ok(all);
            }
            all.extend_from_slice(&out[WINDOW..end]);
            out.copy_within(end - WINDOW..end, 0);
        }
    }

    fn reference(input: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        flate2::bufread::MultiGzDecoder::new(input).read_to_end(&mut all)?;
        Ok(all)
    }

    fn any_data() -> impl Strategy<Value = Vec<u8>> {
        let run = (any::<u8>(), 1usize..3000).prop_map(|(byte, n)| vec![byte; n]);
        let noise = prop::collection::vec(any::<u8>(), 0..600);
        let text = prop::collection::vec(prop::sample::select(b"abc \n".to_vec()), 0..2000);
        prop::collection::vec(prop_oneof![run, noise, text], 0..40).prop_map(|p| p.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn members_come_out_as_they_went_in(
            members in prop::collection::vec((any_data(), 0u32..10), 1..4),
            piece in 1usize..5000,
            chunk in 1usize..70_000,
        ) {
            let packed: Vec<u8> = members.iter().flat_map(|(d, l)| gzip(d, *l)).collect();
            let plain: Vec<u8> = members.into_iter().flat_map(|(data, _)| data).collect();
            prop_assert!(gunzip(&packed, piece, chunk).unwrap() == plain);
        }

        #[test]
        fn damage_is_judged_as_by_zlib(
            data in any_data(),
            level in 0u32..10,
            flips in prop::collection::vec((any::<usize>(), any::<u8>()), 0..3),
            cut in 0usize..30,
            piece in 1usize..5000,
        ) {
            let mut packed = gzip(&data, level);
            for (at, value) in flips {
                let at = at % packed.len();
                packed[at] = value;
            }
            packed.truncate(packed.len() - cut.min(packed.len()));
            let (ours, theirs) = (gunzip(&packed, piece, 4096), reference(&packed));
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} / {:?}", ours, theirs);
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                prop_assert!(ours == theirs);
            }
        }
    }

    #[test]
    fn empty_members_padding_and_far_matches() {
        let empty = gzip(b"", 6);
        for piece in 1..=empty.len() * 2 {
            let two = [&empty[..], &empty].concat();
            assert_eq!(gunzip(&two, piece, 10).unwrap(), b"", "{piece}");
            let three = [&two[..], &gzip(b"x", 6)].concat();
            assert_eq!(gunzip(&three, piece, 10).unwrap(), b"x", "{piece}");
            assert!(gunzip(&[&empty[..], &[0; 9]].concat(), piece, 10).is_err(), "{piece}");
        }
        // A match that reaches into the member before: fixed codes, "a", length 3 at distance 2.
        let first = gzip(b"secret", 6);
        let mut hostile = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
        hostile.extend([0x4b, 0x04, 0x22, 0x00, 0, 0, 0, 0, 0, 0, 0, 0]);
        let error = gunzip(&[first, hostile].concat(), 100, 100).unwrap_err();
        assert!(error.to_string().contains("TooFarBack"), "{error}");
    }
}
