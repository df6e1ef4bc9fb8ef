//! What a client sees of a pull: a line for each layer, at the pace of a person.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_api::{ProgressDetail, ProgressMessage};
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::LayerProgress;
use gantry_sdk::route::BodySender;

use super::downloads::{State, Wanted};
use crate::record::signed;

/// How often a client hears of a layer.
const PACE: Duration = Duration::from_millis(100);

/// How far layers are unpacked, by diff id.
type Unpacked = Arc<Mutex<BTreeMap<Digest, (u64, u64)>>>;

/// The layers of one image.
pub struct Board<'a> {
    sender: &'a BodySender,
    rows: Vec<Row<'a>>,
    unpacked: Unpacked,
}

impl std::fmt::Debug for Board<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

struct Row<'a> {
    id: String,
    diff_id: &'a Digest,
    /// None for a blob that was here.
    wanted: Option<&'a Wanted>,
    /// What the client has heard.
    told: Step,
}

/// What a layer's line can say, in the order in which it does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Nothing,
    PullingFsLayer,
    Waiting,
    Downloading(u64, u64),
    Verifying,
    DownloadComplete,
    Extracting(u64, u64),
    PullComplete,
}

impl Step {
    fn message(&self, id: &str) -> ProgressMessage {
        let figures = |done: u64, total: u64| ProgressDetail {
            current: signed(done),
            total: signed(total),
            ..ProgressDetail::default()
        };
        let (status, detail) = match self {
            Self::Nothing | Self::PullingFsLayer => ("Pulling fs layer", figures(0, 0)),
            Self::Waiting => ("Waiting", figures(0, 0)),
            Self::Downloading(done, total) => ("Downloading", figures(*done, *total)),
            Self::Verifying => ("Verifying Checksum", figures(0, 0)),
            Self::DownloadComplete => ("Download complete", figures(0, 0)),
            Self::Extracting(done, total) => ("Extracting", figures(*done, *total)),
            Self::PullComplete => ("Pull complete", figures(0, 0)),
        };
        ProgressMessage::progress(id, status, detail)
    }
}

impl<'a> Board<'a> {
    /// Lines of the layers of `diff_ids` whose blobs are `blobs`, with what is still to come.
    pub fn new(
        sender: &'a BodySender,
        layers: impl Iterator<Item = (&'a Digest, &'a Digest, Option<&'a Wanted>)>,
    ) -> Self {
        let row = |(blob, diff_id, wanted): (&Digest, &'a Digest, Option<&'a Wanted>)| Row {
            id: blob.hex()[..12].to_owned(),
            diff_id,
            wanted,
            told: Step::Nothing,
        };
        Self { sender, rows: layers.map(row).collect(), unpacked: Unpacked::default() }
    }

    /// For the layer store; never waits.
    pub fn callback(&self) -> LayerProgress {
        let unpacked = self.unpacked.clone();
        Arc::new(move |layer, done, total| {
            let mut unpacked = unpacked.lock().unwrap_or_else(PoisonError::into_inner);
            unpacked.insert(layer.clone(), (done, total));
        })
    }

    /// The first lines: what is here and what is to come.
    pub async fn begin(&mut self) {
        for row in &mut self.rows {
            let message = if row.wanted.is_some() {
                row.told = Step::PullingFsLayer;
                row.told.message(&row.id)
            } else {
                ProgressMessage::progress(&row.id, "Already exists", ProgressDetail::default())
            };
            self.sender.json(&message).await;
        }
    }

    /// Reports while `work` runs, and what is left when it has ended well.
    pub async fn during<T, E>(&mut self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(PACE, &mut work).await {
                Ok(outcome) => {
                    if outcome.is_ok() {
                        self.tell(|_| Step::PullComplete).await;
                    }
                    return outcome;
                }
                Err(_elapsed) => {
                    let unpacked =
                        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    self.tell(|row| row.step(&unpacked)).await;
                }
            }
        }
    }

    async fn tell(&mut self, step: impl Fn(&Row<'_>) -> Step) {
        for row in self.rows.iter_mut().filter(|row| row.wanted.is_some()) {
            let now = step(row);
            if now <= row.told {
                continue;
            }
            // A client draws a bar for the transfer only if it hears of its end.
            if row.told < Step::DownloadComplete && now > Step::DownloadComplete {
                self.sender.json(&Step::DownloadComplete.message(&row.id)).await;
            }
            row.told = now;
            self.sender.json(&row.told.message(&row.id)).await;
        }
    }
}

impl Row<'_> {
    fn step(&self, unpacked: &BTreeMap<Digest, (u64, u64)>) -> Step {
        let downloaded = match self.wanted.map(Wanted::state) {
            Some(State::Opening) => return Step::PullingFsLayer,
            Some(State::Waiting) => return Step::Waiting,
            Some(State::Downloading(done, total)) => return Step::Downloading(done, total),
            Some(State::Verifying) => return Step::Verifying,
            Some(State::Failed(..)) => return Step::Nothing,
            Some(State::Done) | None => Step::DownloadComplete,
        };
        match unpacked.get(self.diff_id) {
            Some((done, total)) if done >= total && *total > 0 => Step::PullComplete,
            Some((done, total)) => Step::Extracting(*done, *total),
            None => downloaded,
        }
    }
}
