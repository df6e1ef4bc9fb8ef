//! Volumes: routes and the store.
