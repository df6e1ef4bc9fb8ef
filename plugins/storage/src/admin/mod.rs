//! What operators do with storage instances: choose, look, migrate, verify, drop.
//!
//! Images belong to no instance, so migrating one only fills a cache. A container's writable layer
//! is the one thing that is in one instance only, and moving it is careful work: the intent is
//! written down, the copy is compared with the original and brought to the disk, then the
//! container's record changes in one transaction, and the original stays until the container has
//! been started with the copy.
//!
//! # Map
//!
//! - [`rules`]: which instance a new container gets
//! - [`instances`]: what there is, and dropping it
//! - [`migrate`] with [`moves`], [`copy`]: to another instance
//! - [`verify`] with [`expect`]: against the blobs
//! - [`tree`]: comparing trees
//! - [`handlers`], [`wire`]: `/x/layers/…`
//! - [`command`]: `gantryd storage …`, which is a client of those routes
//!
//! # Invariants
//!
//! 1. Which of a container's layers counts is said by the container's record alone.
//! 2. A writable layer is removed only if the container's record says that another one counts.
//! 3. Nothing that a container stands on is dropped.

pub(crate) mod command;
pub(crate) mod copy;
pub(crate) mod expect;
pub(crate) mod handlers;
pub(crate) mod instances;
pub(crate) mod migrate;
pub(crate) mod moves;
pub(crate) mod rules;
pub(crate) mod settle;
pub(crate) mod tree;
pub(crate) mod verify;
pub mod wire;

use std::sync::Arc;

use gantry_sdk::kinds::layer_users::{LayerUse, LayerUserSource, LayerUsers};
use gantry_sdk::kinds::layers::LayerStore;
use gantry_sdk::kinds::metadata::MetadataStore;
use gantry_sdk::{Ctx, Error, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::store::Store;
use moves::Moves;
use wire::Message;

/// Operations on storage instances.
pub struct Admin {
    store: Arc<Store>,
    layers: Arc<dyn LayerStore>,
    moves: Moves,
    /// Held by the one migration, verification with repairs or drop that is under way.
    operating: Arc<tokio::sync::Mutex<()>>,
    /// Held while one container's layers are moved or removed.
    moving: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("store", &self.store).finish_non_exhaustive()
    }
}

/// A container and who has it.
type User = (Arc<dyn LayerUserSource>, LayerUse);

impl Admin {
    pub(crate) async fn open(
        store: Arc<Store>,
        layers: Arc<dyn LayerStore>,
        metadata: Arc<dyn MetadataStore>,
    ) -> Result<Arc<Self>> {
        let moves = Moves::open(metadata, &Ctx::background()).await?;
        let (operating, moving) = (Arc::default(), tokio::sync::Mutex::default());
        Ok(Arc::new(Self { store, layers, moves, operating, moving }))
    }

    /// Everything that has writable layers.
    async fn users(&self, cx: &Ctx) -> Result<Vec<User>> {
        let mut users = Vec::new();
        for (_, source) in self.store.registry.all::<LayerUsers>() {
            let own = source.users(cx).await?;
            users.extend(own.into_iter().map(|user| (source.clone(), user)));
        }
        Ok(users)
    }

    /// Takes the place of the one operation at a time.
    fn operate(&self) -> Result<tokio::sync::OwnedMutexGuard<()>> {
        self.operating.clone().try_lock_owned().map_err(|_| {
            Error::conflict("another operation on storage instances is under way; try again later")
        })
    }

    /// Ends with the daemon, or when somebody cancels it.
    fn token(&self) -> CancellationToken {
        self.store.tasks.stopping().child_token()
    }
}

/// Where an operation tells how far it is.
#[derive(Clone, Debug)]
pub struct Reports(mpsc::Sender<Message>);

impl Reports {
    /// Reports and the place where they arrive.
    pub fn channel() -> (Self, mpsc::Receiver<Message>) {
        let (sender, receiver) = mpsc::channel(64);
        (Self(sender), receiver)
    }

    /// Tells, and waits for who is slow to listen. Who does not listen at all misses it.
    async fn say(&self, message: Message) {
        let _ = self.0.send(message).await;
    }

    /// Tells what is soon out of date; nobody waits for a listener while a container is held.
    fn mention(&self, message: Message) {
        let _ = self.0.try_send(message);
    }
}

/// What an operation has done.
#[derive(Clone, Debug, Default)]
struct Tally {
    done: u64,
    present: u64,
    skipped: u64,
    failed: u64,
}

impl Tally {
    fn end(&self, bytes: u64, error: Option<String>) -> Message {
        let Self { done, present, skipped, failed } = *self;
        Message::End { done, present, skipped, failed, bytes, error }
    }

    fn count(&mut self, state: wire::State) {
        match state {
            wire::State::Done | wire::State::Planned | wire::State::Repaired => self.done += 1,
            wire::State::Present => self.present += 1,
            wire::State::Skipped => self.skipped += 1,
            wire::State::Failed => self.failed += 1,
            wire::State::Working | wire::State::Comparing => {}
        }
    }
}
