//! Everything a plugin may depend on: descriptors, contexts, routes, errors, kinds.
