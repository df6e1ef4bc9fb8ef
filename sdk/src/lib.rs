//! Everything a plugin may depend on.
//!
//! A plugin is a static [`Descriptor`] plus an implementation of [`Plugin`]. During
//! [`Plugin::init`] it provides backends for [`kinds`], binds the handlers of its declared
//! [`route`]s and starts background [`tasks`]. Plugins meet only at the traits in [`kinds`], found
//! through the [`registry`] and always behind the [`guard`].
//!
//! # Map
//!
//! - [`plugin`]: descriptor, phases, needs, registration
//! - [`context`]: what `init` and each call are given
//! - [`route`]: routes as data; request, response, hijack
//! - [`command`]: commands that plugins add to the program
//! - [`kinds`]: the extension points, one file each
//! - [`mounts`]: mount plans
//! - [`mod@reference`]: names of images
//! - [`registry`], [`guard`], [`events`], [`tasks`], [`config`], [`id`], [`time`], [`error`]

// The macros refer to this crate by its name, also from within.
extern crate self as gantry_sdk;

pub mod command;
pub mod config;
pub mod context;
pub mod error;
pub mod events;
pub mod guard;
pub mod id;
pub mod kinds;
pub mod mounts;
pub mod plugin;
pub mod reference;
pub mod registry;
pub mod route;
pub mod tasks;
pub mod time;

pub use config::ConfigView;
pub use context::{Context, Ctx};
pub use error::{Error, ErrorKind, Result};
pub use gantry_api as api;
pub use gantry_api::ApiVersion;
pub use plugin::{ConfigKey, Descriptor, Init, Need, Phase, Plugin, Provide, Registration};
pub use route::{Method, Request, Response, RouteDecl, Shape};

/// String pairs in a stable order: labels, options, attributes.
pub type Labels = std::collections::BTreeMap<String, String>;
