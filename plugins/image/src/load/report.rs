//! Progress of unpacking, at the pace the client reads.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_api::{ProgressDetail, ProgressMessage};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::LayerProgress;
use gantry_sdk::route::BodySender;

use crate::record::signed;

/// How often a client hears of a layer.
const PACE: Duration = Duration::from_millis(100);

/// Figures of layers that the client has not heard of: only the latest of each.
type Pending = Arc<Mutex<BTreeMap<Digest, (u64, u64)>>>;

/// Turns what the layer store reports into messages.
#[derive(Debug)]
pub struct Reporter {
    sender: BodySender,
    pending: Pending,
}

impl Reporter {
    /// Messages go to `sender`.
    pub fn new(sender: BodySender) -> Self {
        Self { sender, pending: Pending::default() }
    }

    /// For the layer store; never waits.
    pub fn callback(&self) -> LayerProgress {
        let pending = self.pending.clone();
        Arc::new(move |layer, done, total| {
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.insert(layer.clone(), (done, total));
        })
    }

    /// Reports while `work` runs, and what is left when it has ended.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(PACE, &mut work).await {
                Ok(value) => {
                    self.flush().await;
                    return value;
                }
                Err(_elapsed) => self.flush().await,
            }
        }
    }

    async fn flush(&self) {
        let news =
            std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        for (layer, (done, total)) in news {
            let detail = ProgressDetail {
                current: signed(done),
                total: signed(total),
                ..ProgressDetail::default()
            };
            let id = &layer.hex()[..12];
            self.sender.json(&ProgressMessage::progress(id, "Loading layer", detail)).await;
        }
    }
}
