//! Networks: the store behind container endpoints, and the `/networks` routes.
//!
//! A network is a record with a driver. A running container has a sandbox: a network namespace, an
//! endpoint in a network, and the files that name things inside. This crate owns the tables of both;
//! drivers move the bytes, the address manager hands out the addresses.
//!
//! # Map
//!
//! - `handlers`: request → store → response
//! - `store`: networks by name and id, sandboxes by container, recovery
//! - `sandbox`: one sandbox, all of it or nothing
//! - `defaults`: `bridge`, `host` and `none`, as the configuration wants them
//! - `files`, `resolv`: `hosts`, `hostname`, `resolv.conf`
//! - `ports`: which ports are published
//! - `record`: a network on disk and on the wire
//!
//! # Invariants
//!
//! 1. A network's id never changes, whatever its configuration becomes.
//! 2. A container has at most one sandbox.
//! 3. Starting and stopping a container writes nothing to the database: what a sandbox holds is
//!    kept with the container, and comes back through recovery.
//!
//! # Not here
//!
//! `--network container:<id>` shares a namespace that exists already: the container plugin knows the
//! process that lives in it.

mod config;
mod defaults;
mod files;
mod handlers;
mod plugin;
mod ports;
mod record;
mod resolv;
mod sandbox;
mod store;
