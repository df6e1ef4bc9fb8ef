//! Limits on the space beneath a directory: project quotas. Source: quotactl(2), ioctl_fs(2),
//! `linux/dqblk_xfs.h`, `linux/fs.h`.
//!
//! Every inode carries a project id; a directory that hands its id on gives it to whatever is made
//! beneath. The file system counts blocks and inodes by id and refuses what exceeds the id's limit. Ids
//! belong to the whole file system and to nobody in particular, so the file system itself is asked
//! whether one is free: it is, when nothing counts on it and nobody has set a limit for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// `FS_IOC_FSGETXATTR`: `_IOR('X', 31, struct fsxattr)`.
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801C_581F;
/// `FS_IOC_FSSETXATTR`: `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401C_5820;

/// `FS_XFLAG_PROJINHERIT`.
const PROJECT_INHERITED: u32 = 0x200;

/// `PRJQUOTA`.
const PROJECTS: u32 = 2;

/// `Q_XGETQUOTA`, `Q_XSETQLIM` and `Q_XGETQSTAT`: `XQM_CMD(n)` of `linux/dqblk_xfs.h`. Every file
/// system with quotas understands them, not XFS alone.
const GET_QUOTA: u32 = 0x5803;
const SET_LIMITS: u32 = 0x5804;
const GET_STATE: u32 = 0x5805;

/// `FS_QUOTA_PDQ_ENFD`: limits of projects are enforced.
const PROJECTS_ENFORCED: u16 = 1 << 5;

/// `FS_DQ_ISOFT | FS_DQ_IHARD | FS_DQ_BSOFT | FS_DQ_BHARD`.
const ALL_LIMITS: u16 = 0xF;

/// Blocks of quotas, whatever the file system's are.
const BLOCK: u64 = 512;

/// Ids below are left to the machine's administrator and to other programs, which begin at 1.
const FIRST_ID: u32 = 0x4000_0000;
/// Ids are taken from as many.
const IDS: u32 = 0x3000_0000;
/// That many ids in a row that are all in use are no accident.
const TRIES: u32 = 100_000;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    pad: [u8; 8],
}

/// `struct fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fields: u16,
    id: u32,
    blocks_hard: u64,
    blocks_soft: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    blocks: u64,
    inodes: u64,
    timers_and_warnings: [u32; 4],
    realtime: [u64; 3],
    realtime_timers: [u32; 2],
    pad: [u8; 8],
}

/// `struct fs_quota_stat`.
#[repr(C)]
#[derive(Default)]
struct QuotaState {
    version: i8,
    flags: u16,
    pad: i8,
    files: [u64; 6],
    tail: [u32; 5],
}

/// The project a file or directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    /// Its id; 0 is none.
    pub id: u32,
    /// Whether a directory gives it to what is made beneath.
    pub inherited: bool,
}

/// What a project may take; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProjectLimit {
    /// Bytes on disk, rounded up to 512.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What a project takes and may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProjectUsage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes, counting those that are deleted and still open.
    pub inodes: u64,
    /// The limits that are set.
    pub limit: ProjectLimit,
}

/// The project of `file`, which is open for reading.
///
/// # Errors
///
/// `ENOTTY` or `EOPNOTSUPP`: the file system knows no projects.
pub fn project_of(file: impl AsFd) -> Result<Project> {
    let attributes = attributes(file.as_fd()).map_err(|e| Error::new("read", "project id", e))?;
    Ok(Project { id: attributes.project, inherited: attributes.flags & PROJECT_INHERITED != 0 })
}

/// Puts the directory `dir`, which is open for reading, and what will be made beneath into a project.
///
/// # Errors
///
/// `ENOTTY` or `EOPNOTSUPP`: the file system knows no projects. `EINVAL`: in a user namespace.
pub fn set_project(dir: impl AsFd, project: Project) -> Result<()> {
    let failed = |e: io::Error| Error::new("set", format!("project id {}", project.id), e);
    let mut attributes = attributes(dir.as_fd()).map_err(failed)?;
    attributes.project = project.id;
    attributes.flags &= !PROJECT_INHERITED;
    if project.inherited {
        attributes.flags |= PROJECT_INHERITED;
    }
    // SAFETY: the command reads one `struct fsxattr`, whose layout `Attributes` has.
    let answer = unsafe {
        libc::ioctl(dir.as_fd().as_raw_fd(), FS_IOC_FSSETXATTR as _, &raw const attributes)
    };
    if answer < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(()) }
}

fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the command fills one `struct fsxattr`, whose layout `Attributes` has; it is
    // exclusively borrowed and outlives the call.
    let answer =
        unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR as _, &raw mut attributes) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes) }
}

/// Whether the file system that `file` lies on enforces limits of projects now: it can, and was mounted
/// to do so. On kernels before 5.14 nobody can tell by a descriptor, and the answer is no.
///
/// # Errors
///
/// What the kernel reported, other than that it has no quotas here.
pub fn enforces_project_limits(file: impl AsFd) -> Result<bool> {
    let mut state = QuotaState { version: 1, ..QuotaState::default() };
    // SAFETY: the command fills one `struct fs_quota_stat`, whose layout `QuotaState` has.
    match unsafe { quotactl(file.as_fd(), GET_STATE, 0, (&raw mut state).cast()) } {
        Ok(()) => Ok(state.flags & PROJECTS_ENFORCED != 0),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOSYS | Errno::SRCH | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY) => {
                Ok(false)
            }
            _ => Err(Error::new("read", "state of project quotas", error)),
        },
    }
}

/// What the project `id` takes on the file system that `file` lies on.
///
/// # Errors
///
/// `ENOSYS` or `ESRCH`: no project quotas there.
pub fn project_usage(file: impl AsFd, id: u32) -> Result<ProjectUsage> {
    let mut quota = DiskQuota { version: 1, ..DiskQuota::default() };
    // SAFETY: the command fills one `struct fs_disk_quota`, whose layout `DiskQuota` has.
    match unsafe { quotactl(file.as_fd(), GET_QUOTA, id, (&raw mut quota).cast()) } {
        Ok(()) => Ok(ProjectUsage {
            bytes: quota.blocks.saturating_mul(BLOCK),
            inodes: quota.inodes,
            limit: ProjectLimit {
                bytes: quota.blocks_hard.saturating_mul(BLOCK),
                inodes: quota.inodes_hard,
            },
        }),
        // No record: nothing was ever counted on it.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
            Ok(ProjectUsage::default())
        }
        Err(error) => Err(Error::new("read", format!("quota of project {id}"), error)),
    }
}

/// Sets what the project `id` may take on the file system that `file` lies on.
///
/// # Errors
///
/// `ENOSYS` or `ESRCH`: no project quotas there. `EPERM`: no privilege. `EROFS`: mounted read-only.
pub fn set_project_limit(file: impl AsFd, id: u32, limit: ProjectLimit) -> Result<()> {
    let blocks = limit.bytes.div_ceil(BLOCK);
    let mut quota = DiskQuota {
        version: 1,
        flags: PROJECTS as i8,
        fields: ALL_LIMITS,
        id,
        blocks_hard: blocks,
        blocks_soft: blocks,
        inodes_hard: limit.inodes,
        inodes_soft: limit.inodes,
        ..DiskQuota::default()
    };
    // SAFETY: the command reads one `struct fs_disk_quota`, whose layout `DiskQuota` has.
    unsafe { quotactl(file.as_fd(), SET_LIMITS, id, (&raw mut quota).cast()) }
        .map_err(|error| Error::new("set", format!("limit of project {id}"), error))
}

/// # Safety
///
/// `data` points to what `command` reads or fills.
unsafe fn quotactl(
    file: BorrowedFd<'_>,
    command: u32,
    id: u32,
    data: *mut libc::c_void,
) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; the caller vouches for `data`.
    let answer = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command << 8 | PROJECTS, id, data)
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Limits what lies beneath `dir`, which is open for reading: gives it a project of its own, unless it
/// has one, and returns the project's id. `hint` says where to look for a free id first; callers with
/// different hints do not search through each other's.
///
/// # Errors
///
/// `EOPNOTSUPP`: the file system does not enforce limits of projects. `ENOTEMPTY`: `dir` has no
/// project of its own yet, and what is in it would not be counted. `ENOSPC`: no id is free.
pub fn limit_directory(dir: impl AsFd, limit: ProjectLimit, hint: u32) -> Result<u32> {
    /// Between finding an id free and using it nobody else in this process looks.
    static CHOOSING: Mutex<()> = Mutex::new(());
    let dir = dir.as_fd();
    let failed = |errno: Errno| Error::new("limit", "directory", errno);
    if !enforces_project_limits(dir)? {
        let why = "its file system does not enforce project quotas";
        return Err(failed(Errno::OPNOTSUPP).with_detail(why));
    }
    let _one_at_a_time = CHOOSING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(id) = own_project(dir)? {
        set_project_limit(dir, id, limit)?;
        return Ok(id);
    }
    if !is_empty(dir).map_err(failed)? {
        return Err(failed(Errno::NOTEMPTY));
    }
    for n in 0..TRIES {
        let id = FIRST_ID + hint.wrapping_add(n) % IDS;
        if project_usage(dir, id)? != ProjectUsage::default() {
            continue;
        }
        set_project_limit(dir, id, limit)?;
        let joined = set_project(dir, Project { id, inherited: true });
        if joined.is_err() {
            let _ = set_project_limit(dir, id, ProjectLimit::default());
        }
        return joined.map(|()| id);
    }
    Err(failed(Errno::NOSPC).with_detail("no project id is free"))
}

/// The project that is `dir`'s alone: not one that came from above.
///
/// # Errors
///
/// As [`project_of`].
pub fn own_project(dir: impl AsFd) -> Result<Option<u32>> {
    let own = project_of(&dir)?;
    if own.id == 0 || !own.inherited {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(&dir, "..", flags, Mode::empty())
        .map_err(|errno| Error::new("open", "parent directory", errno))?;
    // Above the top of a file system is another one, with projects of its own or none.
    let device = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| stat.st_dev);
    let is_same = device(dir.as_fd()) == device(parent.as_fd());
    let from_above = is_same && project_of(&parent).is_ok_and(|above| above.id == own.id);
    Ok((!from_above).then_some(own.id))
}

fn is_empty(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    for entry in Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<DiskQuota>(), 112);
        assert_eq!(size_of::<QuotaState>(), 80);
    }

    #[test]
    fn where_nothing_is_enforced_nothing_is_limited() {
        let dir = crate::testing::Scratch::on_tmpfs("quota");
        assert!(!enforces_project_limits(dir.fd()).unwrap());
        let limit = ProjectLimit { bytes: 1 << 20, inodes: 0 };
        let error = limit_directory(dir.fd(), limit, 0).unwrap_err();
        assert!(error.is(Errno::OPNOTSUPP) && error.to_string().contains("project quotas"));
    }
}
