//! Layer archives: hardened extraction and creation beneath a directory.
//!
//! An archive comes from a registry, a build or a client, and is trusted with nothing. What it may
//! say is bounded ([`Limits`]), what it says is placed by us, and where it is placed is decided by
//! the kernel beneath a directory descriptor.
//!
//! # Map
//!
//! - [`extract()`]: an archive into a directory, with digests of what passed
//! - [`settle_standalone`]: a layer that was unpacked before the layers below it were there
//! - [`create()`], [`create_one`]: a directory into an archive, deterministic
//! - [`overlay_changes`], [`tree_changes`], [`create_from_changes`]: what a layer changes
//! - [`copy_tree`], [`copy_children`]: a tree with all its attributes
//! - [`Reader`], [`Writer`], [`Entry`]: members one by one, for archives that are not trees
//! - [`decompressed`], [`Compression`], [`HashRead`], [`HashWrite`]: streams
//!
//! # Invariants
//!
//! 1. Nothing outside the given directory is touched, whatever the archive holds and whoever works
//!    in the directory at the same time.
//! 2. A member means the same whether its layer is unpacked alone with the layers below in view
//!    ([`Whiteouts::Overlay`]) or over a copy of them ([`Whiteouts::Remove`]).
//! 3. Equal trees give equal archives.
//! 4. Memory does not grow with the size of the archive, only with the number of its directories
//!    (and of its members, where markers are applied by removing).
//!
//! # Not here
//!
//! Which layers exist, and where: the layer store. Mounting: the kernel.

mod changes;
mod compress;
mod content;
mod copy;
mod create;
mod decode;
mod digest;
mod entry;
mod error;
mod extract;
mod gzip;
mod header;
mod limits;
pub mod name;
mod pax;
mod place;
mod reader;
mod standalone;
mod tree;
mod writer;
pub mod xattr;

pub use changes::{
    ChangeKind, Changes, create_from_changes, create_of_changes, overlay_changes, tree_changes,
};
pub use compress::{Chunks, Compression, Passed, decompressed, decompressed_with, detect};
pub use copy::{copy_children, copy_tree};
pub use create::{CreateOptions, Created, Filter, Source, create, create_one};
pub use digest::{HashRead, HashWrite, Hasher};
pub use entry::{Entry, Kind, Run, Sparse, Time};
pub use error::{ArchiveError, Result};
pub use extract::{ExtractOptions, Summary, Whiteouts, extract, extract_to_end};
pub use limits::Limits;
pub use reader::Reader;
pub use standalone::settle_standalone;
pub use writer::Writer;
