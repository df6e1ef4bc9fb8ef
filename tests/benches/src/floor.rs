//! The same without an engine.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_test_harness::fixtures::{self, Fixture};
use gantry_test_harness::{Sandbox, requires};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs `command` to its end.
///
/// # Errors
///
/// If it fails.
pub(crate) fn time(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let took = start.elapsed();
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(took)
}

/// A bundle with busybox's tree, and the quickest runtime that takes it.
#[derive(Debug)]
pub(crate) struct Bundle {
    // Ends before the directory goes: containers may still hold it.
    sandbox: Sandbox,
    directory: TempDir,
    runtime: &'static str,
}

impl Bundle {
    /// Unpacks the tree and finds the runtime: crun, or runc where crun does not work.
    ///
    /// # Errors
    ///
    /// If neither does.
    pub(crate) fn unpack() -> Result<Self> {
        let sandbox = Sandbox::start()?;
        // crun takes v1 and v2 side by side for v2; in our own mount namespace nobody misses it.
        sandbox.try_sh("umount /sys/fs/cgroup/unified")?;
        let directory = tempfile::Builder::new().prefix("gb-").tempdir_in("/tmp")?;
        let mut bundle = Self { sandbox, directory, runtime: "none" };
        for runtime in ["crun", "runc"] {
            if requires::has_program(runtime) {
                bundle.runtime = runtime;
                bundle.fill()?;
                if bundle.run().is_ok() {
                    return Ok(bundle);
                }
            }
        }
        bail!("neither crun nor runc is installed and works here")
    }

    /// The runtime's name.
    pub(crate) const fn runtime(&self) -> &'static str {
        self.runtime
    }

    fn place(&self, command: &str) -> PathBuf {
        self.directory.path().join(command)
    }

    /// Writes one bundle per command, all with the same tree.
    fn fill(&self) -> Result<()> {
        let tree = self.directory.path().join("tree");
        if !tree.exists() {
            unpack_layer(&fixtures::archive(Fixture::Busybox)?, &tree)?;
        }
        for (name, arguments) in [("true", json!(["true"])), ("sleep", json!(["sleep", "3600"]))] {
            let place = self.place(name);
            std::fs::remove_dir_all(&place).ok();
            std::fs::create_dir(&place)?;
            let mut spec = self.sandbox.command(self.runtime);
            spec.arg("spec").arg("--bundle").arg(&place);
            time(&mut spec)?;
            let file = place.join("config.json");
            let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
            config["process"]["args"] = arguments;
            config["process"]["terminal"] = json!(false);
            config["root"]["path"] = json!(tree);
            config["linux"]["cgroupsPath"] = json!(format!("/gantry-bench-{}", std::process::id()));
            std::fs::write(&file, config.to_string())?;
        }
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.sandbox.command(self.runtime);
        command.arg("--root").arg(self.place("state")).args(arguments);
        command
    }

    /// Creates, starts, waits for and removes a container that runs `true`.
    ///
    /// # Errors
    ///
    /// If the runtime fails.
    pub(crate) fn run(&self) -> Result<Duration> {
        let mut run = self.command(&["run", "--bundle"]);
        time(run.arg(self.place("true")).arg("floor").stderr(Stdio::null()))
    }

    /// Starts a container that stays until the result is dropped.
    ///
    /// # Errors
    ///
    /// If the runtime fails.
    pub(crate) fn start(&self) -> Result<Running<'_>> {
        let mut run = self.command(&["run", "--detach", "--bundle"]);
        time(run.arg(self.place("sleep")).arg("stays").stderr(Stdio::null()))?;
        Ok(Running { bundle: self })
    }
}

/// A container of the runtime alone.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    bundle: &'a Bundle,
}

impl Running<'_> {
    /// Runs `true` in it.
    ///
    /// # Errors
    ///
    /// If the runtime fails.
    pub(crate) fn exec(&self) -> Result<Duration> {
        time(&mut self.bundle.command(&["exec", "stays", "true"]))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        time(&mut self.bundle.command(&["delete", "--force", "stays"])).ok();
    }
}

/// Unpacks the only layer of an archive as the harness writes it.
fn unpack_layer(archive: &Path, tree: &Path) -> Result<()> {
    let manifest = read_entry(archive, "manifest.json")?;
    let manifest: Value = serde_json::from_slice(&manifest)?;
    let layer = manifest[0]["Layers"][0].as_str().context("no layer")?;
    std::fs::create_dir(tree)?;
    std::fs::set_permissions(tree, std::fs::Permissions::from_mode(0o755))?;
    tar::Archive::new(read_entry(archive, layer)?.as_slice()).unpack(tree)?;
    Ok(())
}

fn read_entry(archive: &Path, name: &str) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(std::fs::File::open(archive)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() == name {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content)?;
            return Ok(content);
        }
    }
    bail!("no {name} in the archive")
}
