//! A process's streams: its side, the clients', and the log.
//!
//! Output is read only while every client has room for it: a client that does not read holds the
//! process up, as in the reference engine, after a megabyte. Once the process has ended, what is
//! left of its output is taken without asking, so that an exit never waits for a client.

use super::poll::{Poll, Source, Watched};
use crate::log::{Log, Stream};
use gantry_shim_protocol::{Console, Stdio, Streams as Wanted};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::termios::Winsize;
use std::collections::VecDeque;

/// What a client may leave unread before the process is held up.
const CLIENT_QUEUE_MAX: usize = 1 << 20;

/// What may wait to be read by the process before clients are held up.
const INPUT_QUEUE_MAX: usize = 64 << 10;

/// Read at once.
const PIECE: usize = 32 << 10;

/// Clients of one process.
const CLIENTS_MAX: usize = 64;

/// Both directions of a process's input and output.
#[derive(Debug)]
pub(crate) struct Streams {
    slot: u16,
    tty: bool,
    stdin_once: bool,
    stdin: Option<Watched>,
    stdout: Option<Watched>,
    stderr: Option<Watched>,
    terminal: Option<Watched>,
    /// The terminal's other side, held while the process lives: programs there may close and open
    /// it, and without any holder the terminal would seem to have ended.
    slave: Option<OwnedFd>,
    /// Where a terminal is still to come, output has not ended for want of a descriptor.
    terminal_expected: bool,
    input: VecDeque<u8>,
    /// Input is to be closed when the queue is empty.
    input_ends: bool,
    clients: Vec<Option<Client>>,
    log: Log,
    log_watched: bool,
    /// Output is taken whether clients have room or not.
    draining: bool,
}

/// A client's stream socket.
#[derive(Debug)]
struct Client {
    socket: Watched,
    wanted: Wanted,
    queue: VecDeque<u8>,
    /// It has sent its last byte.
    quiet: bool,
    /// It gave, or could have given, input.
    feeds: bool,
}

/// The process's ends, to be given to it.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Streams {
    /// Makes the streams and the process's ends of them.
    pub(crate) fn make(slot: u16, stdio: Stdio, log: Log) -> Result<(Self, Ends), Errno> {
        let mut streams = Self {
            slot,
            tty: stdio.terminal.is_some(),
            stdin_once: stdio.stdin_once,
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: None,
            slave: None,
            terminal_expected: stdio.terminal.is_some(),
            input: VecDeque::new(),
            input_ends: false,
            clients: Vec::new(),
            log,
            log_watched: false,
            draining: false,
        };
        if streams.tty {
            // The terminal comes from the container; until then, nowhere.
            let null = open_null()?;
            let ends = Ends {
                stdin: null.try_clone().map_err(io_errno)?,
                stdout: null.try_clone().map_err(io_errno)?,
                stderr: null,
            };
            return Ok((streams, ends));
        }
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (stdout, stdout_end) = pipe()?;
        let (stderr, stderr_end) = pipe()?;
        streams.stdout = Some(Watched::new(stdout, Source::Stdout(slot))?);
        streams.stderr = Some(Watched::new(stderr, Source::Stderr(slot))?);
        let stdin_end = if stdio.stdin {
            let (end, stdin) = pipe()?;
            streams.stdin = Some(Watched::new(stdin, Source::Stdin(slot))?);
            end
        } else {
            open_null()?
        };
        Ok((streams, Ends { stdin: stdin_end, stdout: stdout_end, stderr: stderr_end }))
    }

    /// Takes the terminal that the new process has made.
    pub(crate) fn take_terminal(&mut self, poll: &Poll, master: OwnedFd) -> Result<(), Errno> {
        use rustix::pty::OpenptFlags;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        self.slave = Some(rustix::pty::ioctl_tiocgptpeer(&master, flags)?);
        self.terminal = Some(Watched::new(master, Source::Terminal(self.slot))?);
        self.terminal_expected = false;
        self.arrange(poll);
        Ok(())
    }

    /// Sets the terminal's size. `ENOTTY` without a terminal.
    pub(crate) fn resize(&self, size: Console) -> Result<(), Errno> {
        let terminal = self.terminal.as_ref().ok_or(Errno::NOTTY)?;
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size)
    }

    /// Takes a client. `EMFILE` when there are too many.
    pub(crate) fn attach(
        &mut self,
        poll: &Poll,
        socket: OwnedFd,
        wanted: Wanted,
    ) -> Result<(), Errno> {
        let index = match self.clients.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.clients.len() < CLIENTS_MAX => {
                self.clients.push(None);
                self.clients.len() - 1
            }
            None => return Err(Errno::MFILE),
        };
        let number = u16::try_from(index).map_err(|_| Errno::MFILE)?;
        let client = Client {
            socket: Watched::new(socket, Source::Stream(self.slot, number))?,
            wanted,
            queue: VecDeque::new(),
            quiet: false,
            feeds: wanted.stdin,
        };
        if let Some(place) = self.clients.get_mut(index) {
            *place = Some(client);
        }
        self.settle();
        self.arrange(poll);
        Ok(())
    }

    /// Closes the process's input once it has read what waits. A terminal has no such end.
    pub(crate) fn close_stdin(&mut self, poll: &Poll) {
        self.input_ends = true;
        self.feed();
        self.arrange(poll);
    }

    /// Something of these streams is ready.
    pub(crate) fn ready(&mut self, poll: &Poll, source: Source, flags: EventFlags) {
        match source {
            Source::Stdout(_) => self.read_output(Stream::Stdout),
            Source::Stderr(_) => self.read_output(Stream::Stderr),
            Source::Terminal(_) => {
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.read_terminal();
                }
                if flags.contains(EventFlags::OUT) {
                    self.feed();
                }
            }
            Source::Stdin(_) => {
                if flags.intersects(EventFlags::ERR) {
                    self.stdin = None;
                }
                self.feed();
            }
            Source::Stream(_, index) => self.client_ready(usize::from(index), flags),
            Source::Log(_) => self.log.push(),
            _ => {}
        }
        self.settle();
        self.arrange(poll);
    }

    /// Begins to wait for what may come.
    pub(crate) fn watch(&mut self, poll: &Poll) {
        self.arrange(poll);
    }

    /// The process has ended: what it left is taken without asking for room.
    pub(crate) fn drain(&mut self, poll: &Poll) {
        self.draining = true;
        self.stdin = None;
        self.slave = None;
        self.terminal_expected = false;
        self.arrange(poll);
    }

    /// Gives up on output that others still hold open.
    pub(crate) fn cut(&mut self, poll: &Poll) {
        for (stream, gone) in
            [(Stream::Stdout, self.stdout.take()), (Stream::Stderr, self.stderr.take())]
        {
            if gone.is_some() {
                self.log.end(stream);
            }
        }
        if self.terminal.take().is_some() {
            self.log.end(Stream::Stdout);
        }
        self.settle();
        self.arrange(poll);
    }

    /// Whether all output has been seen.
    pub(crate) fn output_ended(&self) -> bool {
        self.stdout.is_none()
            && self.stderr.is_none()
            && self.terminal.is_none()
            && !self.terminal_expected
    }

    /// Whether every client has got everything, or gone.
    pub(crate) fn is_flushed(&self) -> bool {
        self.clients.iter().all(Option::is_none) && !self.log.has_backlog()
    }

    /// Lines that could not be kept.
    pub(crate) fn log_dropped(&self) -> u64 {
        self.log.dropped()
    }

    fn read_output(&mut self, stream: Stream) {
        let end = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        let Some(watched) = end.as_ref() else { return };
        let mut piece = [0; PIECE];
        match rustix::io::read(watched, &mut piece) {
            Ok(0) => *end = None,
            Ok(got) => return self.spread(stream, piece.get(..got).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => *end = None,
        }
        self.log.end(stream);
    }

    fn read_terminal(&mut self) {
        let Some(terminal) = self.terminal.as_ref() else { return };
        let mut piece = [0; PIECE];
        match rustix::io::read(terminal, &mut piece) {
            Ok(got) if got > 0 => {
                self.spread(Stream::Stdout, piece.get(..got).unwrap_or_default());
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO says that nobody has the other side open any more.
            _ => {
                self.terminal = None;
                self.log.end(Stream::Stdout);
            }
        }
    }

    fn spread(&mut self, stream: Stream, data: &[u8]) {
        self.log.write(stream, data);
        for place in &mut self.clients {
            let Some(client) = place else { continue };
            let wanted = match stream {
                Stream::Stdout => client.wanted.stdout,
                Stream::Stderr => client.wanted.stderr,
            };
            if !wanted {
                continue;
            }
            let sent = if self.tty {
                client.send(&[], data)
            } else {
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
                let [a, b, c, d] = length;
                client.send(&[stream as u8, 0, 0, 0, a, b, c, d], data)
            };
            if sent.is_err() {
                *place = None;
            }
        }
    }

    fn client_ready(&mut self, index: usize, flags: EventFlags) {
        let Some(place) = self.clients.get_mut(index) else { return };
        let Some(client) = place.as_mut() else { return };
        // An event may be about a client that had this place before, so the socket is asked.
        let mut gone =
            flags.intersects(EventFlags::ERR | EventFlags::HUP) && has_hung_up(&client.socket);
        if flags.contains(EventFlags::OUT) && !gone {
            gone = client.flush().is_err();
        }
        let mut ended = false;
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) && !client.quiet {
            let mut piece = [0; PIECE];
            match rustix::net::recv(&client.socket, &mut piece[..], RecvFlags::empty()) {
                Ok((_, 0)) => {
                    client.quiet = true;
                    ended = client.feeds;
                }
                Ok((_, got)) => {
                    if client.feeds {
                        self.input.extend(piece.get(..got).unwrap_or_default());
                    }
                    // There may be more before the end.
                    gone = false;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => gone = true,
            }
        }
        if gone {
            ended |= client.feeds && !client.quiet;
            *place = None;
        }
        if ended && self.stdin_once {
            self.input_ends = true;
        }
        self.feed();
    }

    /// Gives the process what waits for it.
    fn feed(&mut self) {
        let target = if self.tty { &mut self.terminal } else { &mut self.stdin };
        while let Some(watched) = target.as_ref().filter(|_| !self.input.is_empty()) {
            let (front, _) = self.input.as_slices();
            match rustix::io::write(watched, front) {
                Ok(sent) => drop(self.input.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // It does not read any more, and never will.
                    self.input = VecDeque::new();
                    if !self.tty {
                        *target = None;
                    }
                }
            }
        }
        if target.is_none() && !self.terminal_expected {
            self.input = VecDeque::new();
        }
        if self.input.is_empty() {
            self.input.shrink_to_fit();
            if self.input_ends && !self.tty {
                self.stdin = None;
            }
        }
    }

    /// Lets go of clients that have everything.
    fn settle(&mut self) {
        let ended = self.output_ended();
        let (stdout, stderr) = (self.stdout.is_none(), self.stderr.is_none());
        let tty = self.tty;
        for place in &mut self.clients {
            let Some(client) = place else { continue };
            // A client of one stream is done when that one is.
            let nothing_more = ended
                || (!tty
                    && !client.wanted.stdin
                    && (!client.wanted.stdout || stdout)
                    && (!client.wanted.stderr || stderr)
                    && (client.wanted.stdout || client.wanted.stderr));
            if nothing_more && client.queue.is_empty() {
                let _ = rustix::net::shutdown(&client.socket, Shutdown::Write);
                *place = None;
            }
        }
    }

    /// Says what is waited for from now on.
    fn arrange(&mut self, poll: &Poll) {
        let has_room = |client: &Client| client.queue.len() < CLIENT_QUEUE_MAX;
        let room = self.draining || self.clients.iter().flatten().all(has_room);
        let output = if room { EventFlags::IN } else { EventFlags::empty() };
        for end in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            end.want(poll, output);
        }
        let input_waits = !self.input.is_empty();
        let room_flag = if input_waits { EventFlags::OUT } else { EventFlags::empty() };
        if let Some(terminal) = &mut self.terminal {
            terminal.want(poll, output | room_flag);
        }
        if let Some(stdin) = &mut self.stdin {
            stdin.want(poll, room_flag);
        }
        let takes_input = self.input.len() < INPUT_QUEUE_MAX;
        for client in self.clients.iter_mut().flatten() {
            let mut flags = EventFlags::empty();
            if !client.quiet && takes_input {
                flags |= EventFlags::IN;
            }
            if !client.queue.is_empty() {
                flags |= EventFlags::OUT;
            }
            if flags.is_empty() && client.quiet {
                // Only its going is of interest; that is reported without asking.
                flags = EventFlags::ERR;
            }
            client.socket.want(poll, flags);
        }
        let Some(socket) = self.log.socket() else { return };
        match (self.log.has_backlog(), self.log_watched) {
            (true, false) => {
                let source = Source::Log(self.slot);
                self.log_watched = poll.add(socket, source, EventFlags::OUT).is_ok();
            }
            (false, true) => {
                poll.remove(socket);
                self.log_watched = false;
            }
            _ => {}
        }
    }
}

impl Client {
    /// Sends now what the socket takes and keeps the rest.
    fn send(&mut self, header: &[u8], data: &[u8]) -> Result<(), Errno> {
        if self.queue.is_empty() {
            let mut sent = 0;
            let parts = [std::io::IoSlice::new(header), std::io::IoSlice::new(data)];
            let mut nothing = rustix::net::SendAncillaryBuffer::default();
            let flags = SendFlags::NOSIGNAL;
            match rustix::net::sendmsg(&self.socket, &parts, &mut nothing, flags) {
                Ok(count) => sent = count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            let in_data = sent.saturating_sub(header.len());
            self.queue.extend(header.get(sent..).unwrap_or_default());
            self.queue.extend(data.get(in_data..).unwrap_or_default());
            return Ok(());
        }
        self.queue.extend(header);
        self.queue.extend(data);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            match rustix::net::send(&self.socket, front, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.queue.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.queue = VecDeque::new();
        Ok(())
    }
}

fn has_hung_up(socket: &Watched) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut ready = [PollFd::new(socket, PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    // A hang-up is reported without asking for it.
    poll(&mut ready, Some(&now)).is_ok_and(|count| count > 0)
}

fn open_null() -> Result<OwnedFd, Errno> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
}

fn io_errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
