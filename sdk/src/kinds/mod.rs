//! The extension points: one trait per kind, one file each.
//!
//! Every call is idempotent by contract: the same key, user or operation id twice gives the same
//! result. Every trait's contract is tested by `gantry-testkit` where it has one.

pub mod blobs;
pub mod containers;
pub mod images;
pub mod info;
pub mod ipam;
pub mod layer_users;
pub mod layers;
pub mod logs;
pub mod metadata;
pub mod network;
pub mod networks;
pub mod registry;
pub mod runtime;
pub mod storage;
pub mod volume;
pub mod volumes;
