//! Tests run with many threads, so what needs one thread is tested where it is used: in the shim.

use super::*;
use rustix::fd::AsFd;
use std::io::Read;

#[test]
fn a_program_finds_the_descriptors_it_was_given() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = raise_descriptor(writer.into(), 20).unwrap();
    let argv = CStringArray::new(&["sh", "-c", "echo $WORD >&7; readlink /proc/self/fd/7; exit 3"]);
    let env = CStringArray::new(&["WORD=given", "PATH=/usr/bin:/bin"]).unwrap();
    let pid = spawn(&Spawn {
        path: c"/bin/sh",
        argv: &argv.unwrap(),
        env: &env,
        fds: &[(writer.as_fd(), 7), (writer.as_fd(), 1)],
        new_session: true,
    })
    .unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("given\npipe:"), "{text}");
    let ended = wait_for(pid).unwrap();
    assert_eq!((ended.code, ended.signal), (Some(3), None));
    assert!(wait_for(pid).is_err());
}

#[test]
fn a_program_that_is_not_there_is_the_callers_error() {
    let argv = CStringArray::new(&["nothing"]).unwrap();
    let none = CStringArray::new::<&str>(&[]).unwrap();
    let spec =
        Spawn { path: c"/nowhere/nothing", argv: &argv, env: &none, fds: &[], new_session: false };
    assert_eq!(spawn(&spec), Err(Errno::NOENT));
}

#[test]
fn descriptors_that_would_overwrite_each_other_are_refused() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let first = raise_descriptor(null.try_clone().unwrap().into(), 30).unwrap();
    let argv = CStringArray::new(&["true"]).unwrap();
    let number = rustix::fd::AsRawFd::as_raw_fd(&first);
    let spec = Spawn {
        path: c"/bin/true",
        argv: &argv,
        env: &argv,
        fds: &[(null.as_fd(), number), (first.as_fd(), 5)],
        new_session: false,
    };
    assert_eq!(spawn(&spec), Err(Errno::INVAL));
}

#[test]
fn cloning_needs_a_single_thread() {
    // The test harness has at least two.
    assert!(matches!(clone_process(CloneFlags::default(), None), Err(Errno::DEADLK)));
    assert!(matches!(fork_process(), Err(Errno::DEADLK)));
}

#[test]
fn a_filter_is_checked_before_it_reaches_the_kernel() {
    assert_eq!(load_seccomp(&[], 0), Err(Errno::INVAL));
    assert_eq!(load_seccomp(&[0; 7], 0), Err(Errno::INVAL));
    assert_eq!(load_seccomp(&vec![0; 8 * 70_000], 0), Err(Errno::INVAL));
}

#[test]
fn strings_with_zero_bytes_are_refused() {
    assert!(CStringArray::new(&["a\0b"]).is_err());
    assert_eq!(CStringArray::new(&["a", "b"]).unwrap().strings().len(), 2);
}

#[test]
fn flags_are_sets() {
    let both = CloneFlags::MOUNT.with(CloneFlags::PID);
    assert!(both.contains(CloneFlags::PID) && !both.contains(CloneFlags::USER));
    assert!(last_capability() >= 36);
}
