//! Builds the shim, statically linked, so that the daemon can bring it along.
//!
//! A daemon and its shims are then always of one build, and a shim runs from a sealed copy in
//! memory: no file on the host can be swapped under it, and none is reachable from a container.

use std::path::Path;
use std::process::Command;

fn main() {
    let manifest = required("CARGO_MANIFEST_DIR");
    let runtime = Path::new(&manifest).join("..");
    let workspace = runtime.join("../..");
    for source in [
        runtime.join("shim/src"),
        runtime.join("shim/Cargo.toml"),
        runtime.join("shim-protocol/src"),
        runtime.join("shim-protocol/Cargo.toml"),
        workspace.join("sdk/sys/src"),
        workspace.join("sdk/sys/Cargo.toml"),
        workspace.join("Cargo.toml"),
    ] {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let (out, target) = (required("OUT_DIR"), required("TARGET"));
    let target_dir = Path::new(&out).join("shim");
    let mut cargo = Command::new(required("CARGO"));
    // What this build was told is not for that one: flags, wrappers (clippy's), target directory.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = text.starts_with("CARGO") && text != "CARGO_HOME"
            || text.starts_with("RUSTC")
            || ["RUSTFLAGS", "RUSTDOC", "RUSTDOCFLAGS", "TARGET", "OUT_DIR", "PROFILE"]
                .contains(&text.as_ref());
        if foreign {
            cargo.env_remove(&name);
        }
    }
    // Unit separator between flags, as cargo documents it.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let status = cargo
        .args(["build", "--quiet", "--package", "gantry-shim", "--bin", "gantry-shim"])
        .args(["--profile", "shim", "--target", &target])
        .arg("--manifest-path")
        .arg(runtime.join("shim/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building the shim failed: {status}"),
        Err(error) => panic!("building the shim failed: cannot run cargo: {error}"),
    }
    let built = target_dir.join(&target).join("shim/gantry-shim");
    let embedded = Path::new(&out).join("gantry-shim");
    if let Err(error) = std::fs::copy(&built, &embedded) {
        panic!("cannot copy {}: {error}", built.display());
    }
}

fn required(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) => value,
        Err(error) => panic!("{name}: {error}"),
    }
}
