//! The `overlay2` storage driver: a layer is a directory, a container's tree is an overlay mount.
//!
//! Unpacking a layer needs nothing of the layers below it, and a writable layer costs five system
//! calls. The driver mounts nothing: it returns plans.
//!
//! # Map
//!
//! - [`Overlay2`]: the driver
//! - [`plugin`](self): registration, and whether this host can do it
//!
//! # Not here
//!
//! Records, states, removal, sizes and crashes: `gantry-layer-dirs`.

mod driver;
mod plugin;

pub use driver::{Overlay2, Overlays, STEPS};
