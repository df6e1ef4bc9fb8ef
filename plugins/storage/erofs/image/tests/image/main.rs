//! Images as the kernel mounts them, beside the same archives in directories. Tests named `root_…`
//! skip, saying so, without root or without EROFS.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

mod common;
mod content;
mod layers;
