//! How many descriptors this process may have open.

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use std::sync::OnceLock;

/// The limits from before [`raise_open_files`].
static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit of open descriptors to the hard one. Programs started by [`super::spawn`]
/// get the limits that this process began with: a high soft limit is costly for programs that go
/// through all possible descriptors, and wrong for those that use select(2).
///
/// # Errors
///
/// As setrlimit(2) has them; `EPERM` if a security policy forbids it.
///
/// Source: getrlimit(2).
pub fn raise_open_files() -> Result<(), Errno> {
    let limits = getrlimit(Resource::Nofile);
    if limits.current == limits.maximum {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum })?;
    let _ = INHERITED.set(limits); // the first call counts
    Ok(())
}

/// Gives a child of this process the limits that this process began with.
pub(super) fn restore_open_files(child: Pid) {
    if let Some(limits) = INHERITED.get() {
        // A child has the identity of its parent, so only one that has ended is refused.
        let _ = prlimit(Some(child), Resource::Nofile, *limits);
    }
}
