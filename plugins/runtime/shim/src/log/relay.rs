//! Non-blocking mode: output goes into a bounded buffer and from there to a process that writes the
//! file. What finds the buffer full is counted and dropped, so a slow disk never holds the container
//! up. The process shares the shim's program and ends when the shim's side closes.

use super::{Stream, Writer};
use gantry_shim_protocol::LogSink;
use gantry_sys::process::{CloneFlags, Cloned, clone_process, close_from, exit_now, ignore};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::VecDeque;
use std::io::Read;

/// Bytes before each piece: stream, then length (little endian, 32 bits).
const HEADER: usize = 5;

/// A piece with this bit in its first byte says that the stream has ended.
const END: u8 = 0x80;

/// Longest piece the writing process takes; the shim reads less at once.
const PIECE_MAX: usize = 1 << 20;

/// The shim's side.
#[derive(Debug)]
pub(crate) struct Relay {
    socket: OwnedFd,
    queue: VecDeque<u8>,
    limit: usize,
    dropped: u64,
}

impl Relay {
    /// Starts the writing process.
    pub(super) fn start(sink: &LogSink, buffer: u64) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match clone_process(CloneFlags::default(), None)? {
            Cloned::Child => {
                // The far end must be the only one that is open here, or the end is never seen.
                let _ = close_from(3, &[far.as_raw_fd()]);
                write_all_of(far, sink);
                exit_now(0)
            }
            Cloned::Parent { .. } => {
                rustix::io::ioctl_fionbio(&near, true)?;
                let limit = usize::try_from(buffer).unwrap_or(usize::MAX).max(PIECE_MAX / 4);
                Ok(Self { socket: near, queue: VecDeque::new(), limit, dropped: 0 })
            }
        }
    }

    pub(super) fn write(&mut self, stream: Stream, data: &[u8]) {
        if self.queue.len() + data.len() + HEADER > self.limit {
            let lines = data.iter().filter(|byte| **byte == b'\n').count().max(1);
            self.dropped += u64::try_from(lines).unwrap_or(0);
            return;
        }
        self.enqueue(stream as u8, data);
        self.push();
    }

    /// The end is a few bytes, so the limit is not asked.
    pub(super) fn end(&mut self, stream: Stream) {
        self.enqueue(stream as u8 | END, &[]);
        self.push();
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn push(&mut self) {
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            match rustix::net::send(&self.socket, front, rustix::net::SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.queue.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // The writing process is gone: what waits is lost, and so will be the rest.
                    self.dropped += 1;
                    self.queue = VecDeque::new();
                }
            }
        }
        self.queue = VecDeque::new();
    }

    fn enqueue(&mut self, kind: u8, data: &[u8]) {
        self.queue.push_back(kind);
        self.queue.extend(u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
        self.queue.extend(data);
    }
}

/// The writing process.
fn write_all_of(far: OwnedFd, sink: &LogSink) {
    let _ = ignore(&[15, 1, 2]);
    let Some(mut writer) = Writer::open(sink) else { return };
    let mut input = std::fs::File::from(far);
    let mut header = [0; HEADER];
    let mut piece = Vec::new();
    while input.read_exact(&mut header).is_ok() {
        let [kind, length @ ..] = header;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(0).min(PIECE_MAX);
        piece.resize(length, 0);
        if input.read_exact(&mut piece).is_err() {
            break;
        }
        let stream = if kind & !END == 2 { Stream::Stderr } else { Stream::Stdout };
        if kind & END != 0 { writer.end(stream) } else { writer.write(stream, &piece) }
    }
}
