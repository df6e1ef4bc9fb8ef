//! `gantryd`: the kernel with the built-in plugins.
//!
//! Everything about arguments and exit codes is in [`gantry_kernel::program`]; what the build
//! consists of is in `gantry_builtin`.

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry_kernel::program::run(std::env::args_os().skip(1), gantry_builtin::plugins())
}
