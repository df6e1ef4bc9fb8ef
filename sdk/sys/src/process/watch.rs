//! Watching a process change files, call by call: a seccomp filter that asks before each of them.
//!
//! For tests that kill a process at a chosen point. Whoever watches may let the call happen or kill the
//! process, which then has not made it; the arguments are not to be trusted for anything but counting.
//!
//! Source: seccomp_unotify(2), seccomp(2), Linux `include/uapi/linux/seccomp.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::error::{Error, Result};

use super::{check, last_errno};

/// `_IOWR('!', 0, struct seccomp_notif)`
const NOTIF_RECV: u64 = 0xC050_2100;
/// `_IOWR('!', 1, struct seccomp_notif_resp)`
const NOTIF_SEND: u64 = 0xC018_2101;

/// Where in `struct seccomp_data` the number of the call is.
const NUMBER_AT: u32 = 0;
/// Where the lower half of the third argument is, on machines of either byte order that this runs on.
const FLAGS_AT: u32 = 16 + 2 * 8;

/// Calls that change a file system and can be told by their number. Writing through `write` is left
/// out: it is how a process wakes its own threads too.
const CHANGES: &[libc::c_long] = &[
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_utimensat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_pwrite64,
    libc::SYS_copy_file_range,
    libc::SYS_ioctl,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedCall {
    /// Names the call towards the kernel.
    id: u64,
    /// Its number.
    pub number: i64,
    /// Set if it is a [`mark`] and not a change.
    pub mark: Option<u32>,
}

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn program() -> Vec<libc::sock_filter> {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let any = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut program = vec![statement(load, NUMBER_AT)];
    for number in CHANGES {
        program.push(jump(equal, *number as u32, 0, 1));
        program.push(statement(end, libc::SECCOMP_RET_USER_NOTIF));
    }
    // Opening a file is a change if it may make one.
    program.push(jump(equal, libc::SYS_openat as u32, 0, 3));
    program.push(statement(load, FLAGS_AT));
    program.push(jump(any, libc::O_CREAT as u32, 0, 1));
    program.push(statement(end, libc::SECCOMP_RET_USER_NOTIF));
    program.push(statement(end, libc::SECCOMP_RET_ALLOW));
    program
}

/// From now on every call of this thread, and of those that it makes, waits before it changes a file
/// until it is answered through the descriptor that is returned. Needs `CAP_SYS_ADMIN`; there is no way
/// back.
///
/// # Errors
///
/// `EINVAL`: a kernel before 5.5. `EBUSY`: the thread is watched already.
pub fn watch_changes() -> Result<OwnedFd> {
    let mut filters = program();
    let length = u16::try_from(filters.len()).unwrap_or(u16::MAX);
    let program = libc::sock_fprog { len: length, filter: filters.as_mut_ptr() };
    // SAFETY: the program and its filters outlive the call, which copies them; nothing is kept.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let fd = check(answer).map_err(|errno| Error::new("watch", "own calls", errno))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Tells who watches this process that it has come to `point`. Does nothing else.
pub fn mark(point: u32) {
    // SAFETY: no descriptor has this number, so the call fails and changes nothing.
    let _ = unsafe { libc::syscall(libc::SYS_fchmod, -1, point) };
}

/// Waits for the next call; none once the watched have ended.
///
/// # Errors
///
/// What the kernel reported.
pub fn next_call(listener: impl AsFd) -> Result<Option<WatchedCall>> {
    let fd = listener.as_fd().as_raw_fd();
    loop {
        let mut ready = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, exclusively borrowed, that outlives the call.
        if unsafe { libc::poll(&raw mut ready, 1, -1) } < 0 {
            match last_errno() {
                rustix::io::Errno::INTR => continue,
                errno => return Err(Error::new("wait for", "watched calls", errno)),
            }
        }
        if ready.revents & libc::POLLIN == 0 {
            return Ok(None);
        }
        // SAFETY: all of its bits may be zero, and the kernel wants them so.
        let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the command fills one structure of this type, exclusively borrowed.
        let answer = unsafe { libc::ioctl(fd, NOTIF_RECV as _, &raw mut notice) };
        if answer == 0 {
            let number = i64::from(notice.data.nr);
            let is_mark = number == libc::SYS_fchmod && notice.data.args[0] as i32 == -1;
            let mark = is_mark.then_some(notice.data.args[1] as u32);
            return Ok(Some(WatchedCall { id: notice.id, number, mark }));
        }
        match io::Error::last_os_error().raw_os_error() {
            // The call was interrupted, or the process was killed, before it was fetched.
            Some(libc::ENOENT | libc::EINTR) => {}
            _ => return Err(Error::new("fetch", "a watched call", last_errno())),
        }
    }
}

/// Lets a call happen. That its process is gone meanwhile is no error.
///
/// # Errors
///
/// What the kernel reported.
pub fn let_happen(listener: impl AsFd, call: WatchedCall) -> Result<()> {
    let mut response = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: 0,
        flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    };
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: the command reads one structure of this type, which outlives the call.
    if unsafe { libc::ioctl(fd, NOTIF_SEND as _, &raw mut response) } == 0 {
        return Ok(());
    }
    match last_errno() {
        rustix::io::Errno::NOENT => Ok(()),
        errno => Err(Error::new("answer", "a watched call", errno)),
    }
}

/// The name of a watched call, for people.
pub fn name_of_call(number: i64) -> String {
    let known: &[(libc::c_long, &str)] = &[
        (libc::SYS_mkdirat, "mkdirat"),
        (libc::SYS_mknodat, "mknodat"),
        (libc::SYS_symlinkat, "symlinkat"),
        (libc::SYS_linkat, "linkat"),
        (libc::SYS_unlinkat, "unlinkat"),
        (libc::SYS_renameat2, "renameat2"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_pwrite64, "pwrite64"),
        (libc::SYS_ftruncate, "ftruncate"),
        (libc::SYS_utimensat, "utimensat"),
        (libc::SYS_syncfs, "syncfs"),
        (libc::SYS_fsync, "fsync"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_renameat, "renameat"),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mkdir, "mkdir"),
    ];
    let found = known.iter().find(|(at, _)| *at == number);
    found.map_or_else(|| format!("call {number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_changes_wait_and_marks_are_told_apart() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("gantry-watch-{}", std::process::id()));
        let (give, take) = std::sync::mpsc::channel();
        let path = dir.clone();
        let watched = std::thread::spawn(move || {
            let listener = watch_changes().unwrap();
            give.send(listener).unwrap();
            mark(7);
            std::fs::create_dir(&path).unwrap();
            mark(8);
            std::fs::remove_dir(&path).unwrap();
        });
        let listener = take.recv().unwrap();
        let mut seen = Vec::new();
        while let Some(call) = next_call(&listener).unwrap() {
            seen.push(call.mark);
            assert_eq!(dir.exists(), seen.len() > 2 && seen.len() < 5, "before {seen:?}");
            let_happen(&listener, call).unwrap();
        }
        watched.join().unwrap();
        assert_eq!(seen, [Some(7), None, Some(8), None]);
    }
}
