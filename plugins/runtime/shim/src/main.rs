//! The shim's program. Started by the runtime plugin, which brings it along; not by people.

fn main() {
    std::process::exit(gantry_shim::main(std::env::args_os()));
}
