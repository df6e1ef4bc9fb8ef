//! Making the container's first process, and others beside it.

use super::poll::Source;
use super::process::Process;
use super::streams::{Ends, Streams};
use super::{Container, FIRST, REMOVAL, Shim, Waiter, external};
use crate::log::Log;
use crate::setup::{Another, First, ProgramEnds, become_another, become_first};
use crate::status::{Context, Heard, SysContext, Voice, fail, hear, say_go, say_start};
use gantry_shim_protocol::{
    ExecHead, Failure, IdMap, LaunchHead, Namespace, NamespaceMode, Namespaces, Phase, Reply,
    SOCKET_NAME, Stage, is_plain_id,
};
use gantry_sys::cgroup::{Group, Plan, Step, Version};
use gantry_sys::process::{
    CloneFlags, Cloned, clone_process, mount_namespace_of, send_signal, trim_heap, wait_for,
};
use gantry_sys::socket;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use std::path::Path;

/// Execs at once, besides the first process.
const EXECS_MAX: usize = 1024;

/// Whose PID namespace the next child is born in.
enum Birthplace<'a> {
    /// The shim's.
    Here,
    /// The one this descriptor names.
    Link(BorrowedFd<'a>),
    /// The one of this process.
    Process(BorrowedFd<'a>),
}

impl Shim {
    /// Starts the container.
    pub(super) fn launch(
        &mut self,
        waiter: Waiter,
        head: LaunchHead,
        mut fds: Vec<OwnedFd>,
        start: bool,
    ) -> Result<(), Failure> {
        if self.phase() != Phase::Empty {
            return Err(fail(Stage::State, Errno::BUSY, "launch a second container"));
        }
        if fds.is_empty() {
            return Err(fail(Stage::Protocol, Errno::INVAL, "launch without a plan"));
        }
        let body = fds.remove(0);
        let (mut streams, ends) = Streams::make(FIRST, head.stdio, Log::open(&head.log))
            .during(Stage::Io, || "make the container's streams".to_owned())?;
        for (wanted, index) in &head.attach {
            let client = fds
                .get(usize::from(*index))
                .ok_or(Errno::BADF)
                .and_then(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3));
            let client = client.during(Stage::Io, || "take an attached client".to_owned())?;
            streams
                .attach(&self.poll, client, *wanted)
                .during(Stage::Io, || "attach a client".to_owned())?;
        }
        if head.external.is_some() {
            return self.launch_external(waiter, head, fds, streams, ends, start);
        }
        let process = self.clone_first(&head, body, fds, streams, ends, start);
        let mut process = match process {
            Ok(process) => process,
            Err(failure) => {
                let _ = head.group.remove(REMOVAL);
                return Err(failure);
            }
        };
        process.waiter = Some(waiter);
        process.starts_at_once = start;
        process.mounts = process.pidfd.as_ref().and_then(|pidfd| mount_namespace_of(pidfd).ok());
        self.container = Some(container_of(&head, None));
        self.put(FIRST, process);
        self.serve()
            .and_then(|()| self.watch_status(FIRST))
            .inspect_err(|_| self.abandon(FIRST))?;
        trim_heap();
        Ok(())
    }

    fn clone_first(
        &mut self,
        head: &LaunchHead,
        body: OwnedFd,
        fds: Vec<OwnedFd>,
        streams: Streams,
        ends: Ends,
        start: bool,
    ) -> Result<Process, Failure> {
        let (status, voice) = socket::pair().at(Stage::Io)?;
        let own_program = match head.init {
            true => Some(own_program()?),
            false => None,
        };
        // The process is born in its v2 group; those of v1 are made while it sets up, and it joins
        // them itself.
        let (v2_steps, v1_steps) = split(&head.plan, &head.group);
        v2_steps.execute().at(Stage::Cgroup)?;
        let into = open_v2_group(&head.group)?;
        let birthplace = match head.namespaces.get(Namespace::Pid) {
            Some(NamespaceMode::Join(index)) => {
                let fd = fds.get(usize::from(index)).ok_or(Errno::BADF);
                Birthplace::Link(
                    fd.during(Stage::Protocol, || "find the PID namespace".to_owned())?.as_fd(),
                )
            }
            _ => Birthplace::Here,
        };
        let cloned =
            clone_in(&birthplace, clone_flags(&head.namespaces), into.as_ref().map(AsFd::as_fd))?;
        let (pid, pidfd) = match cloned {
            Cloned::Child => become_first(First {
                head,
                body,
                fds,
                ends: program_ends(ends),
                voice: Voice(voice),
                own_program,
                start,
            }),
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((ends, voice));
        let outcome = prepare(head, pid, &v1_steps).and_then(|()| {
            say_go(&status).during(Stage::State, || "let the new process go on".to_owned())
        });
        if let Err(failure) = outcome {
            end_child(pid, &pidfd);
            return Err(failure);
        }
        let mut process = Process::new(String::new(), pid, Some(pidfd), streams);
        process.streams.watch(&self.poll);
        process.status = Some(status);
        Ok(process)
    }

    /// Runs another program in the container.
    pub(super) fn exec(
        &mut self,
        waiter: Waiter,
        head: ExecHead,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        match self.phase() {
            Phase::Running => {}
            Phase::Paused => {
                return Err(fail(Stage::State, Errno::BUSY, "exec in a container that is paused"));
            }
            _ => {
                return Err(fail(
                    Stage::State,
                    Errno::SRCH,
                    "exec in a container that does not run",
                ));
            }
        }
        if !is_plain_id(&head.id) || self.find_exec(&head.id).is_some() {
            return Err(fail(Stage::Protocol, Errno::INVAL, format!("use exec id {:?}", head.id)));
        }
        let slot = self.free_slot()?;
        let mut fds = fds.into_iter();
        let body = fds.next().ok_or(Errno::INVAL);
        let body = body.during(Stage::Protocol, || "exec without a plan".to_owned())?;
        let (mut streams, ends) = Streams::make(slot, head.stdio, Log::None)
            .during(Stage::Io, || "make the exec's streams".to_owned())?;
        if let Some(wanted) = head.attach {
            let client = fds.next().ok_or(Errno::BADF);
            let client = client.during(Stage::Protocol, || "attach to an exec".to_owned())?;
            streams
                .attach(&self.poll, client, wanted)
                .during(Stage::Io, || "attach a client".to_owned())?;
        }
        let Some(container) = &self.container else { return Ok(()) };
        if container.external.is_some() {
            return self.exec_external(waiter, slot, head, body, streams, ends);
        }
        let init_fd = self.first().and_then(|process| process.pidfd.as_ref()).ok_or(Errno::SRCH);
        let init_fd = init_fd.during(Stage::State, || "reach the container".to_owned())?.as_fd();
        let (status, voice) = socket::pair().at(Stage::Io)?;
        let into = open_v2_group(&container.group)?;
        let birthplace =
            if container.own_pids { Birthplace::Process(init_fd) } else { Birthplace::Here };
        let cloned = clone_in(&birthplace, CloneFlags::default(), into.as_ref().map(AsFd::as_fd))?;
        let (pid, pidfd) = match cloned {
            Cloned::Child => become_another(Another {
                body,
                ends: program_ends(ends),
                voice: Voice(voice),
                init: init_fd,
                user_namespace: container.own_users,
                group: &container.group,
                terminal: head.stdio.terminal,
            }),
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((ends, voice, body));
        let outcome = set_oom_score(pid, head.oom_score_adj).and_then(|()| {
            say_go(&status).during(Stage::State, || "let the new process go on".to_owned())
        });
        if let Err(failure) = outcome {
            end_child(pid, &pidfd);
            return Err(failure);
        }
        let mut process = Process::new(head.id, pid, Some(pidfd), streams);
        process.streams.watch(&self.poll);
        process.status = Some(status);
        process.waiter = Some(waiter);
        process.starts_at_once = true;
        self.put(slot, process);
        self.watch_status(slot).inspect_err(|_| self.abandon(slot))
    }

    /// Lets the container's program run.
    pub(super) fn start(&mut self, waiter: Waiter) -> Result<(), Failure> {
        if self.phase() != Phase::Created {
            return Err(fail(Stage::State, Errno::INVAL, "start a container that is not created"));
        }
        if self.container.as_ref().is_some_and(|it| it.external.is_some()) {
            return self.start_external(waiter);
        }
        let Some(process) = self.process_mut(FIRST) else { return Ok(()) };
        process.waiter = Some(waiter);
        process.starts_at_once = true;
        match &process.status {
            Some(status) => say_start(status),
            None => Err(Errno::PIPE),
        }
        .during(Stage::State, || "start the container".to_owned())
    }

    /// Takes what a new process says about its start.
    pub(super) fn hear_of(&mut self, slot: u16) {
        loop {
            let Some(process) = self.process_mut(slot) else { return };
            let Some(status) = &process.status else { return };
            match hear(status) {
                Ok(Heard::Ready) => {
                    process.is_ready = true;
                    let pid = process.pid.as_raw_nonzero().get();
                    if let Some(waiter) = process.waiter.take() {
                        self.answer(waiter, Ok(Reply::Ready { pid }));
                    }
                }
                Ok(Heard::Terminal(master)) => {
                    let Some(Some(process)) = self.processes.get_mut(usize::from(slot)) else {
                        return;
                    };
                    if let Err(errno) = process.streams.take_terminal(&self.poll, master) {
                        process.failure = Some(fail(Stage::Terminal, errno, "take the terminal"));
                        let _ = process.signal(9);
                    }
                }
                // The process ends on its own; the answer follows when it is reaped.
                Ok(Heard::Failed(failure)) => process.failure = Some(failure),
                Ok(Heard::Closed) => return self.status_closed(slot),
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    process.failure = Some(fail(Stage::Protocol, errno, "hear of the start"));
                    let _ = process.signal(9);
                    return self.stop_listening(slot);
                }
            }
        }
    }

    fn status_closed(&mut self, slot: u16) {
        self.stop_listening(slot);
        let Some(process) = self.process_mut(slot) else { return };
        if process.failure.is_some() || !process.starts_at_once {
            return;
        }
        process.started = true;
        let pid = process.pid.as_raw_nonzero().get();
        if let Some(waiter) = process.waiter.take() {
            self.answer(waiter, Ok(Reply::Started { pid }));
        }
    }

    fn stop_listening(&mut self, slot: u16) {
        let Some(Some(process)) = self.processes.get_mut(usize::from(slot)) else { return };
        if let Some(status) = process.status.take() {
            self.poll.remove(status.as_fd());
        }
    }

    /// A process ended before its program ran: nothing of it stays.
    pub(super) fn start_failed(&mut self, slot: u16, failure: Failure) {
        self.stop_listening(slot);
        let process = self.processes.get_mut(usize::from(slot)).and_then(Option::take);
        if slot == FIRST {
            if let Some(container) = self.container.take() {
                if let Some(runtime) = &container.external {
                    runtime.delete(&container.id);
                }
                let _ = container.group.remove(REMOVAL);
            }
            self.remove_socket();
            if let Some(waiter) = self.deleting.take() {
                self.answer(waiter, Ok(Reply::Done));
            }
        }
        if let Some(waiter) = process.and_then(|process| process.waiter) {
            self.answer(waiter, Err(failure));
        }
    }

    /// Undoes a start that failed on the shim's side.
    fn abandon(&mut self, slot: u16) {
        self.stop_listening(slot);
        if let Some(process) = self.processes.get_mut(usize::from(slot)).and_then(Option::take) {
            let _ = process.signal(9);
            let _ = wait_for(process.pid);
        }
        if slot == FIRST
            && let Some(container) = self.container.take()
        {
            let _ = container.group.remove(REMOVAL);
        }
    }

    /// Listens for daemons to come.
    pub(super) fn serve(&mut self) -> Result<(), Failure> {
        // The working directory is the run directory.
        let listener = socket::listen(Path::new(SOCKET_NAME), 8, 0o600).at(Stage::Io)?;
        rustix::io::ioctl_fionbio(&listener, true)
            .and_then(|()| self.poll.add(listener.as_fd(), Source::Listener, EventFlags::IN))
            .during(Stage::Io, || "listen for daemons".to_owned())?;
        self.listener = Some(listener);
        Ok(())
    }

    fn watch_status(&mut self, slot: u16) -> Result<(), Failure> {
        let Some(Some(process)) = self.processes.get(usize::from(slot)) else { return Ok(()) };
        let Some(status) = &process.status else { return Ok(()) };
        rustix::io::ioctl_fionbio(status, true)
            .and_then(|()| self.poll.add(status.as_fd(), Source::Status(slot), EventFlags::IN))
            .during(Stage::Io, || "watch the new process".to_owned())
    }

    pub(super) fn put(&mut self, slot: u16, process: Process) {
        let slot = usize::from(slot);
        while self.processes.len() <= slot {
            self.processes.push(None);
        }
        if let Some(place) = self.processes.get_mut(slot) {
            *place = Some(process);
        }
    }

    fn free_slot(&self) -> Result<u16, Failure> {
        let taken = |slot: usize| self.processes.get(slot).is_some_and(Option::is_some);
        let slot =
            (1..=EXECS_MAX).find(|slot| !taken(*slot)).and_then(|slot| u16::try_from(slot).ok());
        slot.ok_or_else(|| fail(Stage::State, Errno::AGAIN, "run more than 1024 execs at once"))
    }

    /// The slot of a named exec.
    pub(super) fn find_exec(&self, id: &str) -> Option<u16> {
        let is_it =
            |place: &Option<Process>| place.as_ref().is_some_and(|process| process.id == id);
        let slot = self.processes.iter().skip(1).position(is_it)?;
        u16::try_from(slot + 1).ok()
    }
}

pub(super) fn container_of(head: &LaunchHead, external: Option<external::Runtime>) -> Container {
    Container {
        id: head.id.clone(),
        group: head.group.clone(),
        own_pids: head.namespaces.get(Namespace::Pid).is_some(),
        own_users: head.namespaces.get(Namespace::User).is_some(),
        paused: false,
        exit: None,
        external,
    }
}

fn program_ends(ends: Ends) -> ProgramEnds {
    ProgramEnds { stdin: ends.stdin, stdout: ends.stdout, stderr: ends.stderr }
}

fn clone_flags(namespaces: &Namespaces) -> CloneFlags {
    // Mounts are always the container's own. The cgroup namespace follows once the group is joined.
    const KINDS: [(Namespace, CloneFlags); 5] = [
        (Namespace::User, CloneFlags::USER),
        (Namespace::Uts, CloneFlags::UTS),
        (Namespace::Ipc, CloneFlags::IPC),
        (Namespace::Pid, CloneFlags::PID),
        (Namespace::Network, CloneFlags::NETWORK),
    ];
    let wanted = KINDS.iter().filter(|(kind, _)| namespaces.is_new(*kind));
    wanted.fold(CloneFlags::MOUNT, |flags, (_, flag)| flags.with(*flag))
}

/// Clones with children's PID namespace set for the moment of the clone.
fn clone_in(
    birthplace: &Birthplace<'_>,
    flags: CloneFlags,
    into: Option<BorrowedFd<'_>>,
) -> Result<Cloned, Failure> {
    let doing = || "enter the PID namespace".to_owned();
    let own = match birthplace {
        Birthplace::Here => None,
        _ => {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let own = rustix::fs::open("/proc/self/ns/pid", flags, Mode::empty());
            Some(own.during(Stage::Namespace, doing)?)
        }
    };
    match birthplace {
        Birthplace::Here => Ok(()),
        Birthplace::Link(fd) => move_into_link_name_space(*fd, Some(LinkNameSpaceType::ProcessID)),
        Birthplace::Process(pidfd) => {
            move_into_thread_name_spaces(*pidfd, ThreadNameSpaceType::PROCESS_ID)
        }
    }
    .during(Stage::Namespace, doing)?;
    let cloned =
        clone_process(flags, into).during(Stage::Namespace, || "make the new process".to_owned());
    if let (Some(own), false) = (own, matches!(cloned, Ok(Cloned::Child))) {
        move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .during(Stage::Namespace, || "return to the shim's PID namespace".to_owned())?;
    }
    cloned
}

/// What only the parent can do for a new process, before it goes on.
fn prepare(head: &LaunchHead, pid: Pid, v1_steps: &Plan) -> Result<(), Failure> {
    v1_steps.execute().at(Stage::Cgroup)?;
    if let Some((users, groups)) = &head.id_maps {
        write_map(pid, "uid_map", users)?;
        write_map(pid, "gid_map", groups)?;
        // In its user namespace it is nobody outside, and may not join by itself.
        if head.group.dirs.iter().any(|dir| dir.version == Version::V1) {
            head.group.add(pid.as_raw_nonzero().get().unsigned_abs()).at(Stage::Cgroup)?;
        }
    }
    set_oom_score(pid, head.oom_score_adj)
}

fn write_map(pid: Pid, file: &str, map: &[IdMap]) -> Result<(), Failure> {
    let lines: String = map
        .iter()
        .map(|line| format!("{} {} {}\n", line.inside, line.outside, line.count))
        .collect();
    write_proc(pid, file, &lines).during(Stage::Namespace, || format!("write {file}"))
}

pub(super) fn set_oom_score(pid: Pid, score: Option<i32>) -> Result<(), Failure> {
    let Some(score) = score else { return Ok(()) };
    write_proc(pid, "oom_score_adj", &score.to_string())
        .during(Stage::Identity, || format!("set oom_score_adj to {score}"))
}

/// Writes a file of a child that is not reaped, so its number is its own.
fn write_proc(pid: Pid, file: &str, content: &str) -> Result<(), Errno> {
    let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
    let fd = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(fd, content.as_bytes()).map(|_| ())
}

/// Parts a plan into what is about the v2 hierarchy and the rest.
fn split(plan: &Plan, group: &Group) -> (Plan, Plan) {
    let v2 = group.unified().map(|dir| dir.mount.as_path());
    let is_v2 = |step: &Step| {
        let place = match step {
            Step::MakeDir(dir) | Step::InheritCpuset(dir) => dir,
            Step::Enable { dir, .. } | Step::Devices { dir, .. } => dir,
            Step::Write(write) | Step::WriteEither(write, _) => &write.file,
        };
        v2.is_some_and(|v2| place.starts_with(v2))
    };
    let (first, rest) = plan.steps.iter().cloned().partition(is_v2);
    (Plan { steps: first }, Plan { steps: rest })
}

fn open_v2_group(group: &Group) -> Result<Option<OwnedFd>, Failure> {
    let Some(dir) = group.unified() else { return Ok(None) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&dir.dir, flags, Mode::empty())
        .map(Some)
        .during(Stage::Cgroup, || format!("open {}", dir.dir.display()))
}

/// The program this process runs, for another exec of it.
fn own_program() -> Result<OwnedFd, Failure> {
    rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .during(Stage::Exec, || "open the init program".to_owned())
}

/// Kills and reaps a child that will not be used.
fn end_child(pid: Pid, pidfd: &OwnedFd) {
    let _ = send_signal(pidfd, 9);
    let _ = wait_for(pid);
}
