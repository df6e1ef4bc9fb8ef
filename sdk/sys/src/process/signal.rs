//! Signals as descriptors and numbers, and reaping.

use super::{check, last_errno};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;

/// Highest signal number on Linux.
const LAST_SIGNAL: i32 = 64;

/// Sends signal number `signal` (real-time ones included; 0 only asks) to the process of `pidfd`.
///
/// # Errors
///
/// `ESRCH`: it has ended. `EPERM`, `EINVAL`: as kill(2) has them.
///
/// Source: pidfd_send_signal(2).
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: integers and a null pointer, which the call allows.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, info, 0) })?;
    Ok(())
}

/// Sends signal number `signal` to process `pid`, which the caller knows not to be reused: its own
/// unreaped child, or a member of a frozen cgroup.
///
/// # Errors
///
/// `ESRCH`: no such process. `EPERM`, `EINVAL`: as kill(2) has them.
pub fn send_signal_to(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: the call takes integers and touches none of our memory.
    check(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }.into())?;
    Ok(())
}

/// Blocks `signals` and returns a non-blocking, close-on-exec descriptor that is readable while one
/// is pending.
///
/// # Errors
///
/// `EMFILE`, `ENOMEM`, `EINVAL` for a number that is no signal.
///
/// Source: signalfd(2).
pub fn signal_descriptor(signals: &[i32]) -> Result<OwnedFd, Errno> {
    let mut set = empty_set();
    for signal in signals {
        // SAFETY: `set` is an initialised set.
        check(unsafe { libc::sigaddset(&raw mut set, *signal) }.into())?;
    }
    let old = std::ptr::null_mut();
    // SAFETY: `set` is an initialised set; no old one is asked for.
    let answer = unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, old) };
    check(answer.into())?;
    // SAFETY: `set` is an initialised set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel just created `fd` for us, so it is open and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes every pending signal off a [`signal_descriptor`] and calls `each` with its number.
///
/// # Errors
///
/// `EIO`: the descriptor gave something else than whole records.
pub fn signal_descriptor_drain(fd: impl AsFd, mut each: impl FnMut(i32)) -> Result<(), Errno> {
    let mut record = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
    loop {
        match rustix::io::read(fd.as_fd(), &mut record) {
            Ok(got) if got == record.len() => {
                // ssi_signo is the first field, an unsigned 32-bit number.
                let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
                each(i32::try_from(number).map_err(|_| Errno::IO)?);
            }
            Ok(_) => return Err(Errno::IO),
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Ignores `signals` until the next [`reset_signals`].
///
/// # Errors
///
/// `EINVAL`: no signal, or one that cannot be ignored.
pub fn ignore(signals: &[i32]) -> Result<(), Errno> {
    for signal in signals {
        // SAFETY: SIG_IGN installs no handler.
        if unsafe { libc::signal(*signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(last_errno());
        }
    }
    Ok(())
}

/// Gives every signal its default action and unblocks all: what a new program expects.
///
/// Ignored signals and the mask survive exec, so this is called before it.
pub fn reset_signals() {
    for signal in 1..=LAST_SIGNAL {
        // The C library keeps 32 and 33 for itself and the kernel refuses SIGKILL and SIGSTOP; all
        // four cannot have been changed.
        // SAFETY: SIG_DFL installs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let set = empty_set();
    // SAFETY: `set` is an initialised set; no old one is asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
}

fn empty_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set, so it may be assumed initialised after.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// Which child.
    pub pid: i32,
    /// Its exit code, when it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it, otherwise.
    pub signal: Option<i32>,
}

/// Reaps one child that has ended, if there is one; never waits.
///
/// # Errors
///
/// None in practice: having no children is `Ok(None)`.
///
/// Source: waitpid(2).
pub fn reap_any() -> Result<Option<Reaped>, Errno> {
    wait_raw(-1, libc::WNOHANG)
}

/// Waits for child `pid` and reaps it.
///
/// # Errors
///
/// `ECHILD`: not a child of this process, or already reaped.
pub fn wait_for(pid: Pid) -> Result<Reaped, Errno> {
    wait_raw(pid.as_raw_nonzero().get(), 0)?.ok_or(Errno::CHILD)
}

fn wait_raw(pid: i32, flags: i32) -> Result<Option<Reaped>, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a writable integer alive during the call.
        let got = unsafe { libc::waitpid(pid, &raw mut status, flags) };
        match got {
            0 => return Ok(None),
            got if got > 0 => {
                let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
                let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
                return Ok(Some(Reaped { pid: got, code, signal }));
            }
            _ => match last_errno() {
                Errno::INTR => {}
                Errno::CHILD if pid < 0 => return Ok(None),
                error => return Err(error),
            },
        }
    }
}
