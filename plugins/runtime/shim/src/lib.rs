//! The shim: parent of one container, outlives the daemon.
//!
//! One process with one thread per container. It makes the container, keeps its streams and its log,
//! reaps it, and tells whoever asks; daemons come and go meanwhile. What it says and hears is in
//! `gantry-shim-protocol`.
//!
//! ```text
//! daemon ──spawn──▶ shim ──clone──▶ first process: namespaces, mounts, identity, exec
//!    ▲                │
//!    └── socket ──────┤ loop: requests, starts, streams, log, exits
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `server` | the loop |
//! | `setup` | what the new process does before its program runs |
//! | `status` | what the two say to each other meanwhile |
//! | `log` | the container's log |
//! | `init` | the tiny init, the same file under another name |

mod clock;
mod init;
mod log;
mod server;
mod setup;
mod status;

use gantry_shim_protocol::{CONTROL_FD, RUN_DIR_FD};
use gantry_sys::process::inherited;
use rustix::io::Errno;
use std::ffi::OsString;

/// Runs as what the first argument says: the shim, or a container's init.
///
/// Returns the exit code.
pub fn main(mut args: impl Iterator<Item = OsString>) -> i32 {
    let name = args.next().unwrap_or_default();
    let is_init = name.to_string_lossy().ends_with("docker-init");
    // Started from memory, it would be listed under the number of a descriptor.
    let _ = rustix::thread::set_name(if is_init { c"docker-init" } else { c"gantry-shim" });
    if is_init {
        return init::run(args.skip_while(|word| word == "--").collect());
    }
    match serve() {
        Ok(()) => 0,
        Err(errno) => {
            eprintln!("gantry-shim: {}", std::io::Error::from(errno));
            1
        }
    }
}

fn serve() -> Result<(), Errno> {
    let control = inherited(CONTROL_FD)?;
    let run_dir = inherited(RUN_DIR_FD)?;
    server::Shim::new(control, run_dir)?.run()
}
