//! Background tasks with a name, an owner and an end.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks on behalf of one owner and ends them all together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    owner: Arc<str>,
    tracker: TaskTracker,
    stop: CancellationToken,
    running: Arc<Mutex<BTreeMap<u64, &'static str>>>,
}

impl Tasks {
    /// Tasks of `owner`, ended through a child of `stop`.
    pub fn new(owner: impl Into<Arc<str>>, stop: &CancellationToken) -> Self {
        Self {
            owner: owner.into(),
            tracker: TaskTracker::new(),
            stop: stop.child_token(),
            running: Arc::default(),
        }
    }

    /// Starts `task`; it should watch [`stopping`](Self::stopping) if it has no end of its own.
    ///
    /// A panic in it is logged with its name, then ends that task only.
    #[expect(clippy::disallowed_methods, reason = "the tracked spawner itself")]
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let entry = Entry::new(self, name);
        let owner = self.owner.clone();
        tokio::spawn(self.tracker.track_future(async move {
            let mut entry = entry;
            let result = task.await;
            entry.finished = true;
            drop((entry, owner));
            result
        }))
    }

    /// Cancelled when the owner stops.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// The names of the tasks that run now, for a dump.
    pub fn running(&self) -> Vec<&'static str> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }

    /// Asks all tasks to end and waits up to `grace`; returns the names of those still running.
    pub async fn shut_down(&self, grace: Duration) -> Vec<&'static str> {
        self.stop.cancel();
        self.tracker.close();
        let _ = tokio::time::timeout(grace, self.tracker.wait()).await;
        self.running()
    }
}

struct Entry {
    key: u64,
    name: &'static str,
    owner: Arc<str>,
    running: Arc<Mutex<BTreeMap<u64, &'static str>>>,
    finished: bool,
}

impl Entry {
    fn new(tasks: &Tasks, name: &'static str) -> Self {
        let mut running = tasks.running.lock().unwrap_or_else(PoisonError::into_inner);
        let key = running.last_key_value().map_or(0, |(last, _)| last + 1);
        running.insert(key, name);
        Self {
            key,
            name,
            owner: tasks.owner.clone(),
            running: tasks.running.clone(),
            finished: false,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        if !self.finished && std::thread::panicking() {
            tracing::error!(owner = %self.owner, task = self.name, "A background task panicked.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_end_together_and_are_known_by_name() {
        let tasks = Tasks::new("test", &CancellationToken::new());
        let stop = tasks.stopping().clone();
        tasks.spawn("waits", async move { stop.cancelled().await });
        assert_eq!(tasks.running(), ["waits"]);
        assert!(tasks.shut_down(Duration::from_secs(5)).await.is_empty());
    }
}
