//! The record of moves of containers between instances: intent, act, result.
//!
//! ```text
//!            begin                  the container's record says "to"            started, or purged
//!  (nothing) ─────▶ Copying ───────────────────────────────────────────▶ Kept ───────────────────▶ (nothing)
//!                     │ failed, cancelled, or the daemon was killed
//!                     └──▶ the copy is removed ──▶ (nothing)
//! ```
//!
//! Which of two layers counts is said by the container's own record and by nothing else; what is
//! kept here only makes sure that the other one is neither lost early nor left over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gantry_sdk::kinds::layer_users::LayerUse;
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::{Ctx, Error, Result};
use serde::{Deserialize, Serialize};

/// Table of the metadata database: `<container>/<from>` to [`Move`].
const TABLE: &str = "layer-moves";

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// The layer at `to` is being filled and counts for nothing.
    Copying,
    /// The layer at `from` is not used any more and is kept until the container has been started.
    Kept,
}

/// One move of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Move {
    pub(crate) container: String,
    /// The layers' key, the same in both instances.
    pub(crate) key: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) stage: Stage,
    /// When this was written.
    pub(crate) at: SystemTime,
}

/// What has to be done about a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing yet.
    Wait,
    /// The container has moved: the old layer is kept from now on.
    Keep,
    /// The copy goes.
    DropCopy,
    /// The old layer goes.
    DropOld,
    /// The container is gone, and with it both.
    DropBoth,
    /// The record means nothing any more.
    Forget,
}

impl Move {
    fn id(&self) -> String {
        format!("{}/{}", self.container, self.from)
    }

    /// What has to be done, given the container as it is now, if it is still there. `is_resting`: no
    /// migration is under way.
    pub(crate) fn judge(&self, user: Option<&LayerUse>, is_resting: bool) -> Verdict {
        let Some(user) = user else { return Verdict::DropBoth };
        let is_at = |instance: &str| user.layer.instance == instance;
        match self.stage {
            Stage::Copying if !is_resting => Verdict::Wait,
            Stage::Copying if is_at(&self.to) => Verdict::Keep,
            Stage::Copying => Verdict::DropCopy,
            // It has come back, and what was kept is what it uses.
            Stage::Kept if is_at(&self.from) => Verdict::Forget,
            Stage::Kept if user.running || user.started.is_some_and(|at| at > self.at) => {
                Verdict::DropOld
            }
            Stage::Kept => Verdict::Wait,
        }
    }
}

/// All moves, in memory and in the database.
pub(crate) struct Moves {
    metadata: Arc<dyn MetadataStore>,
    known: Mutex<BTreeMap<String, Move>>,
}

impl Moves {
    /// Reads what there is.
    pub(crate) async fn open(metadata: Arc<dyn MetadataStore>, cx: &Ctx) -> Result<Self> {
        let mut known = BTreeMap::new();
        for (key, value) in metadata.scan(cx, TABLE, "").await? {
            let found: Move = serde_json::from_slice(&value)
                .map_err(|e| Error::internal(format!("cannot read the record of move {key}"), e))?;
            known.insert(key, found);
        }
        Ok(Self { metadata, known: Mutex::new(known) })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Move>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every move, or those of one container.
    pub(crate) fn list(&self, container: Option<&str>) -> Vec<Move> {
        let is_wanted = |m: &&Move| container.is_none_or(|container| m.container == container);
        self.known().values().filter(is_wanted).cloned().collect()
    }

    /// Writes the intent to move a container, and forgets what was kept of it where it goes.
    pub(crate) async fn begin(&self, cx: &Ctx, user: &LayerUse, to: &str) -> Result<Move> {
        let intent = Move {
            container: user.container.clone(),
            key: user.layer.key.clone(),
            from: user.layer.instance.clone(),
            to: to.to_owned(),
            stage: Stage::Copying,
            at: SystemTime::now(),
        };
        let there = format!("{}/{to}", intent.container);
        let put = Change::put_json(TABLE, intent.id(), &intent)?;
        self.metadata.commit(cx, vec![Change::delete(TABLE, there.clone()), put]).await?;
        let mut known = self.known();
        known.remove(&there);
        known.insert(intent.id(), intent.clone());
        Ok(intent)
    }

    /// Writes that the container has moved.
    pub(crate) async fn keep(&self, cx: &Ctx, intent: &Move) -> Result<()> {
        // The time stays: a container that has been started since then has been started there.
        let kept = Move { stage: Stage::Kept, ..intent.clone() };
        self.metadata.commit(cx, vec![Change::put_json(TABLE, kept.id(), &kept)?]).await?;
        self.known().insert(kept.id(), kept);
        Ok(())
    }

    /// Forgets a move.
    pub(crate) async fn forget(&self, cx: &Ctx, done: &Move) -> Result<()> {
        self.metadata.commit(cx, vec![Change::delete(TABLE, done.id())]).await?;
        self.known().remove(&done.id());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::Labels;
    use gantry_sdk::kinds::layers::{Chain, ContainerLayer};
    use std::time::Duration;

    fn user(instance: &str) -> LayerUse {
        LayerUse {
            container: "c".into(),
            name: "name".into(),
            image: "image".into(),
            chain: Chain::default(),
            layer: ContainerLayer { key: "c".into(), instance: instance.into() },
            options: Labels::new(),
            running: false,
            started: None,
        }
    }

    #[test]
    fn the_containers_record_decides() {
        let at = SystemTime::now();
        let (container, key) = ("c".to_owned(), "c".to_owned());
        let (from, to) = ("a".to_owned(), "b".to_owned());
        let copying = Move { container, key, from, to, stage: Stage::Copying, at };
        let kept = Move { stage: Stage::Kept, ..copying.clone() };
        let (here, there) = (user("a"), user("b"));
        let later = LayerUse { started: Some(at + Duration::from_secs(1)), ..there.clone() };
        let before = LayerUse { started: Some(at - Duration::from_secs(1)), ..there.clone() };
        let running = LayerUse { running: true, ..there.clone() };
        let cases = [
            (&copying, Some(&here), true, Verdict::DropCopy),
            (&copying, Some(&here), false, Verdict::Wait),
            (&copying, Some(&there), true, Verdict::Keep),
            (&copying, None, true, Verdict::DropBoth),
            (&kept, Some(&there), true, Verdict::Wait),
            (&kept, Some(&before), true, Verdict::Wait),
            (&kept, Some(&later), true, Verdict::DropOld),
            (&kept, Some(&running), true, Verdict::DropOld),
            (&kept, Some(&here), true, Verdict::Forget),
            (&kept, None, true, Verdict::DropBoth),
        ];
        for (at, (what, user, is_resting, expected)) in cases.into_iter().enumerate() {
            assert_eq!(what.judge(user, is_resting), expected, "case {at}");
        }
    }
}
