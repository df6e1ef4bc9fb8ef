//! The bridge network driver: containers on a virtual switch of the host, behind its address.
//!
//! # Map
//!
//! - `driver`: the calls of the kind, in order
//! - `core`: bridge, links, addresses, routes; synchronous
//! - `firewall`, `rules`: elements and the rules that look them up
//! - `ports`: host ports, held by bound sockets
//! - `proxy`: loopback and IPv6-to-IPv4, by tasks of the daemon
//! - `settings`, `sysctl`: options in, kernel parameters out
//!
//! # Invariants
//!
//! 1. A host port that is redirected is bound by us.
//! 2. A connect either leaves everything or nothing: address, links, redirections, ports.
//! 3. Disconnecting never waits for links to vanish: they go with their namespace.
//! 4. Nothing here costs more when there are more containers.
//!
//! # Not here
//!
//! Addresses are chosen by the address manager, names and files by the network store.

mod core;
mod driver;
mod firewall;
mod plugin;
mod ports;
mod proxy;
mod rules;
mod settings;
mod sysctl;
#[cfg(test)]
mod tests;
