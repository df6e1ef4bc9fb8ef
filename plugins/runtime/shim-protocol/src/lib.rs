//! Messages between the runtime plugin and its shims.
//!
//! One `SOCK_SEQPACKET` packet is one message: a sequence number (little endian, 32 bits), then the
//! message in postcard. Descriptors travel beside it. What may be big (the container's plan with its
//! seccomp program and environment) travels in a memfd, so that a packet stays small and the shim
//! never has to keep it.
//!
//! ```text
//! plugin ── Request ──▶ shim        each answered by one Reply with the request's number
//! plugin ◀── Event ─── shim         number 0: exits, pushed to every connection
//! ```
//!
//! The plugin and the shim are built together and the shim is started from the plugin's own bytes,
//! but a shim outlives daemons: [`VERSION`] is compared on every connection. A message that one side
//! does not know is answered with [`Stage::Protocol`] and changes nothing.

mod frame;
mod launch;
mod message;

pub use frame::{
    FRAME_MAX, FrameError, MEMFD_MAX, decode_body, decode_frame, encode_body, encode_frame,
};
pub use launch::{
    Capabilities, Console, Device, DeviceKind, External, FdIndex, IdMap, Launch, LaunchHead,
    LogMode, LogSink, Mount, MountKind, MountSource, Namespace, NamespaceMode, Namespaces, Process,
    Propagation, Rlimit, Rootfs, Stdio, TargetKind,
};
pub use message::{
    Event, ExecHead, Exit, Failure, Phase, Reply, Request, ServerMessage, Stage, StateReport,
    Streams,
};

/// The version of these messages. A daemon speaks to shims of the same number only.
pub const VERSION: u16 = 1;

/// Most descriptors in one message: the kernel's `SCM_MAX_FD`.
pub const FDS_MAX: usize = 253;

/// The descriptor a shim finds its first connection at.
pub const CONTROL_FD: i32 = 3;

/// The descriptor a shim finds its run directory at.
pub const RUN_DIR_FD: i32 = 4;

/// Name of the socket in the run directory.
pub const SOCKET_NAME: &str = "shim.sock";

/// Name of the file in the run directory that holds the [`Exit`] of the container.
pub const EXIT_NAME: &str = "exit";

/// Name of the file in the run directory that holds the [`Exit`] of exec `id`.
#[must_use]
pub fn exec_exit_name(id: &str) -> String {
    format!("exec-{id}")
}

/// Whether `id` may be part of a file name: letters, digits, `_`, `.`, `-`, at most 128 of them.
#[must_use]
pub fn is_plain_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ids_become_file_names() {
        for (id, plain) in [
            ("a1", true),
            ("", false),
            (".", false),
            ("../x", false),
            ("a/b", false),
            ("a.b-c", true),
        ] {
            assert_eq!(is_plain_id(id), plain, "{id}");
        }
    }
}
