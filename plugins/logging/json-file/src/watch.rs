//! Noticing that a file was written to or rotated: one inotify(7) instance for all logs.
//!
//! What cannot be watched (no descriptors or watches left) is looked at from time to time instead.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_sdk::tasks::Tasks;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Between two looks at a log that is not watched.
const POLL: Duration = Duration::from_millis(100);
/// Between two looks at one that is, should a notice be lost.
const POLL_WATCHED: Duration = Duration::from_secs(2);

/// Watches directories. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watcher(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    queue: AsyncFd<OwnedFd>,
    watches: Mutex<HashMap<i32, Watch>>,
}

#[derive(Debug)]
struct Watch {
    changed: watch::Sender<()>,
    users: usize,
}

impl Watcher {
    /// Starts the task that hands notices out.
    pub fn new(tasks: &Tasks) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let queue = inotify::init(flags).map_err(std::io::Error::from).and_then(registered);
        let inner = match queue {
            Ok(queue) => Arc::new(Inner { queue, watches: Mutex::default() }),
            Err(error) => {
                tracing::warn!(%error, "Cannot watch log files; looking at them regularly instead.");
                return Self(None);
            }
        };
        let (task, stop) = (inner.clone(), tasks.stopping().clone());
        tasks.spawn("log-watch", async move {
            tokio::select! {
                () = task.hand_out() => {}
                () = stop.cancelled() => {}
            }
        });
        Self(Some(inner))
    }

    /// Watches the directory `dir` as long as the result lives.
    pub fn watch(&self, dir: &Path) -> Watched {
        let inner = self.0.clone();
        let Some((inner, descriptor, changed)) = inner.and_then(|inner| {
            let (descriptor, changed) = inner.add(dir)?;
            Some((inner, descriptor, changed))
        }) else {
            return Watched { watch: None };
        };
        Watched { watch: Some(Registered { inner, descriptor, changed }) }
    }
}

#[expect(
    deprecated,
    reason = "the successor is unsafe for types that may lend another descriptor; OwnedFd does not"
)]
fn registered(queue: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(queue, tokio::io::Interest::READABLE)
}

impl Inner {
    fn watches(&self) -> std::sync::MutexGuard<'_, HashMap<i32, Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, dir: &Path) -> Option<(i32, watch::Receiver<()>)> {
        use inotify::WatchFlags as Flags;
        let what = Flags::MODIFY
            | Flags::CREATE
            | Flags::MOVED_TO
            | Flags::MOVED_FROM
            | Flags::ONLYDIR
            | Flags::DONT_FOLLOW;
        // Held over the call, so that nobody removes the watch just found.
        let mut watches = self.watches();
        let descriptor = inotify::add_watch(self.queue.get_ref(), dir, what).ok()?;
        let watch = watches
            .entry(descriptor)
            .or_insert_with(|| Watch { changed: watch::channel(()).0, users: 0 });
        watch.users += 1;
        Some((descriptor, watch.changed.subscribe()))
    }

    fn remove(&self, descriptor: i32) {
        let mut watches = self.watches();
        let Some(watch) = watches.get_mut(&descriptor) else { return };
        watch.users -= 1;
        if watch.users == 0 {
            watches.remove(&descriptor);
            // Fails if the directory is gone, and the watch with it.
            let _ = inotify::remove_watch(self.queue.get_ref(), descriptor);
        }
    }

    async fn hand_out(&self) {
        loop {
            let Ok(mut ready) = self.queue.readable().await else { return };
            let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
            let mut reader = inotify::Reader::new(self.queue.get_ref(), &mut buffer);
            let mut touched = Vec::new();
            // A bounded number at a time, then others have a turn.
            for _ in 0..256 {
                match reader.next() {
                    Ok(event) => touched.push((event.wd(), event.events())),
                    Err(_) => {
                        ready.clear_ready();
                        break;
                    }
                }
            }
            self.tell(touched);
        }
    }

    fn tell(&self, mut touched: Vec<(i32, inotify::ReadFlags)>) {
        touched.dedup_by_key(|(descriptor, _)| *descriptor);
        let watches = self.watches();
        for (descriptor, events) in touched {
            if events.contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                watches.values().for_each(|watch| watch.changed.send_replace(()));
            } else if let Some(watch) = watches.get(&descriptor) {
                watch.changed.send_replace(());
            }
        }
    }
}

/// A directory that is watched.
#[derive(Debug)]
pub struct Watched {
    watch: Option<Registered>,
}

#[derive(Debug)]
struct Registered {
    inner: Arc<Inner>,
    descriptor: i32,
    changed: watch::Receiver<()>,
}

impl Watched {
    /// From here on counts: call it before looking at the files.
    pub fn mark(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.changed.mark_unchanged();
        }
    }

    /// Waits until something may have changed since [`mark`](Self::mark).
    pub async fn changed(&mut self) {
        match &mut self.watch {
            Some(watch) => {
                let _ = tokio::time::timeout(POLL_WATCHED, watch.changed.changed()).await;
            }
            None => tokio::time::sleep(POLL).await,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.inner.remove(self.descriptor);
    }
}
