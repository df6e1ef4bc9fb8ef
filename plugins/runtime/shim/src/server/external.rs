//! A runtime program (runc, crun, …) in place of the shim's own core.
//!
//! Its command line is runc's. The container's mounts are put in place in a mount namespace of the
//! shim's own, so nothing of them shows on the host, and the shim is the subreaper that its first
//! process and execs come to when the program has ended.

use super::process::{Process, died};
use super::start::{container_of, set_oom_score};
use super::streams::{Ends, Streams};
use super::{FIRST, Shim, Waiter};
use crate::status::{Context, SysContext, fail};
use gantry_shim_protocol::{ExecHead, External, Failure, LaunchHead, Reply, Stage};
use gantry_sys::mount;
use gantry_sys::path::read_file_bounded;
use gantry_sys::process::{
    CStringArray, Reaped, Spawn, send_signal, send_signal_to, spawn, wait_for,
};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::VecDeque;
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// The runtime's own log is read up to this many bytes, for its last message.
const LOG_MAX: usize = 1 << 20;

/// Children remembered: what a command starts ends at most moments before it.
const STRAYS_MAX: usize = 64;

/// How long a quick command (kill, pause, delete) may take before it is killed, in seconds.
const QUICK: i64 = 30;

/// The runtime program of this container.
#[derive(Debug)]
pub(super) struct Runtime {
    config: External,
    /// Commands that run beside the loop, oldest first.
    running: VecDeque<Command>,
    commands: u32,
    /// Children that ended while a command ran: one may be what the command started.
    strays: VecDeque<Reaped>,
}

/// A command that is waited for, and what comes after it.
#[derive(Debug)]
struct Command {
    pid: Pid,
    log: PathBuf,
    then: Then,
}

#[derive(Debug)]
enum Then {
    Created {
        waiter: Waiter,
        streams: Box<Streams>,
        console: Option<OwnedFd>,
        start: bool,
    },
    Started {
        waiter: Waiter,
    },
    Executed {
        waiter: Waiter,
        slot: u16,
        streams: Box<Streams>,
        console: Option<OwnedFd>,
        head: Box<ExecHead>,
    },
}

impl Runtime {
    fn new(config: External) -> Self {
        Self { config, running: VecDeque::new(), commands: 0, strays: VecDeque::new() }
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(&self.config.run_dir).join(name)
    }

    /// Starts a command with these streams (or none), its messages going to a file of its own.
    fn command(
        &self,
        number: u32,
        words: &[String],
        ends: Option<&Ends>,
    ) -> Result<(Pid, PathBuf), Failure> {
        let log = self.file(&format!("runtime-{number}.log"));
        let mut argv = vec![self.config.binary.clone()];
        argv.extend(self.config.args.iter().cloned());
        argv.extend(["--root".to_owned(), self.config.root.clone()]);
        argv.extend(["--log".to_owned(), log.to_string_lossy().into_owned()]);
        argv.extend(["--log-format".to_owned(), "json".to_owned()]);
        argv.extend(words.iter().cloned());
        let doing = || format!("run {}", self.config.binary);
        let path = CString::new(self.config.binary.as_str()).map_err(|_| Errno::INVAL);
        let path = path.during(Stage::External, doing)?;
        let argv = CStringArray::new(&argv).during(Stage::External, doing)?;
        let env: Vec<Vec<u8>> = std::env::vars_os()
            .map(|(name, value)| {
                use std::os::unix::ffi::OsStringExt;
                [name.into_vec(), b"=".to_vec(), value.into_vec()].concat()
            })
            .collect();
        let env = CStringArray::new(&env).during(Stage::External, doing)?;
        let fds = match ends {
            Some(ends) => {
                vec![(ends.stdin.as_fd(), 0), (ends.stdout.as_fd(), 1), (ends.stderr.as_fd(), 2)]
            }
            None => Vec::new(),
        };
        let spec = Spawn { path: &path, argv: &argv, env: &env, fds: &fds, new_session: false };
        let pid = spawn(&spec).during(Stage::External, doing)?;
        Ok((pid, log))
    }

    /// Ends the commands that run, whatever they are waiting for.
    pub(super) fn stop_commands(&self) {
        for command in &self.running {
            let _ = send_signal_to(command.pid, 9);
        }
    }

    /// Remembers a child that ended, while somebody may ask for it.
    fn keep(&mut self, reaped: Reaped) {
        if self.running.is_empty() {
            return self.strays.clear();
        }
        self.strays.push_back(reaped);
        if self.strays.len() > STRAYS_MAX {
            self.strays.pop_front();
        }
    }

    fn stray(&self, pid: Pid) -> Option<Reaped> {
        self.strays.iter().rev().find(|it| it.pid == pid.as_raw_nonzero().get()).copied()
    }

    /// Runs a command that is over in no time.
    fn quick(&self, words: &[String]) -> Result<(), Failure> {
        let (pid, log) = self.command(0, words, None)?;
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
            let mut ready = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            let patience = rustix::time::Timespec { tv_sec: QUICK, tv_nsec: 0 };
            if rustix::event::poll(&mut ready, Some(&patience)) == Ok(0) {
                let _ = send_signal(&pidfd, 9);
            }
        }
        let ended = wait_for(pid).during(Stage::External, || "wait for the runtime".to_owned())?;
        let outcome = outcome(ended, &log);
        let _ = std::fs::remove_file(&log);
        outcome
    }

    /// Removes the container from the runtime's state.
    pub(super) fn delete(&self, id: &str) {
        // What is gone already is an error for the runtime, and fine here.
        let _ = self.quick(&["delete".to_owned(), "--force".to_owned(), id.to_owned()]);
    }

    /// Signals every process of the container.
    pub(super) fn kill_all(&self, id: &str, signal: i32) -> Result<(), Failure> {
        self.quick(&["kill".to_owned(), "--all".to_owned(), id.to_owned(), signal.to_string()])
    }

    /// Freezes or thaws the container.
    pub(super) fn freeze(&self, id: &str, frozen: bool) -> Result<(), Failure> {
        let verb = if frozen { "pause" } else { "resume" };
        self.quick(&[verb.to_owned(), id.to_owned()])
    }
}

impl Shim {
    pub(super) fn launch_external(
        &mut self,
        waiter: Waiter,
        head: LaunchHead,
        fds: Vec<OwnedFd>,
        streams: Streams,
        ends: Ends,
        start: bool,
    ) -> Result<(), Failure> {
        let Some(config) = head.external.clone() else { return Ok(()) };
        prepare_mounts(&config, &fds)?;
        let mut runtime = Runtime::new(config);
        let mut words =
            vec!["create".to_owned(), "--bundle".to_owned(), runtime.config.bundle.clone()];
        words.extend(["--pid-file".to_owned(), path_text(&runtime.file("pid"))]);
        let console = console_socket(&runtime, "console.sock", head.stdio.terminal.is_some())?;
        if console.is_some() {
            words.extend(["--console-socket".to_owned(), path_text(&runtime.file("console.sock"))]);
        }
        words.push(head.id.clone());
        let (pid, log) = runtime.command(1, &words, Some(&ends))?;
        runtime.commands = 1;
        let then = Then::Created { waiter, streams: Box::new(streams), console, start };
        runtime.running.push_back(Command { pid, log, then });
        self.container = Some(container_of(&head, Some(runtime)));
        self.serve()
    }

    pub(super) fn start_external(&mut self, waiter: Waiter) -> Result<(), Failure> {
        let Some(container) = &mut self.container else { return Ok(()) };
        let Some(runtime) = &mut container.external else { return Ok(()) };
        runtime.commands += 1;
        let words = ["start".to_owned(), container.id.clone()];
        let (pid, log) = runtime.command(runtime.commands, &words, None)?;
        runtime.running.push_back(Command { pid, log, then: Then::Started { waiter } });
        Ok(())
    }

    pub(super) fn exec_external(
        &mut self,
        waiter: Waiter,
        slot: u16,
        head: ExecHead,
        body: OwnedFd,
        streams: Streams,
        ends: Ends,
    ) -> Result<(), Failure> {
        let Some(container) = &mut self.container else { return Ok(()) };
        let Some(runtime) = &mut container.external else { return Ok(()) };
        // For an external runtime the memfd holds the specification's process as JSON.
        let json = gantry_sys::path::read_bounded(
            std::fs::File::from(body),
            gantry_shim_protocol::MEMFD_MAX,
        );
        let json = json
            .map_err(|_| Errno::IO)
            .during(Stage::Protocol, || "read the process".to_owned())?;
        let spec = runtime.file(&format!("exec-{}.json", head.id));
        gantry_sys::path::replace(&spec, &json, gantry_sys::path::Durability::Volatile)
            .at(Stage::External)?;
        let mut words = vec!["exec".to_owned(), "--detach".to_owned()];
        words.extend(["--process".to_owned(), path_text(&spec)]);
        words.extend([
            "--pid-file".to_owned(),
            path_text(&runtime.file(&format!("exec-{}.pid", head.id))),
        ]);
        let socket = format!("exec-{}.sock", head.id);
        let console = console_socket(runtime, &socket, head.stdio.terminal.is_some())?;
        if console.is_some() {
            words.extend(["--console-socket".to_owned(), path_text(&runtime.file(&socket))]);
        }
        words.push(container.id.clone());
        runtime.commands += 1;
        let (pid, log) = runtime.command(runtime.commands, &words, Some(&ends))?;
        let then = Then::Executed {
            waiter,
            slot,
            streams: Box::new(streams),
            console,
            head: Box::new(head),
        };
        runtime.running.push_back(Command { pid, log, then });
        Ok(())
    }

    /// A child that is no process of the container has ended: a command, or a compressor.
    pub(super) fn helper_ended(&mut self, reaped: Reaped) {
        let Some(container) = &mut self.container else { return };
        let Some(runtime) = &mut container.external else { return };
        let is_it = |command: &Command| command.pid.as_raw_nonzero().get() == reaped.pid;
        let Some(at) = runtime.running.iter().position(is_it) else { return runtime.keep(reaped) };
        let Some(command) = runtime.running.remove(at) else { return };
        let answer = outcome(reaped, &command.log);
        let _ = std::fs::remove_file(&command.log);
        match command.then {
            Then::Created { waiter, streams, console, start } => {
                let answer = answer.and_then(|()| self.created(*streams, console));
                self.after_create(waiter, answer, start);
            }
            Then::Started { waiter } => self.after_start(waiter, answer),
            Then::Executed { waiter, slot, streams, console, head } => {
                let answer = answer.and_then(|()| self.executed(slot, *streams, console, &head));
                self.answer(waiter, answer.map(|pid| Reply::Started { pid }));
            }
        }
    }

    fn created(&mut self, mut streams: Streams, console: Option<OwnedFd>) -> Result<i32, Failure> {
        let Some(runtime) = self.container.as_ref().and_then(|it| it.external.as_ref()) else {
            return Ok(0);
        };
        let pid = read_pid(&runtime.file("pid"))?;
        let pidfd = open_pid(pid)?;
        if let Some(console) = console {
            let master = take_master(&console)?;
            streams
                .take_terminal(&self.poll, master)
                .during(Stage::Terminal, || "take the terminal".to_owned())?;
        }
        streams.watch(&self.poll);
        let mut process = Process::new(String::new(), pid, Some(pidfd), streams);
        process.is_ready = true;
        self.put(FIRST, process);
        Ok(pid.as_raw_nonzero().get())
    }

    fn after_create(&mut self, waiter: Waiter, answer: Result<i32, Failure>, start: bool) {
        match answer {
            // Deleted before it was there.
            Ok(_) if self.deleting.is_some() => {
                if let Some(process) = self.first() {
                    let _ = process.signal(9);
                }
                self.answer(
                    waiter,
                    Err(fail(Stage::State, Errno::CANCELED, "start the container")),
                );
            }
            Ok(_) if start => {
                if let Err(failure) = self.start_external(waiter) {
                    self.answer(waiter, Err(failure));
                }
            }
            Ok(pid) => self.answer(waiter, Ok(Reply::Ready { pid })),
            Err(failure) => {
                if let Some(container) = self.container.take()
                    && let Some(runtime) = container.external
                {
                    runtime.delete(&container.id);
                }
                self.remove_socket();
                if let Some(waiter) = self.deleting.take() {
                    self.answer(waiter, Ok(Reply::Done));
                }
                self.answer(waiter, Err(failure));
            }
        }
    }

    fn after_start(&mut self, waiter: Waiter, answer: Result<(), Failure>) {
        let Some(process) = self.process_mut(FIRST) else { return };
        match answer {
            Ok(()) => {
                process.started = true;
                let pid = process.pid.as_raw_nonzero().get();
                self.answer(waiter, Ok(Reply::Started { pid }));
            }
            Err(failure) if process.has_ended() => {
                let _ = self.remove_everything();
                self.answer(waiter, Err(failure));
            }
            // The answer follows when it has ended.
            Err(failure) => {
                process.failure = Some(failure);
                process.waiter = Some(waiter);
                let _ = process.signal(9);
            }
        }
    }

    /// Whether the first process may have been started already, though the command that does it has
    /// not ended.
    pub(super) fn is_being_started(&self) -> bool {
        let runtime = self.container.as_ref().and_then(|container| container.external.as_ref());
        runtime.is_some_and(|runtime| {
            runtime.running.iter().any(|command| matches!(command.then, Then::Started { .. }))
        })
    }

    fn executed(
        &mut self,
        slot: u16,
        mut streams: Streams,
        console: Option<OwnedFd>,
        head: &ExecHead,
    ) -> Result<i32, Failure> {
        let Some(runtime) = self.container.as_ref().and_then(|it| it.external.as_ref()) else {
            return Ok(0);
        };
        let pid = read_pid(&runtime.file(&format!("exec-{}.pid", head.id)))?;
        for suffix in ["pid", "json", "sock"] {
            let _ = std::fs::remove_file(runtime.file(&format!("exec-{}.{suffix}", head.id)));
        }
        // It may have ended, and been reaped, before the command did.
        let stray = runtime.stray(pid);
        let pidfd = match stray {
            Some(_) => None,
            None => {
                set_oom_score(pid, head.oom_score_adj)?;
                Some(open_pid(pid)?)
            }
        };
        if let Some(console) = console {
            let master = take_master(&console)?;
            streams
                .take_terminal(&self.poll, master)
                .during(Stage::Terminal, || "take the terminal".to_owned())?;
        }
        streams.watch(&self.poll);
        let mut process = Process::new(head.id.clone(), pid, pidfd, streams);
        process.started = true;
        if let Some(reaped) = stray {
            process.ended(reaped, false, &self.poll);
        }
        self.put(slot, process);
        Ok(pid.as_raw_nonzero().get())
    }
}

/// Enters a mount namespace of the shim's own and puts the container's mounts in place.
fn prepare_mounts(config: &External, fds: &[OwnedFd]) -> Result<(), Failure> {
    gantry_sys::process::unshare(gantry_sys::process::CloneFlags::MOUNT)
        .during(Stage::Namespace, || "make a mount namespace".to_owned())?;
    // What the host unmounts must go here as well, or it stays busy as long as the container runs.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .during(Stage::Mount, || "cut the mount namespace off".to_owned())?;
    for path in &config.unmount {
        match rustix::mount::unmount(path.as_str(), rustix::mount::UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(fail(Stage::Mount, errno, format!("unmount {path}"))),
        }
        // What the runtime makes there instead of what it misses must not stay on the host.
        let context = mount::FsContext::open("tmpfs").at(Stage::Mount)?;
        context.create().at(Stage::Mount)?;
        let empty = context.mount(mount::MountAttrFlags::empty()).at(Stage::Mount)?;
        mount::attach(&empty, rustix::fs::CWD, Path::new(path)).at(Stage::Mount)?;
    }
    for (index, path) in &config.mounts {
        let fd = fds.get(usize::from(*index)).ok_or(Errno::BADF);
        let fd = fd.during(Stage::Protocol, || format!("find the mount for {path}"))?;
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let target = rustix::fs::open(path.as_str(), flags, Mode::empty())
            .during(Stage::Mount, || format!("open {path}"))?;
        mount::attach_onto(fd, &target, Path::new(path)).at(Stage::Mount)?;
    }
    // The working directory is still on the host's copy of the run directory's mount; step over.
    rustix::process::chdir(config.run_dir.as_str())
        .during(Stage::Mount, || format!("enter {}", config.run_dir))
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Listens where the runtime hands the terminal over.
fn console_socket(runtime: &Runtime, name: &str, wanted: bool) -> Result<Option<OwnedFd>, Failure> {
    if !wanted {
        return Ok(None);
    }
    let path = runtime.file(name);
    let listener = std::os::unix::net::UnixListener::bind(&path);
    let listener = listener.and_then(|it| it.set_nonblocking(true).map(|()| it)).map_err(io_errno);
    let listener = listener.during(Stage::Terminal, || format!("listen at {}", path.display()))?;
    Ok(Some(listener.into()))
}

/// Takes the terminal's master off a console socket; the runtime has sent it before it ended.
fn take_master(listener: &OwnedFd) -> Result<OwnedFd, Failure> {
    let doing = || "take the terminal from the runtime".to_owned();
    let connection = gantry_sys::socket::accept(listener).map_err(io_errno);
    let connection = connection.during(Stage::Terminal, doing)?;
    let mut name = [0; 4096];
    let received = gantry_sys::socket::receive(&connection, &mut name, 1).map_err(io_errno);
    let fd = received.during(Stage::Terminal, doing)?.fds.into_iter().next().ok_or(Errno::NODATA);
    fd.during(Stage::Terminal, doing)
}

fn read_pid(file: &Path) -> Result<Pid, Failure> {
    let bytes = read_file_bounded(file, 64).at(Stage::External)?;
    let pid = String::from_utf8_lossy(&bytes).trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or(Errno::INVAL).during(Stage::External, || format!("read {}", file.display()))
}

fn open_pid(pid: Pid) -> Result<OwnedFd, Failure> {
    pidfd_open(pid, PidfdFlags::empty())
        .during(Stage::External, || "open the container's process".to_owned())
}

/// What a command came to: its last error message when it failed.
fn outcome(ended: Reaped, log: &Path) -> Result<(), Failure> {
    if ended.code == Some(0) {
        return Ok(());
    }
    let text = read_file_bounded(log, LOG_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let message = last_message(&text);
    let message = if message.is_empty() { died(ended).message } else { message };
    // The stage tells the exit code that clients see: 127 and 126 are for programs.
    let is_exec = message.contains("exec") || message.contains("executable");
    let errno = if message.contains("permission denied") || message.contains("is a directory") {
        Errno::ACCESS
    } else {
        Errno::NOENT
    };
    match is_exec {
        true => Err(Failure { stage: Stage::Exec, errno: errno.raw_os_error(), message }),
        false => Err(Failure { stage: Stage::External, errno: 0, message }),
    }
}

/// The last `msg` in a log of JSON lines.
fn last_message(text: &str) -> String {
    let Some(line) = text.lines().rev().find(|line| line.contains("\"msg\"")) else {
        return String::new();
    };
    let Some((_, rest)) = line.split_once("\"msg\"") else { return String::new() };
    let Some((_, rest)) = rest.split_once('"') else { return String::new() };
    let mut message = String::new();
    let mut letters = rest.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' => match letters.next() {
                Some('n') => message.push('\n'),
                Some('t') => message.push('\t'),
                Some('u') => {
                    let digits: String = letters.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                    message.push(code.unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                Some(other) => message.push(other),
                None => break,
            },
            letter => message.push(letter),
        }
    }
    message
}

fn io_errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_is_what_went_wrong() {
        for (text, message) in [
            ("{\"level\":\"error\",\"msg\":\"a \\\"b\\\"\\n\",\"time\":\"t\"}\n", "a \"b\"\n"),
            ("{\"msg\":\"first\"}\n{\"msg\": \"second \\u003c\"}\n", "second <"),
            ("no json", ""),
            ("{\"msg\":\"cut", "cut"),
        ] {
            assert_eq!(last_message(text), message);
        }
    }
}
