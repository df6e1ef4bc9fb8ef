//! Containers and execs: routes, life cycle, attach, logs.

pub mod spec;
