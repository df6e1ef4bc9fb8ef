//! One plugin's place in the registry.

use std::sync::{Arc, Mutex, PoisonError};

use gantry_sdk::Result;
use gantry_sdk::kinds::volume::{Scope, Volume};
use gantry_sdk::registry::{Kind as _, Registry};
use serde::{Deserialize, Serialize};

use crate::discover::Address;
use crate::volume::{Driver, Line, grants};

/// What a plugin has said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The scope of its volumes, if it keeps volumes.
    pub(crate) volumes: Option<Scope>,
}

/// A name in the registry that belongs to one plugin file. Once [left](Self::leave), nothing that is
/// still under way for that file can touch the registry.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) name: String,
    pub(crate) address: Address,
    /// What calls and keeper tell each other.
    pub(crate) line: Arc<Line>,
    registry: Arc<Registry>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    left: bool,
    manifest: Option<Manifest>,
    ready: bool,
}

impl Seat {
    pub(crate) fn new(name: &str, address: Address, registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            address,
            line: Arc::default(),
            registry,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers what `manifest` says; whether that is news.
    pub(crate) fn offer(&self, manifest: &Manifest) -> Result<bool> {
        let mut state = self.state();
        if state.left || (state.ready && state.manifest.as_ref() == Some(manifest)) {
            return Ok(false);
        }
        self.registry.withdraw(Volume::NAME, &self.name);
        if let Some(scope) = manifest.volumes {
            let driver = Driver {
                name: self.name.clone(),
                address: self.address.clone(),
                scope,
                line: self.line.clone(),
            };
            self.registry.provide::<Volume>(&self.name, Arc::new(driver), grants(), true)?;
        }
        (state.manifest, state.ready) = (Some(manifest.clone()), true);
        Ok(true)
    }

    /// Lets everybody know why it cannot be used; whether that is news. A plugin that is known to
    /// keep no volumes is missed by nobody.
    pub(crate) fn down(&self, why: &str) -> bool {
        let mut state = self.state();
        let news = std::mem::take(&mut state.ready) || state.manifest.is_none();
        let keeps_none = state.manifest.as_ref().is_some_and(|known| known.volumes.is_none());
        if !state.left && !keeps_none {
            self.registry.mark_down(Volume::NAME, &self.name, why);
        }
        self.line.down.notify_waiters();
        news && !state.left
    }

    /// Whether it is offered and may be busy with what somebody wants of it.
    pub(crate) fn is_working(&self) -> bool {
        self.state().ready && self.line.is_working()
    }

    /// Gives the name back.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        state.left = true;
        self.registry.withdraw(Volume::NAME, &self.name);
    }
}
