//! What became of each plugin.

use std::fmt;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use gantry_sdk::Descriptor;

/// How a plugin's initialisation ended, or that it has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not initialised yet.
    Pending,
    /// In service.
    Ready,
    /// Not usable on this host, and that is normal.
    Skipped(String),
    /// Switched off by configuration.
    Disabled,
    /// It returned an error.
    Failed(String),
    /// It did not finish in this time.
    TimedOut(Duration),
    /// It panicked.
    Panicked(String),
    /// A plugin it needs is not ready.
    Blocked {
        /// That plugin.
        by: &'static str,
    },
}

impl Outcome {
    /// Whether the plugin is in service.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }

    /// Whether somebody should look at it.
    #[must_use]
    pub const fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Failed(_) | Self::TimedOut(_) | Self::Panicked(_) | Self::Blocked { .. }
        )
    }

    /// One word, for introspection.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Skipped(_) => "skipped",
            Self::Disabled => "disabled",
            Self::Failed(_) => "failed",
            Self::TimedOut(_) => "timed-out",
            Self::Panicked(_) => "panicked",
            Self::Blocked { .. } => "blocked",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("not started yet"),
            Self::Ready => f.write_str("in service"),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
            Self::Disabled => f.write_str("disabled by configuration"),
            Self::Failed(why) => f.write_str(why),
            Self::TimedOut(after) => write!(f, "did not start within {after:?}"),
            Self::Panicked(what) => write!(f, "panicked while starting: {what}"),
            Self::Blocked { by } => write!(f, "needs {by}, which is not in service"),
        }
    }
}

/// One plugin as it is now.
#[derive(Clone, Debug)]
pub struct PluginState {
    /// Its id.
    pub id: &'static str,
    /// Everything that is fixed about it.
    pub descriptor: &'static Descriptor,
    /// Whether the daemon must not run without it, after configuration.
    pub required: bool,
    /// How it is.
    pub outcome: Outcome,
    /// How long its initialisation took.
    pub init_time: Option<Duration>,
    /// Its code may still be running although it was given up: native code cannot be stopped.
    pub tainted: bool,
}

/// All plugins in start order.
#[derive(Debug)]
pub struct Plugins(RwLock<Vec<PluginState>>);

impl Plugins {
    /// Plugins that have not started, in `order`.
    #[must_use]
    pub fn new(order: &[&'static Descriptor], required: impl Fn(&Descriptor) -> bool) -> Self {
        let state = |descriptor: &&'static Descriptor| PluginState {
            id: descriptor.id,
            descriptor,
            required: required(descriptor),
            outcome: Outcome::Pending,
            init_time: None,
            tainted: false,
        };
        Self(RwLock::new(order.iter().map(state).collect()))
    }

    /// All of them now.
    #[must_use]
    pub fn snapshot(&self) -> Vec<PluginState> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One of them now.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<PluginState> {
        let states = self.0.read().unwrap_or_else(PoisonError::into_inner);
        states.iter().find(|state| state.id == id).cloned()
    }

    /// Changes the state of `id`.
    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut PluginState)) {
        let mut states = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = states.iter_mut().find(|state| state.id == id) {
            change(state);
        }
    }

    /// One line for each plugin that somebody should look at.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.snapshot()
            .iter()
            .filter(|state| state.outcome.is_fault())
            .map(|state| {
                format!("WARNING: plugin {} is not in service: {}", state.id, state.outcome)
            })
            .collect()
    }
}
