//! What a client sees of a push: a line for each layer, the latest news of each at the pace of a
//! person.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_api::{ProgressDetail, ProgressMessage};
use gantry_sdk::route::BodySender;

use crate::record::signed;

/// How often a client hears of a layer.
const PACE: Duration = Duration::from_millis(100);

/// News that the client has not heard, by line.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<BTreeMap<usize, ProgressMessage>>);

impl Lines {
    fn news(&self) -> MutexGuard<'_, BTreeMap<usize, ProgressMessage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// News of line `row`, in place of what it had to say until now.
    pub(super) fn say(&self, row: usize, id: &str, status: impl Into<String>) {
        let message = ProgressMessage::progress(id, status, ProgressDetail::default());
        self.news().insert(row, message);
    }

    /// The same with figures, in bytes.
    pub(super) fn figures(&self, row: usize, id: &str, status: &str, done: u64, total: u64) {
        let (current, total) = (signed(done), signed(total));
        let detail = ProgressDetail { current, total, ..ProgressDetail::default() };
        self.news().insert(row, ProgressMessage::progress(id, status, detail));
    }

    /// Tells the client while `work` runs, and what is left when it has ended.
    pub(super) async fn during<T>(&self, sender: &BodySender, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            let outcome = tokio::time::timeout(PACE, &mut work).await;
            let news = std::mem::take(&mut *self.news());
            for message in news.into_values() {
                sender.json(&message).await;
            }
            if let Ok(value) = outcome {
                return value;
            }
        }
    }
}
