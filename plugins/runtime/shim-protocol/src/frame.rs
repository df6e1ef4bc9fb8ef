//! Bytes of a packet and of a memfd.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of one packet. Well below the kernel's default send buffer, so a packet never fails
/// for its size.
pub const FRAME_MAX: usize = 64 << 10;

/// Most bytes of a memfd's content: a plan with a full seccomp program and a megabyte of arguments.
pub const MEMFD_MAX: usize = 8 << 20;

/// A message that could not be written or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The packet is shorter than its number.
    #[error("a message of {0} bytes is too short")]
    Short(usize),
    /// The message is bigger than a packet or a memfd may be.
    #[error("a message of {size} bytes is over the limit of {limit}")]
    Long {
        /// Bytes of the message.
        size: usize,
        /// Most bytes allowed.
        limit: usize,
    },
    /// The content is no message of this version.
    #[error("a message of this version was expected")]
    Content(#[source] postcard::Error),
}

/// Writes a packet: the number, then the message.
///
/// # Errors
///
/// The message does not fit a packet.
pub fn encode_frame(number: u32, message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let start = number.to_le_bytes().to_vec();
    let bytes = postcard::to_extend(message, start).map_err(FrameError::Content)?;
    bounded(bytes, FRAME_MAX)
}

/// Reads a packet. The number is returned even when the message is unknown, so that the answer can
/// name it.
///
/// # Errors
///
/// The packet has no number.
pub fn decode_frame<T: DeserializeOwned>(
    packet: &[u8],
) -> Result<(u32, Result<T, FrameError>), FrameError> {
    let (number, body) = packet.split_first_chunk().ok_or(FrameError::Short(packet.len()))?;
    let message = postcard::from_bytes(body).map_err(FrameError::Content);
    Ok((u32::from_le_bytes(*number), message))
}

/// Writes what travels in a memfd.
///
/// # Errors
///
/// It is bigger than [`MEMFD_MAX`].
pub fn encode_body(body: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    bounded(postcard::to_stdvec(body).map_err(FrameError::Content)?, MEMFD_MAX)
}

/// Reads what travelled in a memfd.
///
/// # Errors
///
/// It is no such thing.
pub fn decode_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    postcard::from_bytes(bytes).map_err(FrameError::Content)
}

fn bounded(bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, FrameError> {
    match bytes.len() {
        size if size > limit => Err(FrameError::Long { size, limit }),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Request, VERSION};

    #[test]
    fn a_frame_keeps_its_number_and_message() {
        let packet = encode_frame(7, &Request::Hello { version: VERSION }).unwrap();
        let (number, request) = decode_frame::<Request>(&packet).unwrap();
        assert_eq!(number, 7);
        assert_eq!(request.unwrap(), Request::Hello { version: VERSION });
    }

    #[test]
    fn an_unknown_message_still_has_a_number() {
        let (number, request) = decode_frame::<Request>(&[9, 0, 0, 0, 0xEE, 1, 2]).unwrap();
        assert_eq!(number, 9);
        assert!(matches!(request, Err(FrameError::Content(_))));
        assert!(matches!(decode_frame::<Request>(&[1, 2]), Err(FrameError::Short(2))));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_sent() {
        let long = Request::ExecKill { id: "x".repeat(FRAME_MAX), signal: 9 };
        assert!(matches!(encode_frame(1, &long), Err(FrameError::Long { .. })));
    }
}
