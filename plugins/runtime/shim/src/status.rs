//! What a new process and the shim say to each other before the process becomes its program.
//!
//! A socket pair that keep message boundaries, close-on-exec on both ends: when the shim reads the
//! end of it without a failure before, the exec has succeeded. Plain `read` and `write` are used on
//! the process's side, since a seccomp filter may already be in force.

use gantry_shim_protocol::{Failure, FrameError, Stage, decode_body, encode_body};
use gantry_sys::socket;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

/// First byte of a message to the shim.
const READY: u8 = b'R';
const TERMINAL: u8 = b'T';
const FAILED: u8 = b'F';
/// Messages to the process.
const GO: u8 = b'G';
const START: u8 = b'S';

/// A failure's text is cut to fit.
const MESSAGE_MAX: usize = 4096;

/// What the shim heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Everything is set up; the process waits for its start.
    Ready,
    /// The master side of the terminal.
    Terminal(OwnedFd),
    /// It did not work, and the process ends.
    Failed(Failure),
    /// The exec succeeded (or, after a failure, the process is gone).
    Closed,
}

/// Reads one message, without waiting.
///
/// `EAGAIN` when there is none.
pub(crate) fn hear(status: &OwnedFd) -> Result<Heard, Errno> {
    let mut buffer = [0; MESSAGE_MAX + 64];
    let received = socket::receive(status, &mut buffer, 1).map_err(errno_of)?;
    let Some((kind, rest)) = buffer.get(..received.bytes).and_then(<[u8]>::split_first) else {
        return Ok(Heard::Closed);
    };
    match (*kind, received.fds.into_iter().next()) {
        (READY, _) => Ok(Heard::Ready),
        (TERMINAL, Some(master)) => Ok(Heard::Terminal(master)),
        (FAILED, _) => Ok(Heard::Failed(decode_body(rest).unwrap_or_else(|error| garbled(&error)))),
        _ => Ok(Heard::Failed(fail(Stage::Protocol, Errno::PROTO, "understand the new process"))),
    }
}

/// Says that the cgroups and identity maps are in place.
pub(crate) fn say_go(status: &OwnedFd) -> Result<(), Errno> {
    say(status, &[GO])
}

/// Says that the program may run.
pub(crate) fn say_start(status: &OwnedFd) -> Result<(), Errno> {
    say(status, &[START])
}

/// The process's end.
#[derive(Debug)]
pub(crate) struct Voice(pub(crate) OwnedFd);

impl Voice {
    /// Waits for the shim's go. `EPIPE` when the shim is gone.
    pub(crate) fn wait_go(&self) -> Result<(), Errno> {
        self.wait_for(GO)
    }

    /// Tells that everything is set up, and waits for the start.
    pub(crate) fn ready_and_wait(&self) -> Result<(), Errno> {
        say(&self.0, &[READY])?;
        self.wait_for(START)
    }

    /// Hands the terminal's master side over.
    pub(crate) fn hand_terminal(&self, master: BorrowedFd<'_>) -> Result<(), Errno> {
        socket::send(&self.0, &[TERMINAL], &[master]).map_err(errno_of)
    }

    /// Tells why it did not work. Nothing is left to be done if even that fails.
    pub(crate) fn failed(&self, mut failure: Failure) {
        if let Some((cut, _)) =
            failure.message.char_indices().find(|(at, _)| *at > MESSAGE_MAX - 64)
        {
            failure.message.truncate(cut);
        }
        let mut message = vec![FAILED];
        if let Ok(body) = encode_body(&failure) {
            message.extend(body);
        }
        let _ = say(&self.0, &message);
    }

    fn wait_for(&self, wanted: u8) -> Result<(), Errno> {
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut byte))? {
            1 if byte == [wanted] => Ok(()),
            0 => Err(Errno::PIPE),
            _ => Err(Errno::PROTO),
        }
    }
}

fn say(fd: impl AsFd, message: &[u8]) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::io::write(&fd, message)).map(|_| ())
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn garbled(_: &FrameError) -> Failure {
    fail(Stage::Protocol, Errno::PROTO, "read why the new process failed")
}

/// A failure that reads `cannot {doing}: {the kernel's words}`.
pub(crate) fn fail(stage: Stage, errno: Errno, doing: impl std::fmt::Display) -> Failure {
    let words = std::io::Error::from(errno);
    // "No such file or directory (os error 2)": the number has a field of its own.
    let words = words.to_string();
    let words = words.split(" (os error").next().unwrap_or_default().to_lowercase();
    Failure { stage, errno: errno.raw_os_error(), message: format!("cannot {doing}: {words}") }
}

/// The same for an error of `gantry-sys`, which has its own first half.
pub(crate) fn fail_sys(stage: Stage, error: &gantry_sys::error::Error) -> Failure {
    let errno = error.errno().unwrap_or(0);
    let words = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let words = words.split(" (os error").next().unwrap_or_default().to_lowercase();
    Failure { stage, errno, message: format!("{error}: {words}") }
}

/// Adds the stage and the story to a kernel's answer.
pub(crate) trait Context<T> {
    /// Names what was being done; the message reads `cannot {doing}: …`.
    fn during(self, stage: Stage, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn during(self, stage: Stage, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|errno| fail(stage, errno, doing()))
    }
}

/// Adds the stage to an error of `gantry-sys`.
pub(crate) trait SysContext<T> {
    /// Names the stage; the message is the error's own.
    fn at(self, stage: Stage) -> Result<T, Failure>;
}

impl<T> SysContext<T> for gantry_sys::error::Result<T> {
    fn at(self, stage: Stage) -> Result<T, Failure> {
        self.map_err(|error| fail_sys(stage, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_understand_each_other() {
        let (shim, process) = socket::pair().unwrap();
        let voice = Voice(process);
        say_go(&shim).unwrap();
        voice.wait_go().unwrap();
        say_start(&shim).unwrap();
        voice.ready_and_wait().unwrap();
        assert!(matches!(hear(&shim), Ok(Heard::Ready)));
        voice.hand_terminal(voice.0.as_fd()).unwrap();
        assert!(matches!(hear(&shim), Ok(Heard::Terminal(_))));
        let failure = fail(Stage::Cwd, Errno::NOENT, "change to /x");
        voice.failed(failure.clone());
        let Ok(Heard::Failed(heard)) = hear(&shim) else { panic!("a failure was said") };
        assert_eq!(heard, failure);
        assert_eq!(heard.message, "cannot change to /x: no such file or directory");
        drop(voice);
        assert!(matches!(hear(&shim), Ok(Heard::Closed)));
    }

    #[test]
    fn a_long_story_is_cut() {
        let (shim, process) = socket::pair().unwrap();
        Voice(process).failed(fail(Stage::Io, Errno::IO, "é".repeat(MESSAGE_MAX)));
        assert!(matches!(hear(&shim), Ok(Heard::Failed(_))));
    }
}
