//! The event bus: what happened, to whoever asks, without ever slowing who reports.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

/// How many past events a late subscriber can still see. The reference engine keeps as many.
pub const RING: usize = 256;
/// How far a live subscriber may fall behind before it misses events.
const LIVE: usize = 1024;

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `container`, `image`, `volume`, `network`, `plugin`, `daemon`, …
    pub kind: &'static str,
    /// `create`, `start`, `die`, …; `exec_create: sh -c …` for execs.
    pub action: String,
    /// The object's id.
    pub id: String,
    /// Attributes of the object, such as `name` and `image`.
    pub attributes: BTreeMap<String, String>,
    /// When.
    pub at: SystemTime,
}

impl Event {
    /// An event that happens now.
    pub fn now(kind: &'static str, action: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            kind,
            action: action.into(),
            id: id.into(),
            attributes: BTreeMap::new(),
            at: SystemTime::now(),
        }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }
}

/// The last [`RING`] events and everybody who listens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventBus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ring: Mutex<VecDeque<Arc<Event>>>,
    live: broadcast::Sender<Arc<Event>>,
    plugins: broadcast::Sender<Arc<Event>>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self(Arc::new(Inner {
            ring: Mutex::new(VecDeque::new()),
            live: broadcast::channel(LIVE).0,
            plugins: broadcast::channel(LIVE).0,
        }))
    }
}

impl EventBus {
    /// Reports `event`. Never waits.
    pub fn publish(&self, event: Event) {
        let event = Arc::new(event);
        let mut ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Sent under the lock, so a subscriber sees each event exactly once: in the ring or live.
        let _ = self.0.live.send(event.clone());
        let _ = self.0.plugins.send(event);
    }

    /// The past events that are still known, oldest first, and the receiver of all later ones.
    pub fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let ring = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (ring.iter().cloned().collect(), self.0.live.subscribe())
    }

    /// The receiver of all later events, for a plugin that acts on them: not one of the listeners
    /// that clients are told about.
    pub fn watch(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.plugins.subscribe()
    }

    /// How many subscribers there are now.
    pub fn listeners(&self) -> usize {
        self.0.live.receiver_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_events_and_live_ones_follow() {
        let bus = EventBus::default();
        for n in 0..RING + 3 {
            bus.publish(Event::now("container", "create", n.to_string()));
        }
        let (past, mut live) = bus.subscribe();
        assert_eq!(past.len(), RING);
        assert_eq!(past[0].id, "3");
        bus.publish(Event::now("container", "die", "x"));
        assert_eq!(live.try_recv().unwrap().action, "die");
        let mut watch = bus.watch();
        assert_eq!(bus.listeners(), 1);
        bus.publish(Event::now("container", "destroy", "x"));
        assert_eq!(watch.try_recv().unwrap().action, "destroy");
    }
}
