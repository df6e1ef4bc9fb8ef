//! Seccomp: which system calls a container may make.
//!
//! A [`Profile`] holds rules that depend on the host and on a container's capabilities. Resolved
//! for one container it is a [`Filter`], which is `linux.seccomp` of the OCI runtime specification,
//! and [`compile()`] turns that into the program the kernel runs before every system call.
//!
//! # Map
//!
//! - [`profile`]: the JSON form, conditions, resolving
//! - [`default`](default_profile): the profile of a container that asks for none
//! - [`filter`]: resolved rules
//! - [`mod@compile`]: rules → program
//! - [`cache`]: programs compiled before
//!
//! # Invariants
//!
//! 1. A call of an architecture that the filter does not name kills the thread.
//! 2. A name that an architecture does not have produces no rule, and is no error.
//! 3. A rule without conditions takes over from rules with conditions about the same call.
//! 4. A program always fits the kernel's limit, or it is an error.
//!
//! # Not here
//!
//! Loading a program: the runtime does it, as the last step but one. Notifications to a supervisor
//! (`SCMP_ACT_NOTIFY`) are refused in words.

mod arch;
mod assemble;
pub mod cache;
pub mod compile;
mod default;
pub mod filter;
mod names;
pub mod profile;

#[cfg(test)]
mod tests;

pub use arch::Arch;
pub use cache::{Cache, Compiled, Source};
pub use compile::{compile, compile_with};
pub use default::default_profile;
pub use filter::Filter;
pub use profile::{Host, KernelVersion, Profile};

/// Why a profile or a filter is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a profile.
    #[error("decoding seccomp profile failed: {0}")]
    Json(#[from] serde_json::Error),
    /// The text is JSON of another kind, or none.
    #[error("decoding seccomp profile failed: expected an object")]
    NotAnObject,
    /// The text or what is in it is too much.
    #[error("seccomp profile has more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: usize,
    },
    /// Two ways to name modes.
    #[error(
        "both 'architectures' and 'archMap' are specified in the seccomp profile, use either \
         'architectures' or 'archMap'"
    )]
    BothArchitectures,
    /// Two ways to name calls.
    #[error(
        "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
    )]
    BothNames,
    /// A call without a name.
    #[error("empty string is not a valid syscall in the seccomp profile")]
    EmptyName,
    /// Rules, and nothing for the rest.
    #[error("seccomp profile has rules but no default action")]
    NoDefaultAction,
    /// A condition on an argument that no call has.
    #[error("seccomp profile compares argument {0}: calls have arguments 0 to 5")]
    ArgumentIndex(u8),
    /// An error number that the kernel cannot return.
    #[error("seccomp error number {0} is larger than 65535")]
    Errno(u32),
    /// Not a kernel version.
    #[error("invalid kernel version: {0:?}, expected \"<kernel>.<major>\"")]
    KernelVersion(String),
    /// A supervisor is asked for.
    #[error("seccomp action SCMP_ACT_NOTIFY is not supported")]
    Notify,
    /// No tables for the machine.
    #[error("seccomp filters are not supported on architecture {0}")]
    Architecture(&'static str),
    /// More instructions than the kernel takes.
    #[error("seccomp filter needs more than 4096 instructions")]
    ProgramTooLong,
}
