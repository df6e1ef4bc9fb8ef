//! One process of the container: the first, or an exec.

use super::Waiter;
use super::poll::Poll;
use super::streams::Streams;
use crate::clock::{now, ticks};
use gantry_shim_protocol::{Exit, Failure, Stage};
use gantry_sys::process::{Reaped, send_signal};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::Pid;

/// An exit waits this long, in milliseconds, for output that somebody else holds open.
const ANNOUNCE_AFTER: u64 = 200;

/// Output that somebody else holds open is followed this long after the end.
const CUT_AFTER: u64 = 2000;

/// A process from its clone to its last byte.
#[derive(Debug)]
pub(super) struct Process {
    /// The exec's name; empty for the first.
    pub(super) id: String,
    pub(super) pid: Pid,
    /// `None` for one that had ended before the shim learned of it.
    pub(super) pidfd: Option<OwnedFd>,
    /// Where it tells how its start goes; `None` once that is over.
    pub(super) status: Option<OwnedFd>,
    /// Who waits for its start.
    pub(super) waiter: Option<Waiter>,
    /// It runs without a further request.
    pub(super) starts_at_once: bool,
    pub(super) is_ready: bool,
    pub(super) started: bool,
    pub(super) failure: Option<Failure>,
    pub(super) streams: Streams,
    /// Keeps the mounts until the exit is told.
    pub(super) mounts: Option<OwnedFd>,
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    exit: Exit,
    at: u64,
    announced: bool,
    cut: bool,
}

impl Process {
    pub(super) fn new(id: String, pid: Pid, pidfd: Option<OwnedFd>, streams: Streams) -> Self {
        Self {
            id,
            pid,
            pidfd,
            status: None,
            waiter: None,
            starts_at_once: false,
            is_ready: false,
            started: false,
            failure: None,
            streams,
            mounts: None,
            end: None,
        }
    }

    /// Sends it a signal. `ESRCH` when it has ended.
    pub(super) fn signal(&self, signal: i32) -> Result<(), Errno> {
        match &self.pidfd {
            Some(pidfd) if !self.has_ended() => send_signal(pidfd, signal),
            _ => Err(Errno::SRCH),
        }
    }

    /// It has been reaped.
    pub(super) fn ended(&mut self, reaped: Reaped, oom: bool, poll: &Poll) {
        let code = reaped.code.unwrap_or_else(|| 128 + reaped.signal.unwrap_or(0));
        let exit = Exit { code, signal: reaped.signal, oom, at: now() };
        self.end = Some(End { exit, at: ticks(), announced: false, cut: false });
        self.streams.drain(poll);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// The exit, once, when it is time to tell it.
    pub(super) fn exit_to_announce(&mut self) -> Option<Exit> {
        let end = self.end.as_mut().filter(|end| !end.announced)?;
        let due = self.streams.output_ended() || ticks() >= end.at + ANNOUNCE_AFTER;
        due.then(|| {
            end.announced = true;
            end.exit
        })
    }

    /// Stops following output that goes on after the end.
    pub(super) fn streams_due(&mut self, poll: &Poll) {
        let Some(end) = &mut self.end else { return };
        if !end.cut && !self.streams.output_ended() && ticks() >= end.at + CUT_AFTER {
            end.cut = true;
            self.streams.cut(poll);
        }
    }

    /// Whether everything of it has been told and given.
    pub(super) fn is_over(&self) -> bool {
        let announced = self.end.as_ref().is_some_and(|end| end.announced);
        announced && self.streams.output_ended() && self.streams.is_flushed()
    }

    /// When something about it is due, on the clock of [`ticks`].
    pub(super) fn due(&self) -> Option<u64> {
        let end = self.end.as_ref()?;
        if self.streams.output_ended() {
            return None;
        }
        match (end.announced, end.cut) {
            (false, _) => Some(end.at + ANNOUNCE_AFTER),
            (true, false) => Some(end.at + CUT_AFTER),
            (true, true) => None,
        }
    }
}

/// The failure of a process that ended before its program ran, without a word.
pub(super) fn died(reaped: Reaped) -> Failure {
    let how = match (reaped.code, reaped.signal) {
        (Some(code), _) => format!("with code {code}"),
        (None, signal) => format!("by signal {}", signal.unwrap_or(0)),
    };
    Failure {
        stage: Stage::State,
        errno: 0,
        message: format!("the process ended {how} before its program ran"),
    }
}
