//! The device program of a v2 group: loading, attaching, replacing. Source: bpf(2), `linux/bpf.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::error::{Error, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// More programs on one group than this are not ours to replace.
const ATTACHED_MAX: usize = 64;

/// The verifier's words are kept up to this length.
const LOG_MAX: usize = 4096;

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to `prog_flags`.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct GetFdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Attaches `program` to the group at `dir` and takes away the device programs attached there before.
///
/// The new one is attached first: access needs the consent of all, so it is never wider than both.
///
/// # Errors
///
/// `EPERM`: no `CAP_BPF` or `CAP_SYS_ADMIN`. `EINVAL`: the kernel was built without
/// `CONFIG_CGROUP_BPF`, or refuses the program; then its words are in the message.
pub(super) fn replace_device_program(dir: &Path, program: &[u64]) -> Result<()> {
    let failed = |doing| move |error: io::Error| Error::at(doing, dir, error);
    let group = crate::path::open_root(dir)?;
    let group = reopen(&group).map_err(failed("open control group"))?;
    let loaded = load(program).map_err(|(error, words)| {
        Error::at("load device program for", dir, error).with_detail(words)
    })?;
    let before = attached(&group).map_err(failed("list device programs of"))?;
    attach(&group, &loaded).map_err(failed("attach device program to"))?;
    for id in before {
        let old = program_of_id(id).map_err(failed("find old device program of"))?;
        detach(&group, &old).map_err(failed("detach old device program from"))?;
    }
    Ok(())
}

/// The call takes no `O_PATH` descriptors.
fn reopen(dir: &OwnedFd) -> io::Result<OwnedFd> {
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, c".", flags, rustix::fs::Mode::empty())?)
}

/// One `bpf(2)` call.
///
/// # Safety
///
/// `T` must be laid out as the kernel's `union bpf_attr` for `command`, and every pointer in it must be
/// valid for what the command reads or writes there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is exclusively borrowed for the call and its true size is given; the caller
    // vouches for the rest.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as libc::c_int) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn load(program: &[u64]) -> Result<OwnedFd, (io::Error, String)> {
    load_with_log(program, &mut []).or_else(|(first, _)| {
        // Once more with a log, which costs a page and is wanted in the failing case only.
        let mut log = vec![0; LOG_MAX];
        load_with_log(program, &mut log).map_err(|(error, ())| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let words =
                String::from_utf8_lossy(log.get(..end).unwrap_or_default()).trim().to_owned();
            (if words.is_empty() { first } else { error }, words)
        })
    })
}

fn load_with_log(program: &[u64], log: &mut [u8]) -> Result<OwnedFd, (io::Error, ())> {
    let too_long = |_| (io::ErrorKind::InvalidInput.into(), ());
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(too_long)?,
        insns: program.as_ptr() as u64,
        // It calls no helper of the kernel, so any licence would do.
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttr::default()
    };
    if !log.is_empty() {
        attr.log_level = 1;
        attr.log_size = u32::try_from(log.len()).map_err(too_long)?;
        attr.log_buf = log.as_mut_ptr() as u64;
    }
    // SAFETY: `LoadAttr` is the layout of this command. The kernel reads `insn_cnt` instructions of
    // eight bytes, which is `program`, and a C string, which is static; it writes at most `log_size`
    // bytes to `log`, which is exclusively borrowed.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr) }.map_err(|error| (error, ()))?;
    // SAFETY: the kernel just created `fd` for us (close-on-exec), nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(group: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: number(group.as_fd()),
        attach_bpf_fd: number(program.as_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `AttachAttr` is the layout of this command and holds no pointers.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

fn detach(group: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: number(group.as_fd()),
        attach_bpf_fd: number(program.as_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
    };
    // SAFETY: `AttachAttr` is the layout of this command and holds no pointers.
    unsafe { bpf(BPF_PROG_DETACH, &mut attr) }.map(drop)
}

/// Ids of the device programs attached to exactly this group.
fn attached(group: &OwnedFd) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; ATTACHED_MAX];
    let mut attr = QueryAttr {
        target_fd: number(group.as_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    // SAFETY: `QueryAttr` is the layout of this command; the kernel writes at most `prog_cnt` ids of
    // four bytes to `ids`, which holds as many.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    ids.truncate(usize::try_from(attr.prog_cnt).unwrap_or(0));
    Ok(ids)
}

fn program_of_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = GetFdAttr { prog_id: id, ..GetFdAttr::default() };
    // SAFETY: `GetFdAttr` is the layout of this command and holds no pointers.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the kernel just created `fd` for us (close-on-exec), nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
