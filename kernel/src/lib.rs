//! The kernel: listeners, configuration, routing, the plugin graph, the registry of backends.
//!
//! It carries plugins and supplies no feature itself. See `ARCHITECTURE.md` beside this crate for
//! the words, the two flows and the invariants.
//!
//! # Map
//!
//! - [`config`]: flags and files into one checked configuration
//! - [`plan`]: what a build would do, without running any of it
//! - [`graph`]: start order, initialisation, stopping
//! - [`listen`], [`http`], [`router`]: from a socket to a handler
//! - [`lifecycle`]: start, signals, reload, shutdown
//! - [`mounts`]: the checker and executor of mount plans
//! - [`introspection`], [`metrics`]: the kernel about itself
//! - [`error`]: error kinds as HTTP answers
//! - [`version`]: API versions
//!
//! # Not here
//!
//! The name of any plugin. What a build consists of is a list that it is given.

pub mod config;
pub mod error;
pub mod graph;
pub mod http;
pub mod introspection;
pub mod lifecycle;
pub mod listen;
pub mod metrics;
pub mod mounts;
pub mod plan;
pub mod program;
pub mod router;
pub mod version;
