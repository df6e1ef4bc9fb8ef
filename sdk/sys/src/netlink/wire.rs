//! The netlink wire format: messages and attributes, written and read.
//!
//! Everything is aligned to four bytes. Lengths are checked on the way in, because a short or lying
//! length must end as an error and never as a slice panic.
//!
//! Source: netlink(7); Linux, `include/uapi/linux/netlink.h`.

/// Bytes in a message header.
pub(crate) const HEADER: usize = 16;

/// Flag: this is a request.
pub(crate) const REQUEST: u16 = 0x01;
/// Flag: answer with an error message, also for success.
pub(crate) const ACK: u16 = 0x04;
/// Flag: return everything that matches.
pub(crate) const DUMP: u16 = 0x300;
/// Flag: refuse if it exists.
pub(crate) const EXCL: u16 = 0x200;
/// Flag: create if it does not exist.
pub(crate) const CREATE: u16 = 0x400;
/// Flag in an answer: the table changed during the dump.
pub(crate) const DUMP_INTERRUPTED: u16 = 0x10;
/// Flag in an error: the payload of the request is left out.
pub(crate) const CAPPED: u16 = 0x100;
/// Flag in an error: attributes with an explanation follow.
pub(crate) const ACK_TLVS: u16 = 0x200;

/// Message type: result of a request.
pub(crate) const TYPE_ERROR: u16 = 2;
/// Message type: end of a dump.
pub(crate) const TYPE_DONE: u16 = 3;

const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Messages under construction.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    too_large: bool,
}

impl Writer {
    /// The bytes so far, or `None` if an attribute grew past what its length field can say.
    pub(crate) fn finish(&self) -> Option<&[u8]> {
        (!self.too_large).then_some(&self.bytes)
    }

    /// Appends one message whose payload `fill` writes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        fill: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.raw(&0_u32.to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        self.raw(&(flags | REQUEST).to_ne_bytes());
        self.raw(&sequence.to_ne_bytes());
        self.raw(&0_u32.to_ne_bytes()); // port 0: the kernel
        fill(self);
        match u32::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.too_large = true,
        }
        self.pad();
    }

    /// Appends bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        match u16::try_from(value.len() + 4) {
            Ok(length) => self.raw(&length.to_ne_bytes()),
            Err(_) => return self.too_large = true,
        }
        self.raw(&kind.to_ne_bytes());
        self.raw(value);
        self.pad();
    }

    /// Appends a NUL-terminated string attribute.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// Appends a 32-bit attribute in the machine's byte order.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// Appends an attribute whose value is the attributes `fill` writes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.nest_plain(kind | NESTED, fill);
    }

    /// Like [`nest`](Self::nest), without the flag: for attributes older than it.
    pub(crate) fn nest_plain(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.raw(&0_u16.to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        fill(self);
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.too_large = true,
        }
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

/// One message as received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits a datagram into messages. Ends early at the first impossible length.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// Splits attributes into kind (flags removed) and value. Ends early at the first impossible length.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of `kind`.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// Two bytes in the machine's order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Four bytes in the machine's order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// A string attribute up to its NUL. Bytes that are not UTF-8 are replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// What an error message (type 2) says: 0 or a positive errno, and the kernel's explanation.
pub(crate) fn outcome(message: &Message<'_>) -> (i32, Option<String>) {
    let code = u32_at(message.payload, 0).map_or(libc::EPROTO, |raw| -raw.cast_signed());
    if message.flags & ACK_TLVS == 0 {
        return (code, None);
    }
    // The request's header follows, and its payload unless the kernel was asked to leave it out.
    let original = match u32_at(message.payload, 4) {
        Some(length) if message.flags & CAPPED == 0 => length as usize,
        _ => HEADER,
    };
    let explained = message
        .payload
        .get(4 + align(original)..)
        .and_then(|rest| find(rest, 1)) // NLMSGERR_ATTR_MSG
        .map(text);
    (code, explained)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.message(7, ACK, 9, |w| {
            w.raw(&[1, 2, 3, 4]);
            w.string(1, "eth0");
            w.nest(2, |w| w.u32(3, 1500));
        });
        writer.message(8, 0, 10, |w| w.attribute(1, &[5]));
        let bytes = writer.finish().unwrap().to_vec();

        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (7, ACK | REQUEST, 9));
        let rest = &read[0].payload[4..];
        assert_eq!(find(rest, 1).map(text).as_deref(), Some("eth0"));
        assert_eq!(find(rest, 2).and_then(|n| find(n, 3)), Some(&1500_u32.to_ne_bytes()[..]));
        assert_eq!(find(read[1].payload, 1), Some(&[5][..]));
    }

    #[test]
    fn lying_lengths_end_the_walk() {
        let cases: [(&str, &[u8]); 4] = [
            ("empty", &[]),
            ("short header", &[20, 0, 0, 0, 2]),
            ("length below the header", &[4, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("length beyond the end", &[255, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (what, bytes) in cases {
            assert_eq!(messages(bytes).count(), 0, "{what}");
        }
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0, "an attribute shorter than its header");
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0, "an attribute beyond the end");
    }

    #[test]
    fn an_oversized_attribute_is_noticed() {
        let mut writer = Writer::default();
        writer.attribute(1, &vec![0; 70_000]);
        assert!(writer.finish().is_none());
    }
}
