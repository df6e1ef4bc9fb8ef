//! The plugin graph: which plugins there are, in which order they start, and how each one is.
//!
//! # Map
//!
//! - [`mod@order`]: the start order, a pure function
//! - [`state`]: what became of each plugin
//! - [`boot`]: initialisation one by one, with deadlines
//! - [`stop`]: the same backwards
//!
//! # Invariants
//!
//! 1. No plugin code runs before the whole graph, the routes and the configuration are known good.
//! 2. A plugin that is not ready is visible: its routes and backends answer with the reason.
//! 3. A required plugin that is not ready stops the boot; nothing is silently replaced.

pub mod boot;
pub mod order;
pub mod state;
pub mod stop;

pub use order::{GraphError, order};
pub use state::{Outcome, PluginState, Plugins};
