//! Layers on their way into an instance: each is made once, however many wait for it.
//!
//! A flight is a task that makes one layer. Everybody who wants the layer has a seat on it. A flight
//! on which nobody sits any more, and whose layer no lease keeps, is called off: it cleans up behind
//! itself, and whoever comes later starts another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::LayerProgress;
use gantry_sdk::{Error, ErrorKind, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pins::Pins;

/// What waiters get: errors are not `Clone`, so kind and message.
type Outcome = Option<Result<(), (ErrorKind, String)>>;

/// Instance name and chain id.
pub(crate) type FlightKey = (String, Digest);

/// All flights; see the module's text.
#[derive(Default)]
pub(crate) struct Flights(Mutex<BTreeMap<FlightKey, Entry>>);

struct Entry {
    flight: Arc<Flight>,
    seats: usize,
}

/// One layer on its way.
pub(crate) struct Flight {
    key: FlightKey,
    done: watch::Receiver<Outcome>,
    listeners: Listeners,
    cancel: CancellationToken,
}

/// Who wants to hear of progress.
#[derive(Clone, Default)]
pub(crate) struct Listeners(Arc<Mutex<Vec<LayerProgress>>>);

impl Listeners {
    fn add(&self, listener: Option<LayerProgress>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(listener);
    }

    /// Tells everybody.
    pub(crate) fn tell(&self, diff_id: &Digest, done: u64, total: u64) {
        let listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners {
            listener(diff_id, done, total);
        }
    }
}

/// What the task of a new flight needs. Dropping it ends the flight.
pub(crate) struct Pilot {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    tell: watch::Sender<Outcome>,
}

impl Flights {
    fn table(&self) -> MutexGuard<'_, BTreeMap<FlightKey, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat on the flight `key`, which begins if there is none: then the pilot is for its task.
    pub(crate) fn board(
        self: &Arc<Self>,
        key: FlightKey,
        pins: &Arc<Pins>,
        stop: &CancellationToken,
        progress: Option<LayerProgress>,
    ) -> (Seat, Option<Pilot>) {
        let mut table = self.table();
        let (flight, pilot) = match table.get_mut(&key) {
            Some(entry) => {
                entry.seats += 1;
                (entry.flight.clone(), None)
            }
            None => {
                let (tell, done) = watch::channel(None);
                let (listeners, cancel) = (Listeners::default(), stop.child_token());
                let flight = Arc::new(Flight { key: key.clone(), done, listeners, cancel });
                table.insert(key, Entry { flight: flight.clone(), seats: 1 });
                (flight.clone(), Some(Pilot { flights: self.clone(), flight, tell }))
            }
        };
        drop(table);
        flight.listeners.add(progress); // before the start: a small layer is quick
        (Seat { flights: self.clone(), pins: pins.clone(), flight }, pilot)
    }

    /// Calls off what nobody waits for and no lease keeps.
    pub(crate) fn call_off(&self, pins: &Pins) {
        self.table().retain(|(_, id), entry| {
            let is_wanted = entry.seats > 0 || pins.is_pinned(id);
            if !is_wanted {
                entry.flight.cancel.cancel();
            }
            is_wanted
        });
    }

    fn clear(&self, flight: &Arc<Flight>) {
        let mut table = self.table();
        if table.get(&flight.key).is_some_and(|entry| Arc::ptr_eq(&entry.flight, flight)) {
            table.remove(&flight.key);
        }
    }
}

/// A wish to see a flight land.
pub(crate) struct Seat {
    flights: Arc<Flights>,
    pins: Arc<Pins>,
    flight: Arc<Flight>,
}

impl Seat {
    /// Waits for the end of the flight.
    pub(crate) async fn landed(&self) -> Result<()> {
        let mut done = self.flight.done.clone();
        // Ends when the task does: it drops the sender, whatever happens to it.
        match done.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err((kind, message)))) => Err(Error::new(kind, message)),
            Ok(None) | Err(_) => Err(Error::unavailable("unpacking a layer ended early")),
        }
    }
}

impl Clone for Seat {
    fn clone(&self) -> Self {
        if let Some(entry) = self.flights.table().get_mut(&self.flight.key)
            && Arc::ptr_eq(&entry.flight, &self.flight)
        {
            entry.seats += 1;
        }
        Self { flights: self.flights.clone(), pins: self.pins.clone(), flight: self.flight.clone() }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.flights.table();
        let Some(entry) = table.get_mut(&self.flight.key) else { return };
        if !Arc::ptr_eq(&entry.flight, &self.flight) {
            return;
        }
        entry.seats -= 1;
        if entry.seats == 0 && !self.pins.is_pinned(&self.flight.key.1) {
            self.flight.cancel.cancel();
            table.remove(&self.flight.key);
        }
    }
}

impl Pilot {
    /// Who wants to hear of progress.
    pub(crate) fn listeners(&self) -> &Listeners {
        &self.flight.listeners
    }

    /// Cancelled when the flight is called off or the daemon stops.
    pub(crate) fn cancel(&self) -> &CancellationToken {
        &self.flight.cancel
    }

    /// The flight is over.
    pub(crate) fn land(self, outcome: Result<()>) {
        // Out of the table first: who asks from now on finds the layer, or tries again.
        self.flights.clear(&self.flight);
        self.tell.send_replace(Some(outcome.map_err(|error| (error.kind(), error.chain()))));
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.flights.clear(&self.flight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> FlightKey {
        ("overlay2".to_owned(), format!("sha256:{}", "a".repeat(64)).parse().unwrap())
    }

    #[tokio::test]
    async fn all_seats_see_one_landing() {
        let flights = Arc::<Flights>::default();
        let pins = Arc::new(Pins::new(flights.clone()));
        let stop = CancellationToken::new();
        let (first, pilot) = flights.board(key(), &pins, &stop, None);
        let (second, none) = flights.board(key(), &pins, &stop, None);
        assert!(none.is_none());
        let pilot = pilot.unwrap();
        drop(first);
        assert!(!pilot.cancel().is_cancelled());
        pilot.land(Err(Error::invalid("no")));
        assert_eq!(second.landed().await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        let (_third, pilot) = flights.board(key(), &pins, &stop, None);
        drop(second); // no longer has to do with the flight of that name
        assert!(!pilot.unwrap().cancel().is_cancelled());
    }

    #[tokio::test]
    async fn an_empty_flight_is_called_off_unless_a_lease_keeps_it() {
        let flights = Arc::<Flights>::default();
        let pins = Arc::new(Pins::new(flights.clone()));
        let stop = CancellationToken::new();
        let (seat, pilot) = flights.board(key(), &pins, &stop, None);
        let pilot = pilot.unwrap();
        let copy = seat.clone();
        let lease = pins.pin(vec![key().1]);
        drop((seat, copy));
        assert!(!pilot.cancel().is_cancelled());
        drop(lease);
        assert!(pilot.cancel().is_cancelled());
        let (next, its_pilot) = flights.board(key(), &pins, &stop, None);
        assert!(its_pilot.is_some(), "who comes later starts another");
        drop(pilot);
        drop(its_pilot);
        assert_eq!(next.landed().await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
