//! Layer archives as EROFS images: one file that the kernel mounts, written while the archive passes.
//!
//! ```text
//! block 0          superblock, written last: half an image is none
//! 1 …              data of the files, in the order of the archive, each from a block's start
//! …                blocks of the directories that are too large for their inode
//! meta             inodes with their attributes, small directories, links, chunk tables
//! ```
//!
//! Nothing is compressed: reading must cost what reading a directory costs, and the archive is kept
//! compressed elsewhere. Data go straight through; names and inodes wait in memory, because an inode
//! is known only when the last name of it has passed. So a layer costs one open file and a few large
//! writes, where a directory costs several system calls for each member.
//!
//! An archive means exactly what [`gantry_archive::extract`] makes of it with
//! [`Whiteouts::Overlay`](gantry_archive::Whiteouts::Overlay), and the image holds overlayfs' marks
//! in the same places.
//!
//! # Map
//!
//! - [`convert`], [`convert_to_end`]: an archive into an image
//! - [`settle_standalone`]: an image that was written before the layers below it were there
//! - [`inspect`]: what an image holds
//!
//! # Invariants
//!
//! 1. Equal archives give equal images.
//! 2. Memory is bounded by [`ConvertOptions::metadata_bytes`], whatever the archive holds.
//! 3. Nothing but the given file is written.
//!
//! # Not here
//!
//! Mounting: the kernel. Which layers exist: the layer store. Source of the format: Linux,
//! `Documentation/filesystems/erofs.rst`.

mod attributes;
mod below;
mod convert;
mod data;
mod disk;
mod layout;
mod read;
mod sink;
mod tree;
mod walk;

pub use convert::{ConvertOptions, convert, convert_to_end};
pub use read::{Info, inspect, settle_standalone};
