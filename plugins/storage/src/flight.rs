//! One at a time for each name: whoever comes second waits for the first, then looks again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

type Lock = tokio::sync::Mutex<()>;

/// Locks by name; a name costs nothing while nobody holds it.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<String, Weak<Lock>>>);

impl Flights {
    /// Waits until nobody else holds `name`, then holds it until the guard is dropped.
    pub async fn enter(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(name).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(Lock::new(()));
                    locks.insert(name.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let flights = Flights::default();
        let first = flights.enter("a").await;
        let _other = flights.enter("b").await;
        let second = tokio::time::timeout(Duration::from_millis(20), flights.enter("a"));
        assert!(second.await.is_err());
        drop(first);
        flights.enter("a").await;
    }
}
