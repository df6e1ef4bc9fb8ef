//! Removes what nothing refers to: content of removed images and of failed loads, and images that
//! were forced away from containers, once the last of these is gone.

use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::Ctx;
use gantry_sdk::events::Event;
use gantry_sdk::kinds::images::ImageUsers;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::store::Store;

/// Time until the next try after a failed one, which doubles up to the longest.
const FIRST_TRY: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(60);

/// Tidies up now, which also ends what an interrupted daemon has begun, and then whenever there may
/// be something to remove. Ends with the daemon.
pub async fn upkeep(store: Arc<Store>) {
    let stopping = store.tasks.stopping().clone();
    let mut events = store.events.watch();
    let mut pause = FIRST_TRY;
    loop {
        // Nobody who could say what is used means that nobody has been asked.
        let done =
            !store.registry.all::<ImageUsers>().is_empty() && store.tidy(&Ctx::background()).await;
        pause = if done { FIRST_TRY } else { LONGEST.min(pause * 2) };
        tokio::select! {
            removed = container_removed(&store, &mut events) => {
                if !removed {
                    return;
                }
                store.mark_litter();
            }
            () = store.littered() => {}
            () = tokio::time::sleep(pause), if !done => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Waits until a container is removed while an image waits for that; false when there will be no
/// more events.
async fn container_removed(store: &Store, events: &mut Receiver<Arc<Event>>) -> bool {
    loop {
        let removed = match events.recv().await {
            Ok(event) => event.kind == "container" && event.action == "destroy",
            Err(RecvError::Lagged(_)) => true,
            Err(RecvError::Closed) => return false,
        };
        if removed && store.has_retired() {
            // Many containers go together, and one look is enough for all of them.
            while !matches!(events.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {}
            return true;
        }
    }
}
