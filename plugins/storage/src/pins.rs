//! What leases keep from collection.
//!
//! Whoever pins a layer and then finds it unpacked may rely on it: a collection marks a layer before
//! it removes it, and does not mark a pinned one; who pins waits until no mark is left. A pin that
//! ends during a collection counts until the collection ends, so that what it was for can be told to
//! whoever asks for the collection next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_sdk::id::Digest;
use tokio::sync::Notify;

use crate::flights::Flights;

/// Pinned layers by chain id.
pub(crate) struct Pins {
    table: Mutex<Table>,
    unmarked: Notify,
    flights: Arc<Flights>,
}

#[derive(Debug, Default)]
struct Table {
    pinned: BTreeMap<Digest, usize>,
    is_collecting: bool,
    /// Pins that ended during the collection.
    released: BTreeSet<Digest>,
    /// Layers that the collection is removing.
    marked: BTreeSet<Digest>,
}

impl Pins {
    /// Nothing is pinned. When pins end, `flights` are looked through for those that nobody wants.
    pub(crate) fn new(flights: Arc<Flights>) -> Self {
        Self { table: Mutex::default(), unmarked: Notify::new(), flights }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins `ids` until the result is dropped.
    pub(crate) fn pin(self: &Arc<Self>, ids: Vec<Digest>) -> Lease {
        let mut table = self.table();
        for id in &ids {
            *table.pinned.entry(id.clone()).or_default() += 1;
        }
        Lease { pins: self.clone(), ids }
    }

    /// Whether anybody pins `id`.
    pub(crate) fn is_pinned(&self, id: &Digest) -> bool {
        self.table().pinned.contains_key(id)
    }

    /// Begins a collection; there is one at a time.
    pub(crate) fn collect(&self) -> Collection<'_> {
        self.table().is_collecting = true;
        Collection(self)
    }
}

/// Keeps layers while it lives.
pub(crate) struct Lease {
    pins: Arc<Pins>,
    ids: Vec<Digest>,
}

impl Lease {
    /// Waits until a collection is done with the layers. From then on, what is there stays.
    pub(crate) async fn settled(&self) {
        loop {
            let unmarked = self.pins.unmarked.notified();
            if !self.ids.iter().any(|id| self.pins.table().marked.contains(id)) {
                return;
            }
            unmarked.await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut table = self.pins.table();
        for id in self.ids.drain(..) {
            if let Some(count) = table.pinned.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    table.pinned.remove(&id);
                }
            }
            if table.is_collecting {
                table.released.insert(id);
            }
        }
        drop(table);
        self.pins.flights.call_off(&self.pins);
    }
}

/// A collection; ends when it is dropped.
pub(crate) struct Collection<'a>(&'a Pins);

impl<'a> Collection<'a> {
    /// What may not be removed, as far as is known now.
    pub(crate) fn kept(&self) -> BTreeSet<Digest> {
        let table = self.0.table();
        table.pinned.keys().chain(&table.released).cloned().collect()
    }

    /// Marks a layer for removal, unless it is pinned after all.
    pub(crate) fn mark(&self, id: &Digest) -> Option<Mark<'a>> {
        let mut table = self.0.table();
        let is_kept = table.pinned.contains_key(id) || table.released.contains(id);
        (!is_kept && table.marked.insert(id.clone())).then(|| Mark { pins: self.0, id: id.clone() })
    }
}

impl Drop for Collection<'_> {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.is_collecting = false;
        table.released.clear();
    }
}

/// A layer that is being removed.
pub(crate) struct Mark<'a> {
    pins: &'a Pins,
    id: Digest,
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.pins.table().marked.remove(&self.id);
        self.pins.unmarked.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(c: char) -> Digest {
        format!("sha256:{}", c.to_string().repeat(64)).parse().unwrap()
    }

    #[test]
    fn a_pin_that_ends_during_a_collection_counts_until_its_end() {
        let pins = Arc::new(Pins::new(Arc::default()));
        let (first, second) = (pins.pin(vec![id('a'), id('b')]), pins.pin(vec![id('b')]));
        let collection = pins.collect();
        drop(first);
        assert!(!pins.is_pinned(&id('a')) && pins.is_pinned(&id('b')));
        assert_eq!(collection.kept(), BTreeSet::from([id('a'), id('b')]));
        assert!(collection.mark(&id('a')).is_none() && collection.mark(&id('c')).is_some());
        drop(collection);
        let collection = pins.collect();
        assert_eq!(collection.kept(), BTreeSet::from([id('b')]));
        drop(second);
        assert!(collection.mark(&id('a')).is_some() && collection.mark(&id('b')).is_none());
    }

    #[tokio::test]
    async fn who_pins_waits_for_a_removal() {
        let pins = Arc::new(Pins::new(Arc::default()));
        let collection = pins.collect();
        let mark = collection.mark(&id('a')).unwrap();
        let lease = pins.pin(vec![id('a')]);
        let waiting = tokio::time::timeout(Duration::from_millis(20), lease.settled());
        assert!(waiting.await.is_err());
        drop(mark);
        lease.settled().await;
        pins.pin(vec![id('b')]).settled().await;
    }
}
