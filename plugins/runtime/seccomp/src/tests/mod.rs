//! Programs are run here by an interpreter, and compared with what the rules say and with what
//! libseccomp makes of the same rules.

mod behaviour;
mod interpreter;
mod kernel;
mod oracle;

use crate::{Arch, Filter, Host, KernelVersion, default_profile};

/// The capabilities of a container that asks for none.
const DEFAULT_CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

fn host(arch: Arch) -> Host {
    Host { arch, kernel: KernelVersion { version: 6, revision: 1 } }
}

fn default_filter(arch: Arch, more_caps: &[&str]) -> Filter {
    let caps = [&DEFAULT_CAPS[..], more_caps].concat();
    default_profile().resolve(&caps, &host(arch)).unwrap()
}

fn filter(json: &str) -> Filter {
    serde_json::from_str(json).unwrap()
}
