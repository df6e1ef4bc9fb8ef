//! Device rules: what a list of them means, and the program that enforces it on v2.
//!
//! The meaning is that of the v1 devices controller: a rule for all devices sets the default and
//! forgets what came before; any other rule is an exception to the default, or takes one back.
//!
//! Source: the kernel's `admin-guide/cgroup-v1/devices.rst`, `security/device_cgroup.c`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// More rules than this are refused; the program would exceed 4096 instructions, the limit of old
/// kernels.
const RULES_MAX: usize = 500;

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DeviceKind {
    /// All devices; numbers and access do not matter.
    #[default]
    #[serde(rename = "a")]
    All,
    /// Character devices. The specification's `u`, an unbuffered one, is the same.
    #[serde(rename = "c", alias = "u")]
    Char,
    /// Block devices.
    #[serde(rename = "b")]
    Block,
}

/// What may be done: any of read, write, mknod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Make a node.
    pub mknod: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, mknod: true };

    /// `BPF_DEVCG_ACC_MKNOD`, `_READ`, `_WRITE`.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }

    #[cfg(test)]
    fn from_bits(bits: i32) -> Self {
        Self { mknod: bits & 1 != 0, read: bits & 2 != 0, write: bits & 4 != 0 }
    }
}

impl Default for Access {
    /// The specification: no access given means all.
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, on) in [("r", self.read), ("w", self.write), ("m", self.mknod)] {
            if on {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl FromStr for Access {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut access = Self { read: false, write: false, mknod: false };
        for letter in text.chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.mknod = true,
                _ => {
                    return Err(Error::refused(
                        "use device access",
                        text,
                        "letters are r, w and m",
                    ));
                }
            }
        }
        Ok(if text.is_empty() { Self::ALL } else { access })
    }
}

impl TryFrom<String> for Access {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Access> for String {
    fn from(access: Access) -> Self {
        access.to_string()
    }
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// What it is about.
    #[serde(rename = "type", default)]
    pub kind: DeviceKind,
    /// Major number, or all.
    #[serde(default)]
    pub major: Option<i64>,
    /// Minor number, or all.
    #[serde(default)]
    pub minor: Option<i64>,
    /// What it is about, for this device.
    #[serde(default)]
    pub access: Access,
}

impl DeviceRule {
    /// A rule for everything: the usual first one, with `allow` false.
    pub fn everything(allow: bool) -> Self {
        Self { allow, kind: DeviceKind::All, major: None, minor: None, access: Access::ALL }
    }

    /// Whether it sets the default. The kernel would take any rule of kind "a" for one, numbers or
    /// not, and so allow far more than was written; such a rule counts for both kinds of devices here.
    pub(super) fn is_everything(&self) -> bool {
        let all = |number: Option<i64>| matches!(number, None | Some(-1));
        let numbers = all(self.major) && all(self.minor);
        self.kind == DeviceKind::All && numbers && self.access == Access::ALL
    }

    /// The rules without one of kind "a" that is not about everything.
    pub(super) fn spread(&self) -> Vec<Self> {
        if self.kind == DeviceKind::All && !self.is_everything() {
            let of = |kind| Self { kind, ..*self };
            vec![of(DeviceKind::Char), of(DeviceKind::Block)]
        } else {
            vec![*self]
        }
    }

    fn numbers(&self) -> Result<(Option<i32>, Option<i32>)> {
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => {
                i32::try_from(number).ok().filter(|it| *it >= 0).map(Some).ok_or_else(|| {
                    Error::refused("use device number", number.to_string(), "it is out of range")
                })
            }
        };
        Ok((number(self.major)?, number(self.minor)?))
    }

    /// As written into `devices.allow` or `devices.deny`.
    pub(super) fn v1_line(&self) -> Result<String> {
        let kind = match self.kind {
            DeviceKind::All => return Ok("a".to_owned()),
            DeviceKind::Char => 'c',
            DeviceKind::Block => 'b',
        };
        let (major, minor) = self.numbers()?;
        let text = |number: Option<i32>| number.map_or("*".to_owned(), |number| number.to_string());
        Ok(format!("{kind} {}:{} {}", text(major), text(minor), self.access))
    }
}

/// A device or range of devices, and access bits, in which the default does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exception {
    kind: DeviceKind,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Exception {
    fn same_devices(&self, other: &Self) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: Option<i32>, b: Option<i32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind
            && meet(self.major, other.major)
            && meet(self.minor, other.minor)
            && self.access & other.access != 0
    }
}

/// What a list of rules comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    allow: bool,
    exceptions: Vec<Exception>,
}

impl Policy {
    /// # Errors
    ///
    /// A rule takes back part of an exception for other devices, which neither controller can express.
    pub(super) fn of(rules: &[DeviceRule]) -> Result<Self> {
        if rules.len() > RULES_MAX {
            return Err(Error::refused("use", "device rules", "there are more than 500"));
        }
        // A group starts with what its parent allows, and the root allows everything.
        let mut policy = Self { allow: true, exceptions: Vec::new() };
        for rule in rules.iter().flat_map(DeviceRule::spread) {
            if rule.is_everything() {
                policy = Self { allow: rule.allow, exceptions: Vec::new() };
                continue;
            }
            let (major, minor) = rule.numbers()?;
            let exception = Exception { kind: rule.kind, major, minor, access: rule.access.bits() };
            if rule.allow == policy.allow {
                policy.take_back(exception)?;
            } else {
                policy.add(exception);
            }
        }
        Ok(policy)
    }

    fn add(&mut self, new: Exception) {
        match self.exceptions.iter_mut().find(|it| it.same_devices(&new)) {
            Some(old) => old.access |= new.access,
            None => self.exceptions.push(new),
        }
    }

    fn take_back(&mut self, rule: Exception) -> Result<()> {
        let same = |it: &Exception| it.same_devices(&rule);
        if self.exceptions.iter().any(|it| !same(it) && it.overlaps(&rule)) {
            let object = format!("{:?} {:?}:{:?}", rule.kind, rule.major, rule.minor);
            let why = "it takes back a part of an earlier rule for other devices";
            return Err(Error::refused("use device rule", object, why));
        }
        for exception in self.exceptions.iter_mut().filter(|it| same(it)) {
            exception.access &= !rule.access;
        }
        self.exceptions.retain(|it| it.access != 0);
        Ok(())
    }

    /// The program for `BPF_PROG_TYPE_CGROUP_DEVICE`: answers 1 to allow, 0 to deny.
    ///
    /// Its context is `struct bpf_cgroup_dev_ctx`: access in the upper and type in the lower half of
    /// the first word, then major, then minor.
    pub(super) fn program(&self) -> Vec<u64> {
        let mut program = vec![
            insn(LOAD_WORD, TYPE, CONTEXT, 0, 0),
            insn(AND_VALUE, TYPE, 0, 0, 0xffff),
            insn(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
            insn(SHIFT_RIGHT, ACCESS, 0, 0, 16),
            insn(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
            insn(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        ];
        for exception in &self.exceptions {
            program.extend(self.block(exception));
        }
        program.push(insn(SET, ANSWER, 0, 0, i32::from(self.allow)));
        program.push(insn(EXIT, 0, 0, 0, 0));
        program
    }

    /// One exception: skips to its end as soon as something does not match.
    fn block(&self, exception: &Exception) -> Vec<u64> {
        let mut tests: Vec<Vec<Jump>> = Vec::new();
        let kind = match exception.kind {
            DeviceKind::Block => 1,
            DeviceKind::Char | DeviceKind::All => 2,
        };
        tests.push(vec![Jump::Skip(JUMP_UNLESS_VALUE, TYPE, 0, kind)]);
        // The context register is free after the beginning: take it as scratch.
        let masked = [
            Jump::Plain(insn(COPY, CONTEXT, ACCESS, 0, 0)),
            Jump::Plain(insn(AND_VALUE, CONTEXT, 0, 0, exception.access)),
        ];
        let test = if self.allow {
            // Denied as soon as one of the accesses asked for is.
            Jump::Skip(JUMP_IF_VALUE, CONTEXT, 0, 0)
        } else {
            // Allowed only if all of them are.
            Jump::Skip(JUMP_UNLESS_EQUAL, CONTEXT, ACCESS, 0)
        };
        tests.push(masked.into_iter().chain([test]).collect());
        for (register, number) in [(MAJOR, exception.major), (MINOR, exception.minor)] {
            if let Some(number) = number {
                tests.push(vec![Jump::Skip(JUMP_UNLESS_VALUE, register, 0, number)]);
            }
        }
        let mut steps: Vec<Jump> = tests.into_iter().flatten().collect();
        steps.push(Jump::Plain(insn(SET, ANSWER, 0, 0, i32::from(!self.allow))));
        steps.push(Jump::Plain(insn(EXIT, 0, 0, 0, 0)));
        let count = steps.len();
        let resolve = |(index, step): (usize, &Jump)| match *step {
            Jump::Plain(instruction) => instruction,
            Jump::Skip(code, dst, src, value) => {
                // At most ten instructions: always fits.
                let distance = i16::try_from(count - index - 1).unwrap_or(i16::MAX);
                insn(code, dst, src, distance, value)
            }
        };
        steps.iter().enumerate().map(resolve).collect()
    }

    /// What the program must answer; for tests, and to explain a denial.
    #[cfg(test)]
    fn allows(&self, kind: DeviceKind, major: i32, minor: i32, access: Access) -> bool {
        let hit = self.exceptions.iter().any(|it| {
            let device = it.kind == kind
                && it.major.is_none_or(|it| it == major)
                && it.minor.is_none_or(|it| it == minor);
            let bits = access.bits();
            device && if self.allow { it.access & bits != 0 } else { it.access & bits == bits }
        });
        hit != self.allow
    }
}

/// An instruction, or one whose target is the end of its block.
#[derive(Debug, Clone, Copy)]
enum Jump {
    Plain(u64),
    Skip(u8, u8, u8, i32),
}

// Registers. r0 is the answer, r1 the context on entry.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Opcodes: class, size or operation, and source, as in `linux/bpf_common.h` and `linux/bpf.h`.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const AND_VALUE: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const COPY: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const SET: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const JUMP_IF_VALUE: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_UNLESS_VALUE: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_UNLESS_EQUAL: u8 = 0x5d; // BPF_JMP | BPF_JNE | BPF_X
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// `struct bpf_insn` as the bytes in memory make it: code, registers, offset, value.
fn insn(code: u8, dst: u8, src: u8, offset: i16, value: i32) -> u64 {
    // The two register nibbles are bit fields, whose order follows the machine's byte order.
    let registers = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, v0, v1, v2, v3])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn rule(
        allow: bool,
        kind: DeviceKind,
        major: i64,
        minor: i64,
        access: &str,
    ) -> DeviceRule {
        let number = |it: i64| (it >= 0).then_some(it);
        let access = access.parse().unwrap();
        DeviceRule { allow, kind, major: number(major), minor: number(minor), access }
    }

    /// Runs the instructions this module uses.
    fn run(program: &[u64], context: [u32; 3]) -> u32 {
        let mut registers = [0u64; 6];
        let mut at = 0usize;
        for _ in 0..10_000 {
            let [code, regs, o0, o1, v0, v1, v2, v3] = program[at].to_ne_bytes();
            let (dst, src) = (usize::from(regs & 15), usize::from(regs >> 4));
            let offset = i16::from_ne_bytes([o0, o1]);
            let value = i32::from_ne_bytes([v0, v1, v2, v3]);
            at += 1;
            let wide = i64::from(value) as u64;
            let jump = match code {
                LOAD_WORD => {
                    registers[dst] = context[usize::try_from(offset).unwrap() / 4].into();
                    false
                }
                AND_VALUE => {
                    registers[dst] &= u64::from(value as u32);
                    false
                }
                SHIFT_RIGHT => {
                    registers[dst] >>= value;
                    false
                }
                COPY => {
                    registers[dst] = registers[src];
                    false
                }
                SET => {
                    registers[dst] = wide;
                    false
                }
                JUMP_IF_VALUE => registers[dst] == wide,
                JUMP_UNLESS_VALUE => registers[dst] != wide,
                JUMP_UNLESS_EQUAL => registers[dst] != registers[src],
                EXIT => return u32::try_from(registers[0]).unwrap(),
                other => panic!("opcode {other:#x}"),
            };
            if jump {
                at += usize::try_from(offset).unwrap();
            }
        }
        panic!("does not end");
    }

    #[test]
    fn lists_mean_what_the_v1_controller_makes_of_them() {
        use DeviceKind::{Block, Char};
        let deny = DeviceRule::everything(false);
        let docker = [
            deny,
            rule(true, Char, -1, -1, "m"),
            rule(true, Block, -1, -1, "m"),
            rule(true, Char, 1, 3, "rwm"),
            rule(true, Char, 136, -1, "rwm"),
            rule(true, Block, 8, 0, "r"),
        ];
        let open = [rule(false, Char, 1, 9, "rw"), rule(false, Block, 7, -1, "")];
        let back = [deny, rule(true, Char, 1, 3, "rwm"), rule(false, Char, 1, 3, "w")];
        let reset = [rule(false, Char, 1, 9, "rw"), DeviceRule::everything(true)];
        type Case<'a> = (&'a [DeviceRule], DeviceKind, i32, i32, &'a str, bool);
        let both = [deny, rule(true, DeviceKind::All, 7, -1, "rw")];
        let cases: [Case<'_>; 24] = [
            (&both, Block, 7, 5, "rw", true),
            (&both, Char, 7, 5, "rw", true),
            (&both, Char, 7, 5, "m", false),
            (&both, Char, 8, 5, "rw", false),
            (&docker, Char, 1, 3, "rw", true),
            (&docker, Char, 1, 3, "m", true),
            (&docker, Char, 1, 5, "r", false),
            (&docker, Char, 1, 5, "m", true),
            (&docker, Char, 136, 77, "rw", true),
            (&docker, Block, 8, 0, "r", true),
            (&docker, Block, 8, 0, "rw", false),
            (&docker, Block, 8, 1, "r", false),
            (&docker, Block, 1, 3, "r", false),
            (&open, Char, 1, 9, "r", false),
            (&open, Char, 1, 9, "rw", false),
            (&open, Char, 1, 9, "m", true),
            (&open, Char, 1, 8, "r", true),
            (&open, Block, 7, 3, "m", false),
            (&back, Char, 1, 3, "r", true),
            (&back, Char, 1, 3, "w", false),
            (&back, Char, 1, 3, "rw", false),
            (&reset, Char, 1, 9, "rw", true),
            (&[deny], Char, 1, 3, "r", false),
            (&[], Char, 1, 3, "r", true),
        ];
        for (rules, kind, major, minor, access, expected) in cases {
            let policy = Policy::of(rules).unwrap();
            let access: Access = access.parse().unwrap();
            let what = format!("{kind:?} {major}:{minor} {access} in {rules:?}");
            assert_eq!(policy.allows(kind, major, minor, access), expected, "{what}");
            let kind = if kind == Block { 1 } else { 2 };
            let first = (access.bits() as u32) << 16 | kind;
            let answer = run(&policy.program(), [first, major as u32, minor as u32]);
            assert_eq!(answer == 1, expected, "program: {what}");
        }
    }

    #[test]
    fn rules_that_cannot_be_expressed_are_refused() {
        use DeviceKind::Char;
        let part = [
            DeviceRule::everything(false),
            rule(true, Char, 1, -1, "rwm"),
            rule(false, Char, 1, 3, "w"),
        ];
        assert!(Policy::of(&part).is_err());
        assert!(Policy::of(&[rule(true, Char, 1 << 40, 1, "r")]).is_err());
        assert!(Policy::of(&vec![DeviceRule::everything(true); 501]).is_err());
        assert!("rx".parse::<Access>().is_err());
    }

    #[test]
    fn lines_for_v1() {
        use DeviceKind::{Block, Char};
        let cases = [
            (DeviceRule::everything(false), "a"),
            (rule(true, Char, 1, 3, "rwm"), "c 1:3 rwm"),
            (rule(true, Block, 8, -1, "r"), "b 8:* r"),
            (rule(true, Char, -1, -1, "m"), "c *:* m"),
        ];
        for (rule, line) in cases {
            assert_eq!(rule.v1_line().unwrap(), line);
        }
    }

    #[test]
    fn access_survives_its_bits() {
        for bits in 1..8 {
            let access = Access::from_bits(bits);
            assert_eq!(access.to_string().parse::<Access>().unwrap(), access);
        }
    }
}
