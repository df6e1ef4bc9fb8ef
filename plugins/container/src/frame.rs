//! The frames that multiplex standard output and error on one stream.
//!
//! `[1|2, 0, 0, 0, length BE32]`, then data. Source: Docker Engine API, `POST
//! /containers/{id}/attach`, "Stream format".

/// Appends one frame.
pub fn push(to: &mut Vec<u8>, stderr: bool, data: &[u8]) {
    // Longer data than a frame can tell does not exist: lines are 16 KiB at most.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    to.extend_from_slice(&[if stderr { 2 } else { 1 }, 0, 0, 0]);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_frame_has_eight_bytes_of_head() {
        let mut bytes = Vec::new();
        super::push(&mut bytes, true, b"hi");
        assert_eq!(bytes, [2, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']);
    }
}
