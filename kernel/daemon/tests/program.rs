//! The program itself: arguments, exit codes, signals, the service manager.
//!
//! Every plugin is disabled, so that nothing here touches the machine.

#![allow(clippy::unwrap_used, reason = "a failing step fails the test")]

use std::io::{BufRead as _, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gantry_carrier_socket as _;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_gantryd");

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.configure("");
        place
    }

    /// A `daemon.json` with every plugin off, and `more` in it.
    fn configure(&self, more: &str) {
        let off: Vec<_> = gantry_builtin::plugins()
            .iter()
            .map(|plugin| format!("{:?}: {{\"enabled\": false}}", plugin.descriptor.id))
            .collect();
        let text = format!("{{{more} \"kernel-plugins\": {{{}}}}}", off.join(","));
        std::fs::write(self.path("daemon.json"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self) -> Vec<String> {
        let at = |flag: &str, name: &str| format!("--{flag}={}", self.path(name).display());
        vec![
            at("config-file", "daemon.json"),
            at("data-root", "data"),
            at("exec-root", "exec"),
            at("pidfile", "pid"),
            "--group=".to_owned(),
        ]
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(self.args()).env_clear().stderr(self.log());
        command
    }

    fn log(&self) -> std::fs::File {
        std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap()
    }

    fn logged(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn start(&self) -> Running<'_> {
        let socket = self.path("sock");
        let child =
            self.command().arg(format!("--host=unix://{}", socket.display())).spawn().unwrap();
        let running = Running { place: self, child };
        running.wait_for(|| health(&socket).is_some());
        running
    }
}

/// A daemon that is killed if a test fails.
struct Running<'a> {
    place: &'a Place,
    child: Child,
}

impl Running<'_> {
    fn wait_for(&self, condition: impl Fn() -> bool) {
        let began = Instant::now();
        while !condition() {
            assert!(began.elapsed() < Duration::from_secs(10), "log: {}", self.place.logged());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), pid]).status().unwrap().success());
    }

    fn wait(&mut self) -> i32 {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(began.elapsed() < Duration::from_secs(10), "log: {}", self.place.logged());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn health(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream
        .write_all(b"GET /x/kernel/health HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.contains("200 OK").then_some(text)
}

fn output(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).env_clear().output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_version_and_mistakes_have_their_codes() {
    let version = output(&["-v"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
    let help = output(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--storage-driver"));
    assert_eq!(output(&["--no-such-flag"]).status.code(), Some(1));
    assert_eq!(output(&["positional"]).status.code(), Some(1));
    assert!(text(&help.stdout).contains("  storage "), "commands of plugins are listed");
    let own = output(&["storage", "--help"]);
    assert_eq!(own.status.code(), Some(0));
    assert!(text(&own.stdout).contains("migrate"));
    let nobody = output(&["-H", "unix:///no/such.sock", "storage", "ls"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("cannot reach the daemon at /no/such.sock"));
}

#[test]
fn validate_prints_every_mistake_or_the_plan() {
    let place = Place::new();
    let args: Vec<_> = place.args();
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.push("--validate");
    let good = output(&args);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    let plan = text(&good.stdout);
    for part in
        ["configuration OK", "start order:", "settings:", "routes:", "/x/kernel/health", "disabled"]
    {
        assert!(plan.contains(part), "{part} in {plan}");
    }
    assert!(!place.path("data").exists(), "validation changes nothing");
    args.extend(["--log-level=loud", "--host=ftp://x"]);
    place.configure("\"nope\": 1,");
    let bad = output(&args);
    assert_eq!(bad.status.code(), Some(1));
    let mistakes = text(&bad.stderr);
    for part in ["3 mistakes", "--log-level", "--host", "/nope"] {
        assert!(mistakes.contains(part), "{part} in {mistakes}");
    }
}

#[test]
fn signals_reload_dump_and_end_it() {
    let place = Place::new();
    let mut daemon = place.start();
    assert_eq!(std::fs::read_to_string(place.path("pid")).unwrap(), daemon.child.id().to_string());
    daemon.signal("USR1");
    daemon.wait_for(|| place.logged().contains("Background tasks."));
    place.configure("\"labels\": [\"a=b\"],");
    daemon.signal("HUP");
    daemon.wait_for(|| place.logged().contains("Configuration reloaded."));
    place.configure("\"labels\": 3,");
    daemon.signal("HUP");
    daemon.wait_for(|| place.logged().contains("nothing has changed"));
    assert!(health(&place.path("sock")).is_some());
    daemon.signal("TERM");
    assert_eq!(daemon.wait(), 0, "{}", place.logged());
    for name in ["sock", "pid"] {
        assert!(!place.path(name).exists(), "{name} is left");
    }
}

#[test]
fn the_way_to_connect_is_printed_once_it_works() {
    let place = Place::new();
    let host = format!("--host=unix://{}", place.path("sock").display());
    let mut child = place.command().arg(&host).stdout(Stdio::piped()).spawn().unwrap();
    let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let _daemon = Running { place: &place, child };
    let line = stdout.lines().next().unwrap().unwrap();
    assert_eq!(line, format!("export DOCKER_HOST=unix://{}", place.path("sock").display()));
    assert!(health(&place.path("sock")).is_some());
}

#[test]
fn the_limit_of_open_files_is_raised() {
    let place = Place::new();
    let daemon = place.start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
}

#[test]
fn a_second_daemon_says_who_is_there() {
    let place = Place::new();
    let daemon = place.start();
    let second = place.command().stderr(Stdio::piped()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another daemon uses the data root"), "{second:?}");
    drop(daemon);
    // The lock does not outlive a process that was killed.
    let mut daemon = place.start();
    daemon.signal("INT");
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn the_service_manager_passes_sockets_and_hears_when_it_is_ready() {
    let place = Place::new();
    let socket = place.path("activated");
    let listener = UnixListener::bind(&socket).unwrap();
    let notify = UnixDatagram::bind(place.path("notify")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The shell moves standard input to descriptor 3 and becomes the daemon, keeping its pid.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
    let child = Command::new("sh")
        .args(["-c", script, PROGRAM])
        .args(place.args())
        .arg("--host=fd://")
        .env_clear()
        .env("NOTIFY_SOCKET", place.path("notify"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stderr(place.log())
        .spawn()
        .unwrap();
    let mut daemon = Running { place: &place, child };
    let mut message = [0; 256];
    let n = notify.recv(&mut message).unwrap_or_else(|e| panic!("{e}: {}", place.logged()));
    assert!(text(&message[..n]).contains("READY=1"));
    assert!(health(&socket).is_some(), "{}", place.logged());
    daemon.signal("TERM");
    let n = notify.recv(&mut message).unwrap();
    assert!(text(&message[..n]).contains("STOPPING=1"));
    assert_eq!(daemon.wait(), 0);
    assert!(socket.exists(), "a socket that was passed is not removed");
}

#[test]
fn logs_are_json_when_asked() {
    let place = Place::new();
    place.configure("\"log-format\": \"json\", \"debug\": true,");
    let mut daemon = place.start();
    daemon.signal("TERM");
    assert_eq!(daemon.wait(), 0);
    for line in place.logged().lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
    assert!(place.logged().contains("\"message\":\"Answered.\""), "debug mode logs requests");
}
