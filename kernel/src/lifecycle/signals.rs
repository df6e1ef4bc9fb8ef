//! What the operator says with signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals a daemon listens to.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    dump: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TERM or INT; with its number.
    Stop(i32),
    /// HUP.
    Reload,
    /// USR1.
    Dump,
}

impl Signals {
    /// Begins to listen; from here on these signals no longer end the process by themselves.
    ///
    /// # Errors
    ///
    /// If a handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            dump: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next request.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop(SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => Request::Stop(SignalKind::interrupt().as_raw_value()),
            _ = self.hangup.recv() => Request::Reload,
            _ = self.dump.recv() => Request::Dump,
        }
    }

    /// During a shutdown that one signal began: a second one hurries it, a third ends the process
    /// at once with 128 and its number, as shells count.
    pub async fn insist(&mut self, hurry: &CancellationToken) -> u8 {
        let mut more = 0;
        loop {
            if let Request::Stop(number) = self.next().await {
                more += 1;
                tracing::warn!(signal = number, "Asked to stop again.");
                hurry.cancel();
                if more == 2 {
                    return 128 + u8::try_from(number).unwrap_or_default();
                }
            }
        }
    }
}
