//! The shim's life: one loop over everything that can happen.
//!
//! | file | holds |
//! |---|---|
//! | `poll` | epoll with names |
//! | `process` | one process: its streams, its start, its end |
//! | `streams` | input, output, clients, log |
//! | `start` | making the first process and others |
//! | `requests` | what daemons ask for |
//! | `external` | a runtime program in place of the core |

mod external;
mod poll;
mod process;
mod requests;
mod start;
mod streams;

use crate::clock::ticks;
use gantry_shim_protocol::{
    EXIT_NAME, Event, Exit, Failure, Phase, Reply, SOCKET_NAME, ServerMessage, StateReport,
    encode_body, encode_frame, exec_exit_name,
};
use gantry_sys::cgroup::Group;
use gantry_sys::path::Durability;
use gantry_sys::process::{
    Reaped, ignore, reap_any, send_signal_to, signal_descriptor, signal_descriptor_drain, trim_heap,
};
use gantry_sys::socket;
use poll::{Poll, Source};
use process::Process;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::time::Duration;

/// SIGCHLD.
const CHILD: i32 = 17;

/// Signals that must not end a shim: hang-up, interrupt, quit, broken pipe, terminate.
const IGNORED: [i32; 5] = [1, 2, 3, 13, 15];

/// Daemons connected at once.
const PEERS_MAX: usize = 16;

/// The container's own process is in the first slot, execs are in the others.
const FIRST: u16 = 0;

/// How long removing a group may take; its processes are gone, so it is a matter of milliseconds.
const REMOVAL: Duration = Duration::from_secs(2);

/// How long a deleted container's output may wait for clients that do not read, in milliseconds.
const LINGER: u64 = 600_000;

/// Exits of execs kept on record: a health check makes one every few seconds.
const RECORDS_MAX: usize = 64;

/// A connected daemon.
#[derive(Debug)]
struct Peer {
    socket: OwnedFd,
    /// It has said hello in our version.
    greeted: bool,
}

/// What is known of the container besides its process.
#[derive(Debug)]
struct Container {
    id: String,
    group: Group,
    /// It has processes of its own: when the first ends, the kernel ends them all.
    own_pids: bool,
    own_users: bool,
    paused: bool,
    exit: Option<Exit>,
    external: Option<external::Runtime>,
}

/// Whom to answer: slot and number of the request.
type Waiter = (u16, u32);

/// The shim.
pub(crate) struct Shim {
    poll: Poll,
    signals: OwnedFd,
    run_dir: OwnedFd,
    listener: Option<OwnedFd>,
    peers: Vec<Option<Peer>>,
    container: Option<Container>,
    processes: Vec<Option<Process>>,
    /// Answered when the container, being killed, has ended.
    deleting: Option<Waiter>,
    /// Exits of execs that are on record, oldest first.
    recorded: VecDeque<String>,
    /// Everything is removed; when, at the latest, this process ends.
    ending: Option<u64>,
}

impl Shim {
    /// Takes over the first connection and the run directory.
    pub(crate) fn new(control: OwnedFd, run_dir: OwnedFd) -> Result<Self, Errno> {
        ignore(&IGNORED)?;
        let signals = signal_descriptor(&[CHILD])?;
        // Others of the same user could otherwise read our memory, and a container's root is one.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // The container's root is attached over the working directory; see `setup::mounts`.
        rustix::process::fchdir(&run_dir)?;
        let poll = Poll::new()?;
        poll.add(signals.as_fd(), Source::Signals, EventFlags::IN)?;
        let mut shim = Self {
            poll,
            signals,
            run_dir,
            listener: None,
            peers: Vec::new(),
            container: None,
            processes: Vec::new(),
            deleting: None,
            recorded: VecDeque::new(),
            ending: None,
        };
        shim.add_peer(control)?;
        Ok(shim)
    }

    /// Serves until there is nothing left to do.
    pub(crate) fn run(&mut self) -> Result<(), Errno> {
        while !self.is_done() {
            let mut ready = [None; 8];
            let mut count = 0;
            self.poll.wait(self.patience(), |source, flags| {
                if let Some(place) = ready.get_mut(count) {
                    *place = Some((source, flags));
                    count += 1;
                }
            })?;
            for (source, flags) in ready.into_iter().flatten() {
                self.handle(source, flags);
            }
            self.advance();
        }
        self.remove_socket();
        // What was killed with the container is nobody else's to reap.
        self.reap();
        Ok(())
    }

    /// Nobody will ever come: the daemon went before it launched anything, or everything is removed
    /// and every client has got its output.
    fn is_done(&self) -> bool {
        match self.ending {
            Some(latest) => ticks() >= latest || self.processes.iter().all(Option::is_none),
            None => self.container.is_none() && self.peers.iter().all(Option::is_none),
        }
    }

    /// Milliseconds until something is due.
    fn patience(&self) -> Option<u64> {
        let due = self.processes.iter().flatten().filter_map(Process::due);
        let next = due.chain(self.ending).min()?;
        Some(next.saturating_sub(ticks()).max(1))
    }

    fn handle(&mut self, source: Source, flags: EventFlags) {
        match source {
            Source::Signals => {
                // The number is known; what matters is who ended.
                let _ = signal_descriptor_drain(&self.signals, |_| {});
                self.reap();
            }
            Source::Listener => self.accept(),
            Source::Client(slot) => self.listen_to(slot),
            Source::Status(slot) => self.hear_of(slot),
            Source::Stdout(slot)
            | Source::Stderr(slot)
            | Source::Stdin(slot)
            | Source::Terminal(slot)
            | Source::Stream(slot, _)
            | Source::Log(slot) => {
                if let Some(process) =
                    self.processes.get_mut(usize::from(slot)).and_then(Option::as_mut)
                {
                    process.streams.ready(&self.poll, source, flags);
                }
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(reaped)) = reap_any() {
            let is_it = |process: &Process| process.pid.as_raw_nonzero().get() == reaped.pid;
            let slot = self.processes.iter().position(|place| place.as_ref().is_some_and(is_it));
            if let Some(slot) = slot.and_then(|slot| u16::try_from(slot).ok()) {
                self.process_ended(slot, reaped);
            } else {
                self.helper_ended(reaped);
            }
        }
    }

    fn process_ended(&mut self, slot: u16, reaped: Reaped) {
        // Its last words may still be on their way.
        self.hear_of(slot);
        let being_started = slot == FIRST && self.is_being_started();
        let Some(process) = self.process_mut(slot) else { return };
        process.started |= being_started;
        if !process.started {
            let failure = process.failure.take().unwrap_or_else(|| process::died(reaped));
            return self.start_failed(slot, failure);
        }
        let is_first = slot == FIRST;
        let group = self.container.as_ref().map(|container| container.group.clone());
        let oom = match &group {
            Some(group) => group.oom_counts().ok().flatten().is_some_and(|it| it.kills > 0),
            None => false,
        };
        if is_first && self.container.as_ref().is_some_and(|container| !container.own_pids) {
            // Without a PID namespace nothing else ends what the first process has left behind.
            self.kill_all(9);
        }
        if let Some(Some(process)) = self.processes.get_mut(usize::from(slot)) {
            process.ended(reaped, oom, &self.poll);
        }
    }

    /// Does what time or other events have made due.
    fn advance(&mut self) {
        for slot in 0..self.processes.len() {
            let Some(Some(process)) = self.processes.get_mut(slot) else { continue };
            let slot = u16::try_from(slot).unwrap_or(u16::MAX);
            process.streams_due(&self.poll);
            if let Some(exit) = process.exit_to_announce() {
                self.announce(slot, exit);
            }
            let Some(Some(process)) = self.processes.get_mut(usize::from(slot)) else { continue };
            if process.is_over()
                && (slot != FIRST || self.ending.is_some())
                && let Some(place) = self.processes.get_mut(usize::from(slot))
            {
                *place = None;
            }
        }
    }

    /// Puts an exit on record, then tells it.
    fn announce(&mut self, slot: u16, exit: Exit) {
        let Some(Some(process)) = self.processes.get_mut(usize::from(slot)) else { return };
        let (name, event) = if slot == FIRST {
            (EXIT_NAME.to_owned(), Event::Exited(exit))
        } else {
            let id = process.id.clone();
            let name = exec_exit_name(&id);
            self.recorded.push_back(name.clone());
            if self.recorded.len() > RECORDS_MAX
                && let Some(oldest) = self.recorded.pop_front()
            {
                let _ = rustix::fs::unlinkat(&self.run_dir, oldest, rustix::fs::AtFlags::empty());
            }
            (name, Event::ExecExited { id, exit })
        };
        // A full run directory must not keep the news back; the state still has it.
        if let Ok(body) = encode_body(&exit) {
            let name = OsStr::new(&name);
            let _ = gantry_sys::path::replace_at(
                &self.run_dir,
                name,
                &body,
                0o600,
                Durability::Volatile,
            );
        }
        if slot == FIRST
            && let Some(container) = &mut self.container
        {
            container.exit = Some(exit);
        }
        self.tell(&event);
        if slot == FIRST {
            // Now, after the news, the mounts may go: that takes its time.
            if let Some(Some(process)) = self.processes.get_mut(usize::from(FIRST)) {
                process.mounts = None;
            }
            if let Some(waiter) = self.deleting.take() {
                let answer = self.remove_everything();
                self.answer(waiter, answer);
            }
        }
        trim_heap();
    }

    /// Removes what was made outside this process.
    fn remove_everything(&mut self) -> Result<Reply, Failure> {
        if let Some(container) = &self.container {
            if let Some(runtime) = &container.external {
                runtime.delete(&container.id);
            }
            container.group.remove(REMOVAL).map_err(|error| {
                crate::status::fail_sys(gantry_shim_protocol::Stage::Cgroup, &error)
            })?;
        }
        self.remove_socket();
        self.ending = Some(ticks() + LINGER);
        Ok(Reply::Done)
    }

    fn remove_socket(&mut self) {
        if let Some(listener) = self.listener.take() {
            self.poll.remove(listener.as_fd());
            // Whoever removes the run directory removes it as well.
            let _ = rustix::fs::unlinkat(&self.run_dir, SOCKET_NAME, rustix::fs::AtFlags::empty());
        }
    }

    fn kill_all(&self, signal: i32) {
        let Some(container) = &self.container else { return };
        for pid in container.group.processes().unwrap_or_default() {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = send_signal_to(pid, signal);
            }
        }
    }

    fn process_mut(&mut self, slot: u16) -> Option<&mut Process> {
        self.processes.get_mut(usize::from(slot)).and_then(Option::as_mut)
    }

    fn first(&self) -> Option<&Process> {
        self.processes.first().and_then(Option::as_ref)
    }

    fn phase(&self) -> Phase {
        let Some(container) = &self.container else { return Phase::Empty };
        if container.exit.is_some() {
            return Phase::Exited;
        }
        match self.first() {
            Some(process) if process.started && container.paused => Phase::Paused,
            Some(process) if process.started => Phase::Running,
            Some(process) if process.is_ready => Phase::Created,
            _ => Phase::Creating,
        }
    }

    fn report(&self) -> StateReport {
        let execs = self.processes.iter().skip(1).flatten();
        StateReport {
            id: self.container.as_ref().map(|it| it.id.clone()).unwrap_or_default(),
            phase: self.phase(),
            pid: self.first().map(|process| process.pid.as_raw_nonzero().get()),
            exit: self.container.as_ref().and_then(|it| it.exit),
            execs: execs
                .filter(|process| process.started && !process.has_ended())
                .map(|process| (process.id.clone(), process.pid.as_raw_nonzero().get()))
                .collect(),
            log_dropped: self.first().map_or(0, |process| process.streams.log_dropped()),
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match socket::accept(listener) {
            // One too many is hung up on.
            Ok(connection) => drop(self.add_peer(connection)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // Out of descriptors, most likely: the connection goes on waiting, and would be reported
            // again at once.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }

    fn add_peer(&mut self, connection: OwnedFd) -> Result<(), Errno> {
        let slot = match self.peers.iter().position(Option::is_none) {
            Some(slot) => slot,
            None if self.peers.len() < PEERS_MAX => {
                self.peers.push(None);
                self.peers.len() - 1
            }
            None => return Err(Errno::MFILE),
        };
        rustix::io::ioctl_fionbio(&connection, true)?;
        let number = u16::try_from(slot).map_err(|_| Errno::MFILE)?;
        self.poll.add(connection.as_fd(), Source::Client(number), EventFlags::IN)?;
        if let Some(place) = self.peers.get_mut(slot) {
            *place = Some(Peer { socket: connection, greeted: false });
        }
        Ok(())
    }

    fn drop_peer(&mut self, slot: u16) {
        if let Some(peer) = self.peers.get_mut(usize::from(slot)).and_then(Option::take) {
            self.poll.remove(peer.socket.as_fd());
        }
    }

    fn answer(&mut self, (slot, number): Waiter, answer: Result<Reply, Failure>) {
        self.send(slot, number, &ServerMessage::Reply(answer));
    }

    fn tell(&mut self, event: &Event) {
        for slot in 0..self.peers.len() {
            let slot = u16::try_from(slot).unwrap_or(u16::MAX);
            let peer = self.peers.get(usize::from(slot)).and_then(Option::as_ref);
            if peer.is_some_and(|peer| peer.greeted) {
                self.send(slot, 0, &ServerMessage::Event(event.clone()));
            }
        }
    }

    /// A daemon that does not read its messages is hung up on; it finds the state when it is back.
    fn send(&mut self, slot: u16, number: u32, message: &ServerMessage) {
        let Some(Some(peer)) = self.peers.get(usize::from(slot)) else { return };
        let Ok(packet) = encode_frame(number, message) else { return };
        if socket::send(&peer.socket, &packet, &[]).is_err() {
            self.drop_peer(slot);
        }
    }
}
