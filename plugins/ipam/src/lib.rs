//! The default address manager.
