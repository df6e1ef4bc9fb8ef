//! The layer store on real drivers. Needs root.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

mod deep;
mod figures;
mod host;
mod parallel;
mod stage;
mod store;
mod writable;
