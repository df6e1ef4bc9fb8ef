//! Clients that attached to a container that does not run, and wait for its next start.

use std::io;

use gantry_sdk::kinds::runtime::Attach;
use gantry_sdk::{Error, ErrorKind, Result};

/// Clients that may wait for one container; a shim takes no more either.
const MOST: usize = 64;

/// The clients, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Clients(Vec<Attach>);

impl Clients {
    /// Takes a client.
    ///
    /// # Errors
    ///
    /// `Unavailable` if too many wait that are still there.
    pub(crate) fn push(&mut self, client: Attach) -> Result<()> {
        self.0.retain(is_there);
        if self.0.len() >= MOST {
            let text = "too many clients wait for the container to start";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        self.0.push(client);
        Ok(())
    }

    /// Those that are still there; nobody waits any more.
    pub(crate) fn take(&mut self) -> Vec<Attach> {
        let mut clients = std::mem::take(&mut self.0);
        clients.retain(is_there);
        clients
    }

    /// Sends all of them away: their streams end.
    pub(crate) fn dismiss(&mut self) {
        self.0.clear();
    }
}

/// Whether somebody has the other end. One that has only ended its input has: it may still read, so
/// the question is whether it could be written to.
fn is_there(client: &Attach) -> bool {
    // Of no bytes nothing is sent, but the kernel looks whether it could be.
    match io::Write::write(&mut &client.stream, &[]) {
        Ok(_) => true,
        Err(error) => {
            !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn client() -> (Attach, UnixStream) {
        let (stream, ours) = UnixStream::pair().unwrap();
        (Attach { stream, stdin: true, stdout: true, stderr: true }, ours)
    }

    #[test]
    fn clients_that_left_make_room() {
        let mut clients = Clients::default();
        for _ in 0..10 * MOST {
            clients.push(client().0).unwrap();
        }
        let mut there = Vec::new();
        for n in 0..MOST {
            let (theirs, ours) = client();
            if n % 2 == 0 {
                ours.shutdown(Shutdown::Write).unwrap(); // no input, and it still listens
            }
            clients.push(theirs).unwrap();
            there.push(ours);
        }
        let refused = clients.push(client().0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        there.truncate(3);
        assert_eq!(clients.take().len(), 3);
        assert!(clients.take().is_empty());
    }

    #[test]
    fn who_is_sent_away_hears_of_it() {
        let mut clients = Clients::default();
        let (theirs, mut ours) = client();
        clients.push(theirs).unwrap();
        clients.dismiss();
        assert_eq!(io::Read::read(&mut ours, &mut [0]).unwrap(), 0);
    }
}
