//! The container's log, written by the shim so that it goes on without the daemon.
//!
//! | file | holds |
//! |---|---|
//! | `lines` | cutting output into lines and parts of lines |
//! | `json` | one entry in the `json-file` format |
//! | `file` | the file, its rotation and compression |
//! | `relay` | the bounded buffer of non-blocking mode, and the process that empties it |

mod file;
mod json;
mod lines;
mod relay;

use file::JsonFile;
use gantry_shim_protocol::{LogMode, LogSink};
use lines::Lines;
use relay::Relay;
use rustix::fd::BorrowedFd;

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout = 1,
    Stderr = 2,
}

impl Stream {
    const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where output is kept.
#[derive(Debug)]
pub(crate) enum Log {
    None,
    Direct(Box<Writer>),
    Relayed(Box<Relay>),
}

impl Log {
    /// Opens a sink. A file that cannot be opened now is tried again at each line.
    pub(crate) fn open(sink: &LogSink) -> Self {
        match sink {
            LogSink::None => Self::None,
            LogSink::JsonFile { mode: LogMode::Blocking, .. } => {
                Writer::open(sink).map_or(Self::None, |writer| Self::Direct(Box::new(writer)))
            }
            LogSink::JsonFile { mode: LogMode::NonBlocking { buffer }, .. } => {
                match Relay::start(sink, *buffer) {
                    Ok(relay) => Self::Relayed(Box::new(relay)),
                    // Without a second process the choice is between blocking and nothing.
                    Err(_) => Writer::open(sink)
                        .map_or(Self::None, |writer| Self::Direct(Box::new(writer))),
                }
            }
        }
    }

    /// Takes a piece of output.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8]) {
        match self {
            Self::None => {}
            Self::Direct(writer) => writer.write(stream, data),
            Self::Relayed(relay) => relay.write(stream, data),
        }
    }

    /// Writes what is left of an unfinished line when a stream has ended.
    pub(crate) fn end(&mut self, stream: Stream) {
        match self {
            Self::None => {}
            Self::Direct(writer) => writer.end(stream),
            Self::Relayed(relay) => relay.end(stream),
        }
    }

    /// Lines that could not be kept.
    pub(crate) fn dropped(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Direct(writer) => writer.dropped,
            Self::Relayed(relay) => relay.dropped(),
        }
    }

    /// The socket to wait for while there is something to pass on.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Relayed(relay) => Some(relay.socket()),
            _ => None,
        }
    }

    /// Whether there is something to pass on.
    pub(crate) fn has_backlog(&self) -> bool {
        matches!(self, Self::Relayed(relay) if relay.has_backlog())
    }

    /// Passes on what there is room for.
    pub(crate) fn push(&mut self) {
        if let Self::Relayed(relay) = self {
            relay.push();
        }
    }
}

/// Lines into a file.
#[derive(Debug)]
pub(crate) struct Writer {
    file: JsonFile,
    lines: [Lines; 2],
    dropped: u64,
}

impl Writer {
    fn open(sink: &LogSink) -> Option<Self> {
        let file = JsonFile::open(sink)?;
        Some(Self { file, lines: [Lines::default(), Lines::default()], dropped: 0 })
    }

    fn write(&mut self, stream: Stream, data: &[u8]) {
        let (file, dropped) = (&mut self.file, &mut self.dropped);
        lines_of(&mut self.lines, stream).feed(data, |line, whole, at| {
            if file.append(stream, line, whole, at).is_err() {
                *dropped += 1;
            }
        });
        if self.file.flush().is_err() {
            self.dropped += 1;
        }
    }

    fn end(&mut self, stream: Stream) {
        let (file, dropped) = (&mut self.file, &mut self.dropped);
        lines_of(&mut self.lines, stream).end(|line, whole, at| {
            if file.append(stream, line, whole, at).is_err() {
                *dropped += 1;
            }
        });
        if self.file.flush().is_err() {
            self.dropped += 1;
        }
    }
}

fn lines_of(lines: &mut [Lines; 2], stream: Stream) -> &mut Lines {
    let [out, err] = lines;
    if stream == Stream::Stdout { out } else { err }
}
