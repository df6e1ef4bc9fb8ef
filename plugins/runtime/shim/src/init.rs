//! The tiny init: process 1 of a container that was started with one.
//!
//! It starts the program, forwards every signal to it, reaps whatever ends, and ends with the
//! program's exit code. It is the shim's own file under another name, so nothing has to be installed
//! or mounted into the container.

use crate::setup::search;
use gantry_sys::process::{
    CStringArray, exec, exit_now, fork_process, ignore, reap_any, reset_signals, send_signal_to,
    signal_descriptor, signal_descriptor_drain,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// SIGCHLD.
const CHILD: i32 = 17;
/// SIGTTIN and SIGTTOU: process 1 is in the background of its own terminal.
const TERMINAL: [i32; 2] = [21, 22];
/// Faults of init itself (ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS), the C library's own two, and what
/// the kernel handles alone.
const NOT_FORWARDED: [i32; 13] = [4, 5, 6, 7, 8, 9, 11, 19, 21, 22, 31, 32, 33];

/// Runs `program`, a name and its arguments, and returns its exit code.
pub(crate) fn run(program: Vec<OsString>) -> i32 {
    match supervise(program) {
        Ok(code) => code,
        Err(errno) => {
            eprintln!("docker-init: {}", std::io::Error::from(errno));
            1
        }
    }
}

fn supervise(program: Vec<OsString>) -> Result<i32, Errno> {
    let forwarded: Vec<i32> = (1..=64).filter(|signal| !NOT_FORWARDED.contains(signal)).collect();
    let signals = signal_descriptor(&forwarded)?;
    ignore(&TERMINAL)?;
    let Some(child) = fork_process()? else { exit_now(run_program(program)) };
    loop {
        let mut ready = [PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        signal_descriptor_drain(&signals, |signal| {
            if signal != CHILD {
                let _ = send_signal_to(child, signal);
            }
        })?;
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
    }
}

fn reap(child: Pid) -> Result<Option<i32>, Errno> {
    let mut code = None;
    while let Some(ended) = reap_any()? {
        if ended.pid == child.as_raw_nonzero().get() {
            code = Some(ended.code.unwrap_or_else(|| 128 + ended.signal.unwrap_or(0)));
        }
    }
    Ok(code)
}

/// In the child: a group of its own, in the foreground if there is a terminal, and the program.
fn run_program(program: Vec<OsString>) -> i32 {
    let _ = rustix::process::setpgid(None, None);
    if rustix::termios::isatty(rustix::stdio::stdin()) {
        let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid());
    }
    reset_signals();
    let bytes = |text: OsString| text.into_vec();
    let env: Vec<Vec<u8>> = std::env::vars_os()
        .map(|(name, value)| [bytes(name), b"=".to_vec(), bytes(value)].concat())
        .collect();
    let path: Vec<String> =
        env.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
    let program: Vec<Vec<u8>> = program.into_iter().map(bytes).collect();
    let Some(name) = program.first().map(|name| String::from_utf8_lossy(name).into_owned()) else {
        return 127;
    };
    let (Ok(argv), Ok(env)) = (CStringArray::new(&program), CStringArray::new(&env)) else {
        return 127;
    };
    let errno = search(&name, &path, |path| exec(path, &argv, &env));
    eprintln!("docker-init: exec {name} failed: {}", std::io::Error::from(errno));
    if errno == Errno::NOENT { 127 } else { 126 }
}
