//! Connections: from bytes to a request for the router, and back.
//!
//! # Map
//!
//! - [`conn`]: one connection, HTTP/1.1 or HTTP/2, from its first byte to its last
//! - [`api`]: one request: version, route, handler, headers, errors, log
//! - `body`: bodies with what belongs to their request
//! - [`tap`]: the stream under a connection, which a handler may take over
//! - [`prefix`]: a stream with some bytes already read
//!
//! # Hijacking
//!
//! Attach and exec turn the connection into a raw stream, answering `101 UPGRADED` to clients that
//! ask for an upgrade and `200 OK` to those that do not (docker-py and older SDKs). The HTTP library
//! gives a connection away after a 101 only. So for both, the handler's answer is held back, the
//! library writes a dummy answer that the tap discards, ends, and hands back the stream with the
//! bytes it has read ahead; then the real head is written by hand. One way for both styles, and no
//! parsing of requests twice.
//!
//! # Invariants
//!
//! 1. Every answer carries the standard headers, also the ones for errors.
//! 2. A panic ends one request.
//! 3. A request's `gone` token is cancelled when its client is gone and when its answer is complete.

pub mod api;
mod body;
pub mod conn;
pub mod prefix;
pub mod tap;

use std::time::Duration;

/// What bounds a connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's head. The reference engine allows 1 MiB; large heads are honest here,
    /// because `X-Registry-Config` holds the credentials of every registry.
    pub head_bytes: usize,
    /// How long the head of a request may take, and how long a connection may be idle.
    pub head_time: Duration,
    /// How long a request's body may pause. Long, since people pipe slow things into `docker load`.
    pub body_idle: Duration,
    /// Requests in flight on one HTTP/2 connection.
    pub h2_streams: u32,
    /// Connections at once over all listeners; further ones wait in the backlog.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 1 << 20,
            head_time: Duration::from_secs(120),
            body_idle: Duration::from_secs(600),
            h2_streams: 128,
            connections: 8192,
        }
    }
}
