//! Archives against a real file system. Tests named `root_…` skip, saying so, without root.

mod common;
mod hostile;
mod layers;
