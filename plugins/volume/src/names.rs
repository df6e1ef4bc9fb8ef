//! One change of a volume at a time; changes of different volumes do not wait for each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// Turns by name. Cheap to clone; a name costs memory only while somebody has or waits for its turn.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<HashMap<String, Lock>>>);

/// The turn of one name, until dropped.
#[derive(Debug)]
pub struct Turn {
    guard: Option<OwnedMutexGuard<()>>,
    name: String,
    names: Names,
}

impl Names {
    fn locks(&self) -> std::sync::MutexGuard<'_, HashMap<String, Lock>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of `name`; in order of arrival.
    pub async fn turn(&self, name: &str) -> Turn {
        let lock = self.locks().entry(name.to_owned()).or_default().clone();
        // Made before waiting, so that a caller who gives up cleans up as well.
        let mut turn = Turn { guard: None, name: name.to_owned(), names: self.clone() };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = self.names.locks();
        // Others take their copy under the same mutex, so a single one is the map's own.
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_name_has_one_turn_and_leaves_nothing() {
        let names = Names::default();
        let first = names.turn("a").await;
        let _other = names.turn("b").await;
        let wait = tokio::time::timeout(Duration::from_millis(10), names.turn("a"));
        assert!(wait.await.is_err());
        drop(first);
        drop(names.turn("a").await);
        assert_eq!(names.locks().len(), 1);
    }
}
