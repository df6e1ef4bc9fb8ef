//! Overlays by fuse-overlayfs, for kernels and file systems on which overlayfs does not work.
//!
//! A FUSE mount is served by a process, for as long as the mount is anywhere. It is started here and
//! belongs to nobody afterwards: it leads a session of its own, outlives the caller, and ends when the
//! last mount of its file system does.
//!
//! It mounts by path, so it is started by a thread with a mount namespace of its own, in which layers and
//! mount lie below a directory that nobody misses there. The thread takes a detached clone of the mount
//! and removes the original. Unmounts of the machine's other mounts arrive in that namespace: the server
//! keeps no disk busy but that of its layers.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};

use super::overlay::attach_all;
use super::tree::{Propagation, clone_tree_at, detach, enter_namespace};
use crate::error::{Error, Result};
use crate::process::{CStringArray, Spawn, raise_descriptor, spawn, wait_for};

/// Where the server mounts, beside its layers.
const PLACE: &str = "/proc/fs/mount";

/// `FUSE_SUPER_MAGIC`.
const MAGIC: i64 = 0x6573_5546;

/// The server says that it serves by going into the background.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// What of its complaints is kept.
const WORDS_MAX: usize = 4096;

/// Descriptors of the caller are moved up here, so that the server's numbers are free.
const OUT_OF_THE_WAY: i32 = 1000;

/// An overlay that fuse-overlayfs will serve.
#[derive(Debug)]
pub struct FuseOverlay<'a> {
    /// The server program.
    pub program: &'a Path,
    /// Read-only layers, topmost first: detached mounts.
    pub lowers: Vec<BorrowedFd<'a>>,
    /// What takes the changes.
    pub upper: Option<FuseUpper<'a>>,
}

/// The writable layer of a [`FuseOverlay`]: a detached mount with two directories in it.
#[derive(Debug, Clone, Copy)]
pub struct FuseUpper<'a> {
    /// The mount.
    pub mount: BorrowedFd<'a>,
    /// The directory that takes the changes, relative to the mount.
    pub changes: &'a Path,
    /// Scratch space, relative to the mount.
    pub work: &'a Path,
}

impl FuseOverlay<'_> {
    /// Starts the server and returns its mount, detached.
    ///
    /// # Errors
    ///
    /// `ENOENT`: no such program. `ETIMEDOUT`: it did not begin to serve. Otherwise with its own words.
    pub fn mount(&self) -> Result<OwnedFd> {
        std::thread::scope(|scope| {
            let worker = std::thread::Builder::new()
                .name("fuse-mount".to_owned())
                .spawn_scoped(scope, || self.mount_in_namespace())
                .map_err(|error| Error::new("start thread for", "FUSE mount", error))?;
            worker.join().unwrap_or_else(|_| {
                let cause = std::io::Error::other("the mounting thread panicked");
                Err(Error::new("mount", "FUSE overlay", cause))
            })
        })
    }

    fn failed(&self, error: impl Into<std::io::Error>) -> Error {
        Error::at("mount by", self.program, error)
    }

    /// Runs on a thread of its own, whose namespace the server inherits.
    fn mount_in_namespace(&self) -> Result<OwnedFd> {
        enter_namespace(Propagation::Downstream)?;
        let upper = self.upper.iter().map(|upper| upper.mount);
        let mounts: Vec<_> = self.lowers.iter().copied().chain(upper).collect();
        let place = attach_all(&mounts)?;
        rustix::fs::mkdirat(place, "mount", Mode::RWXU).map_err(|errno| self.failed(errno))?;
        self.serve()?;
        let mount = clone_tree_at(rustix::fs::CWD, Path::new(PLACE), false)?;
        detach(Path::new(PLACE))?;
        let stat = rustix::fs::fstatfs(&mount).map_err(|errno| self.failed(errno))?;
        #[allow(clippy::unnecessary_cast, reason = "64 bits here, 32 elsewhere")]
        if stat.f_type as i64 == MAGIC {
            Ok(mount)
        } else {
            Err(self.failed(Errno::IO).with_detail("it mounted nothing"))
        }
    }

    /// Starts the server and waits until it serves.
    fn serve(&self) -> Result<()> {
        let (words, told) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| self.failed(errno))?;
        let pid = self.start(told)?;
        let deadline = Instant::now() + START_TIMEOUT;
        let said = read_until_closed(words, deadline);
        if said.is_none() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let ended = wait_for(pid).map_err(|errno| self.failed(errno))?;
        match said {
            Some(_) if ended.code == Some(0) => Ok(()),
            Some(words) => Err(self.failed(Errno::IO).with_detail(words.trim())),
            None => Err(self.failed(Errno::TIMEDOUT)),
        }
    }

    fn start(&self, told: OwnedFd) -> Result<Pid> {
        let failed = |errno: Errno| self.failed(errno);
        let raised = |fd: BorrowedFd<'_>| {
            let copy = rustix::io::fcntl_dupfd_cloexec(fd, OUT_OF_THE_WAY).map_err(failed)?;
            raise_descriptor(copy, OUT_OF_THE_WAY).map_err(failed)
        };
        let nothing = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
        let standard = [raised(nothing.as_fd())?, raised(told.as_fd())?];
        drop(told);
        let [nothing, told] = &standard;
        let fds = [(nothing.as_fd(), 0), (told.as_fd(), 1), (told.as_fd(), 2)];
        let program = program_name(self.program)?;
        let options = self.options()?;
        let argv = ["fuse-overlayfs", "-o", options.as_str(), PLACE];
        let argv = CStringArray::new(&argv).map_err(failed)?;
        let env = CStringArray::new(&["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]).map_err(failed)?;
        let spec = Spawn { path: &program, argv: &argv, env: &env, fds: &fds, new_session: true };
        spawn(&spec).map_err(failed)
    }

    fn options(&self) -> Result<String> {
        let count = self.lowers.len();
        let lowers: Vec<String> = (0..count).map(|n| format!("/proc/fs/{n}")).collect();
        let mut options = format!("lowerdir={}", lowers.join(":"));
        match &self.upper {
            Some(upper) => {
                let (changes, work) = (plain(upper.changes)?, plain(upper.work)?);
                options += &format!(",upperdir=/proc/fs/{count}/{changes}");
                options += &format!(",workdir=/proc/fs/{count}/{work}");
            }
            None => options += ",ro",
        }
        Ok(options)
    }
}

/// A name that has no meaning of its own among options, and does not lead out.
fn plain(path: &Path) -> Result<&str> {
    let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'/');
    let text = path.to_str().unwrap_or_default();
    if !text.is_empty() && text.bytes().all(of_a_name) {
        return Ok(text);
    }
    let why = "letters, digits, \"-\" and \"_\" are allowed";
    Err(Error::refused("use directory", path.display().to_string(), why))
}

fn program_name(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::at("start", path, std::io::ErrorKind::InvalidInput))
}

/// What is written until the last writer has closed; none if that does not happen in time.
fn read_until_closed(pipe: OwnedFd, deadline: Instant) -> Option<String> {
    let mut pipe = std::fs::File::from(pipe);
    let (mut words, mut buffer) = (Vec::new(), [0; 512]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().try_into().ok()?, tv_nsec: 0 };
        let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return None,
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return None,
        }
        match pipe.read(&mut buffer) {
            Ok(0) => return Some(String::from_utf8_lossy(&words).into_owned()),
            Ok(n) if words.len() < WORDS_MAX => {
                words.extend_from_slice(buffer.get(..n).unwrap_or_default());
            }
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Option<&'static Path> {
        let path = Path::new("/usr/bin/fuse-overlayfs");
        let usable = rustix::process::geteuid().is_root()
            && path.exists()
            && Path::new("/dev/fuse").exists();
        if !usable {
            eprintln!("skipped: needs root, /dev/fuse and fuse-overlayfs");
        }
        usable.then_some(path)
    }

    fn servers_of(dir: &Path) -> usize {
        let is_one = |entry: std::fs::DirEntry| {
            let mounts = std::fs::read_to_string(entry.path().join("mountinfo"));
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let dir = dir.file_name().unwrap().to_str().unwrap();
            mounts.is_ok_and(|text| text.contains(dir)) && name.trim() == "fuse-overlayfs"
        };
        std::fs::read_dir("/proc").unwrap().flatten().map(is_one).filter(|is| *is).count()
    }

    /// Runs as root only.
    #[test]
    fn root_the_server_ends_with_the_last_mount() {
        let Some(program) = program() else { return };
        let dir = crate::testing::Scratch::on_tmpfs("fuse,a:b");
        dir.write("lower/file", b"below");
        dir.write("lower/gone", b"");
        dir.make("top/upper");
        dir.make("top/work");
        let before = crate::mount::read_mountinfo().unwrap();
        let clone = |name: &str| crate::mount::clone_tree(dir.open(name), false).unwrap();
        let (lower, top) = (clone("lower"), clone("top"));
        let (changes, work) = (Path::new("upper"), Path::new("work"));
        let upper = FuseUpper { mount: top.as_fd(), changes, work };
        let overlay = FuseOverlay { program, lowers: vec![lower.as_fd()], upper: Some(upper) };
        let mount = overlay.mount().unwrap();
        let at = crate::path::proc_fd(&mount);
        assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "below");
        std::fs::write(at.join("file"), "above").unwrap();
        std::fs::remove_file(at.join("gone")).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("top/upper/file")).unwrap(), "above");
        assert_eq!(std::fs::read_to_string(dir.path().join("lower/file")).unwrap(), "below");
        assert_eq!(crate::mount::read_mountinfo().unwrap(), before);
        assert_eq!(servers_of(dir.path()), 1);
        let copy = crate::mount::clone_tree(&mount, false);
        drop(mount);
        drop(copy);
        let deadline = Instant::now() + Duration::from_secs(10);
        while servers_of(dir.path()) > 0 {
            assert!(Instant::now() < deadline, "the server stays");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs as root only.
    #[test]
    fn root_what_the_server_says_is_in_the_error() {
        let Some(program) = program() else { return };
        let dir = crate::testing::Scratch::on_tmpfs("fuse-bad");
        dir.write("file", b"");
        let lower = || crate::mount::clone_tree(dir.fd(), false).unwrap();
        let (first, second) = (lower(), lower());
        let nowhere = Path::new("file");
        let upper = FuseUpper { mount: first.as_fd(), changes: nowhere, work: nowhere };
        let overlay = FuseOverlay { program, lowers: vec![second.as_fd()], upper: Some(upper) };
        let error = overlay.mount().unwrap_err();
        assert!(error.to_string().contains('('), "{error}");
        let lower = lower();
        let (program, lowers) = (Path::new("/no/such"), vec![lower.as_fd()]);
        let missing = FuseOverlay { program, lowers, upper: None };
        assert!(missing.mount().unwrap_err().is(Errno::NOENT));
    }
}
