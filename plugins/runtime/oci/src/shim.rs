//! The shim's program, and starting it.

use std::ffi::CString;
use std::path::Path;

use gantry_sdk::{Error, Result};
use gantry_shim_protocol::{CONTROL_FD, RUN_DIR_FD};
use gantry_sys::memfd::{self, Executable};
use gantry_sys::process::{CStringArray, Spawn, raise_descriptor, spawn};
use gantry_sys::socket;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

/// The program, built with this crate.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gantry-shim"));

/// Numbers below this mean something to a shim.
const FLOOR: i32 = 16;

/// The program in memory, sealed: a container that reaches it through `/proc` can change nothing
/// (CVE-2019-5736).
#[derive(Debug)]
pub(crate) struct Shim {
    program: OwnedFd,
    null: OwnedFd,
}

/// A shim that was just started.
#[derive(Debug)]
pub(crate) struct Started {
    /// Connection to it.
    pub(crate) control: OwnedFd,
    /// Its process, this daemon's child.
    pub(crate) pid: Pid,
}

impl Shim {
    /// Puts the program into memory.
    pub(crate) fn load() -> Result<Self> {
        let program = memfd::sealed("gantry-shim", PROGRAM, Executable::Yes)
            .map_err(|error| Error::internal("cannot keep the shim's program in memory", error))?;
        // Below the floor it would be overwritten just before the exec that needs it.
        let program = raise_descriptor(program, FLOOR)
            .map_err(|errno| Error::io("keep in memory", "the shim's program", errno.into()))?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io("open", "/dev/null", errno.into()))?;
        let null = raise_descriptor(null, FLOOR)
            .map_err(|errno| Error::io("open", "/dev/null", errno.into()))?;
        Ok(Self { program, null })
    }

    /// Starts a shim for `run_dir`. The calling thread waits for the exec, a fraction of a
    /// millisecond.
    pub(crate) fn spawn(&self, run_dir: &Path) -> Result<Started> {
        let failed =
            |errno: rustix::io::Errno| Error::io("start shim for", run_dir.display(), errno.into());
        let (control, far) =
            socket::pair().map_err(|error| Error::internal("cannot connect a new shim", error))?;
        let far = raise_descriptor(far, FLOOR).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(run_dir, flags, Mode::empty()).map_err(failed)?;
        let dir = raise_descriptor(dir, FLOOR).map_err(failed)?;
        let path = CString::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
            .map_err(|_| failed(rustix::io::Errno::INVAL))?;
        let argv = CStringArray::new(&["gantry-shim"]).map_err(failed)?;
        // External runtimes look for their helpers.
        let search =
            std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        let env = CStringArray::new(&[format!("PATH={search}")]).map_err(failed)?;
        let null = self.null.as_fd();
        let fds =
            [(null, 0), (null, 1), (null, 2), (far.as_fd(), CONTROL_FD), (dir.as_fd(), RUN_DIR_FD)];
        let spec = Spawn { path: &path, argv: &argv, env: &env, fds: &fds, new_session: true };
        let pid = spawn(&spec).map_err(failed)?;
        Ok(Started { control, pid })
    }

    /// The program's bytes, for containers whose init an external runtime starts.
    pub(crate) const fn bytes() -> &'static [u8] {
        PROGRAM
    }
}
