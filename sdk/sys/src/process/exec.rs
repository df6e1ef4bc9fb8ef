//! Becoming another program.

use super::last_errno;
use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;
use std::ffi::{CStr, CString};

/// Strings in the shape exec wants: a list of pointers closed by a null.
///
/// Built ahead of the exec, so that nothing is left to fail there.
#[derive(Debug)]
pub struct CStringArray {
    strings: Vec<CString>,
}

impl CStringArray {
    /// Takes the strings over.
    ///
    /// # Errors
    ///
    /// `EINVAL`: a string holds a zero byte.
    pub fn new<S: AsRef<[u8]>>(strings: &[S]) -> Result<Self, Errno> {
        let strings = strings
            .iter()
            .map(|text| CString::new(text.as_ref()).map_err(|_| Errno::INVAL))
            .collect::<Result<_, _>>()?;
        Ok(Self { strings })
    }

    /// The strings.
    #[must_use]
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }

    fn pointers(&self) -> Vec<*const libc::c_char> {
        self.strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    }
}

/// Replaces this program by the one at `path`. Returns only when that failed.
///
/// Source: execve(2).
#[must_use]
pub fn exec(path: &CStr, argv: &CStringArray, env: &CStringArray) -> Errno {
    let (argv, env) = (argv.pointers(), env.pointers());
    // SAFETY: `path` and every entry are C strings that outlive the call, both lists end in null.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    last_errno()
}

/// Replaces this program by the one open as `program` (an `O_PATH` descriptor is enough). Returns
/// only when that failed.
///
/// Source: execveat(2).
#[must_use]
pub fn exec_fd(program: impl AsFd, argv: &CStringArray, env: &CStringArray) -> Errno {
    let (argv, env) = (argv.pointers(), env.pointers());
    // SAFETY: the descriptor is open, every entry is a C string that outlives the call, both lists
    // end in null and the empty path is a C string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_fd().as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}
