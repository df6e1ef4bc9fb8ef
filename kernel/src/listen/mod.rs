//! Listeners: bound before plugins start, accepting after, so that early clients wait in the backlog
//! instead of failing.
//!
//! # Map
//!
//! - [`bind`]: addresses into sockets
//! - [`tls`]: certificates into an acceptor
//! - [`mod@accept`]: the accept loops

pub mod accept;
pub mod bind;
pub mod tls;

pub use accept::accept;
pub use bind::{Listener, Listeners};
