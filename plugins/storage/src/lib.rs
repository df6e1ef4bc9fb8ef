//! The layer store: chains of layers, materialised by a storage driver on demand, and the writable
//! layers of containers.
//!
//! Images are known by digest and belong to no driver. What a driver holds of them is a cache: a
//! chain that is missing is unpacked again from blobs, once for all who ask at the same time. Several
//! storage instances work at once, and each container remembers its own.
//!
//! # Map
//!
//! - `store`: the SDK's `LayerStore`
//! - `unpack`: chains from their blobs into an instance, several layers at once
//! - `flights`: each layer once, for all who wait for it
//! - `pour`, `source`: the bytes of one layer
//! - `stage`: archives that come before anybody knows what they stand on
//! - `changes`: what a container changed
//! - `pins`: what leases keep from collection
//! - `records`: chains and sizes in the metadata database
//! - `upkeep`: start, syncing, collection
//! - `admin`: choosing instances, migrating, verifying, dropping; the command `storage`
//! - `plugin`: registration and configuration
//!
//! # Invariants
//!
//! 1. A committed layer's content has the diff id it is known by; that is checked while it is
//!    unpacked. That a blob has its digest is checked by who writes it.
//! 2. Work that several may wait for is done by a task. It goes on as long as one of them waits, or
//!    a lease keeps its layer.
//! 3. Nothing is told from a driver's name: form, depth and options come from its description.
//!
//! # Not here
//!
//! Where layers lie: the drivers. Blobs: the content plugin. Which chains are needed: the images.

mod admin;
mod changes;
mod flights;
mod info;
mod pins;
mod places;
mod plugin;
mod pour;
mod records;
mod source;
mod stage;
mod store;
mod unpack;
mod upkeep;

pub use admin::migrate::Migration;
pub use admin::rules::Rules;
pub use admin::verify::Verification;
pub use admin::{Admin, Reports, wire};
pub use store::{Parts, open, open_with_admin};
