//! What daemons ask for.

use super::{FIRST, Shim, Waiter};
use crate::status::{Context, SysContext, fail};
use gantry_shim_protocol::{
    FDS_MAX, FRAME_MAX, Failure, Phase, Reply, Request, Stage, VERSION, decode_frame,
};
use gantry_sys::socket;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::time::Duration;

/// How long freezing may take before it is given up. The shim does nothing else meanwhile.
const FREEZE: Duration = Duration::from_secs(5);

impl Shim {
    /// Takes one message of a daemon.
    pub(super) fn listen_to(&mut self, slot: u16) {
        let Some(Some(peer)) = self.peers.get(usize::from(slot)) else { return };
        // The buffer is as big as what waits, not as what may come; if nothing waited a moment ago,
        // whatever has come since must fit.
        let waiting = rustix::io::ioctl_fionread(&peer.socket).unwrap_or(0);
        let size = match usize::try_from(waiting) {
            Ok(0) | Err(_) => FRAME_MAX,
            Ok(waiting) => waiting.min(FRAME_MAX),
        };
        let mut buffer = vec![0; size];
        match socket::receive(&peer.socket, &mut buffer, FDS_MAX) {
            Ok(received) if received.bytes > 0 => {
                buffer.truncate(received.bytes);
                self.take(slot, &buffer, received.fds);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => self.drop_peer(slot),
        }
    }

    fn take(&mut self, slot: u16, packet: &[u8], fds: Vec<OwnedFd>) {
        let Ok((number, request)) = decode_frame::<Request>(packet) else {
            return self.drop_peer(slot);
        };
        let waiter = (slot, number);
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                let message = format!("cannot understand the request: {error}");
                let failure = Failure { stage: Stage::Protocol, errno: 0, message };
                return self.answer(waiter, Err(failure));
            }
        };
        let greeted = matches!(self.peers.get(usize::from(slot)), Some(Some(peer)) if peer.greeted);
        if !greeted && !matches!(request, Request::Hello { .. }) {
            return self.answer(
                waiter,
                Err(fail(Stage::Protocol, Errno::PROTO, "serve a daemon that said no hello")),
            );
        }
        match self.serve_request(waiter, request, fds) {
            Ok(Some(reply)) => self.answer(waiter, Ok(reply)),
            // It is answered when it is done.
            Ok(None) => {}
            Err(failure) => self.answer(waiter, Err(failure)),
        }
    }

    fn serve_request(
        &mut self,
        waiter: Waiter,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Failure> {
        match request {
            Request::Hello { version } => self.hello(waiter.0, version).map(Some),
            Request::Launch { head, start } => {
                self.launch(waiter, *head, fds, start).map(|()| None)
            }
            Request::Start => self.start(waiter).map(|()| None),
            Request::State => Ok(Some(Reply::State(self.report()))),
            Request::Kill { signal, all } => self.kill(signal, all).map(Some),
            Request::Resize(size) => {
                let process = self.running(FIRST)?;
                process
                    .streams
                    .resize(size)
                    .during(Stage::Terminal, || "resize the terminal".to_owned())?;
                Ok(Some(Reply::Done))
            }
            Request::Attach(wanted) => {
                let client = fds.into_iter().next().ok_or(Errno::BADF);
                let client =
                    client.during(Stage::Protocol, || "attach without a socket".to_owned())?;
                let Some(Some(process)) = self.processes.get_mut(usize::from(FIRST)) else {
                    return Err(gone());
                };
                process
                    .streams
                    .attach(&self.poll, client, wanted)
                    .during(Stage::Io, || "attach a client".to_owned())?;
                Ok(Some(Reply::Done))
            }
            Request::CloseStdin => {
                if let Some(Some(process)) = self.processes.get_mut(usize::from(FIRST)) {
                    process.streams.close_stdin(&self.poll);
                }
                Ok(Some(Reply::Done))
            }
            Request::Exec(head) => self.exec(waiter, *head, fds).map(|()| None),
            Request::ExecResize { id, size } => {
                let slot = self.find_exec(&id).ok_or_else(gone)?;
                let process = self.running(slot)?;
                process
                    .streams
                    .resize(size)
                    .during(Stage::Terminal, || "resize the terminal".to_owned())?;
                Ok(Some(Reply::Done))
            }
            Request::ExecKill { id, signal } => {
                let slot = self.find_exec(&id).ok_or_else(gone)?;
                self.running(slot)?
                    .signal(signal)
                    .during(Stage::State, || format!("signal exec {id}"))?;
                Ok(Some(Reply::Done))
            }
            Request::Pause => self.freeze(true).map(Some),
            Request::Resume => self.freeze(false).map(Some),
            Request::Delete { force } => self.delete(waiter, force),
        }
    }

    fn hello(&mut self, slot: u16, version: u16) -> Result<Reply, Failure> {
        if version != VERSION {
            let message = format!("this shim speaks version {VERSION}, not {version}");
            return Err(Failure { stage: Stage::Protocol, errno: 0, message });
        }
        if let Some(Some(peer)) = self.peers.get_mut(usize::from(slot)) {
            peer.greeted = true;
        }
        Ok(Reply::Hello { version: VERSION, state: self.report() })
    }

    fn running(&self, slot: u16) -> Result<&super::Process, Failure> {
        let process = self.processes.get(usize::from(slot)).and_then(Option::as_ref);
        process.filter(|process| !process.has_ended()).ok_or_else(gone)
    }

    fn kill(&mut self, signal: i32, all: bool) -> Result<Reply, Failure> {
        let process = self.running(FIRST)?;
        if all && self.container.as_ref().is_some_and(|it| it.external.is_none()) {
            self.kill_all(signal);
            return Ok(Reply::Done);
        }
        if all
            && let Some(container) = &self.container
            && let Some(runtime) = &container.external
        {
            runtime.kill_all(&container.id, signal)?;
            return Ok(Reply::Done);
        }
        process.signal(signal).during(Stage::State, || format!("send signal {signal}"))?;
        Ok(Reply::Done)
    }

    fn freeze(&mut self, frozen: bool) -> Result<Reply, Failure> {
        let wanted = if frozen { Phase::Running } else { Phase::Paused };
        if self.phase() != wanted {
            let doing = if frozen { "pause" } else { "resume" };
            return Err(fail(
                Stage::State,
                Errno::INVAL,
                format!("{doing} a container in phase {:?}", self.phase()),
            ));
        }
        let Some(container) = &mut self.container else { return Err(gone()) };
        match &container.external {
            Some(runtime) => runtime.freeze(&container.id, frozen)?,
            None => container.group.set_frozen(frozen, FREEZE).at(Stage::Cgroup)?,
        }
        container.paused = frozen;
        Ok(Reply::Done)
    }

    fn delete(&mut self, waiter: Waiter, force: bool) -> Result<Option<Reply>, Failure> {
        match self.phase() {
            Phase::Exited | Phase::Empty => self.remove_everything().map(Some),
            _ if !force => {
                Err(fail(Stage::State, Errno::BUSY, "delete a container that has not ended"))
            }
            phase => {
                if phase == Phase::Paused {
                    self.freeze(false)?;
                }
                self.kill_all(9);
                if let Some(runtime) = self.container.as_ref().and_then(|it| it.external.as_ref()) {
                    runtime.stop_commands();
                }
                if let Some(process) = self.first() {
                    let _ = process.signal(9);
                }
                self.deleting = Some(waiter);
                Ok(None)
            }
        }
    }
}

fn gone() -> Failure {
    fail(Stage::State, Errno::SRCH, "reach the process")
}
