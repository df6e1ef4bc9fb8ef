//! The `btrfs` storage driver: a layer is a subvolume, and a child begins as a snapshot of its parent.
//!
//! A writable layer costs one snapshot whatever the size of the image, and reading it costs nothing
//! more than reading a directory: nothing is stacked. Committed layers are read-only subvolumes.
//!
//! # Map
//!
//! - [`Btrfs`]: the driver
//! - [`plugin`](self): registration, and whether the data lies on Btrfs
//!
//! # Invariants
//!
//! 1. The content of every layer is the top of a subvolume.
//! 2. Quotas are enabled on the file system when the first layer has a size, and never before: they
//!    slow down removing snapshots.
//!
//! # Not here
//!
//! Records, states, removal (with the subvolumes that a container has made) and crashes:
//! `gantry-layer-dirs`.

mod driver;
mod plugin;

pub use driver::{Btrfs, STEPS, Subvolumes};
