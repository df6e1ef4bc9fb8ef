//! From method and path to the route that answers.
//!
//! # Map
//!
//! - [`template`]: path templates and how they relate
//! - [`table`]: the merged table of all plugins, checked once at start
//! - [`path`]: decoding, and the version prefix
//!
//! # Invariants
//!
//! 1. Which route answers never depends on the order of registration: the narrower template wins,
//!    and templates that are equal or cross are refused at start, naming both plugins.
//! 2. An unknown path and a wrong method are the same answer.

pub mod path;
pub mod table;
pub mod template;

pub use table::{Entry, Found, Router, Target};
pub use template::{Params, Template};
