//! A root file system of busybox, a specification like the reference's, and running it.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gantry_sdk::kinds::logs::LogSink;
use gantry_sdk::kinds::networks::SandboxNs;
use gantry_sdk::kinds::runtime::{Attach, ContainerProcess, Exit, Launch, Runtime, Stdio};
use gantry_sdk::mounts::MountFd;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Result};
use gantry_sys::mount::clone_tree_at;
use serde_json::{Value, json};

use crate::external::External;
use crate::native::{Machine, Oci};

const BUSYBOX: &str = "/bin/busybox";

/// Whether containers can be made here; says so when not.
pub(super) fn can_run() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new(BUSYBOX).exists();
    if !can {
        eprintln!("SKIPPED: needs root and {BUSYBOX}");
    }
    can
}

/// A machine and a place for containers.
pub(super) struct Fixture {
    pub(super) dir: PathBuf,
    pub(super) oci: Oci,
    number: u32,
}

/// What came of a container.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) exit: Exit,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with(None)
    }

    pub(super) fn with(program: Option<&str>) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("gantry-oci-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let rootfs = dir.join("rootfs");
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            std::fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        std::fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
        for name in ["sh", "true", "cat", "sleep", "echo", "id", "ls", "stty", "tty", "env", "kill"]
        {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
        }
        std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        let external = program.map(|path| External {
            path: path.to_owned(),
            args: Vec::new(),
            root: dir.join("state"),
        });
        let tasks = Tasks::new("test", &tokio_util::sync::CancellationToken::new());
        let oci = Oci { machine: Arc::new(Machine::read(tasks).unwrap()), external };
        Self { dir, oci, number }
    }

    fn group_parent(&self) -> PathBuf {
        PathBuf::from(format!("gantry-test-{}-{}", std::process::id(), self.number))
    }

    /// The control group of a container. Tests run side by side, so a name alone will not do.
    pub(super) fn group(&self, id: &str) -> PathBuf {
        self.group_parent().join(id)
    }

    /// A specification like the reference's for a container without options.
    pub(super) fn spec(&self, id: &str, argv: &[&str]) -> Value {
        let caps = json!([
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
            "CAP_AUDIT_WRITE"
        ]);
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": argv,
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "cwd": "/",
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "oomScoreAdj": 0
            },
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts",
                    &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
                mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
                mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])
            ],
            "linux": {
                "cgroupsPath": Path::new("/").join(self.group(id)),
                "resources": {
                    "devices": [{"allow": false, "access": "rwm"}],
                    "memory": {"limit": 268_435_456},
                    "pids": {"limit": 100},
                    "cpu": {"shares": 512}
                },
                "sysctl": {
                    "net.ipv4.ip_unprivileged_port_start": "0",
                    "kernel.shm_rmid_forced": "1"
                },
                "namespaces": [
                    {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "pid"},
                    {"type": "ipc"}, {"type": "cgroup"}
                ],
                "seccomp": filter(&caps),
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi",
                    "/proc/scsi", "/sys/firmware", "/proc/absent"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                    "/proc/sysrq-trigger"]
            }
        })
    }

    pub(super) fn launch(&self, id: &str, spec: &Value, stdio: Stdio) -> Launch {
        let run_dir = self.dir.join("run").join(id);
        std::fs::create_dir_all(&run_dir).unwrap();
        let root = clone_tree_at(rustix::fs::CWD, &self.dir.join("rootfs"), true).unwrap();
        Launch {
            id: id.to_owned(),
            run_dir,
            spec: Arc::new(serde_json::from_value(spec.clone()).unwrap()),
            root: MountFd::new(root),
            mounts: std::collections::BTreeMap::new(),
            // A new network namespace, made by the shim.
            netns: SandboxNs::Ready(new_netns()),
            stdio,
            log: LogSink::None,
            init: false,
            attach: Vec::new(),
        }
    }

    /// Starts `spec` with a client attached to its output.
    pub(super) async fn start(
        &self,
        mut launch: Launch,
    ) -> Result<(Arc<dyn ContainerProcess>, UnixStream)> {
        let (near, far) = UnixStream::pair().unwrap();
        let stdin = launch.stdio.stdin;
        launch.attach.push(Attach { stream: far, stdin, stdout: true, stderr: true });
        let container = self.oci.launch(&Ctx::background(), launch).await?;
        Ok((container, near))
    }

    /// Runs a command to its end and removes the container.
    pub(super) async fn run(&self, id: &str, spec: &Value) -> Outcome {
        let launch = self.launch(id, spec, Stdio::default());
        let (container, output) = self.start(launch).await.unwrap();
        let exit = within(container.wait()).await.unwrap();
        let (stdout, stderr) = frames(output);
        container.delete().await.unwrap();
        Outcome { exit, stdout, stderr }
    }

    /// Runs a shell script.
    pub(super) async fn sh(&self, id: &str, script: &str) -> Outcome {
        self.run(id, &self.spec(id, &["sh", "-c", script])).await
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let name = self.group_parent();
        for entry in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path().join(&name));
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The default filter for these capabilities.
fn filter(capabilities: &Value) -> Value {
    let capabilities: Vec<String> = serde_json::from_value(capabilities.clone()).unwrap();
    let host = gantry_seccomp::Host {
        arch: gantry_seccomp::Arch::X86_64,
        kernel: gantry_seccomp::KernelVersion { version: 6, revision: 1 },
    };
    let filter = gantry_seccomp::default_profile().resolve(&capabilities, &host);
    serde_json::to_value(filter.unwrap()).unwrap()
}

/// A network namespace that nothing else is in.
pub(super) fn new_netns() -> Arc<std::os::fd::OwnedFd> {
    let thread = std::thread::spawn(|| {
        gantry_sys::process::unshare(gantry_sys::process::CloneFlags::NETWORK).unwrap();
        std::fs::File::open("/proc/thread-self/ns/net").unwrap()
    });
    Arc::new(thread.join().unwrap().into())
}

/// Fails loudly instead of hanging.
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it should not take so long")
}

/// Reads a framed stream to its end.
pub(super) fn frames(mut stream: UnixStream) -> (String, String) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let length = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        let target = if rest[0] == 1 { &mut out } else { &mut err };
        target.extend_from_slice(&rest[8..8 + length]);
        rest = &rest[8 + length..];
    }
    (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned())
}
