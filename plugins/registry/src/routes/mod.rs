//! One file per route.

pub(crate) mod auth;
pub(crate) mod distribution;
pub(crate) mod search;
