//! How many transfers run at once. Unlike a semaphore's permits, the limit may be another one each
//! time, as the configuration can be reloaded.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Transfers that run.
#[derive(Debug, Default)]
pub struct Slots {
    taken: Mutex<usize>,
    freed: Notify,
}

/// The right to run one; given back when it is dropped.
#[derive(Debug)]
pub struct Slot<'a>(&'a Slots);

impl Slots {
    /// Waits until fewer than `limit` run.
    pub async fn take(&self, limit: usize) -> Slot<'_> {
        loop {
            let freed = self.freed.notified();
            {
                let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
                if *taken < limit.max(1) {
                    *taken += 1;
                    return Slot(self);
                }
            }
            freed.await;
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_waiters();
    }
}
