//! Which blobs must stay although nothing refers to them yet.
//!
//! # Why a collection removes nothing that somebody is about to use
//!
//! A blob goes only if no owner wants it and [`Pins::unless_pinned`] found no pin, in one critical
//! section with the rename that takes its name away. Somebody who brings a blob pins it, sees that
//! it is there (by writing it, or by finding it), writes the record that refers to it, and lets the
//! pin go, in this order. Look at the moment the collection asked this blob's owner:
//!
//! - The record was written before: the owner wants the blob.
//! - The record is written later, so the pin is let go later still. If it was taken before the
//!   critical section, it is seen there: either as held, or as [let go during the
//!   round](Table::late), for a round begins before any owner is asked.
//! - If it is taken after the critical section, the blob is gone by then: a search finds nothing,
//!   and a commit puts its own content there. Either way nobody relies on what was removed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobLease, Lease};

/// Pins of all leases.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// Leases by the blob they pin.
    held: HashMap<Digest, usize>,
    /// Collections that run. One as a rule; a cancelled one may still be sweeping beside the next.
    rounds: usize,
    /// Let go since the oldest of them began.
    late: HashSet<Digest>,
}

impl Table {
    fn pins(&self, digest: &Digest) -> bool {
        self.held.contains_key(digest) || self.late.contains(digest)
    }
}

impl Pins {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease that pins nothing yet.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        Arc::new(FileLease { pins: self.clone(), mine: Mutex::default() })
    }

    /// Begins a collection. Until it is dropped, pins that are let go count as held.
    pub(crate) fn begin(self: &Arc<Self>) -> Round {
        self.table().rounds += 1;
        Round(self.clone())
    }

    /// Whether it is pinned at the moment.
    pub(crate) fn is_pinned(&self, digest: &Digest) -> bool {
        self.table().pins(digest)
    }

    /// Runs `act` unless the blob is pinned; nobody can pin it meanwhile. `act` must be short.
    pub(crate) fn unless_pinned<T>(&self, digest: &Digest, act: impl FnOnce() -> T) -> Option<T> {
        let table = self.table();
        if table.pins(digest) {
            return None;
        }
        let done = act();
        drop(table);
        Some(done)
    }
}

/// A collection that runs.
#[derive(Debug)]
pub(crate) struct Round(Arc<Pins>);

impl Drop for Round {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.rounds -= 1;
        if table.rounds == 0 {
            table.late = HashSet::new();
        }
    }
}

#[derive(Debug)]
struct FileLease {
    pins: Arc<Pins>,
    mine: Mutex<HashSet<Digest>>,
}

impl BlobLease for FileLease {
    fn pin(&self, digest: &Digest) {
        let mut mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        if mine.insert(digest.clone()) {
            *self.pins.table().held.entry(digest.clone()).or_default() += 1;
        }
    }
}

impl Drop for FileLease {
    fn drop(&mut self) {
        let mine = std::mem::take(self.mine.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut table = self.pins.table();
        for digest in mine {
            if let Some(leases) = table.held.get_mut(&digest) {
                *leases -= 1;
                if *leases == 0 {
                    table.held.remove(&digest);
                }
            }
            if table.rounds > 0 {
                table.late.insert(digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_counts_until_the_last_lease_and_the_running_round_are_gone() {
        let pins = Arc::<Pins>::default();
        let digest = Digest::from_sha256(&[7; 32]);
        let free = || pins.unless_pinned(&digest, || ()).is_some();
        assert!(free());
        let (one, two) = (pins.lease(), pins.lease());
        one.pin(&digest);
        one.pin(&digest);
        two.pin(&digest);
        drop(one);
        assert!(!free());
        let round = pins.begin();
        drop(two);
        assert!(!free());
        drop(round);
        assert!(free());
        assert_eq!(format!("{:?}", pins.table().held), "{}");
    }
}
