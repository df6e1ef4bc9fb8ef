//! Conformance kits and in-memory fakes for plugin authors.
