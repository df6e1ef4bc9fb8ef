//! Noticing that the directories changed: one inotify(7) instance.
//!
//! What a notice says is not looked at: the directories are scanned again, which is cheap. Where a
//! directory is missing, its nearest ancestor is watched.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::settings::Settings;

/// Between two looks, should a notice be lost or watches have run out.
const POLL: Duration = Duration::from_secs(30);
/// Notices come in flocks.
const SETTLE: Duration = Duration::from_millis(20);
/// The most subdirectories of one directory that are watched.
const MAX_DIRECTORIES: usize = 1024;

#[derive(Debug)]
pub(crate) struct Watcher(Option<AsyncFd<OwnedFd>>);

impl Watcher {
    /// A watcher that watches nothing yet. Without inotify it looks from time to time.
    pub(crate) fn new() -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        match inotify::init(flags).map_err(std::io::Error::from).and_then(registered) {
            Ok(queue) => Self(Some(queue)),
            Err(error) => {
                tracing::warn!(%error, "Cannot watch for plugins; looking for them regularly.");
                Self(None)
            }
        }
    }

    /// Watches all directories that there are now. To be called before each scan: what changes
    /// after the scan is then noticed.
    pub(crate) fn watch(&self, settings: &Settings) {
        let Some(queue) = &self.0 else { return };
        for directory in settings.specs.iter().chain([&settings.sockets]) {
            let mut ancestors = directory.ancestors();
            if ancestors.next().is_some_and(|own| add(queue, own)) {
                for below in subdirectories(directory) {
                    add(queue, &below);
                }
            } else {
                // It stops at the first that there is.
                let _ = ancestors.any(|ancestor| add(queue, ancestor));
            }
        }
    }

    /// Waits for the next change, or for a while.
    pub(crate) async fn changed(&self) {
        let Some(queue) = &self.0 else { return tokio::time::sleep(POLL).await };
        let Ok(Ok(mut ready)) = tokio::time::timeout(POLL, queue.readable()).await else { return };
        tokio::time::sleep(SETTLE).await;
        let mut buffer = [0_u8; 4096];
        // A bounded number at a time; a full queue only means another look.
        for _ in 0..256 {
            if rustix::io::read(queue.get_ref(), &mut buffer).is_err() {
                ready.clear_ready();
                return;
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "the successor is unsafe for types that may lend another descriptor; OwnedFd does not"
)]
fn registered(queue: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(queue, tokio::io::Interest::READABLE)
}

/// Whether `directory` is watched now; watching it again changes nothing.
fn add(queue: &AsyncFd<OwnedFd>, directory: &Path) -> bool {
    use inotify::WatchFlags as Flags;
    let what = Flags::CREATE
        | Flags::DELETE
        | Flags::MOVED_TO
        | Flags::MOVED_FROM
        | Flags::CLOSE_WRITE
        | Flags::ATTRIB
        | Flags::DELETE_SELF
        | Flags::ONLYDIR;
    inotify::add_watch(queue.get_ref(), directory, what).is_ok()
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    directories.take(MAX_DIRECTORIES).collect()
}
