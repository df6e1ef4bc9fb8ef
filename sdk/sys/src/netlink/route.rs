//! The client.

use rustix::io::Errno;

use super::request::{
    GET_ADDRESS, GET_LINK, GET_ROUTE, IFLA_IFNAME, NEW_ADDRESS, NEW_LINK, NEW_ROUTE, link_header,
};
use super::wire::{ACK, DUMP, Writer};
use super::{Address, Error, IfName, Link, Request, RouteEntry, Socket};

/// How often a dump is tried when the table changes meanwhile.
const DUMP_TRIES: usize = 8;

/// A connection to the kernel's links, addresses and routes.
///
/// It belongs for good to the network namespace of the thread that opened it, whichever thread uses
/// it later.
#[derive(Debug)]
pub struct Route {
    socket: Socket,
}

impl Route {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// What socket(2) reports: `EMFILE`, `EAFNOSUPPORT`.
    pub fn open() -> Result<Self, Error> {
        Socket::route().map(|socket| Self { socket })
    }

    /// Carries out `requests` in order, in one send.
    ///
    /// Not a transaction: the kernel goes on after a refusal, so callers undo what they began.
    ///
    /// # Errors
    ///
    /// The first refusal, naming its request.
    pub fn apply(&mut self, requests: &[Request<'_>]) -> Result<(), Error> {
        match self.try_each(requests)?.into_iter().flatten().next() {
            Some(first) => Err(first),
            None => Ok(()),
        }
    }

    /// Like [`apply`](Self::apply), with one answer per request: `None` for done.
    ///
    /// # Errors
    ///
    /// The send itself failed; then it is unknown what was done.
    pub fn try_each(&mut self, requests: &[Request<'_>]) -> Result<Vec<Option<Error>>, Error> {
        if requests.is_empty() {
            return Ok(Vec::new()); // the kernel refuses an empty send
        }
        let mut writer = Writer::default();
        let mut sequences = Vec::with_capacity(requests.len());
        for request in requests {
            let sequence = self.socket.next_sequence();
            request.write(&mut writer, sequence);
            sequences.push(sequence);
        }
        let bytes = writer.finish().ok_or(Error::TooLarge { bytes: 1 << 16 })?;
        let mut answers = self.socket.transact(bytes)?.into_iter();
        let of = |request: &Request<'_>, sequence| match answers.find(|a| a.sequence == sequence) {
            Some(answer) if answer.errno == 0 => None,
            Some(answer) => {
                Some(Error::from_code(request.to_string(), answer.errno, answer.detail))
            }
            None => Some(Error::os(request.to_string(), Errno::PROTO, None)),
        };
        let mut of = of;
        Ok(requests.iter().zip(sequences).map(|(r, s)| of(r, s)).collect())
    }

    /// The link called `name`.
    ///
    /// # Errors
    ///
    /// Anything but "no such link", which is `None`.
    pub fn link(&mut self, name: &IfName) -> Result<Option<Link>, Error> {
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        // With an acknowledgement the answer ends the way a dump ends.
        writer.message(GET_LINK, ACK, sequence, |w| {
            link_header(w, 0, None);
            w.string(IFLA_IFNAME, name.as_str());
        });
        let bytes = writer.finish().ok_or(Error::TooLarge { bytes: 1 << 16 })?;
        let mut found = None;
        let result = self.socket.dump(sequence, bytes, &format!("find link {name}"), |message| {
            if message.kind == NEW_LINK {
                found = Link::parse(message.payload);
            }
        });
        match result {
            Ok(_) => Ok(found),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every link.
    ///
    /// # Errors
    ///
    /// The kernel refused, or the table changed during every attempt.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        self.read(GET_LINK, NEW_LINK, "list links", |w| link_header(w, 0, None), Link::parse)
    }

    /// Every address of both families.
    ///
    /// # Errors
    ///
    /// As [`links`](Self::links).
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let header = |w: &mut Writer| w.raw(&[0; 8]);
        self.read(GET_ADDRESS, NEW_ADDRESS, "list addresses", header, Address::parse)
    }

    /// Every route of both families and all tables.
    ///
    /// # Errors
    ///
    /// As [`links`](Self::links).
    pub fn routes(&mut self) -> Result<Vec<RouteEntry>, Error> {
        let header = |w: &mut Writer| w.raw(&[0; 12]);
        self.read(GET_ROUTE, NEW_ROUTE, "list routes", header, RouteEntry::parse)
    }

    fn read<T>(
        &mut self,
        get: u16,
        new: u16,
        doing: &str,
        header: impl Fn(&mut Writer),
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.socket.next_sequence();
            let mut writer = Writer::default();
            writer.message(get, DUMP, sequence, &header);
            let bytes = writer.finish().ok_or(Error::TooLarge { bytes: 1 << 16 })?;
            let mut found = Vec::new();
            let consistent = self.socket.dump(sequence, bytes, doing, |message| {
                if message.kind == new {
                    found.extend(parse(message.payload));
                }
            })?;
            if consistent {
                return Ok(found);
            }
        }
        Err(Error::Unstable { doing: doing.to_owned() })
    }
}
