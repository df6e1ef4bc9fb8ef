//! Images and containers to another instance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::images::{Image, Images};
use gantry_sdk::kinds::layer_users::LayerUse;
use gantry_sdk::kinds::layers::{Chain, ContainerLayer, LayerProgress};
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::copy::{self, Throttle};
use super::moves::Move;
use super::wire::{Message, MigrateRequest, Selection, State, Subject};
use super::{Admin, Reports, Tally, User};
use crate::store::Instance;

/// Time between two reports of progress.
const REPORT: Duration = Duration::from_millis(200);

/// An image to unpack.
#[derive(Debug)]
struct ImageItem {
    id: String,
    name: String,
    chain: Chain,
}

/// A migration that has been checked and is the only one.
pub struct Migration {
    admin: Arc<Admin>,
    request: MigrateRequest,
    to: Instance,
    images: Vec<ImageItem>,
    containers: Vec<User>,
    throttle: Arc<Throttle>,
    cancel: CancellationToken,
    _operating: OwnedMutexGuard<()>,
}

impl std::fmt::Debug for Migration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Migration").field("request", &self.request).finish_non_exhaustive()
    }
}

/// How one item ended.
type Outcome = Result<(State, Vec<String>)>;

impl Admin {
    /// Checks a migration and works out what belongs to it.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for an unknown instance or selection, `NotFound` for an image or container,
    /// `Conflict` while another operation is under way.
    pub async fn migration(
        self: &Arc<Self>,
        cx: &Ctx,
        request: MigrateRequest,
    ) -> Result<Migration> {
        let to = self.known_instance(&request.to)?;
        if request.rate == Some(0) {
            return Err(Error::invalid("a rate of 0 bytes a second would never end"));
        }
        let operating = self.operate()?;
        let users = self.users(cx).await?;
        let images = self.select_images(cx, &request.images, &users).await?;
        let containers = select_containers(&request.containers, users)?;
        let cancel = self.token();
        let throttle = Throttle::new(request.rate, cancel.clone());
        let admin = self.clone();
        Ok(Migration {
            admin,
            request,
            to,
            images,
            containers,
            throttle,
            cancel,
            _operating: operating,
        })
    }

    async fn select_images(
        &self,
        cx: &Ctx,
        selection: &Selection,
        users: &[User],
    ) -> Result<Vec<ImageItem>> {
        if selection.is_none() {
            return Ok(Vec::new());
        }
        let store = self.store.registry.only::<Images>()?;
        let mut items: Vec<ImageItem> = match selection {
            Selection::Word(word) if word == "all" => {
                store.list(cx).await?.into_iter().map(item_of).collect()
            }
            Selection::Word(word) if word == "used" => {
                let all = store.list(cx).await?;
                users.iter().map(|(_, user)| used_item(&all, user)).collect()
            }
            Selection::Word(word) => {
                return Err(Error::invalid(format!(
                    "images are \"all\", \"used\", \"none\" or a list, not {word:.100?}"
                )));
            }
            Selection::List(names) => {
                let mut items = Vec::with_capacity(names.len());
                for name in names {
                    let image = store.resolve(cx, name, None).await?;
                    items.push(ImageItem { name: name.clone(), ..item_of(image) });
                }
                items
            }
        };
        let mut seen = BTreeSet::new();
        items.retain(|item| item.chain.id().is_some_and(|id| seen.insert(id)));
        Ok(items)
    }
}

fn item_of(image: Image) -> ImageItem {
    let id = image.id.to_string();
    let name = image.tags.first().cloned().unwrap_or_else(|| short(&id));
    ImageItem { id, name, chain: image.chain }
}

/// The image of a container, which may have lost all its names.
fn used_item(all: &[Image], user: &LayerUse) -> ImageItem {
    match all.iter().find(|image| image.chain == user.chain) {
        Some(image) => item_of(image.clone()),
        None => ImageItem {
            id: user.chain.id().map(|id| id.to_string()).unwrap_or_default(),
            name: user.image.clone(),
            chain: user.chain.clone(),
        },
    }
}

fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

fn select_containers(selection: &Selection, users: Vec<User>) -> Result<Vec<User>> {
    match selection {
        Selection::Word(word) if word == "none" => Ok(Vec::new()),
        Selection::Word(word) if word == "stopped" => Ok(users),
        Selection::Word(word) => Err(Error::invalid(format!(
            "containers are \"stopped\", \"none\" or a list, not {word:.100?}"
        ))),
        Selection::List(names) => {
            let mut chosen: Vec<User> = Vec::with_capacity(names.len());
            for name in names {
                let user = find(&users, name)?;
                if chosen.iter().all(|(_, other)| other.container != user.1.container) {
                    chosen.push(user.clone());
                }
            }
            Ok(chosen)
        }
    }
}

/// A container by id, name, or unique prefix of an id.
fn find<'a>(users: &'a [User], name: &str) -> Result<&'a User> {
    let is_it = |user: &&User| user.1.container == name || user.1.name == name;
    if let Some(user) = users.iter().find(is_it) {
        return Ok(user);
    }
    let mut begin = users.iter().filter(|(_, user)| user.container.starts_with(name));
    match (begin.next(), begin.next()) {
        (Some(user), None) if !name.is_empty() => Ok(user),
        (Some(_), Some(_)) => {
            Err(Error::invalid(format!("several containers begin with {name:.100}")))
        }
        _ => Err(Error::not_found(format!("No such container: {name:.300}"))),
    }
}

impl Migration {
    /// Ends the migration early when it is cancelled; what was done until then stays.
    pub fn cancellation(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Does it, telling every step. What fails is told and the rest goes on, unless nothing can.
    pub async fn run(self, reports: &Reports) {
        let mut tally = Tally::default();
        let given_up = self.run_all(reports, &mut tally).await.err();
        let error = given_up.map(|error| error.chain());
        reports.say(tally.end(self.throttle.passed(), error)).await;
    }

    async fn run_all(&self, reports: &Reports, tally: &mut Tally) -> Result<()> {
        for item in &self.images {
            let about = Item { reports, subject: Subject::Image, id: &item.id, name: &item.name };
            let outcome = self.image(item, &about).await;
            self.conclude(&about, tally, outcome).await?;
        }
        for (source, user) in &self.containers {
            let (id, name) = (&user.container, &user.name);
            let about = Item { reports, subject: Subject::Container, id, name };
            let outcome = self.container(source, user, &about).await;
            self.conclude(&about, tally, outcome).await?;
        }
        if self.request.purge && !self.request.dry_run {
            self.admin.purge(&Ctx::background()).await?;
        }
        Ok(())
    }

    /// Tells how an item ended; an error if nothing more can be done.
    async fn conclude(&self, about: &Item<'_>, tally: &mut Tally, outcome: Outcome) -> Result<()> {
        let (state, why, fatal) = match outcome {
            Ok((state, why)) => (state, why, None),
            Err(error) if self.cancel.is_cancelled() => {
                (State::Failed, vec![error.chain()], Some(error))
            }
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                (State::Failed, vec![error.chain()], Some(error))
            }
            Err(error) => (State::Failed, vec![error.chain()], None),
        };
        tally.count(state);
        about.say(state, 0, 0, why).await;
        fatal.map_or(Ok(()), Err)
    }

    async fn image(&self, item: &ImageItem, about: &Item<'_>) -> Outcome {
        let cx = Ctx::background();
        let Some(top) = item.chain.id() else { return Ok((State::Present, Vec::new())) };
        if self.to.has(&cx, &top).await? {
            return Ok((State::Present, Vec::new()));
        }
        if self.request.dry_run {
            return Ok((State::Planned, Vec::new()));
        }
        self.unpack(&item.chain, about).await?;
        Ok((State::Done, Vec::new()))
    }

    /// Unpacks a chain where it goes to, telling how far it is.
    async fn unpack(&self, chain: &Chain, about: &Item<'_>) -> Result<()> {
        let cx = Ctx::background();
        let seen = Arc::new(Mutex::new(BTreeMap::<Digest, (u64, u64)>::new()));
        let progress: LayerProgress = {
            let (seen, throttle) = (seen.clone(), self.throttle.clone());
            // Called by the thread that reads the blob, which is to be slowed.
            Arc::new(move |layer, done, total| {
                let before = {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.insert(layer.clone(), (done, total)).unwrap_or_default().0
                };
                throttle.pass(done.saturating_sub(before));
            })
        };
        let mut work = std::pin::pin!(self.admin.layers.unpack(
            &cx,
            chain,
            Some(&self.to.name),
            Some(progress)
        ));
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                () = self.cancel.cancelled() => return Err(Error::unavailable("cancelled")),
                () = tokio::time::sleep(REPORT) => {
                    let (current, total) = {
                        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.values().fold((0, 0), |sum, (done, all)| (sum.0 + done, sum.1 + all))
                    };
                    about.say(State::Working, current, total, Vec::new()).await;
                }
            }
        }
    }

    async fn container(
        &self,
        source: &Arc<dyn gantry_sdk::kinds::layer_users::LayerUserSource>,
        user: &LayerUse,
        about: &Item<'_>,
    ) -> Outcome {
        let cx = Ctx::background();
        if user.layer.instance == self.to.name {
            return Ok((State::Present, Vec::new()));
        }
        if user.running {
            return Ok((State::Skipped, vec!["it runs; stop it first".to_owned()]));
        }
        let refused = user.options.keys().find(|name| !self.to.info.options.contains(name));
        if let Some(name) = refused {
            let to = &self.to.name;
            return Ok((State::Skipped, vec![format!("{to} has no storage option {name}")]));
        }
        if self.request.dry_run {
            return Ok((State::Planned, Vec::new()));
        }
        // The image first: that takes no hold of the container.
        let lease = self.admin.layers.lease(&cx, &user.chain).await?;
        self.unpack(&user.chain, about).await?;
        let hold = match source.hold(&cx, &user.container).await {
            Ok(hold) => hold,
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                return Ok((State::Skipped, vec![error.chain()]));
            }
            Err(error) => return Err(error),
        };
        // Not earlier than now it stays as it is.
        let users = source.users(&cx).await?;
        let Some(user) = users.into_iter().find(|other| other.container == user.container) else {
            return Ok((State::Skipped, vec!["it was removed".to_owned()]));
        };
        let moved = self.move_layer(source, &user, about).await;
        drop((hold, lease));
        moved.map(|()| (State::Done, Vec::new()))
    }

    /// Intent, act, result. The container is held.
    async fn move_layer(
        &self,
        source: &Arc<dyn gantry_sdk::kinds::layer_users::LayerUserSource>,
        user: &LayerUse,
        about: &Item<'_>,
    ) -> Result<()> {
        let (admin, cx) = (&self.admin, Ctx::background());
        let _moving = admin.moving.lock().await;
        let intent = admin.moves.begin(&cx, user, &self.to.name).await?;
        let flipped = match self.fill(user, about).await {
            Ok(new) => source.moved(&cx, &user.container, &new).await,
            Err(error) => Err(error),
        };
        if let Err(error) = flipped {
            self.undo(&intent).await;
            return Err(error);
        }
        if let Err(error) = admin.moves.keep(&cx, &intent).await {
            // The intent is still there, and is understood when the daemon starts again.
            tracing::warn!(container = user.container, error = %error.chain(), "Cannot note that a container has moved.");
        }
        Ok(())
    }

    /// Makes the new layer, equal to the old one and on disk.
    async fn fill(&self, user: &LayerUse, about: &Item<'_>) -> Result<ContainerLayer> {
        let (admin, cx) = (&self.admin, Ctx::background());
        // Of an earlier move, in this direction or back: the container's record says it does not count.
        self.to.driver.remove(&cx, &user.layer.key).await?;
        let (key, to) = (&user.layer.key, Some(self.to.name.as_str()));
        let new = admin.layers.create(&cx, key, &user.chain, to, &user.options).await?;
        let total = admin.layers.usage(&cx, &user.layer).await?;
        let done = Arc::new(AtomicU64::new(0));
        let mut work = std::pin::pin!(copy::apply_changes(
            &admin.layers,
            &cx,
            &user.chain,
            &user.layer,
            &new,
            &self.throttle,
            &done
        ));
        // Not cut off by the cancellation, which it sees by itself: nothing writes any more at its end.
        loop {
            tokio::select! {
                outcome = &mut work => break outcome?,
                () = tokio::time::sleep(REPORT) => {
                    let current = done.load(Ordering::Relaxed);
                    about.say(State::Working, current, total.max(current), Vec::new()).await;
                }
            }
        }
        about.say(State::Comparing, total, total, Vec::new()).await;
        let deep = self.request.deep;
        let differences =
            copy::compare(&admin.layers, &cx, &user.layer, &new, deep, &self.cancel).await?;
        super::tree::check(&self.cancel)?;
        if differences.count == 0 {
            return Ok(new.clone());
        }
        let (count, told) = (differences.count, differences.told.join("; "));
        Err(Error::new(
            ErrorKind::Internal,
            format!("the copy is not equal to the original in {count} places: {told}"),
        ))
    }

    /// After a failure: the old layer counts, unless the container's record says otherwise.
    async fn undo(&self, intent: &Move) {
        let cx = Ctx::background();
        let undone = async {
            let users = self.admin.users(&cx).await?;
            let user = users.iter().find(|(_, user)| user.container == intent.container);
            if user.is_some_and(|(_, user)| user.layer.instance == intent.to) {
                return self.admin.moves.keep(&cx, intent).await;
            }
            self.to.driver.remove(&cx, &intent.key).await?;
            self.admin.moves.forget(&cx, intent).await
        };
        if let Err(error) = undone.await {
            // The intent is still there: the next start removes the copy.
            tracing::warn!(container = intent.container, error = %error.chain(), "The unfinished copy of a layer stays until the next start.");
        }
    }
}

/// One thing that messages are about.
struct Item<'a> {
    reports: &'a Reports,
    subject: Subject,
    id: &'a str,
    name: &'a str,
}

impl Item<'_> {
    async fn say(&self, state: State, current: u64, total: u64, why: Vec<String>) {
        let (id, name) = (self.id.to_owned(), self.name.to_owned());
        let subject = self.subject;
        let message = Message::Item { subject, id, name, state, current, total, why };
        match state {
            State::Working | State::Comparing => self.reports.mention(message),
            _ => self.reports.say(message).await,
        }
    }
}
