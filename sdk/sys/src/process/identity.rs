//! Who a process is: user, groups, capabilities, limits, seccomp.

use super::check;
use rustix::io::Errno;

/// The identity a process takes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective and saved user.
    pub uid: u32,
    /// Real, effective and saved group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Takes on `credentials`: groups first, then group, then user, as privileges fade in this order.
///
/// The raw system calls act on the calling thread only: for programs with one thread.
///
/// # Errors
///
/// `EPERM`: no privilege; `EINVAL`: an id has no mapping in this user namespace.
///
/// Source: setgroups(2), setresgid(2), setresuid(2).
pub fn set_credentials(credentials: &Credentials) -> Result<(), Errno> {
    let Credentials { uid, gid, groups } = credentials;
    // SAFETY: the list is alive during the call and as long as stated.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: the call takes integers and touches none of our memory.
    check(unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) })?;
    // SAFETY: the call takes integers and touches none of our memory.
    check(unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) })?;
    Ok(())
}

/// Highest number a capability may have for us; the kernel has 41 of them.
const MOST_CAPABILITIES: u32 = 64;

/// The highest capability this kernel knows.
///
/// Source: capabilities(7), `/proc/sys/kernel/cap_last_cap`; asked with prctl(2) instead, which
/// needs no procfs.
#[must_use]
pub fn last_capability() -> u32 {
    let known = |cap: u32| {
        // SAFETY: the call takes integers and touches none of our memory.
        unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(cap), 0, 0, 0) >= 0 }
    };
    // Kernels in use have 37 to 41; walking down from the top would be more calls.
    (36..MOST_CAPABILITIES).take_while(|cap| known(*cap)).last().unwrap_or(36)
}

/// Drops every capability outside `mask` from the bounding set (bit n is capability n).
///
/// # Errors
///
/// `EPERM` without `CAP_SETPCAP`.
///
/// Source: prctl(2), `PR_CAPBSET_DROP`.
pub fn drop_bounding_except(mask: u64) -> Result<(), Errno> {
    for cap in (0..=last_capability()).filter(|cap| mask >> cap & 1 == 0) {
        let number = libc::c_ulong::from(cap);
        // SAFETY: the call takes integers and touches none of our memory.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
        check(answer.into())?;
    }
    Ok(())
}

/// Makes the ambient set exactly `mask` (bit n is capability n).
///
/// # Errors
///
/// `EPERM`: a capability is not both permitted and inheritable.
///
/// Source: prctl(2), `PR_CAP_AMBIENT`.
pub fn set_ambient(mask: u64) -> Result<(), Errno> {
    let call = |operation: libc::c_int, cap: u32| {
        // SAFETY: the call takes integers and touches none of our memory.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, cap, 0, 0) }.into())
    };
    call(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for cap in (0..MOST_CAPABILITIES).filter(|cap| mask >> cap & 1 == 1) {
        call(libc::PR_CAP_AMBIENT_RAISE, cap)?;
    }
    Ok(())
}

/// Sets both values of resource `resource` (an `RLIMIT_*` number) for this process.
///
/// # Errors
///
/// `EPERM`: the hard limit would rise without `CAP_SYS_RESOURCE`. `EINVAL`: soft above hard, or no
/// such resource.
///
/// Source: prlimit(2).
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let new = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `new` is a complete rlimit64 alive during the call; no old value is asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const new,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })?;
    Ok(())
}

/// Bytes of one BPF instruction (`struct sock_filter`).
const INSTRUCTION: usize = 8;

/// Installs `program`, compiled seccomp BPF, for this thread, with `flags`
/// (`SECCOMP_FILTER_FLAG_*`).
///
/// # Errors
///
/// `EINVAL`: not whole instructions, more than 4096 of them, or not a program the kernel accepts.
/// `EACCES`: neither `no_new_privs` nor `CAP_SYS_ADMIN`.
///
/// Source: seccomp(2), `SECCOMP_SET_MODE_FILTER`.
pub fn load_seccomp(program: &[u8], flags: u32) -> Result<(), Errno> {
    if program.is_empty() || !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Errno::INVAL);
    }
    let count = u16::try_from(program.len() / INSTRUCTION).map_err(|_| Errno::INVAL)?;
    // Instructions are 4-aligned; the bytes may lie anywhere.
    let mut filter: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let program = libc::sock_fprog { len: count, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points at `count` complete instructions, alive during the call.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })?;
    Ok(())
}

/// Gives the process a new, empty session keyring, so that it shares no keys with its parent. A
/// kernel without keyrings has none to share.
///
/// # Errors
///
/// `EDQUOT`, `ENOMEM`: no more keyrings may be made.
///
/// Source: keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`.
pub fn new_session_keyring(name: &str) -> Result<(), Errno> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
    // SAFETY: `name` is a C string that outlives the call.
    let answer = check(unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    });
    match answer {
        Err(Errno::NOSYS) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}
