//! What is unpacked, against the blobs that it was unpacked from.
//!
//! The tree that a chain has to be is worked out from its archives alone, layer by layer, and after
//! each layer the mounted tree is walked beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::{Chain, ChainLayer};
use gantry_sdk::kinds::storage::{LayerForm, LayerState};
use gantry_sdk::mounts::MountFd;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use rustix::fs::FileType;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::expect::Tree;
use super::instances::unpacked;
use super::tree::{self, Differences, check, hash_file, join, names, open_dir, open_top};
use super::wire::{Message, State, Subject, VerifyRequest};
use super::{Admin, Reports, Tally};
use crate::store::Instance;

/// The deepest tree that is walked: each level holds a descriptor open.
const DEPTH: usize = 900;

/// A verification that has been checked.
pub struct Verification {
    admin: Arc<Admin>,
    request: VerifyRequest,
    instance: Instance,
    cancel: CancellationToken,
    _operating: OwnedMutexGuard<()>,
}

impl std::fmt::Debug for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verification").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Admin {
    /// Checks a verification.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for an unknown instance, `Conflict` while another operation is under way.
    pub fn verification(self: &Arc<Self>, request: VerifyRequest) -> Result<Verification> {
        let instance = self.known_instance(&request.instance)?;
        let (admin, operating, cancel) = (self.clone(), self.operate()?, self.token());
        Ok(Verification { admin, request, instance, cancel, _operating: operating })
    }
}

/// What is known of an instance while it is verified.
#[derive(Default)]
struct Seen {
    tally: Tally,
    /// Layers that were looked at.
    done: BTreeSet<Digest>,
    damaged: BTreeSet<Digest>,
    bytes: u64,
}

impl Verification {
    /// Ends it early when it is cancelled.
    pub fn cancellation(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Does it, telling every layer.
    pub async fn run(self, reports: &Reports) {
        let mut seen = Seen::default();
        let error = self.run_all(reports, &mut seen).await.err().map(|error| error.chain());
        reports.say(seen.tally.end(seen.bytes, error)).await;
    }

    async fn run_all(&self, reports: &Reports, seen: &mut Seen) -> Result<()> {
        let cx = Ctx::background();
        let layers = self.admin.store.list_all(&cx, &self.instance).await?;
        let mut left: BTreeSet<Digest> = layers.iter().filter_map(unpacked).collect();
        for chain in self.chains(&cx, &left).await? {
            for id in chain.ids() {
                left.remove(&id);
            }
            self.chain(&cx, &chain, reports, seen).await?;
        }
        for id in left {
            let why = "nobody knows what it has to be".to_owned();
            self.tell(&id, State::Skipped, vec![why], reports, seen).await;
        }
        if self.request.repair && !seen.damaged.is_empty() {
            self.repair(&cx, reports, seen).await?;
        }
        Ok(())
    }

    /// Chains that cover `present`, the longest first.
    async fn chains(&self, cx: &Ctx, present: &BTreeSet<Digest>) -> Result<Vec<Chain>> {
        let mut known = Vec::new();
        for id in present {
            known.extend(self.admin.store.records.chain(cx, id).await?);
        }
        known.sort_by_key(|chain| std::cmp::Reverse(chain.0.len()));
        let mut covered = BTreeSet::new();
        // A chain whose top another one stands on adds nothing.
        known.retain(|chain| {
            let ids = chain.ids();
            let is_new = ids.last().is_some_and(|top| !covered.contains(top));
            covered.extend(ids);
            is_new
        });
        Ok(known)
    }

    async fn chain(
        &self,
        cx: &Ctx,
        chain: &Chain,
        reports: &Reports,
        seen: &mut Seen,
    ) -> Result<()> {
        let ids = chain.ids();
        let pinned = self.admin.store.pins.pin(ids.clone());
        pinned.settled().await;
        let mut tree = Tree::new(self.request.deep);
        let mut stands_on_damage = false;
        for (id, layer) in ids.iter().zip(&chain.0) {
            check(&self.cancel)?;
            tree = match self.apply(cx, tree, layer).await {
                Ok((tree, bytes)) => {
                    seen.bytes += bytes;
                    tree
                }
                Err((state, error)) => {
                    check(&self.cancel)?;
                    // Without it nothing can be said about what stands on it either.
                    if seen.done.insert(id.clone()) {
                        self.tell(id, state, vec![error.chain()], reports, seen).await;
                    }
                    return Ok(());
                }
            };
            stands_on_damage |= seen.damaged.contains(id);
            if seen.done.contains(id) || !self.instance.has(cx, id).await? {
                continue;
            }
            seen.done.insert(id.clone());
            let differences;
            (tree, differences) = self.walk(cx, tree, id).await?;
            if differences.count == 0 {
                self.tell(id, State::Done, Vec::new(), reports, seen).await;
                continue;
            }
            let mut why = differences.told;
            if stands_on_damage {
                why.insert(0, "a layer below it is damaged".to_owned());
            }
            let more = differences.count.saturating_sub(why.len() as u64);
            if more > 0 {
                why.push(format!("and {more} more"));
            }
            seen.damaged.insert(id.clone());
            stands_on_damage = true;
            self.tell(id, State::Failed, why, reports, seen).await;
        }
        Ok(())
    }

    /// Adds a layer to the tree that has to be, from its blob.
    async fn apply(
        &self,
        cx: &Ctx,
        mut tree: Tree,
        layer: &ChainLayer,
    ) -> Result<(Tree, u64), (State, Error)> {
        let blob = self.admin.store.blobs.open(cx, &layer.blob).await.map_err(|error| {
            let gone = error.kind() == ErrorKind::NotFound;
            (if gone { State::Skipped } else { State::Failed }, error)
        })?;
        let (cancel, layer) = (self.cancel.clone(), layer.clone());
        let work = tokio::task::spawn_blocking(move || {
            let bytes = blob.metadata().map_or(0, |meta| meta.len());
            let passed = tree
                .apply(blob, &cancel)
                .map_err(|error| error.context(format!("cannot read blob {}", layer.blob)))?;
            if passed.diff_id != layer.diff_id.as_str() {
                let (blob, found) = (&layer.blob, passed.diff_id);
                return Err(Error::invalid(format!(
                    "the blob {blob} is damaged: its content is {found}, not {}",
                    layer.diff_id
                )));
            }
            Ok((tree, bytes))
        });
        match work.await {
            Ok(outcome) => outcome.map_err(|error| (State::Failed, error)),
            Err(error) => Err((State::Failed, error.into())),
        }
    }

    /// Compares the unpacked chain `id` with the tree that it has to be.
    async fn walk(&self, cx: &Ctx, tree: Tree, id: &Digest) -> Result<(Tree, Differences)> {
        let plan = self.instance.driver.plan(cx, id.as_str()).await?;
        let mount = self.admin.store.mount_plan(cx, &self.instance, &plan).await?;
        let cancel = self.cancel.clone();
        // Where a layer does not hold what is below it, that has been read already.
        let stands_alone = self.instance.driver.stat(cx, id.as_str()).await?.parent.is_none();
        let all = stands_alone || self.instance.info.form == LayerForm::MergedTree;
        tokio::task::spawn_blocking(move || {
            let found = walk_tree(&tree, &mount, all, &cancel)?;
            Ok((tree, found))
        })
        .await?
    }

    async fn tell(
        &self,
        id: &Digest,
        state: State,
        why: Vec<String>,
        reports: &Reports,
        seen: &mut Seen,
    ) {
        seen.tally.count(state);
        let name = id.hex().chars().take(12).collect();
        let (subject, id) = (Subject::Layer, id.to_string());
        let message = Message::Item { subject, id, name, state, current: 0, total: 0, why };
        reports.say(message).await;
    }

    /// Drops damaged layers and what stands on them, unless a container does.
    async fn repair(&self, cx: &Ctx, reports: &Reports, seen: &mut Seen) -> Result<()> {
        let store = &self.admin.store;
        let _collecting = store.collecting.lock().await;
        let collection = store.pins.collect();
        let layers = store.list_all(cx, &self.instance).await?;
        let parents: BTreeMap<&str, Option<&str>> =
            layers.iter().map(|l| (l.key.as_str(), l.parent.as_deref())).collect();
        let stands_on = |key: &str, below: &str| {
            let mut at = Some(key);
            let mut steps = 0;
            while let Some(here) = at.filter(|_| steps <= layers.len()) {
                if here == below {
                    return true;
                }
                steps += 1;
                at = parents.get(here).copied().flatten();
            }
            false
        };
        for id in seen.damaged.clone() {
            let above: Vec<_> =
                layers.iter().filter(|layer| stands_on(&layer.key, id.as_str())).collect();
            let used = above.iter().find(|layer| layer.state == LayerState::Active);
            let outcome = match used {
                Some(layer) => Err(format!("{} stands on it", layer.key)),
                None => {
                    let mut keys: Vec<&str> = above.iter().map(|l| l.key.as_str()).collect();
                    let height =
                        |key: &str| above.iter().filter(|l| stands_on(key, &l.key)).count();
                    keys.sort_by_key(|key| std::cmp::Reverse(height(key)));
                    let mut outcome = Ok(());
                    for key in keys {
                        let mark = key.parse::<Digest>().ok().and_then(|id| collection.mark(&id));
                        if mark.is_none() {
                            outcome = Err(format!("{key} is being used right now"));
                            break;
                        }
                        if let Err(error) = self.instance.driver.remove(cx, key).await {
                            outcome = Err(error.chain());
                            break;
                        }
                    }
                    outcome
                }
            };
            match outcome {
                Ok(()) => {
                    seen.tally.failed = seen.tally.failed.saturating_sub(1);
                    let why = "dropped; it is unpacked again when it is needed".to_owned();
                    self.tell(&id, State::Repaired, vec![why], reports, seen).await;
                }
                Err(why) => {
                    seen.tally.failed = seen.tally.failed.saturating_sub(1);
                    let why = format!("damaged and not dropped: {why}");
                    self.tell(&id, State::Failed, vec![why], reports, seen).await;
                }
            }
        }
        Ok(())
    }
}

/// Walks a mounted tree beside the one that it has to be. `all`: also read the content of files that
/// the topmost layer did not bring.
fn walk_tree(
    tree: &Tree,
    mount: &MountFd,
    all: bool,
    cancel: &CancellationToken,
) -> Result<Differences> {
    let mut children: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for path in tree.entries.keys().filter(|path| !path.is_empty()) {
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (b"".as_slice(), path.as_slice()),
        };
        children.entry(dir).or_default().push(name);
    }
    for names in children.values_mut() {
        names.sort_unstable();
    }
    let found = Differences::default();
    let mut walker = Walker { tree, children, all, cancel, found };
    let top = open_top(mount)?;
    walker.entry(&top, b".", b"")?;
    walker.directory(&top, b"", 0)?;
    Ok(walker.found)
}

struct Walker<'a> {
    tree: &'a Tree,
    /// Sorted names by directory.
    children: BTreeMap<&'a [u8], Vec<&'a [u8]>>,
    all: bool,
    cancel: &'a CancellationToken,
    found: Differences,
}

impl Walker<'_> {
    fn directory(&mut self, dir: &OwnedFd, path: &[u8], depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::invalid(format!("{} is too deep", tree::show(path))));
        }
        check(self.cancel)?;
        let there = names(dir, path)?;
        let wanted = self.children.get(path).cloned().unwrap_or_default();
        for name in there.iter().filter(|name| wanted.binary_search(&name.as_slice()).is_err()) {
            self.found.add(&join(path, name), "should not be there");
        }
        for name in wanted {
            let child = join(path, name);
            if there.binary_search_by(|other| other.as_slice().cmp(name)).is_err() {
                self.found.add(&child, "is missing");
                continue;
            }
            if self.entry(dir, name, &child)? {
                let open = open_dir(dir, name, &child)?;
                self.directory(&open, &child, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Compares one entry; whether it is a directory, as it has to be.
    fn entry(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<bool> {
        let (Some(want), Some(have)) = (self.tree.entries.get(path), tree::read(dir, name, path)?)
        else {
            return Ok(false);
        };
        let is_directory = want.kind() == FileType::Directory && have.kind == FileType::Directory;
        let Some(what) = &want.what else {
            if !is_directory {
                self.found.add(path, "is not a directory");
            }
            return Ok(is_directory);
        };
        let differences = what.node.differences(&have);
        if !differences.is_empty() {
            self.found.add(path, &differences);
            return Ok(is_directory);
        }
        let is_own = self.all || want.layer + 1 == self.tree.layers;
        if let Some(content) = what.content.filter(|_| is_own)
            && hash_file(dir, name, path, self.cancel)? != content
        {
            self.found.add(path, "content");
        }
        Ok(is_directory)
    }
}
