//! Starting another program without copying this one.

use super::CStringArray;
use super::limits::restore_open_files;
use rustix::fd::{AsRawFd, BorrowedFd, RawFd};
use rustix::io::Errno;
use rustix::process::Pid;
use std::ffi::CStr;
use std::mem::MaybeUninit;

/// What to start, and with which descriptors.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program; `/proc/self/fd/N` is looked up before close-on-exec descriptors close.
    pub path: &'a CStr,
    /// Its arguments, the name first.
    pub argv: &'a CStringArray,
    /// Its environment.
    pub env: &'a CStringArray,
    /// Descriptors the program finds under the given numbers; everything else that is close-on-exec
    /// stays behind.
    pub fds: &'a [(BorrowedFd<'a>, RawFd)],
    /// Whether it leads a session of its own, out of reach of the caller's terminal and group.
    pub new_session: bool,
}

/// Starts a program with posix_spawn(3): the child borrows the caller's memory until its exec
/// (`CLONE_VM | CLONE_VFORK`), so the cost does not grow with the caller. Signals have their default
/// action and are unblocked in the child. The calling thread waits for the exec.
///
/// After [`super::raise_open_files`] the child's own limit of open descriptors is restored as soon as
/// it runs. The child is the caller's to reap.
///
/// # Errors
///
/// What execve(2) or the creation said: `ENOENT`, `EACCES`, `ENOMEM`, `EAGAIN`; `EINVAL` for a
/// descriptor that collides with another one's target number.
pub fn spawn(spec: &Spawn<'_>) -> Result<Pid, Errno> {
    let targets = |number: RawFd| spec.fds.iter().any(|(_, target)| *target == number);
    if spec.fds.iter().any(|(fd, target)| fd.as_raw_fd() != *target && targets(fd.as_raw_fd())) {
        return Err(Errno::INVAL);
    }
    let actions = Actions::new(spec.fds)?;
    let attributes = Attributes::new(spec.new_session)?;
    let argv: Vec<*mut libc::c_char> = pointers(spec.argv);
    let env: Vec<*mut libc::c_char> = pointers(spec.env);
    let mut pid: libc::pid_t = 0;
    // SAFETY: every pointer is to an initialised object that outlives the call; both lists end in
    // null; posix_spawn does not write through the string pointers.
    done(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            spec.path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            env.as_ptr(),
        )
    })?;
    let pid = Pid::from_raw(pid).ok_or(Errno::IO)?;
    restore_open_files(pid);
    Ok(pid)
}

fn pointers(strings: &CStringArray) -> Vec<*mut libc::c_char> {
    let end = std::ptr::null_mut();
    strings.strings().iter().map(|text| text.as_ptr().cast_mut()).chain([end]).collect()
}

/// posix_spawn and its helpers return the error instead of setting `errno`.
fn done(error: libc::c_int) -> Result<(), Errno> {
    if error == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(error)) }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new(fds: &[(BorrowedFd<'_>, RawFd)]) -> Result<Self, Errno> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init makes the object valid, after which it may be assumed initialised.
        let mut actions = unsafe {
            done(libc::posix_spawn_file_actions_init(raw.as_mut_ptr()))?;
            Self(raw.assume_init())
        };
        for (fd, target) in fds {
            // A duplicate onto itself clears close-on-exec, as POSIX 2024 and glibc have it.
            // SAFETY: the object is initialised; numbers are only recorded.
            done(unsafe {
                libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, fd.as_raw_fd(), *target)
            })?;
        }
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

/// `POSIX_SPAWN_SETSID` of glibc's spawn.h.
const SETSID: libc::c_short = 0x80;

impl Attributes {
    fn new(new_session: bool) -> Result<Self, Errno> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init makes the object valid, after which it may be assumed initialised.
        let mut attributes = unsafe {
            done(libc::posix_spawnattr_init(raw.as_mut_ptr()))?;
            Self(raw.assume_init())
        };
        let mut flags =
            (libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK) as libc::c_short;
        if new_session {
            flags |= SETSID;
        }
        let (mut all, mut none) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both sets are initialised before they are read; the object is initialised.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::sigemptyset(none.as_mut_ptr());
            done(libc::posix_spawnattr_setflags(&raw mut attributes.0, flags))?;
            done(libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, all.as_ptr()))?;
            done(libc::posix_spawnattr_setsigmask(&raw mut attributes.0, none.as_ptr()))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}
