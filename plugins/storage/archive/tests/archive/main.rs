//! Archives against a real file system. Tests named `root_…` skip, saying so, without root.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

mod bombs;
mod common;
mod hostile;
mod layers;
mod oracle;
