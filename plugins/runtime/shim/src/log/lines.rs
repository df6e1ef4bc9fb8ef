//! Output cut into lines.

use crate::clock::now;

/// Longest piece of a line in one entry, as the reference has it (its copier's buffer).
const PIECE_MAX: usize = 16 << 10;

/// What of a stream is no whole line yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// At most [`PIECE_MAX`] bytes.
    rest: Vec<u8>,
    /// When the first piece of an unfinished line was seen: all its pieces carry that time.
    since: Option<u64>,
}

impl Lines {
    /// Takes output and calls `each` with every finished line (without its newline) or full piece,
    /// whether it ends its line, and its time in nanoseconds since the epoch.
    pub(super) fn feed(&mut self, mut data: &[u8], mut each: impl FnMut(&[u8], bool, u64)) {
        let at = now();
        while !data.is_empty() {
            let room = PIECE_MAX - self.rest.len();
            let window = data.get(..room.min(data.len())).unwrap_or(data);
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    let (line, after) = data.split_at(end);
                    let time = self.since.take().unwrap_or(at);
                    self.give(line, true, time, &mut each);
                    data = after.get(1..).unwrap_or_default();
                }
                None if window.len() == room => {
                    let (piece, after) = data.split_at(room);
                    let time = *self.since.get_or_insert(at);
                    self.give(piece, false, time, &mut each);
                    data = after;
                }
                None => {
                    self.rest.extend_from_slice(window);
                    data = &[];
                }
            }
        }
    }

    /// The stream has ended: what is left becomes a piece without a newline.
    pub(super) fn end(&mut self, mut each: impl FnMut(&[u8], bool, u64)) {
        if !self.rest.is_empty() {
            let time = self.since.take().unwrap_or_else(now);
            self.give(&[], false, time, &mut each);
        }
    }

    fn give(&mut self, more: &[u8], whole: bool, at: u64, each: &mut impl FnMut(&[u8], bool, u64)) {
        if self.rest.is_empty() {
            return each(more, whole, at);
        }
        self.rest.extend_from_slice(more);
        each(&self.rest, whole, at);
        // An idle container keeps no buffer.
        self.rest = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<(usize, bool)> {
        let mut lines = Lines::default();
        let mut got = Vec::new();
        for piece in pieces {
            lines.feed(piece, |line, whole, _| got.push((line.len(), whole)));
        }
        lines.end(|line, whole, _| got.push((line.len(), whole)));
        got
    }

    #[test]
    fn lines_are_cut_at_newlines_and_at_the_limit() {
        let long = vec![b'x'; PIECE_MAX];
        let longer = [&long[..], b"yy\n"].concat();
        assert_eq!(cut(&[b"a\nbc\n"]), [(1, true), (2, true)]);
        assert_eq!(cut(&[b"a", b"b\n", b"\n"]), [(2, true), (0, true)]);
        assert_eq!(cut(&[b"tail"]), [(4, false)]);
        assert_eq!(cut(&[&longer]), [(PIECE_MAX, false), (2, true)]);
        assert_eq!(cut(&[&long, b"\n"]), [(PIECE_MAX, false), (0, true)]);
        assert_eq!(cut(&[&long[1..], b"xx\n"]), [(PIECE_MAX, false), (1, true)]);
    }

    #[test]
    fn pieces_of_a_line_share_its_first_time() {
        let mut lines = Lines::default();
        let mut times = Vec::new();
        lines.feed(&vec![b'x'; PIECE_MAX + 1], |_, _, at| times.push(at));
        std::thread::sleep(std::time::Duration::from_millis(2));
        lines.feed(b"\nnext\n", |_, _, at| times.push(at));
        assert_eq!(times.len(), 3);
        assert_eq!(times[0], times[1]);
        assert!(times[2] > times[1]);
    }
}
