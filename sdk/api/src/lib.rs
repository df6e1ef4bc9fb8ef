//! Wire types of the Docker Engine API and their version transformers.
//!
//! One struct per JSON object, written after the published schema (`swagger.yaml` of the Engine
//! API) in its newest served form. A struct serialises to what the reference daemon sends: a field
//! that is `null` there is `null` here, a field that is left out there is left out here.
//!
//! # Map
//!
//! - [`json`]: decoding of requests by the rules clients rely on (`null`, letter case, error texts)
//! - [`version`]: [`ApiVersion`] and one transformer per version step
//! - [`filters`]: the `filters` query parameter
//! - [`container`], [`image`], [`network`], [`volume`], [`system`], [`events`], [`registry`],
//!   [`plugin`], [`build`], [`progress`]: the objects, also re-exported here
//!
//! # Conventions
//!
//! | in the schema | here |
//! |---|---|
//! | list or map that may be `null` | `Option<Vec<_>>`, `Option<BTreeMap<_, _>>`; `None` is `null` |
//! | list or map that is never `null` | `Vec<_>`, `BTreeMap<_, _>` |
//! | left out when empty | plain type, not serialised when it equals its default |
//! | pointer | `Option<_>` |
//! | time | RFC 3339 text in UTC with up to nine digits; [`ZERO_TIME`] for "never" |
//! | duration | nanoseconds, unless the field says otherwise |
//! | address | text; empty for "none" |
//!
//! Maps are ordered by key, as the reference sorts them when it serialises.
//!
//! # Not here
//!
//! Whether a request makes sense. These types say only what may be written.

pub mod build;
pub mod common;
pub mod container;
pub mod events;
pub mod filters;
pub mod image;
pub mod json;
pub mod network;
pub mod plugin;
pub mod progress;
pub mod registry;
pub mod system;
pub mod version;
pub mod volume;

pub use build::*;
pub use common::*;
pub use container::*;
pub use events::*;
pub use filters::{FilterError, Filters};
pub use image::*;
pub use network::*;
pub use plugin::*;
pub use progress::*;
pub use registry::*;
pub use system::*;
pub use version::{ApiVersion, ObjectKind};
pub use volume::*;
