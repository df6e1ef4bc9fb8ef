//! Containers and execs: routes, life cycle, attach, logs.
