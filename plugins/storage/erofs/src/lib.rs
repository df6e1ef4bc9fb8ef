//! The `erofs` storage driver: a layer is one EROFS image, a container's tree is an overlay over the
//! mounted images.
//!
//! ```text
//! <root>/l/<id>/layer.erofs   a committed layer that came as an image
//! <root>/l/<id>/fs            an active layer: its image while it is being written, or the upper
//!                             directory of a container; and a committed one that was such a directory
//! <root>/l/<id>/work          overlayfs' scratch
//! <root>/empty                what an active layer without a parent stands on
//! ```
//!
//! An image is written in a few large pieces while it is pulled, where a directory needs several
//! system calls for each of its files; removing it is removing one file. Layers of both forms stack
//! on each other in any order.
//!
//! # Which form a layer has
//!
//! What the layer store writes and what a container writes lie in the same directory, and a container
//! may call a file of its own `layer.erofs`. So active layers are mounted for writing only as overlays,
//! also where there is nothing below: overlayfs leaves its mark in the scratch directory, which no
//! container can reach. A layer with that mark is a directory, whatever is in it.
//!
//! # Map
//!
//! - [`Erofs`]: the driver
//! - [`plugin`](self): registration, and whether this host can mount images
//!
//! # Not here
//!
//! Writing images: `gantry-erofs`. Records, states, quotas and crashes: `gantry-layer-dirs`.

mod driver;
mod image;
mod plugin;

pub use driver::{Erofs, STEPS};
