//! From rules to a program.
//!
//! Per architecture, calls that end the same way are merged into ranges of numbers, and the ranges
//! become a binary search. What a rule set means follows runc on libseccomp: a rule without
//! conditions takes over from rules with some, and conditions on one argument are alternatives.

use std::collections::BTreeMap;

use crate::{
    Error,
    arch::{Arch, X32_BIT, multiplexed},
    assemble::{Assembler, JUMP_EQ, JUMP_GE, JUMP_GT, Label},
    default::ENOSYS,
    filter::{Action, Arg, Filter, Operator, Syscall},
};

// Offsets in `struct seccomp_data`. Source: `linux/seccomp.h`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// A call has six arguments.
const LAST_ARGUMENT: u8 = 5;

// What a filter returns. Source: `linux/seccomp.h`.
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// `EPERM`, the error (and trace message) of a rule that names none.
const EPERM: u32 = 1;

/// A tracer's way to skip a call; not an x32 call although the mode bit is set.
const SKIPPED: u32 = u32::MAX;

/// Choices in the compilation of a filter.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The architecture of the kernel that will run the program; always part of the filter.
    pub native: Arch,
    /// Calls newer than every call the filter mentions fail with `ENOSYS`, unless the default
    /// action lets them pass. Programs then use what they used before the call existed, instead of
    /// giving up on a permission error. As runc does.
    pub unknown_is_enosys: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { native: Arch::native(), unknown_is_enosys: true }
    }
}

/// Compiles `filter` for this machine: an array of `struct sock_filter`, ready for seccomp(2).
///
/// # Errors
///
/// [`Error::Notify`], [`Error::ProgramTooLong`], [`Error::Architecture`], and an argument index or
/// error number out of range.
pub fn compile(filter: &Filter) -> Result<Vec<u8>, Error> {
    compile_with(filter, &Options::default())
}

/// [`compile`], with choices.
///
/// # Errors
///
/// As [`compile`].
pub fn compile_with(filter: &Filter, options: &Options) -> Result<Vec<u8>, Error> {
    let default = value_of(filter.default_action, filter.default_errno_ret)?;
    let enosys = ERRNO | ENOSYS;
    let stub =
        (options.unknown_is_enosys && !lets_pass(default) && default != enosys).then_some(enosys);

    let mut sections: Vec<Section> = Vec::new();
    for arch in architectures(filter, options.native) {
        let Some(audit) = arch.audit() else { continue };
        let table = Table::new(arch, filter, default)?;
        match sections.iter_mut().find(|section| section.audit == audit) {
            Some(section) => section.tables.push(table),
            None => sections.push(Section { audit, tables: vec![table] }),
        }
    }
    if options.native.audit().is_none() {
        return Err(Error::Architecture(options.native.oci_name()));
    }

    let mut code = Assembler::default();
    // The native section is written last, which puts it first.
    let entries: Vec<(u32, Label)> =
        sections.iter().rev().map(|s| (s.audit, s.write(&mut code, default, stub))).collect();
    let mut next = code.ret(KILL_THREAD);
    for (audit, entry) in entries {
        next = code.branch(JUMP_EQ, audit, entry, next);
    }
    code.load(ARCH, next);
    code.finish().ok_or(Error::ProgramTooLong)
}

/// The native architecture first, then the others once each.
fn architectures(filter: &Filter, native: Arch) -> Vec<Arch> {
    let mut list = vec![native];
    for arch in &filter.architectures {
        let arch = if *arch == Arch::Native { native } else { *arch };
        if !list.contains(&arch) {
            list.push(arch);
        }
    }
    list
}

/// What the kernel is told for `action`.
fn value_of(action: Action, errno: Option<u32>) -> Result<u32, Error> {
    let data = errno.unwrap_or(EPERM);
    let data = u16::try_from(data).map(u32::from).map_err(|_| Error::Errno(data))?;
    Ok(match action {
        Action::Kill | Action::KillThread => KILL_THREAD,
        Action::KillProcess => KILL_PROCESS,
        Action::Trap => TRAP,
        Action::Errno => ERRNO | data,
        Action::Trace => TRACE | data,
        Action::Log => LOG,
        Action::Allow => ALLOW,
        Action::Notify => return Err(Error::Notify),
    })
}

/// Whether a call that gets `value` may take place.
fn lets_pass(value: u32) -> bool {
    matches!(value & 0xffff_0000, ALLOW | LOG | TRACE)
}

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Always(u32),
    /// The first branch whose conditions all hold; the default action if there is none.
    Branches(Vec<Branch>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Branch {
    conditions: Vec<Arg>,
    value: u32,
}

/// The calls of one architecture that rules are about.
#[derive(Debug)]
struct Table {
    arch: Arch,
    outcomes: BTreeMap<u32, Outcome>,
    /// The highest number that the filter mentions, in whatever way.
    newest: Option<u32>,
}

impl Table {
    fn new(arch: Arch, filter: &Filter, default: u32) -> Result<Self, Error> {
        let mut table = Self { arch, outcomes: BTreeMap::new(), newest: None };
        for rule in &filter.syscalls {
            let value = value_of(rule.action, rule.errno_ret)?;
            if let Some(arg) = rule.args.iter().find(|arg| arg.index > LAST_ARGUMENT) {
                return Err(Error::ArgumentIndex(arg.index));
            }
            for name in &rule.names {
                let number = arch.number(name);
                table.newest = table.newest.max(number);
                if value == default {
                    continue; // says nothing new, and must not shadow a later rule
                }
                if let Some(number) = number {
                    table.add(number, &branches(rule, value));
                }
                if let Some((multiplexer, call)) = multiplexed(arch, name)
                    && let Some(number) = arch.number(multiplexer)
                {
                    table.add(number, &through_multiplexer(&branches(rule, value), call));
                }
            }
        }
        Ok(table)
    }

    /// Adds branches to a call. A rule without conditions takes over from rules with some, whatever
    /// their order, and the first such rule wins.
    fn add(&mut self, number: u32, branches: &[Branch]) {
        let outcome = self.outcomes.entry(number).or_insert(Outcome::Branches(Vec::new()));
        for branch in branches {
            match outcome {
                Outcome::Always(_) => return,
                Outcome::Branches(_) if branch.conditions.is_empty() => {
                    *outcome = Outcome::Always(branch.value);
                }
                Outcome::Branches(list) => list.push(branch.clone()),
            }
        }
    }
}

/// The branches of a rule: one with all conditions, or, where two are about the same argument, one
/// per condition. That is runc's reading, and profiles rely on it.
fn branches(rule: &Syscall, value: u32) -> Vec<Branch> {
    let repeated = |arg: &Arg| rule.args.iter().filter(|a| a.index == arg.index).count() > 1;
    if rule.args.iter().any(repeated) {
        rule.args.iter().map(|arg| Branch { conditions: vec![*arg], value }).collect()
    } else {
        vec![Branch { conditions: rule.args.clone(), value }]
    }
}

/// The same branches for a call made through a multiplexer, whose first argument says which call
/// it is and takes the place of the call's own.
fn through_multiplexer(branches: &[Branch], call: u64) -> Vec<Branch> {
    let which = Arg { index: 0, value: call, value_two: 0, op: Operator::Equal };
    branches
        .iter()
        .map(|branch| {
            let others = branch.conditions.iter().filter(|arg| arg.index != 0);
            let conditions = std::iter::once(which).chain(others.copied()).collect();
            Branch { conditions, value: branch.value }
        })
        .collect()
}

/// The architectures that share a kernel's name, which is one, or two for 64-bit x86 and x32.
#[derive(Debug)]
struct Section {
    audit: u32,
    tables: Vec<Table>,
}

/// Numbers from `start` to the next range's start end in the same way.
#[derive(Debug)]
struct Range<'a> {
    start: u32,
    outcome: Target<'a>,
    is_narrow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target<'a> {
    Value(u32),
    Branches(&'a [Branch]),
}

impl Section {
    /// Writes the section and returns where it starts.
    fn write(&self, code: &mut Assembler, default: u32, stub: Option<u32>) -> Label {
        let ranges = self.ranges(default, stub);
        let tree = write_tree(code, &ranges, default);
        code.load(NUMBER, tree)
    }

    /// All numbers from 0 up, divided.
    fn ranges(&self, default: u32, stub: Option<u32>) -> Vec<Range<'_>> {
        let mut ranges = Ranges(Vec::new());
        if self.audit != 0xc000_003e {
            for table in &self.tables {
                ranges.add_table(table, 0, default, stub);
            }
            return ranges.0;
        }
        // 64-bit x86 and x32 share the kernel's name and are told apart by a bit of the number.
        let table = |arch| self.tables.iter().find(|table| table.arch == arch);
        match table(Arch::X86_64) {
            Some(table) => ranges.add_table(table, 0, default, stub),
            None => ranges.push(0, Target::Value(KILL_THREAD), false),
        }
        match table(Arch::X32) {
            Some(table) => ranges.add_table(table, X32_BIT, default, stub),
            None => {
                ranges.push(X32_BIT, Target::Value(KILL_THREAD), false);
                ranges.push(SKIPPED, Target::Value(default), false);
            }
        }
        ranges.0
    }
}

/// Ranges in ascending order; neighbours differ.
struct Ranges<'a>(Vec<Range<'a>>);

impl<'a> Ranges<'a> {
    fn add_table(&mut self, table: &'a Table, start: u32, default: u32, stub: Option<u32>) {
        let is_narrow = table.arch.is_narrow();
        self.push(start, Target::Value(default), is_narrow);
        for (number, outcome) in &table.outcomes {
            let target = match outcome {
                Outcome::Always(value) => Target::Value(*value),
                Outcome::Branches(branches) => Target::Branches(branches),
            };
            self.push(*number, target, is_narrow);
            self.push(number + 1, Target::Value(default), is_narrow);
        }
        if let (Some(stub), Some(newest)) = (stub, table.newest) {
            self.push(newest + 1, Target::Value(stub), is_narrow);
        }
    }

    /// Starts a range; one that starts at the same number is replaced, one that ends the same way
    /// goes on.
    fn push(&mut self, start: u32, outcome: Target<'a>, is_narrow: bool) {
        if self.0.last().is_some_and(|last| last.start == start) {
            self.0.pop();
        }
        let goes_on = |last: &Range<'_>| match (last.outcome, outcome) {
            (Target::Value(a), Target::Value(b)) => a == b,
            (a, b) => a == b && last.is_narrow == is_narrow,
        };
        if !self.0.last().is_some_and(goes_on) {
            self.0.push(Range { start, outcome, is_narrow });
        }
    }
}

/// Writes a binary search over `ranges`, which are not empty, and returns where it starts.
fn write_tree(code: &mut Assembler, ranges: &[Range<'_>], default: u32) -> Label {
    match ranges {
        [only] => write_outcome(code, only, default),
        // One number in the middle of something else: one comparison instead of two.
        [before, one, after]
            if before.outcome == after.outcome
                && matches!(before.outcome, Target::Value(_))
                && after.start - one.start == 1 =>
        {
            let yes = write_outcome(code, one, default);
            let no = write_outcome(code, before, default);
            code.branch(JUMP_EQ, one.start, yes, no)
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let yes = write_tree(code, high, default);
            let no = write_tree(code, low, default);
            code.branch(JUMP_GE, high[0].start, yes, no)
        }
    }
}

fn write_outcome(code: &mut Assembler, range: &Range<'_>, default: u32) -> Label {
    let branches = match range.outcome {
        Target::Value(value) => return code.ret(value),
        Target::Branches(branches) => branches,
    };
    let mut next = code.ret(default);
    for branch in branches.iter().rev() {
        let mut matched = code.ret(branch.value);
        for condition in branch.conditions.iter().rev() {
            matched = write_condition(code, condition, range.is_narrow, matched, next);
        }
        next = matched;
    }
    next
}

/// Writes one comparison of a 64-bit argument, as two of 32 bits, upper half first.
fn write_condition(
    code: &mut Assembler,
    arg: &Arg,
    is_narrow: bool,
    yes: Label,
    no: Label,
) -> Label {
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let (high, low) = halves(arg.value);
    let offset = ARGUMENTS + 8 * u32::from(arg.index);
    let (low_word, high_word) =
        if cfg!(target_endian = "big") { (offset + 4, offset) } else { (offset, offset + 4) };

    let ordered = |code: &mut Assembler, last: u16, yes: Label, no: Label| {
        let compare_low = code.branch(last, low, yes, no);
        let low_half = code.load(low_word, compare_low);
        if is_narrow {
            return low_half;
        }
        let not_greater = code.branch(JUMP_EQ, high, low_half, no);
        let compare_high = code.branch(JUMP_GT, high, yes, not_greater);
        code.load(high_word, compare_high)
    };
    match arg.op {
        Operator::Equal => write_masked(code, arg, (u64::MAX, arg.value), is_narrow, (yes, no)),
        Operator::NotEqual => write_masked(code, arg, (u64::MAX, arg.value), is_narrow, (no, yes)),
        Operator::MaskedEqual => {
            write_masked(code, arg, (arg.value, arg.value_two), is_narrow, (yes, no))
        }
        Operator::GreaterOrEqual => ordered(code, JUMP_GE, yes, no),
        Operator::Greater => ordered(code, JUMP_GT, yes, no),
        Operator::Less => ordered(code, JUMP_GE, no, yes),
        Operator::LessOrEqual => ordered(code, JUMP_GT, no, yes),
    }
}

/// Writes `argument & mask == value`.
fn write_masked(
    code: &mut Assembler,
    arg: &Arg,
    (mask, value): (u64, u64),
    is_narrow: bool,
    (yes, no): (Label, Label),
) -> Label {
    let offset = ARGUMENTS + 8 * u32::from(arg.index);
    let half = |code: &mut Assembler, shift: u32, yes: Label| {
        let bits = |word: u64| ((word >> shift) & 0xffff_ffff) as u32;
        let at = offset + if cfg!(target_endian = "big") { (32 - shift) / 8 } else { shift / 8 };
        // Nothing to look at: decided now.
        if bits(mask) == 0 {
            return if bits(value) == 0 { yes } else { no };
        }
        let mut compare = code.branch(JUMP_EQ, bits(value), yes, no);
        if bits(mask) != u32::MAX {
            compare = code.and(bits(mask), compare);
        }
        code.load(at, compare)
    };
    let low = half(code, 0, yes);
    if is_narrow { low } else { half(code, 32, low) }
}
