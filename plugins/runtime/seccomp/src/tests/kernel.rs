//! The real thing: a process loads the default profile's program and tries calls.
//!
//! Needs Python, no privileges; says so and passes without it.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use super::default_filter;
use crate::{Arch, compile};

/// Loads the program that it reads, then writes the error number of each call it tries.
const SCRIPT: &str = r#"
import ctypes, os, sys
lib = ctypes.CDLL(None, use_errno=True)
program = sys.stdin.buffer.read()
class Fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
buffer = ctypes.create_string_buffer(program)
fprog = Fprog(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
assert lib.prctl(38, 1, 0, 0, 0) == 0
assert lib.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0, ctypes.get_errno()
def call(number, *args):
    result = lib.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args])
    return 0 if result >= 0 else ctypes.get_errno()
for line in sys.argv[1:]:
    print(call(*[int(word) for word in line.split()]))
"#;

#[test]
fn the_kernel_takes_the_program_and_answers_as_the_profile_says() {
    if Arch::native() != Arch::X86_64 {
        eprintln!("SKIPPED: the calls below are written for x86_64");
        return;
    }
    let program = compile(&default_filter(Arch::X86_64, &[])).unwrap();
    // Number and arguments, and the error number that must come back.
    let cases = [
        ("39", 0),             // getpid
        ("272 268435456", 1),  // unshare(CLONE_NEWUSER)
        ("435 0 0", 38),       // clone3
        ("41 40 1 0", 1),      // socket(AF_VSOCK)
        ("41 38 5 0", 1),      // socket(AF_ALG)
        ("41 1 1 0", 0),       // socket(AF_UNIX)
        ("135 4294967295", 0), // personality(query)
        ("135 262144", 1),     // personality(ADDR_NO_RANDOMIZE)
        ("165 0 0 0 0 0", 1),  // mount
        ("425 1 0", 1),        // io_uring_setup
        ("9999", 38),          // newer than anything
        ("400", 1),            // a gap in the table
    ];
    let child = Command::new("python3")
        .args(["-c", SCRIPT])
        .args(cases.map(|(call, _)| call))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED: no python3 to load the program");
        return;
    };
    child.stdin.take().unwrap().write_all(&program).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<i32> = answers.lines().map(|line| line.parse().unwrap()).collect();
    for ((call, expected), answer) in cases.into_iter().zip(answers) {
        assert_eq!(answer, expected, "{call}");
    }
}
