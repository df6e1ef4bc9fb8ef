//! Runs a program as the kernel would. Source: `linux/filter.h`, seccomp(2).

/// The facts of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) audit: u32,
    pub(super) number: u32,
    pub(super) args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.audit,
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[((offset - 16) / 8) as usize];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("load from {offset}"),
        }
    }
}

/// Instructions as (code, if true, if false, k).
pub(super) fn decode(bytes: &[u8]) -> Vec<(u16, u8, u8, u32)> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty());
    chunks
        .iter()
        .map(|c| {
            let code = u16::from_ne_bytes([c[0], c[1]]);
            (code, c[2], c[3], u32::from_ne_bytes([c[4], c[5], c[6], c[7]]))
        })
        .collect()
}

/// What the program answers, and after how many instructions.
pub(super) fn run(program: &[(u16, u8, u8, u32)], call: &Call) -> (u32, usize) {
    let (mut a, mut pc, mut steps) = (0_u32, 0_usize, 0_usize);
    loop {
        let (code, yes, no, k) = program[pc];
        steps += 1;
        pc += 1;
        let jump = |taken: bool| usize::from(if taken { yes } else { no });
        match code {
            0x20 => a = call.word(k),
            0x54 => a &= k,
            0x05 => pc += k as usize,
            0x15 => pc += jump(a == k),
            0x25 => pc += jump(a > k),
            0x35 => pc += jump(a >= k),
            0x45 => pc += jump(a & k != 0),
            0x06 => return (k, steps),
            _ => panic!("code {code:#x}"),
        }
    }
}
