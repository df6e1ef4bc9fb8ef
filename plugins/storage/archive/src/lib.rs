//! Layer archives: hardened extraction and creation beneath a directory.
