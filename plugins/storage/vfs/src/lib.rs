//! The vfs storage driver: plain copies.
