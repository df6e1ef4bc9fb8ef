//! The life of the daemon: start, signals, reload, shutdown.
//!
//! # Map
//!
//! - [`daemon`]: starts everything in order, and ends it backwards
//! - [`signals`]: what the operator says
//! - [`reload`]: a new configuration for a running daemon, all of it or nothing
//! - [`root`]: the lock on the data root, the pid file, the daemon's identity
//! - [`logging`]: where log lines go
//! - [`view`]: what plugins may ask the kernel
//! - [`workbench`]: a few plugins without a daemon, for commands

pub mod daemon;
pub mod logging;
pub mod reload;
pub mod root;
pub mod signals;
pub mod view;
pub mod workbench;

pub use daemon::{Daemon, StartError};
