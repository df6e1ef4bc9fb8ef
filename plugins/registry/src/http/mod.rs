//! HTTP within bounds: connections, proxies, TLS, and what servers write, read with suspicion.
//!
//! # Map
//!
//! - [`address`], [`challenge`]: what clients and servers write
//! - [`tls`]: whom to trust
//! - [`proxy`], [`connect`]: how to get there
//! - [`client`]: requests and answers over connections that are kept
//! - [`body`]: what is sent

pub(crate) mod address;
pub(crate) mod body;
pub(crate) mod challenge;
pub(crate) mod client;
pub(crate) mod connect;
pub(crate) mod proxy;
pub(crate) mod tls;
