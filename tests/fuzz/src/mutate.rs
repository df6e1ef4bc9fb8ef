//! Changes of inputs.

/// Values that have often been too much for somebody.
const EDGES: [u8; 8] = [0, 1, b'/', b'.', 0x7f, 0x80, 0xfe, 0xff];
/// Texts that mean something to what is tried here.
const WORDS: [&[u8]; 16] = [
    b"../",
    b"/",
    b".wh.",
    b".wh..wh..opq",
    b"ustar",
    b"18446744073709551615",
    b"-1",
    b"sha256:",
    b"\"digest\":",
    b"null",
    b"[[[[",
    b"{\"a\":",
    b"@",
    b":",
    b"\x1f\x8b\x08\x00",
    b"\xf0\x9f\x8f\x97",
];

/// Numbers that need not be secret, only many: xorshift*.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }

    /// One of `list`, which is not empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// One change of `input`; parts of `others` may get into it.
pub(crate) fn change(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let run = 1 + random.below(16);
    let end = (at + run).min(input.len());
    match random.below(9) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = *random.pick(&EDGES);
            }
        }
        2 => drop(input.drain(at..end)),
        3 => {
            let piece = input[at..end].to_vec();
            insert(input, at, &piece.repeat(1 + random.below(64)));
        }
        4 => {
            let word: &[u8] = random.pick::<&[u8]>(&WORDS);
            insert(input, at, word);
        }
        5 => {
            let word = *random.pick(&WORDS);
            for (byte, new) in input[at..].iter_mut().zip(word) {
                *byte = *new;
            }
        }
        6 => {
            let other = random.pick(others);
            let from = random.below(other.len() + 1);
            let to = from + random.below(other.len() - from + 1);
            insert(input, at, &other[from..to]);
        }
        // Whole blocks, as tar has them.
        7 => {
            let (block, other) = (at / 512 * 512, random.pick(others));
            let from = random.below(other.len() / 512 + 1) * 512;
            let to = (from + 512 * (1 + random.below(4))).min(other.len());
            insert(input, block, &other[from.min(to)..to]);
        }
        _ => input.truncate(at),
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}
