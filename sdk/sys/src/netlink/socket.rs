//! One netlink socket, used synchronously.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::NETFILTER;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force,
    set_socket_timeout,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Error;
use super::wire::{self, Message};

/// How long to wait for the next part of a dump. The kernel answers at once; this bounds a defect.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes that one send may hold: room for tens of thousands of firewall elements.
const SEND_BUFFER: usize = 64 << 20;

/// Bytes of answers that may wait: one error of some 100 bytes per failed message of a batch.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The kernel builds dump parts of at most 32 KiB.
const PART: usize = 64 << 10;

/// The answer to one message of a batch.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) sequence: u32,
    /// 0 for success.
    pub(crate) errno: i32,
    pub(crate) detail: Option<String>,
}

/// A netlink socket of one protocol. It stays in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    part: Vec<u8>,
}

impl Socket {
    /// A socket for links, addresses and routes.
    pub(crate) fn route() -> Result<Self, Error> {
        Self::open(None) // protocol 0 is NETLINK_ROUTE
    }

    /// A socket for the firewall.
    pub(crate) fn netfilter() -> Result<Self, Error> {
        let socket = Self::open(Some(NETFILTER))?;
        // Batches are sent whole. Without CAP_NET_ADMIN in the first user namespace the default
        // sizes stay, which only limits how large a batch may be.
        let _ = set_socket_send_buffer_size_force(&socket.fd, SEND_BUFFER / 2);
        let _ = set_socket_recv_buffer_size_force(&socket.fd, RECEIVE_BUFFER / 2);
        Ok(socket)
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> Result<Self, Error> {
        let opening = |errno| Error::os("open a netlink socket", errno, None);
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(opening)?;
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_TIMEOUT)).map_err(opening)?;
        // Explanations are a comfort: a kernel without them still gives the error number.
        set_flag(&fd, libc::NETLINK_CAP_ACK);
        set_flag(&fd, libc::NETLINK_EXT_ACK);
        Ok(Self { fd, sequence: 0, part: vec![0; PART] })
    }

    /// A sequence number not used on this socket before (until it wraps).
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends `bytes` and returns the answers that carry a result, in order.
    ///
    /// The kernel works through a send before it returns, so every answer is waiting by then.
    pub(crate) fn transact(&mut self, bytes: &[u8]) -> Result<Vec<Answer>, Error> {
        self.discard_waiting();
        self.send(bytes)?;
        let mut answers = Vec::new();
        while let Some(length) = self.receive(RecvFlags::DONTWAIT)? {
            for message in wire::messages(&self.part[..length]) {
                if message.kind == wire::TYPE_ERROR {
                    let (errno, detail) = wire::outcome(&message);
                    answers.push(Answer { sequence: message.sequence, errno, detail });
                }
            }
        }
        Ok(answers)
    }

    /// Sends one request and hands every message of its answer to `each`.
    ///
    /// Returns whether the answer is consistent: `false` asks for another try.
    pub(crate) fn dump(
        &mut self,
        sequence: u32,
        bytes: &[u8],
        doing: &str,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<bool, Error> {
        self.discard_waiting();
        self.send(bytes)?;
        let mut consistent = true;
        loop {
            let length = self
                .receive(RecvFlags::empty())?
                .ok_or_else(|| Error::os(doing, rustix::io::Errno::TIMEDOUT, None))?;
            for message in wire::messages(&self.part[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                consistent &= message.flags & wire::DUMP_INTERRUPTED == 0;
                match message.kind {
                    wire::TYPE_DONE => return Ok(consistent),
                    wire::TYPE_ERROR => {
                        let (errno, detail) = wire::outcome(&message);
                        if errno == 0 {
                            return Ok(consistent);
                        }
                        return Err(Error::from_code(doing, errno, detail));
                    }
                    _ => each(&message),
                }
            }
        }
    }

    /// Forgets what an abandoned earlier call left behind.
    fn discard_waiting(&mut self) {
        while matches!(self.receive(RecvFlags::DONTWAIT), Ok(Some(_))) {}
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let sent =
            rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()))
                .map_err(|errno| Error::os("send to the kernel", errno, None))?;
        if sent == bytes.len() { Ok(()) } else { Err(Error::TooLarge { bytes: bytes.len() }) }
    }

    /// One datagram into `part`; `None` if none came.
    fn receive(&mut self, flags: RecvFlags) -> Result<Option<usize>, Error> {
        let (fd, part) = (&self.fd, &mut self.part);
        match rustix::io::retry_on_intr(|| {
            rustix::net::recv(fd, part.as_mut_slice(), flags | RecvFlags::TRUNC)
        }) {
            Ok((_, length)) if length > PART => Err(Error::TooLarge { bytes: length }),
            Ok((_, length)) => Ok(Some(length)),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(errno) => Err(Error::os("receive from the kernel", errno, None)),
        }
    }
}

fn set_flag(fd: &OwnedFd, option: libc::c_int) {
    let one: libc::c_int = 1;
    // SAFETY: `one` outlives the call and its size is given; the descriptor is open.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const one).cast(),
            size_of_val(&one) as libc::socklen_t,
        );
    }
}
