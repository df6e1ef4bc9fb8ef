//! Putting moves right: after a crash, after a container was started, after it was removed.

use std::sync::Arc;

use gantry_sdk::events::{Event, EventBus};
use gantry_sdk::kinds::layer_users::{LayerUse, LayerUsers};
use gantry_sdk::{Ctx, Result};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Admin;
use super::moves::{Move, Stage, Verdict};

impl Admin {
    /// Starts [`attend`](Self::attend) in the background.
    pub(crate) fn spawn(self: Arc<Self>, events: EventBus) {
        let tasks = self.store.tasks.clone();
        tasks.spawn("settle-moves", self.attend(events));
    }

    /// Settles what the last daemon left, then what happens. Ends with the daemon.
    async fn attend(self: Arc<Self>, events: EventBus) {
        let stopping = self.store.tasks.stopping().clone();
        let mut events = events.watch();
        self.settle(None).await;
        while let Some(Some(container)) = stopping.run_until_cancelled(concerns(&mut events)).await
        {
            let container = container.as_deref();
            if container.is_none() || !self.moves.list(container).is_empty() {
                self.settle(container).await;
            }
        }
    }

    /// Does what is to be done about the moves of one container, or of all.
    pub async fn settle(&self, container: Option<&str>) {
        let cx = Ctx::background();
        if self.moves.list(container).is_empty() {
            return;
        }
        for found in self.moves.list(container) {
            if let Err(error) = self.settle_one(&cx, &found, false).await {
                // Tried again when the container is started, and when the daemon is.
                tracing::warn!(container = found.container, error = %error.chain(), "Cannot settle the move of a container.");
            }
        }
    }

    /// Removes what is kept of containers that have moved; returns how many layers.
    pub(crate) async fn purge(&self, cx: &Ctx) -> Result<u64> {
        let mut gone = 0;
        for found in self.moves.list(None) {
            self.settle_one(cx, &found, true).await?;
            gone += u64::from(self.moves.list(Some(&found.container)).is_empty());
        }
        Ok(gone)
    }

    async fn settle_one(&self, cx: &Ctx, found: &Move, purge: bool) -> Result<()> {
        let _moving = self.moving.lock().await;
        // Only who has containers can say that one is gone.
        if self.store.registry.all::<LayerUsers>().is_empty() {
            return Ok(());
        }
        let users = self.users(cx).await?;
        let user =
            users.iter().map(|(_, user)| user).find(|user| user.container == found.container);
        // It may have been settled, or superseded, while we waited.
        let current = self.moves.list(Some(&found.container));
        if !current.contains(found) {
            return Ok(());
        }
        let mut found = found.clone();
        let mut verdict = found.judge(user, true);
        if verdict == Verdict::Keep {
            self.moves.keep(cx, &found).await?;
            found.stage = Stage::Kept;
            verdict = found.judge(user, true);
        }
        if purge && verdict == Verdict::Wait && is_free(&found, user) {
            verdict = Verdict::DropOld;
        }
        self.carry_out(cx, &found, verdict).await
    }

    async fn carry_out(&self, cx: &Ctx, found: &Move, verdict: Verdict) -> Result<()> {
        let gone: &[&String] = match verdict {
            Verdict::Wait | Verdict::Keep => return Ok(()),
            Verdict::Forget => &[],
            Verdict::DropCopy => &[&found.to],
            Verdict::DropOld => &[&found.from],
            Verdict::DropBoth => &[&found.from, &found.to],
        };
        for instance in gone {
            self.store.instance(Some(instance.as_str()))?.driver.remove(cx, &found.key).await?;
        }
        self.moves.forget(cx, found).await
    }
}

/// Whether the container uses another layer than the one that is kept.
fn is_free(found: &Move, user: Option<&LayerUse>) -> bool {
    found.stage == Stage::Kept && user.is_none_or(|user| user.layer.instance != found.from)
}

/// The next container that was started or removed; inner none if some may have been missed. None when
/// there will be no more events.
async fn concerns(events: &mut Receiver<Arc<Event>>) -> Option<Option<String>> {
    loop {
        match events.recv().await {
            Ok(event) if event.kind == "container" => {
                if matches!(event.action.as_str(), "start" | "destroy") {
                    return Some(Some(event.id.clone()));
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return Some(None),
            Err(RecvError::Closed) => return None,
        }
    }
}
