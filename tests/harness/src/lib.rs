//! Daemon under test, fixtures, leak check.
