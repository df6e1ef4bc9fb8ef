//! What operators do with storage instances: choose, look, migrate, verify, drop.
//!
//! # Map
//!
//! - [`rules`]: which instance a new container gets

pub(crate) mod rules;
