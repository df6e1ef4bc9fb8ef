//! A real daemon, the real docker CLI, real images: one file per resource.
//!
//! Every test has a daemon of its own and ends with the leak check. The command lines are such that
//! the docker CLI of Debian 12 (20.10) and today's both take them; what only newer ones can say is
//! said in raw requests.

mod attach;
mod bad_input;
mod container_life;
mod container_prune;
mod daemon;
mod events;
mod exec;
mod foreign_images;
mod image_archives;
mod image_changes;
mod image_sizes;
mod images;
mod limits;
mod login;
mod logs;
mod networks;
mod publish;
mod registry;
mod registry_faults;
mod retention;
mod run;
mod run_security;
mod runtimes;
mod support;
mod system;
mod volume_plugins;
mod volumes;
