//! The same rules given to libseccomp: every call with many arguments must get the same answer.
//!
//! The oracle is driven through Python's `ctypes`; without Python or the library these tests say so
//! and pass.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
};

use super::{
    default_filter, filter,
    interpreter::{Call, decode, run},
};
use crate::{
    Arch, Filter,
    compile::{Options, compile_with},
};

/// Adds the rules the way runc does, and writes: names unknown to the library, then the program.
const SCRIPT: &str = r#"
import ctypes, json, sys, os, tempfile
lib = ctypes.CDLL("libseccomp.so.2")
job = json.load(sys.stdin)
u32, u64, vp = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
class Cmp(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", u64), ("b", u64)]
lib.seccomp_init.restype = vp
ACTS = {"KILL": 0, "KILL_THREAD": 0, "KILL_PROCESS": 0x80000000, "TRAP": 0x30000, "ERRNO": 0x50000,
        "TRACE": 0x7ff00000, "LOG": 0x7ffc0000, "ALLOW": 0x7fff0000}
OPS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
ARCHES = {"X86": 0x40000003, "X86_64": 0xc000003e, "X32": 0x4000003e, "ARM": 0x40000028,
          "AARCH64": 0xc00000b7}
def act(name, errno):
    name = name.removeprefix("SCMP_ACT_")
    return ACTS[name] | ((1 if errno is None else errno) if name in ("ERRNO", "TRACE") else 0)
default = act(job["defaultAction"], job.get("defaultErrnoRet"))
ctx = vp(lib.seccomp_init(u32(default)))
native = lib.seccomp_arch_native() & 0xffffffff
wanted = [ARCHES[a.removeprefix("SCMP_ARCH_")] for a in job["native_and_architectures"]]
for a in wanted:
    rc = lib.seccomp_arch_add(ctx, u32(a))
    assert rc in (0, -17), rc
if native not in wanted:
    assert lib.seccomp_arch_remove(ctx, u32(native)) == 0
unknown = []
for rule in job.get("syscalls", []):
    action = act(rule["action"], rule.get("errnoRet"))
    if action == default:
        continue
    args = [Cmp(a["index"], OPS[a["op"].removeprefix("SCMP_CMP_")], a["value"], a.get("valueTwo", 0))
            for a in rule.get("args", [])]
    split = len({a.arg for a in args}) != len(args)
    for name in rule["names"]:
        nr = lib.seccomp_syscall_resolve_name(name.encode())
        if nr == -1:
            unknown.append(name)
            continue
        for group in ([[a] for a in args] if split else [args]):
            array = (Cmp * max(1, len(group)))(*group)
            rc = lib.seccomp_rule_add_array(ctx, u32(action), nr, len(group), array)
            assert rc == 0, (name, rc)
fd, path = tempfile.mkstemp()
os.unlink(path)
assert lib.seccomp_export_bpf(ctx, fd) == 0
os.lseek(fd, 0, 0)
program = b""
while chunk := os.read(fd, 65536):
    program += chunk
json.dump({"unknown": unknown, "program": program.hex()}, sys.stdout)
"#;

#[derive(serde::Deserialize)]
struct Answer {
    unknown: BTreeSet<String>,
    program: String,
}

fn ask(filter: &Filter, native: Arch) -> Option<Answer> {
    let mut job = serde_json::to_value(filter).unwrap();
    let mut arches = vec![native];
    arches.extend(&filter.architectures);
    job["native_and_architectures"] = serde_json::to_value(arches).unwrap();

    let available = Command::new("python3")
        .args(["-c", "import ctypes; ctypes.CDLL('libseccomp.so.2')"])
        .stderr(Stdio::null())
        .status();
    if !available.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no python3 with libseccomp.so.2 to compare with");
        return None;
    }
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(job.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the oracle failed on {job}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Values beside, on and far from everything the filter compares with.
fn interesting_values(filter: &Filter) -> Vec<u64> {
    let mut values = BTreeSet::from([0, 1, u64::MAX, 1 << 32, u64::from(u32::MAX), 17]);
    for arg in filter.syscalls.iter().flat_map(|rule| &rule.args) {
        for value in [arg.value, arg.value_two, arg.value | arg.value_two] {
            values.extend([value, value.wrapping_add(1), value.wrapping_sub(1)]);
            values.extend([value ^ (1 << 32), value | (0xdead << 32), value & 0xffff_ffff]);
        }
        values.extend((0..64).step_by(5).map(|bit| arg.value ^ (1 << bit)));
    }
    values.into_iter().collect()
}

/// Compares both programs on all numbers of all modes; returns how many answers were compared.
fn compare(filter: &Filter, native: Arch) -> usize {
    let Some(answer) = ask(filter, native) else { return 0 };
    let theirs = decode(&from_hex(&answer.program));
    let options = Options { native, unknown_is_enosys: false };
    let ours = decode(&compile_with(filter, &options).unwrap());

    let modes = [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm];
    let skipped: BTreeSet<(u32, u32)> = modes
        .iter()
        .flat_map(|arch| {
            let audit = arch.audit().unwrap();
            answer.unknown.iter().filter_map(move |name| Some((audit, arch.number(name)?)))
        })
        .collect();
    let compared: BTreeSet<u32> = filter
        .syscalls
        .iter()
        .filter(|rule| !rule.args.is_empty())
        .flat_map(|rule| &rule.names)
        .chain(&["socketcall".to_owned(), "ipc".to_owned()])
        .flat_map(|name| modes.iter().filter_map(|arch| arch.number(name)))
        .collect();
    let numbers = (0..600).chain(0x4000_0000..0x4000_0258).chain(0x0f_0000..0x0f_0010).chain([
        0x3fff_ffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_fffe,
        0xffff_ffff,
    ]);
    let values = interesting_values(filter);

    let mut count = 0;
    for number in numbers {
        for audit in [0xc000_003e, 0x4000_0003, 0xc000_00b7, 0x4000_0028, 0x8000_0015] {
            if skipped.contains(&(audit, number)) {
                continue;
            }
            let few = &values[..1];
            let tried = if compared.contains(&number) { &values[..] } else { few };
            // All pairs where there are few; the default profile never looks at two arguments.
            let step = 1 + tried.len() / 40;
            let pairs =
                tried.iter().flat_map(|a| tried.iter().step_by(step).map(move |b| (*a, *b)));
            for (first, second) in pairs {
                let call = Call { audit, number, args: [first, second, first, second, 3, 0] };
                assert_eq!(run(&ours, &call).0, run(&theirs, &call).0, "{call:x?}");
                count += 1;
            }
        }
    }
    println!("{count} answers equal; {} instructions, libseccomp {}", ours.len(), theirs.len());
    count
}

#[test]
fn the_default_profile_agrees_with_libseccomp() {
    for caps in [&[][..], &["CAP_SYS_ADMIN"], &["CAP_SYS_PTRACE", "CAP_BPF", "CAP_SYS_TIME"]] {
        compare(&default_filter(Arch::X86_64, caps), Arch::X86_64);
    }
    compare(&default_filter(Arch::Aarch64, &[]), Arch::Aarch64);
}

#[test]
fn every_comparison_agrees_with_libseccomp() {
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let values = [0_u64, 5, 0xffff_ffff, 0x1_0000_0000, 0x1234_5678_9abc_def0, u64::MAX];
    for op in operators {
        for value in values {
            let two = if op == "MASKED_EQ" { value & 0x00ff_ff00_ffff_00f1 } else { 0 };
            let filter = filter(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW",
                    "architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"],
                    "syscalls":[{{"names":["ioctl"],"action":"SCMP_ACT_KILL_PROCESS","args":[
                        {{"index":1,"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{op}"}}]}}]}}"#
            ));
            compare(&filter, Arch::X86_64);
        }
    }
}

#[test]
fn rule_sets_agree_with_libseccomp() {
    let rules = [
        // Two conditions, both needed.
        r#"{"names":["ioctl"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":3,"op":"SCMP_CMP_GE"},
            {"index":1,"value":4294967299,"op":"SCMP_CMP_EQ"}]}"#,
        // Two conditions on one argument: either is enough.
        r#"{"names":["ioctl"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":3,"op":"SCMP_CMP_EQ"},
            {"index":0,"value":5,"op":"SCMP_CMP_EQ"}]}"#,
        // With and without conditions.
        r#"{"names":["ioctl"],"action":"SCMP_ACT_LOG","args":[
            {"index":0,"value":3,"op":"SCMP_CMP_EQ"}]},
           {"names":["ioctl"],"action":"SCMP_ACT_ALLOW"}"#,
        r#"{"names":["ioctl"],"action":"SCMP_ACT_ALLOW"},
           {"names":["ioctl"],"action":"SCMP_ACT_LOG","args":[
            {"index":0,"value":3,"op":"SCMP_CMP_EQ"}]}"#,
        r#"{"names":["ioctl"],"action":"SCMP_ACT_ALLOW"},
           {"names":["ioctl"],"action":"SCMP_ACT_LOG"}"#,
        // Through the multiplexers of 32-bit x86.
        r#"{"names":["socket","shmat","accept4"],"action":"SCMP_ACT_ALLOW"}"#,
        r#"{"names":["socket","semop"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}"#,
        r#"{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":2,"op":"SCMP_CMP_EQ"},
            {"index":1,"value":1,"op":"SCMP_CMP_LE"}]}"#,
        // The same as the default action, and a name nobody has.
        r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":1},
           {"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"}"#,
    ];
    let arches = ["", r#""SCMP_ARCH_X86""#, r#""SCMP_ARCH_X32""#, r#""SCMP_ARCH_AARCH64""#];
    for rules in rules {
        for arch in arches {
            let filter = filter(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":[{arch}],
                    "syscalls":[{rules}]}}"#
            ));
            println!("{arch} {rules}");
            compare(&filter, Arch::X86_64);
        }
    }
}
