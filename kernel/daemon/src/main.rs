//! `gantryd`: the kernel with the built-in plugins and the carriers of others.
//!
//! Everything about arguments and exit codes is in [`gantry_kernel::program`]; what the build
//! consists of is in `gantry_builtin`.

use std::process::ExitCode;

// Carriers are plugins of the kernel: mentioning them here links their registrations in.
use gantry_carrier_socket as _;

fn main() -> ExitCode {
    gantry_kernel::program::run(std::env::args_os().skip(1), gantry_builtin::plugins())
}
