//! Failures of shims as errors of the API.

use gantry_sdk::{Error, ErrorKind};
use gantry_shim_protocol::{Failure, Stage};

/// Numbers of errno-base.h that decide about kinds.
const NOENT: i32 = 2;
const SRCH: i32 = 3;
const ACCES: i32 = 13;
const NOTDIR: i32 = 20;
const NOSPC: i32 = 28;

/// The error for a failed request. Messages about programs have the reference's words, which clients
/// and the choice of exit codes (127, 126) go by.
pub(crate) fn from_failure(failure: &Failure) -> Error {
    let kind = match (failure.stage, failure.errno) {
        (Stage::Exec, NOENT) => ErrorKind::NotFound,
        (Stage::Exec, ACCES | NOTDIR) => ErrorKind::Forbidden,
        (Stage::State, SRCH) => ErrorKind::NotFound,
        (Stage::State, _) => ErrorKind::Conflict,
        (Stage::Protocol, _) => ErrorKind::Internal,
        (_, NOSPC) => ErrorKind::NoSpace,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, failure.message.clone())
}

/// The error for a container that could not be started.
pub(crate) fn create_failed(failure: &Failure) -> Error {
    from_failure(failure).context(
        "failed to create task for container: failed to create shim task: OCI runtime create failed: \
         unable to start container process",
    )
}

/// The error for an exec that could not be started.
pub(crate) fn exec_failed(failure: &Failure) -> Error {
    from_failure(failure)
        .context("OCI runtime exec failed: exec failed: unable to start container process")
}

/// Says which part of a launch an error was about.
pub(crate) fn launch_failed(error: Error) -> Error {
    error.context("failed to create task for container")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_stage_and_number() {
        for (stage, errno, kind) in [
            (Stage::Exec, NOENT, ErrorKind::NotFound),
            (Stage::Exec, ACCES, ErrorKind::Forbidden),
            (Stage::Exec, 8, ErrorKind::Internal),
            (Stage::Mount, NOENT, ErrorKind::Internal),
            (Stage::Cgroup, NOSPC, ErrorKind::NoSpace),
            (Stage::State, SRCH, ErrorKind::NotFound),
        ] {
            let failure = Failure { stage, errno, message: "x".to_owned() };
            assert_eq!(from_failure(&failure).kind(), kind);
        }
    }
}
