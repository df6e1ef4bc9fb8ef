//! The `fuse-overlayfs` storage driver: as `overlay2`, for kernels and file systems on which overlays
//! cannot be mounted. A program of that name serves each mount.
//!
//! Layers lie on disk as those of `overlay2` do. What a container changes does not: the program has
//! marks of its own, so changes are found by comparing trees.
//!
//! # Map
//!
//! - [`FuseOverlayfs`]: the driver
//! - [`plugin`](self): registration, and whether the program is there and works
//!
//! # Not here
//!
//! Records, states, removal, sizes and crashes: `gantry-layer-dirs`. Starting the program: the kernel,
//! which executes plans; a server runs by itself and ends with its mount.

mod driver;
mod plugin;

pub use driver::{FuseOverlayfs, STEPS, Served};
