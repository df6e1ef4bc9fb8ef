//! clone3 for programs with one thread.

use super::{check, last_errno};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;

/// What the new process gets of its own: the `CLONE_NEW*` bits of clone3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloneFlags(u64);

impl CloneFlags {
    /// A new mount namespace.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    /// A new UTS namespace: host and domain name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);
    /// A new IPC namespace: System V objects and POSIX message queues.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// A new PID namespace, with the new process as its init.
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    /// A new network namespace.
    pub const NETWORK: Self = Self(libc::CLONE_NEWNET as u64);
    /// A new user namespace, without any identity mapped yet.
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// A new cgroup namespace, rooted where the new process starts.
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Cloned {
    /// The caller. The pidfd is close-on-exec.
    Parent {
        /// Number of the child, as the caller's PID namespace sees it.
        pid: Pid,
        /// Handle to the child.
        pidfd: OwnedFd,
    },
    /// The new process: it must end in [`super::exec`] or [`exit_now`].
    Child,
}

/// Copies the calling process like fork(2), into new namespaces and, on cgroup v2, straight into
/// the cgroup `into`.
///
/// The child has one thread and a copy of everything, so only a program with one thread may do it:
/// with more, a lock held by another thread would stay locked for ever in the child.
///
/// # Errors
///
/// `EDEADLK`: the caller has more than one thread. Otherwise clone3(2)'s: `EPERM` without the
/// privilege for the namespaces, `ENOSPC` or `EAGAIN` at a limit, `EBUSY` for a cgroup v2 directory
/// that must not hold processes.
///
/// Source: clone(2), unshare(2).
pub fn clone_process(flags: CloneFlags, into: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    // unshare(CLONE_SIGHAND) changes nothing and fails exactly when there are several threads.
    // SAFETY: the call takes one integer and touches none of our memory.
    if unsafe { libc::unshare(libc::CLONE_SIGHAND) } != 0 {
        return Err(Errno::DEADLK);
    }
    let mut pidfd: libc::c_int = -1;
    let mut args = Args {
        flags: flags.0 | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..Args::default()
    };
    if let Some(cgroup) = into {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_| Errno::BADF)?;
    }
    // SAFETY: `args` is a complete clone_args of the size given, alive during the call; without
    // CLONE_VM the child runs on its own copy of this stack, and the caller has one thread.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<Args>())
    })?;
    let Ok(pid) = i32::try_from(pid) else { return Err(Errno::OVERFLOW) };
    match Pid::from_raw(pid) {
        None => Ok(Cloned::Child),
        // SAFETY: the kernel wrote a new descriptor to `pidfd`, which nothing else owns.
        Some(pid) => Ok(Cloned::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// From linux/sched.h; the `libc` crate's constant is a 32-bit number and overflows.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Copies the calling process with fork(2). `None` is the child, which must end in [`super::exec`] or
/// [`exit_now`].
///
/// Like [`clone_process`] for programs with one thread, but with what every seccomp filter in use
/// allows: the reference engine's refuses clone3 and unshare.
///
/// # Errors
///
/// `EDEADLK`: the caller has more than one thread. `EAGAIN`, `ENOMEM`: as fork(2) has them.
pub fn fork_process() -> Result<Option<Pid>, Errno> {
    // A filter that forbids the question (EPERM) leaves it to the caller to have one thread.
    // SAFETY: the call takes one integer and touches none of our memory.
    if unsafe { libc::unshare(libc::CLONE_SIGHAND) } != 0 && last_errno() == Errno::INVAL {
        return Err(Errno::DEADLK);
    }
    // SAFETY: with one thread, the child's copy of everything is consistent.
    let pid = check(unsafe { libc::fork() }.into())?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// `struct clone_args` of linux/sched.h.
#[repr(C)]
#[derive(Default)]
struct Args {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Moves the calling thread into new namespaces. A new PID namespace is for its children only.
///
/// # Errors
///
/// `EPERM`: no privilege. `EINVAL`: a new user namespace with more than one thread.
///
/// Source: unshare(2).
pub fn unshare(flags: CloneFlags) -> Result<(), Errno> {
    let flags = i32::try_from(flags.0).map_err(|_| Errno::INVAL)?;
    // SAFETY: namespaces are the only flags this type holds; memory and descriptors stay shared.
    check(unsafe { libc::unshare(flags) }.into())?;
    Ok(())
}

/// Ends the process at once, without running anything registered for the end.
///
/// Source: _exit(2).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// `PIDFD_GET_MNT_NAMESPACE` of linux/pidfd.h: `_IO(0xFF, 3)`.
const PIDFD_GET_MNT_NAMESPACE: libc::c_ulong = 0xFF03;

/// A handle to the mount namespace of the process behind `pidfd`.
///
/// Whoever holds it past the end of the process takes over the work of tearing the namespace down:
/// the parent hears of the exit before the unmounting, not after.
///
/// # Errors
///
/// `ENOTTY` or `EINVAL`: Linux before 6.11. `ESRCH`: the process has ended.
///
/// Source: ioctl_pidfd(2).
pub fn mount_namespace_of(pidfd: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: this request takes no argument; the descriptor is open for the call.
    let fd = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_MNT_NAMESPACE, 0) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel just created `fd` for us, so it is open and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives unused heap pages back to the kernel, for programs that live long and work rarely.
///
/// Source: malloc_trim(3).
pub fn trim_heap() {
    // SAFETY: malloc_trim works on free memory only.
    unsafe { libc::malloc_trim(0) };
}
