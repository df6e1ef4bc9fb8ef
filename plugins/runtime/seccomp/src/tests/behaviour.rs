//! What programs answer.

use std::time::{Duration, Instant};

use super::{
    default_filter, filter,
    interpreter::{Call, decode, run},
};
use crate::{
    Arch, Error, Filter,
    compile::{Options, compile_with},
};

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL_THREAD: u32 = 0;

fn compiled(filter: &Filter, native: Arch) -> Vec<(u16, u8, u8, u32)> {
    let options = Options { native, unknown_is_enosys: true };
    decode(&compile_with(filter, &options).unwrap())
}

fn call(arch: Arch, name: &str, args: &[u64]) -> Call {
    let number = arch.number(name).unwrap_or_else(|| panic!("{name} on {arch:?}"));
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call { audit: arch.audit().unwrap(), number, args: all }
}

#[test]
fn the_default_profile_decides_as_the_reference() {
    let plain = compiled(&default_filter(Arch::X86_64, &[]), Arch::X86_64);
    let admin = compiled(&default_filter(Arch::X86_64, &["CAP_SYS_ADMIN"]), Arch::X86_64);
    let cases: &[(&str, &[u64], u32, u32)] = &[
        ("read", &[], ALLOW, ALLOW),
        ("mount", &[], EPERM, ALLOW),
        ("unshare", &[0x1000_0000], EPERM, ALLOW),
        ("clone", &[17], ALLOW, ALLOW),
        ("clone", &[0x3d0f00], ALLOW, ALLOW),
        ("clone", &[0x1000_0011], EPERM, ALLOW),
        ("clone", &[0xffff_ffff_0000_0011], ALLOW, ALLOW),
        ("clone3", &[], ENOSYS, ALLOW),
        ("socket", &[2], ALLOW, ALLOW),
        ("socket", &[38], EPERM, EPERM),
        ("socket", &[39], ALLOW, ALLOW),
        ("socket", &[40], EPERM, EPERM),
        ("socket", &[41], ALLOW, ALLOW),
        ("personality", &[0], ALLOW, ALLOW),
        ("personality", &[0x4_0000], EPERM, EPERM),
        ("personality", &[0xffff_ffff], ALLOW, ALLOW),
        ("personality", &[0xffff_ffff_ffff_ffff], EPERM, EPERM),
        ("ptrace", &[], ALLOW, ALLOW),
        ("chroot", &[], ALLOW, ALLOW),
        ("reboot", &[], EPERM, EPERM),
        ("keyctl", &[], EPERM, EPERM),
        ("io_uring_setup", &[], EPERM, EPERM),
        ("arch_prctl", &[], ALLOW, ALLOW),
        ("kexec_load", &[], EPERM, EPERM),
        ("bpf", &[], EPERM, ALLOW),
    ];
    for (name, args, expected, expected_admin) in cases {
        let call = call(Arch::X86_64, name, args);
        assert_eq!(run(&plain, &call).0, *expected, "{name} {args:x?}");
        assert_eq!(run(&admin, &call).0, *expected_admin, "{name} {args:x?} with CAP_SYS_ADMIN");
    }
}

#[test]
fn the_default_profile_covers_the_other_modes() {
    let x86 = compiled(&default_filter(Arch::X86_64, &[]), Arch::X86_64);
    let arm = compiled(&default_filter(Arch::Aarch64, &[]), Arch::Aarch64);
    let cases = [
        (&x86, call(Arch::X86, "mount", &[]), EPERM),
        (&x86, call(Arch::X86, "socketcall", &[1]), ALLOW),
        (&x86, call(Arch::X86, "clone", &[0x1000_0011]), EPERM),
        (&x86, call(Arch::X86, "set_thread_area", &[]), ALLOW),
        (&x86, call(Arch::X32, "execve", &[]), ALLOW),
        (&x86, call(Arch::X32, "mount", &[]), EPERM),
        (&x86, call(Arch::Aarch64, "read", &[]), KILL_THREAD),
        (&arm, call(Arch::Aarch64, "read", &[]), ALLOW),
        (&arm, call(Arch::Aarch64, "newfstatat", &[]), ALLOW),
        (&arm, call(Arch::Arm, "set_tls", &[]), ALLOW),
        (&arm, call(Arch::Arm, "mount", &[]), EPERM),
        (&arm, call(Arch::X86_64, "read", &[]), KILL_THREAD),
    ];
    for (program, call, expected) in cases {
        assert_eq!(run(program, &call).0, expected, "{call:x?}");
    }
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let program = compiled(&default_filter(Arch::X86_64, &[]), Arch::X86_64);
    let newest = Arch::X86_64.number("removexattrat").unwrap();
    let answer = |number| run(&program, &Call { audit: 0xc000_003e, number, args: [0; 6] }).0;
    assert_eq!(answer(newest), ALLOW);
    assert_eq!(answer(newest + 1), ENOSYS);
    assert_eq!(answer(0x4000_0000 + 547), ALLOW, "the highest number of x32");
    assert_eq!(answer(0x4000_0000 + 548), ENOSYS);
    assert_eq!(answer(400), EPERM, "a number in a gap");

    let exact = Options { native: Arch::X86_64, unknown_is_enosys: false };
    let program = decode(&compile_with(&default_filter(Arch::X86_64, &[]), &exact).unwrap());
    let answer = |number| run(&program, &Call { audit: 0xc000_003e, number, args: [0; 6] }).0;
    assert_eq!(answer(newest + 1), EPERM);
}

#[test]
fn every_action_has_its_value() {
    let cases = [
        (r#""SCMP_ACT_KILL""#, 0),
        (r#""SCMP_ACT_KILL_THREAD""#, 0),
        (r#""SCMP_ACT_KILL_PROCESS""#, 0x8000_0000),
        (r#""SCMP_ACT_TRAP""#, 0x0003_0000),
        (r#""SCMP_ACT_ERRNO""#, 0x0005_0001),
        (r#""SCMP_ACT_ERRNO","errnoRet":13"#, 0x0005_000d),
        (r#""SCMP_ACT_TRACE","errnoRet":7"#, 0x7ff0_0007),
        (r#""SCMP_ACT_LOG""#, 0x7ffc_0000),
    ];
    for (action, expected) in cases {
        let filter = filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW",
                "syscalls":[{{"names":["read","no_such_call"],"action":{action}}}]}}"#
        ));
        let program = compiled(&filter, Arch::X86_64);
        assert_eq!(run(&program, &call(Arch::X86_64, "read", &[])).0, expected, "{action}");
        assert_eq!(run(&program, &call(Arch::X86_64, "write", &[])).0, ALLOW, "{action}");
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let cases = [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY is not supported"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW",
                "syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "SCMP_ACT_NOTIFY is not supported",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],
                "action":"SCMP_ACT_KILL","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "argument 6",
        ),
    ];
    for (json, expected) in cases {
        let error = crate::compile(&filter(json)).unwrap_err().to_string();
        assert!(error.contains(expected), "{json}: {error}");
    }
    let options = Options { native: Arch::Foreign("SCMP_ARCH_PPC"), unknown_is_enosys: true };
    let allow = filter(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
    assert!(matches!(compile_with(&allow, &options), Err(Error::Architecture(_))));
}

/// Many conditions on many calls: long jumps, and then too long.
#[test]
fn far_targets_are_reached_and_the_limit_is_kept() {
    let rules = |count: u64| {
        let rule = |n: u64| {
            format!(
                r#"{{"names":["read","write","close"],"action":"SCMP_ACT_ERRNO","errnoRet":{n},
                    "args":[{{"index":1,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#,
                value = n << 32 | n
            )
        };
        let rules: Vec<_> = (2..2 + count).map(rule).collect();
        filter(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#, rules.join(",")))
    };
    let program = compiled(&rules(200), Arch::X86_64);
    for n in 0..205_u64 {
        for name in ["read", "write", "close", "open"] {
            let listed = (2..202).contains(&n) && name != "open";
            let expected = if listed { 0x0005_0000 | n as u32 } else { ALLOW };
            let call = call(Arch::X86_64, name, &[0, n << 32 | n]);
            assert_eq!(run(&program, &call).0, expected, "{name} {n}");
        }
    }
    let options = Options { native: Arch::X86_64, unknown_is_enosys: true };
    assert!(matches!(compile_with(&rules(600), &options), Err(Error::ProgramTooLong)));
}

#[test]
fn figures_of_the_default_profile() {
    let filter = default_filter(Arch::X86_64, &[]);
    let program = compiled(&filter, Arch::X86_64);
    let best = (0..20)
        .map(|_| {
            let start = Instant::now();
            crate::compile(&filter).unwrap();
            start.elapsed()
        })
        .min()
        .unwrap_or(Duration::ZERO);
    let steps: Vec<usize> = (0..470)
        .map(|number| run(&program, &Call { audit: 0xc000_003e, number, args: [0; 6] }).1)
        .collect();
    println!(
        "default profile: {} instructions, compiled in {best:?}; a call takes {} instructions on \
         average, {} at most",
        program.len(),
        steps.iter().sum::<usize>() / steps.len(),
        steps.iter().max().unwrap()
    );
    assert!(program.len() < 1200);
    assert!(steps.iter().all(|steps| *steps < 24));
}
