//! Classic BPF, written from the end.
//!
//! Jumps only go forward, and a conditional one spans at most 255 instructions. Written backwards,
//! every target is known when the jump to it is written, so a target that is too far gets a long
//! jump (or a copy of the return) in between and nothing has to be patched.

use std::collections::HashMap;

/// The longest program the kernel takes. Source: `BPF_MAXINSNS` in `linux/bpf_common.h`.
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

/// Bytes of one `struct sock_filter`. Source: `linux/filter.h`.
pub(crate) const INSTRUCTION_BYTES: usize = 8;

/// How far a return may be away to be shared. Less than a jump's reach, because what jumps to it
/// is written later.
const SHARED_RETURN_REACH: usize = 192;

// Operation codes. Source: `linux/bpf_common.h`.
pub(crate) const LOAD_WORD: u16 = 0x20;
pub(crate) const AND: u16 = 0x54;
pub(crate) const JUMP: u16 = 0x05;
pub(crate) const JUMP_EQ: u16 = 0x15;
pub(crate) const JUMP_GT: u16 = 0x25;
pub(crate) const JUMP_GE: u16 = 0x35;
pub(crate) const RETURN: u16 = 0x06;

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) if_true: u8,
    pub(crate) if_false: u8,
    pub(crate) k: u32,
}

/// A place in the program, counted from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// The program so far, last instruction first.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    reversed: Vec<Instruction>,
    returns: HashMap<u32, Label>,
}

impl Assembler {
    /// A return of `value`: an earlier one if it is near enough.
    pub(crate) fn ret(&mut self, value: u32) -> Label {
        match self.returns.get(&value) {
            Some(label) if self.distance(*label) < SHARED_RETURN_REACH => *label,
            _ => {
                let label = self.push(RETURN, 0, 0, value);
                self.returns.insert(value, label);
                label
            }
        }
    }

    /// Loads the word at `offset` of `struct seccomp_data`, then goes on at `next`.
    pub(crate) fn load(&mut self, offset: u32, next: Label) -> Label {
        self.fall_through_to(next);
        self.push(LOAD_WORD, 0, 0, offset)
    }

    /// Masks the loaded word, then goes on at `next`.
    pub(crate) fn and(&mut self, mask: u32, next: Label) -> Label {
        self.fall_through_to(next);
        self.push(AND, 0, 0, mask)
    }

    /// Compares the loaded word with `k` by `code`, one of the conditional jumps.
    pub(crate) fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        if yes == no {
            return yes;
        }
        let (mut yes, mut no) = (yes, no);
        // A stepping stone for one side moves the other away by one: look at both until both fit.
        loop {
            match (u8::try_from(self.distance(yes)), u8::try_from(self.distance(no))) {
                (Ok(if_true), Ok(if_false)) => return self.push(code, if_true, if_false, k),
                (_, Err(_)) => no = self.stepping_stone(no),
                (Err(_), Ok(_)) => yes = self.stepping_stone(yes),
            }
        }
    }

    /// The program in the order of execution, as `struct sock_filter`s in the machine's byte order;
    /// `None` if it is longer than the kernel takes.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        if self.reversed.len() > MAX_INSTRUCTIONS {
            return None;
        }
        let mut bytes = Vec::with_capacity(self.reversed.len() * INSTRUCTION_BYTES);
        for instruction in self.reversed.iter().rev() {
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend([instruction.if_true, instruction.if_false]);
            bytes.extend(instruction.k.to_ne_bytes());
        }
        Some(bytes)
    }

    fn push(&mut self, code: u16, if_true: u8, if_false: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, if_true, if_false, k });
        Label(self.reversed.len() - 1)
    }

    /// What the instruction written next would have to skip to reach `target`.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - 1 - target.0
    }

    fn fall_through_to(&mut self, next: Label) {
        if self.distance(next) != 0 {
            self.stepping_stone(next);
        }
    }

    /// A place right here that leads to `target`.
    fn stepping_stone(&mut self, target: Label) -> Label {
        let at_target = self.reversed[target.0];
        if at_target.code == RETURN {
            let label = self.push(RETURN, 0, 0, at_target.k);
            self.returns.insert(at_target.k, label);
            return label;
        }
        // The program's length is checked at the end and far below the range of `k`.
        let distance = u32::try_from(self.distance(target)).unwrap_or(u32::MAX);
        self.push(JUMP, 0, 0, distance)
    }
}
