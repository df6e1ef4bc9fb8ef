//! Forgetting connections: the kernel's memory of who was redirected where.
//!
//! Rules are asked only about the first packet of a connection. A UDP "connection" lasts as long as
//! the client goes on sending, so without this a client would talk to an address that a container
//! has left, or miss one that has come.
//!
//! Source: Linux, `include/uapi/linux/netfilter/nfnetlink_conntrack.h`; filters of a flush exist
//! since 5.8.

use std::net::IpAddr;

use rustix::io::Errno;

use super::wire::{ACK, Writer};
use super::{Error, Socket};

const SUBSYSTEM: u16 = 1;
const DELETE: u16 = 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V6_SOURCE: u16 = 3;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION_PORT: u16 = 3;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;

const BY_IP_SOURCE: u32 = 1;
const BY_PROTOCOL_NUMBER: u32 = 1 << 3;
const BY_DESTINATION_PORT: u32 = 1 << 5;

/// A connection to the kernel's table of connections, in the namespace it was opened in.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// What socket(2) reports.
    pub fn open() -> Result<Self, Error> {
        Socket::netfilter().map(|socket| Self { socket })
    }

    /// Forgets connections of `protocol` that are answered by `address`.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`, `EINVAL`: Linux before 5.8; `EPERM`.
    pub fn forget_answered_by(&mut self, protocol: u8, address: IpAddr) -> Result<(), Error> {
        self.flush(address.is_ipv6(), &format!("forget connections to {address}"), |w| {
            w.nest(TUPLE_REPLY, |w| {
                w.nest(TUPLE_IP, |w| match address {
                    IpAddr::V4(v4) => w.attribute(IP_V4_SOURCE, &v4.octets()),
                    IpAddr::V6(v6) => w.attribute(IP_V6_SOURCE, &v6.octets()),
                });
                w.nest(TUPLE_PROTOCOL, |w| w.attribute(PROTOCOL_NUMBER, &[protocol]));
            });
            w.nest(FILTER, |w| w.u32(FILTER_REPLY, BY_IP_SOURCE | BY_PROTOCOL_NUMBER));
        })
    }

    /// Forgets connections of `protocol` that were made to `port` of whatever address.
    ///
    /// # Errors
    ///
    /// As [`forget_answered_by`](Self::forget_answered_by).
    pub fn forget_made_to(&mut self, protocol: u8, port: u16, v6: bool) -> Result<(), Error> {
        self.flush(v6, &format!("forget connections to port {port}"), |w| {
            w.nest(TUPLE_ORIGINAL, |w| {
                w.nest(TUPLE_PROTOCOL, |w| {
                    w.attribute(PROTOCOL_NUMBER, &[protocol]);
                    w.attribute(PROTOCOL_DESTINATION_PORT, &port.to_be_bytes());
                });
            });
            w.nest(FILTER, |w| w.u32(FILTER_ORIGINAL, BY_PROTOCOL_NUMBER | BY_DESTINATION_PORT));
        })
    }

    fn flush(
        &mut self,
        v6: bool,
        doing: &str,
        which: impl FnOnce(&mut Writer),
    ) -> Result<(), Error> {
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        writer.message(SUBSYSTEM << 8 | DELETE, ACK, sequence, |w| {
            w.raw(&[family as u8, 0, 0, 0]);
            which(w);
        });
        let bytes = writer.finish().ok_or(Error::TooLarge { bytes: 1 << 16 })?;
        let answers = self.socket.transact(bytes)?;
        match answers.into_iter().find(|a| a.sequence == sequence) {
            Some(answer) if answer.errno == 0 => Ok(()),
            Some(answer) => Err(Error::from_code(doing, answer.errno, answer.detail)),
            None => Err(Error::os(doing, Errno::PROTO, None)),
        }
    }
}
