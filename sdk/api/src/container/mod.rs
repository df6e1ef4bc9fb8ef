//! Containers: requests, answers and what they are made of.

mod config;
mod create;
mod exec;
mod host;
mod inspect;
mod mount;
mod ops;
mod stats;
mod summary;

pub use config::*;
pub use create::*;
pub use exec::*;
pub use host::*;
pub use inspect::*;
pub use mount::*;
pub use ops::*;
pub use stats::*;
pub use summary::*;
