//! Tests that need more than one crate.
//!
//! - `architecture`: who may depend on whom, read from `cargo metadata`
//! - `api`: one file per resource, the docker CLI and raw requests against a real daemon
//! - `restart`: the daemon is killed at random moments and started again
//!
//! `harness` has the daemon under test, the images and the leak check; `benches` the measurements.
