//! The kernel: listeners, configuration, routing, the plugin graph, the registry of backends.
