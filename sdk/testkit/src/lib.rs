//! Conformance kits and in-memory fakes for plugin authors.
//!
//! A driver proves itself with four lines and a function that makes one:
//!
//! ```ignore
//! gantry_testkit::storage_driver_contract!(my_fixture);
//! ```
//!
//! # Map
//!
//! - [`storage`]: the contract of storage drivers
//! - [`archive`]: layer archives, also malformed ones
//! - [`tree`]: everything about a directory tree, to be compared
//! - [`mounts`]: executes the mount plans that directory-based drivers return
//! - [`fakes`]: blobs and metadata in memory

pub mod archive;
pub mod fakes;
pub mod mounts;
pub mod storage;
pub mod tree;
