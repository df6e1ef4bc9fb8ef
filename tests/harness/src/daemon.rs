//! A daemon of one's own: started, killed, restarted, stopped and searched for leaks.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::TestResult;
use crate::command::{self, Output, Words};
use crate::fixtures::{self, Fixture};
use crate::http::{self, Request, Response};
use crate::leaks::{self, Places, Snapshot};
use crate::sandbox::{self, Sandbox};

/// How long a daemon may take to answer its first `_ping`, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long removed things may take to be gone.
const SETTLING: Duration = Duration::from_secs(30);

/// Lines of the daemon's log shown when a test fails.
const LOG_TAIL: usize = 60;

/// How to start the daemon, where the defaults do not do.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// More arguments.
    pub arguments: Vec<String>,
    /// The configuration file's content.
    pub config: Option<Value>,
    /// Keeps the data root in memory, with this size limit as tmpfs(5) writes it. It is seen in the
    /// sandbox only.
    pub memory: Option<&'static str>,
}

impl Setup {
    /// A setup with this configuration file.
    #[must_use]
    pub fn config(config: Value) -> Self {
        Self { config: Some(config), ..Self::default() }
    }

    /// A setup with these arguments.
    #[must_use]
    pub fn arguments(line: &str) -> Self {
        Self { arguments: command::words(line), ..Self::default() }
    }
}

/// A running `gantryd` with everything of its own.
#[derive(Debug)]
pub struct TestDaemon {
    sandbox: Sandbox,
    directory: TempDir,
    cgroup_parent: String,
    setup: Setup,
    /// `nsenter`, which waits for the daemon and ends as it ended.
    process: Option<Child>,
    before_start: Snapshot,
    when_idle: Snapshot,
    finished: bool,
}

/// Runs `body` against a new daemon, then stops the daemon and checks that nothing is left.
///
/// Skips, loudly, where there is no root or no docker CLI.
///
/// # Errors
///
/// The body's, the daemon's, or the list of leaks.
pub fn daemon_test(body: impl FnOnce(&mut TestDaemon) -> TestResult) -> TestResult {
    daemon_test_with(Setup::default(), body)
}

/// [`daemon_test`] with a setup.
///
/// # Errors
///
/// The body's, the daemon's, or the list of leaks.
pub fn daemon_test_with(
    setup: Setup,
    body: impl FnOnce(&mut TestDaemon) -> TestResult,
) -> TestResult {
    crate::requires!(root, "docker", "nft", "ip", "unshare", "nsenter");
    let mut daemon = TestDaemon::start(setup)?;
    body(&mut daemon)?;
    daemon.finish()
}

impl TestDaemon {
    /// Starts the daemon and waits for its first `_ping`.
    ///
    /// # Errors
    ///
    /// If the binary is missing (build `gantryd` first), or it does not answer.
    pub fn start(setup: Setup) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let sandbox = Sandbox::start()?;
        // Short: a unix socket's path has at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("gt-").tempdir_in("/tmp")?;
        for name in ["data", "exec", "tmp", "docker"] {
            std::fs::create_dir(directory.path().join(name))?;
        }
        let mut daemon = Self {
            sandbox,
            directory,
            cgroup_parent: format!("gantry-test-{}-{number}", std::process::id()),
            setup,
            process: None,
            before_start: Snapshot::default(),
            when_idle: Snapshot::default(),
            finished: false,
        };
        let config = daemon.setup.config.clone().unwrap_or_else(|| serde_json::json!({}));
        std::fs::write(daemon.path("daemon.json"), config.to_string())?;
        if let Some(size) = daemon.setup.memory {
            let data = daemon.path("data");
            let mount = format!("mount -t tmpfs -o size={size} tmpfs {}", data.display());
            daemon.sandbox.sh(&mount)?;
        }
        daemon.before_start = daemon.snapshot()?;
        daemon.launch()?;
        daemon.when_idle = daemon.snapshot()?;
        Ok(daemon)
    }

    /// A path in the test's own directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The namespaces the daemon runs in.
    #[must_use]
    pub const fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The socket it listens on.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("docker.sock")
    }

    /// The name of the cgroup directory all of its containers are below.
    #[must_use]
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// The command that starts the daemon in its namespaces, as a test may want to run it itself.
    ///
    /// # Errors
    ///
    /// If the binary is missing.
    pub fn daemon_command(&self, arguments: &[String]) -> Result<Command> {
        let mut nsenter = self
            .sandbox
            .command(daemon_binary()?.to_str().context("the build directory's name is not UTF-8")?);
        nsenter.args(arguments).env("TMPDIR", self.path("tmp"));
        Ok(nsenter)
    }

    /// The arguments the daemon is started with.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let flag = |name: &str, path: &str| {
            [name.to_owned(), self.path(path).display().to_string()].to_vec()
        };
        let mut all = vec!["--host".to_owned(), format!("unix://{}", self.socket().display())];
        all.extend(flag("--data-root", "data"));
        all.extend(flag("--exec-root", "exec"));
        all.extend(flag("--pidfile", "daemon.pid"));
        all.extend(flag("--config-file", "daemon.json"));
        all.extend(["--cgroup-parent".to_owned(), format!("/{}", self.cgroup_parent)]);
        all.extend(self.setup.arguments.iter().cloned());
        all
    }

    fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.path("daemon.log"))?;
        let mut command = self.daemon_command(&self.arguments())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(command.spawn().context("cannot start the daemon")?);
        let end = Instant::now() + PATIENCE;
        loop {
            if self.http("GET", "/_ping", b"").is_ok_and(|r| r.status == 200) {
                return Ok(());
            }
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                bail!("the daemon ended at once with {status}");
            }
            ensure!(Instant::now() < end, "no answer to _ping after {} s", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The daemon's process id, as the machine numbers it.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn pid(&self) -> Result<u32> {
        sandbox::child_of(self.process.as_ref().context("the daemon does not run")?.id())
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()?.try_into()?), signal)?)
    }

    /// Kills the daemon with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.reap()
    }

    /// Waits for the end of a daemon that somebody has killed.
    ///
    /// # Errors
    ///
    /// If it is still there after 30 s.
    pub fn reap(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            let ended = command::wait(&mut process, PATIENCE)?.is_some();
            ensure!(ended, "the daemon is not dead");
        }
        Ok(())
    }

    /// Starts the daemon again after [`kill9`](Self::kill9) or [`stop`](Self::stop).
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the daemon runs already");
        self.launch()
    }

    /// Ends the daemon in the polite way and waits for it.
    ///
    /// # Errors
    ///
    /// If it takes more than 30 s or ends with anything but 0.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let mut process = self.process.take().context("the daemon does not run")?;
        let Some(status) = command::wait(&mut process, PATIENCE)? else {
            self.process = Some(process);
            bail!("the daemon did not stop within {} s", PATIENCE.as_secs());
        };
        ensure!(status == 0, "the daemon ended with {status}");
        Ok(())
    }

    /// A docker CLI that talks to this daemon, without arguments.
    #[must_use]
    pub fn cli(&self) -> Command {
        self.with_environment(Command::new("docker"))
    }

    /// A docker CLI inside the daemon's network namespace.
    #[must_use]
    pub fn cli_in_network(&self) -> Command {
        self.with_environment(self.sandbox.network_command("docker"))
    }

    fn with_environment(&self, mut command: Command) -> Command {
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command.env("DOCKER_CONFIG", self.path("docker")).env_remove("DOCKER_CONTEXT");
        command.env("DOCKER_CLI_HINTS", "false");
        command
    }

    /// Runs the docker CLI.
    ///
    /// # Errors
    ///
    /// If it takes longer than [`command::DEADLINE`].
    pub fn docker(&self, words: impl Words) -> Result<Output> {
        self.docker_with_input(words, b"")
    }

    /// Runs the docker CLI with `input` on its standard input.
    ///
    /// # Errors
    ///
    /// If it takes longer than [`command::DEADLINE`].
    pub fn docker_with_input(&self, words: impl Words, input: &[u8]) -> Result<Output> {
        let mut cli = self.cli();
        cli.args(words.words());
        command::run(cli, input, command::DEADLINE)
    }

    /// Runs the docker CLI and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it fails or takes too long.
    pub fn ok(&self, words: impl Words) -> Result<String> {
        self.docker(words)?.success()
    }

    /// Runs the docker CLI, which must fail, and returns its complaint.
    ///
    /// # Errors
    ///
    /// If it succeeds or takes too long.
    pub fn fails(&self, words: impl Words) -> Result<String> {
        self.docker(words)?.failure()
    }

    /// Runs the docker CLI on a terminal of its own, with `input` typed into it.
    ///
    /// # Errors
    ///
    /// If it takes longer than [`command::DEADLINE`].
    pub fn on_a_terminal(&self, line: &str, input: &[u8]) -> Result<Output> {
        let mut script = self.with_environment(Command::new("script"));
        script.args(["--quiet", "--return", "--command", &format!("docker {line}"), "/dev/null"]);
        command::run(script, input, command::DEADLINE)
    }

    /// Sends a request, with a JSON body unless it is empty.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn http(&self, method: &str, path: &str, body: &[u8]) -> Result<Response> {
        let json = [("Content-Type", "application/json")];
        let headers: &[_] = if body.is_empty() { &[] } else { &json };
        self.request(&Request { method, path, headers, body })
    }

    /// Sends any request.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn request(&self, request: &Request<'_>) -> Result<Response> {
        http::send(&self.socket(), request)
    }

    /// Gets a JSON document.
    ///
    /// # Errors
    ///
    /// If the answer is not 200 with JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        let response = self.http("GET", path, b"")?;
        ensure!(response.status == 200, "GET {path}: {} {}", response.status, response.text());
        response.json()
    }

    /// What `docker inspect` knows of a container.
    ///
    /// # Errors
    ///
    /// If there is none with this name.
    pub fn inspect(&self, container: &str) -> Result<Value> {
        self.get(&format!("/containers/{container}/json"))
    }

    /// Loads the busybox image as `busybox:latest`.
    ///
    /// # Errors
    ///
    /// If it cannot be made or loaded.
    pub fn load_busybox(&self) -> TestResult {
        self.load(Fixture::Busybox)
    }

    /// Loads an image.
    ///
    /// # Errors
    ///
    /// If it cannot be made or loaded.
    pub fn load(&self, fixture: Fixture) -> TestResult {
        let archive = fixtures::archive(fixture)?;
        self.ok(["load", "--quiet", "--input", &archive.display().to_string()])?;
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&Places {
            sandbox: &self.sandbox,
            directories: &["data", "exec", "tmp"].map(|name| self.path(name)),
            cgroup_parent: &self.cgroup_parent,
            daemon: self.process.is_some().then(|| self.pid()).transpose()?,
        })
    }

    /// Removes everything through the API, stops the daemon, and checks that nothing is left.
    ///
    /// # Errors
    ///
    /// What could not be removed, and the list of leaks.
    pub fn finish(&mut self) -> TestResult {
        if self.process.is_none() {
            self.launch()?;
        }
        self.remove_everything()?;
        if std::env::var_os("GANTRY_TEST_REFERENCE").is_some() {
            // Another engine is being asked what is right; what it leaves behind is its own affair.
            self.finished = true;
            return self.stop();
        }
        self.settles("of its work", &self.when_idle)?;
        self.stop()?;
        let stopped = Snapshot {
            // What the next start finds again is no leak.
            links: self.when_idle.links.clone(),
            rules: self.when_idle.rules.clone(),
            files: self.when_idle.files.clone(),
            ..self.before_start.clone()
        };
        self.settles("of the daemon itself", &stopped)?;
        for name in ["docker.sock", "daemon.pid"] {
            ensure!(!self.path(name).exists(), "the stopped daemon left its {name}");
        }
        self.finished = true;
        Ok(())
    }

    fn settles(&self, whose: &str, before: &Snapshot) -> TestResult {
        let end = Instant::now() + SETTLING;
        loop {
            let leaks = self.snapshot()?.more_than(before);
            if leaks.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{} leaks {whose}:\n  {}", leaks.len(), leaks.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn remove_everything(&self) -> TestResult {
        for container in items(&self.get("/containers/json?all=1")?) {
            let id = container["Id"].as_str().unwrap_or_default();
            self.delete(&format!("/containers/{id}?force=1&v=1"))?;
        }
        if let Ok(volumes) = self.get("/volumes") {
            for volume in items(&volumes["Volumes"]) {
                let name = volume["Name"].as_str().unwrap_or_default();
                self.delete(&format!("/volumes/{name}"))?;
            }
        }
        // Parents cannot go before their children, so this may take several rounds.
        for _ in 0..10 {
            let images = self.get("/images/json?all=1")?;
            if items(&images).is_empty() {
                return Ok(());
            }
            for image in items(&images) {
                let id = image["Id"].as_str().unwrap_or_default();
                let response = self.http("DELETE", &format!("/images/{id}?force=1"), b"")?;
                ensure!(
                    matches!(response.status, 200 | 404 | 409),
                    "cannot remove image {id}: {} {}",
                    response.status,
                    response.text()
                );
            }
        }
        bail!("images that cannot be removed: {}", self.get("/images/json?all=1")?)
    }

    fn delete(&self, path: &str) -> TestResult {
        let response = self.http("DELETE", path, b"")?;
        let gone = matches!(response.status, 200 | 204 | 404);
        ensure!(gone, "DELETE {path}: {} {}", response.status, response.text());
        Ok(())
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.path("daemon.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    fn tell_what_there_is(&self) {
        eprintln!("--- the daemon's log ends with ---\n{}", self.log());
        eprintln!("--- processes ---");
        for (pid, line) in self.sandbox.processes().unwrap_or_default() {
            eprintln!("{pid:>7} {line}");
        }
        let all = self.http("GET", "/containers/json?all=1", b"").and_then(|r| r.json());
        for container in all.iter().flat_map(items) {
            eprintln!("--- container {} ---", container["Id"]);
            eprintln!("{} {} {}", container["Names"], container["Command"], container["Status"]);
        }
        eprintln!("---");
    }
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        if !self.finished {
            self.tell_what_there_is();
        }
        // Everything in the sandbox ends here, so that what it holds can be removed.
        if self.signal(Signal::SIGKILL).is_ok()
            && let Some(process) = &mut self.process
        {
            process.wait().ok();
        }
        // From inside, -1 is everybody but the namespace's first process and the caller.
        self.sandbox.try_sh("kill -9 -1").ok();
        crate::wait_until("all processes end", 5, || Ok(self.sandbox.processes()?.len() <= 1)).ok();
        leaks::remove_cgroups(&self.cgroup_parent).ok();
        if std::env::var_os("GANTRY_TEST_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            eprintln!("kept: {}", self.directory.path().display());
        }
    }
}

/// The `gantryd` of the build this test belongs to, or `GANTRY_TEST_DAEMON`.
///
/// # Errors
///
/// If it has not been built.
pub fn daemon_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GANTRY_TEST_DAEMON") {
        return Ok(path.into());
    }
    // Tests are in `<target>/<profile>/deps`, binaries one directory further up.
    let this = std::env::current_exe()?;
    let mut candidates = this.ancestors().skip(1).take(2).map(|dir| dir.join("gantryd"));
    candidates
        .find(|path| Path::is_file(path))
        .context("gantryd is not built: run `cargo build -p gantryd` first")
}
