//! Messages between the runtime plugin and its shims.
