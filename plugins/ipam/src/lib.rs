//! The default address manager: subnets from pools, addresses from subnets.
//!
//! # Map
//!
//! - `pools`: which subnet, which address; pure, tested as such
//! - `set`: the addresses of one subnet that are in use
//! - `plugin`: registration, configuration, the metadata database
//!
//! # Invariants
//!
//! 1. Two pools never overlap.
//! 2. No address is held under two keys.
//! 3. A pool is on disk before its caller hears of it.
//!
//! # Not here
//!
//! Addresses are not on disk. An address lives as long as the endpoint that holds it, and endpoints
//! live as long as a running container; after a restart the network store asks again for those of the
//! containers that still run. So a crash cannot leak an address, and a start costs no disk write.

mod plugin;
mod pools;
mod set;
