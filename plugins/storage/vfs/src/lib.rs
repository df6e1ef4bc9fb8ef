//! The `vfs` storage driver: every layer is a whole copy of the tree.
//!
//! Slow and large, and works on every file system (where it can share blocks, copies are cheap).
//! It is what the other drivers are compared with in tests.
//!
//! # Map
//!
//! - [`Vfs`]: the driver
//! - [`plugin`](self): registration
//!
//! # Not here
//!
//! Records, states, removal and crashes: `gantry-layer-dirs`. Copying: `gantry-archive`.

mod driver;
mod plugin;

pub use driver::{Copies, STEPS, Vfs};
