//! Namespaces of one's own: network, mounts and processes.
//!
//! The first process of the pid namespace is a shell that waits for the end of its standard input.
//! The test holds the other end, so the namespace, and everything in it, ends with the test however
//! the test ends. Being first, the shell also inherits and reaps what the daemon leaves behind when
//! it is killed.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::command::{self, Output};

const INIT: &str = "ip link set lo up || exit 1; echo ready; read -r _";

/// A network, mount and pid namespace, alive until dropped.
#[derive(Debug)]
pub struct Sandbox {
    unshare: Child,
    /// The namespace's first process, numbered as this process sees it.
    init: u32,
}

impl Sandbox {
    /// Makes the namespaces, with the loopback link up.
    ///
    /// # Errors
    ///
    /// If `unshare`, `ip` or the right to use them is missing.
    pub fn start() -> Result<Self> {
        let mut unshare = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "--", "bash", "-c", INIT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare")?;
        let stdout = unshare.stdout.take().context("unshare has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            unshare.kill().ok();
            unshare.wait().ok();
            bail!("cannot make namespaces: unshare or ip failed");
        }
        let init = child_of(unshare.id())?;
        Ok(Self { unshare, init })
    }

    /// The namespace's first process, as the machine numbers it.
    #[must_use]
    pub const fn init(&self) -> u32 {
        self.init
    }

    /// `program`, to be run in the network, mount and pid namespaces.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.enter(&["--net", "--mount", "--pid"], program)
    }

    /// `program`, to be run in the network namespace only.
    #[must_use]
    pub fn network_command(&self, program: &str) -> Command {
        self.enter(&["--net"], program)
    }

    fn enter(&self, namespaces: &[&str], program: &str) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.init.to_string()]).args(namespaces).arg("--").arg(program);
        nsenter
    }

    /// Runs a shell script in the namespaces and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it fails or takes longer than [`command::DEADLINE`].
    pub fn sh(&self, script: &str) -> Result<String> {
        let mut sh = self.command("sh");
        sh.args(["-ec", script]);
        command::run(sh, b"", command::DEADLINE)?.success()
    }

    /// Like [`sh`](Self::sh), with the outcome as it is.
    ///
    /// # Errors
    ///
    /// If it takes longer than [`command::DEADLINE`].
    pub fn try_sh(&self, script: &str) -> Result<Output> {
        let mut sh = self.command("sh");
        sh.args(["-ec", script]);
        command::run(sh, b"", command::DEADLINE)
    }

    /// Ids of every process in the namespace and those nested in it, as the namespace numbers them,
    /// with their command lines. Zombies are shown in brackets.
    ///
    /// # Errors
    ///
    /// If the namespace is gone.
    pub fn processes(&self) -> Result<Vec<(u32, String)>> {
        let proc = PathBuf::from(format!("/proc/{}/root/proc", self.init));
        let mut all = Vec::new();
        for entry in proc.read_dir().context("the sandbox is gone")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) else { continue };
            let directory = proc.join(&name);
            let Ok(raw) = std::fs::read(directory.join("cmdline")) else { continue };
            let mut shown = String::from_utf8_lossy(&raw).replace('\0', " ").trim().to_owned();
            if shown.is_empty() {
                let comm = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
                shown = format!("[{}]", comm.trim());
            }
            all.push((pid, shown));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// A file in `/proc` of the process that the namespace numbers `pid`.
    #[must_use]
    pub fn process_file(&self, pid: u64, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/proc/{pid}/{name}", self.init))
    }

    /// Joins this network namespace to `other`'s by a pair of links: `here` on this side, `there`
    /// on the other, both `address/prefix`. Deleted with either namespace.
    ///
    /// # Errors
    ///
    /// What `ip` reported.
    pub fn connect(&self, here: (&str, &str), other: &Self, there: (&str, &str)) -> Result<()> {
        let target = other.init;
        let (link, address) = here;
        let (peer, peer_address) = there;
        // The peer's namespace is named by the machine's pid: not to be run in the pid namespace.
        let mut sh = self.network_command("sh");
        sh.args([
            "-ec",
            &format!(
                "ip link add {link} type veth peer name {peer} netns {target}; \
                 ip address add {address} dev {link}; ip link set {link} up"
            ),
        ]);
        command::run(sh, b"", command::DEADLINE)?.success()?;
        other.sh(&format!("ip address add {peer_address} dev {peer}; ip link set {peer} up"))?;
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The shell sees the end of its input; the kernel ends everybody else in the namespace.
        drop(self.unshare.stdin.take());
        if !matches!(
            command::wait(&mut self.unshare, std::time::Duration::from_secs(5)),
            Ok(Some(_))
        ) {
            self.unshare.kill().ok();
            self.unshare.wait().ok();
        }
    }
}

/// Runs `body` on a thread in the network namespace that `namespace` names: the sockets it makes
/// belong there for ever.
///
/// # Errors
///
/// The body's, or if the namespace cannot be entered.
pub fn in_network<T: Send>(namespace: &Path, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file =
        File::open(namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            body()
        });
        thread.join().map_err(|_| anyhow!("panicked in another network namespace"))?
    })
}

/// The only child of `pid`, as the machine numbers it.
///
/// # Errors
///
/// If there is none, or more than one.
pub fn child_of(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut ids = children.split_whitespace();
    let child = ids.next().with_context(|| format!("process {pid} has no child"))?;
    ensure!(ids.next().is_none(), "process {pid} has several children");
    Ok(child.parse()?)
}
