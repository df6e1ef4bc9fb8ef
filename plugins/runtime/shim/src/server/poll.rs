//! epoll with names instead of numbers.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

/// What a readiness is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A signal is pending.
    Signals,
    /// A daemon wants to connect.
    Listener,
    /// A connected daemon said something. Its slot.
    Client(u16),
    /// A new process said something. Its slot.
    Status(u16),
    /// Output, of a process's slot.
    Stdout(u16),
    /// The same.
    Stderr(u16),
    /// There is room for input.
    Stdin(u16),
    /// The terminal: both of them.
    Terminal(u16),
    /// A client's stream socket: the process's slot and its own.
    Stream(u16, u16),
    /// There is room for the log.
    Log(u16),
}

impl Source {
    fn pack(self) -> u64 {
        let (kind, slot, sub) = match self {
            Self::Signals => (0, 0, 0),
            Self::Listener => (1, 0, 0),
            Self::Client(slot) => (2, slot, 0),
            Self::Status(slot) => (3, slot, 0),
            Self::Stdout(slot) => (4, slot, 0),
            Self::Stderr(slot) => (5, slot, 0),
            Self::Stdin(slot) => (6, slot, 0),
            Self::Terminal(slot) => (7, slot, 0),
            Self::Stream(slot, sub) => (8, slot, sub),
            Self::Log(slot) => (9, slot, 0),
        };
        kind << 32 | u64::from(slot) << 16 | u64::from(sub)
    }

    fn unpack(data: u64) -> Option<Self> {
        let slot = u16::try_from(data >> 16 & 0xFFFF).unwrap_or(0);
        let sub = u16::try_from(data & 0xFFFF).unwrap_or(0);
        Some(match data >> 32 {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Client(slot),
            3 => Self::Status(slot),
            4 => Self::Stdout(slot),
            5 => Self::Stderr(slot),
            6 => Self::Stdin(slot),
            7 => Self::Terminal(slot),
            8 => Self::Stream(slot, sub),
            9 => Self::Log(slot),
            _ => return None,
        })
    }
}

/// The set of everything that is waited for.
#[derive(Debug)]
pub(crate) struct Poll(OwnedFd);

/// Events taken at once; what is left is taken next time.
const BATCH: usize = 8;

impl Poll {
    pub(crate) fn new() -> Result<Self, Errno> {
        epoll::create(CreateFlags::CLOEXEC).map(Self)
    }

    /// Waits, at most `timeout` milliseconds, and calls `each` with what is ready.
    pub(crate) fn wait(
        &self,
        timeout: Option<u64>,
        mut each: impl FnMut(Source, EventFlags),
    ) -> Result<(), Errno> {
        let nothing = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [nothing; BATCH];
        let timeout = timeout.map(|milliseconds| rustix::time::Timespec {
            tv_sec: i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(milliseconds % 1000).unwrap_or(0) * 1_000_000,
        });
        let count = match epoll::wait(&self.0, &mut events[..], timeout.as_ref()) {
            Err(Errno::INTR) => 0,
            answer => answer?,
        };
        for event in events.iter().take(count) {
            // The structure is packed, so its fields are copied out.
            let (data, flags) = (event.data, event.flags);
            if let Some(source) = Source::unpack(data.u64()) {
                each(source, flags);
            }
        }
        Ok(())
    }

    pub(crate) fn add(
        &self,
        fd: BorrowedFd<'_>,
        source: Source,
        flags: EventFlags,
    ) -> Result<(), Errno> {
        epoll::add(&self.0, fd, EventData::new_u64(source.pack()), flags)
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // Only fails when it is not there.
        let _ = epoll::delete(&self.0, fd);
    }
}

/// A descriptor together with what it is waited for.
///
/// Without any interest it is taken out of the set: a hung-up descriptor is reported whether one
/// asks or not, and would keep the loop spinning.
#[derive(Debug)]
pub(crate) struct Watched {
    fd: OwnedFd,
    source: Source,
    flags: EventFlags,
}

impl Watched {
    /// Makes `fd` non-blocking; nothing is waited for yet.
    pub(crate) fn new(fd: OwnedFd, source: Source) -> Result<Self, Errno> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { fd, source, flags: EventFlags::empty() })
    }

    /// Waits for `flags` from now on.
    pub(crate) fn want(&mut self, poll: &Poll, flags: EventFlags) {
        if flags == self.flags {
            return;
        }
        let data = EventData::new_u64(self.source.pack());
        let answer = if flags.is_empty() {
            poll.remove(self.fd.as_fd());
            Ok(())
        } else if self.flags.is_empty() {
            epoll::add(&poll.0, &self.fd, data, flags)
        } else {
            epoll::modify(&poll.0, &self.fd, data, flags)
        };
        if answer.is_ok() {
            self.flags = flags;
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_their_packing() {
        for source in [
            Source::Signals,
            Source::Listener,
            Source::Client(3),
            Source::Status(u16::MAX),
            Source::Stream(7, 9),
            Source::Log(1),
        ] {
            assert_eq!(Source::unpack(source.pack()), Some(source));
        }
        assert_eq!(Source::unpack(u64::MAX), None);
    }
}
