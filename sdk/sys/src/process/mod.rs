//! Making, changing, signalling and reaping processes.
//!
//! What `rustix` offers as a safe function is not wrapped again. This module holds the rest: clone3
//! without threads, exec, spawn without copying the caller, seccomp, and descriptors that are known
//! only by number because they were inherited.

mod clone;
mod exec;
mod fds;
mod identity;
mod limits;
mod signal;
mod spawn;
mod watch;

#[cfg(test)]
mod tests;

pub use clone::{
    CloneFlags, Cloned, clone_process, exit_now, fork_process, mount_namespace_of, trim_heap,
    unshare,
};
pub use exec::{CStringArray, exec, exec_fd};
pub use fds::{close_from, dup_onto, inherited, mark_cloexec_from, raise_descriptor};
pub use identity::{
    Credentials, drop_bounding_except, last_capability, load_seccomp, new_session_keyring,
    set_ambient, set_credentials, set_rlimit,
};
pub use limits::raise_open_files;
pub use signal::{
    Reaped, ignore, reap_any, reset_signals, send_signal, send_signal_to, signal_descriptor,
    signal_descriptor_drain, wait_for,
};
pub use spawn::{Spawn, spawn};
pub use watch::{WatchedCall, let_happen, mark, name_of_call, next_call, watch_changes};

use rustix::io::Errno;

/// The error `libc` left in `errno`.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Turns a C result (`-1` and `errno`) into a `Result`.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}
