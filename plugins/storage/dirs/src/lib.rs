//! Layers as directories: what the storage drivers have in common that keep each layer in a
//! directory of its own.
//!
//! ```text
//! <root>/l/<id>/fs      the layer's content
//! <root>/l/<id>/work    overlayfs' scratch, for drivers that need it
//! <root>/r/<id>         the layer's record, a symbolic link whose target is its text
//! <root>/t/<id>         what is being removed
//! <root>/boot           the boot during which the records were written
//! ```
//!
//! A record is a symbolic link because that is a small file which appears whole, or not at all, in
//! one system call; replacing it is one rename. Directories have short numbers for names, so that
//! hundreds of them fit into a mount's options on kernels that want them there.
//!
//! # Invariants
//!
//! 1. A directory in `l` without a record is half made (or half removed) and nobody's.
//! 2. Nothing waits for the disk while a layer is made. What the page cache still held at a power
//!    cut is found out by the boot id: committed layers that were not yet synced are dropped, and
//!    made again from blobs by the layer store. Writable layers are kept.
//! 3. Removing is a rename; the files go later, by a task.
//! 4. The table's lock is held for memory only, never across a system call.
//!
//! # Map
//!
//! - [`Layers`]: the table of layers, and what can be done with them
//! - [`Record`]: one layer
//! - [`Stacks`], [`Trees`]: the two ways of being a driver on such layers
//! - [`serve`]: a plugin's instances from its configuration
//! - [`options_of`], [`parse_size`]: options, and limits by project quota

mod layers;
mod making;
mod options;
mod plugin;
mod record;
mod recover;
mod stacks;
mod subvolumes;
mod trees;

pub use layers::Layers;
pub use making::NewLayer;
pub use options::{SIZE, STORAGE_OPTS, check_options, options_of, parse_size};
pub use plugin::{InstanceConfig, Instances, serve};
pub use record::{Record, State};
pub use stacks::{StackKind, Stacks, Top};
pub use trees::{TREE_STEPS, TreeKind, Trees};
