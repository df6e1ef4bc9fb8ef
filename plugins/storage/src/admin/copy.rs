//! Filling a container's new writable layer from its old one.

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_archive::{ExtractOptions, Whiteouts, extract};
use gantry_sdk::kinds::layers::{Chain, ContainerLayer, LayerStore};
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use tokio_util::sync::CancellationToken;

use super::tree::{self, Differences};
use crate::pour::explain;

/// How long one wait for the rate may take before the end of the work is looked for.
const SLICE: Duration = Duration::from_millis(50);

/// Lets bytes pass, at most so many a second over all who share it.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// Bytes a second; none lets everything pass.
    rate: Option<u64>,
    /// When the next byte may pass.
    free_at: Mutex<Instant>,
    passed: AtomicU64,
    cancel: CancellationToken,
}

impl Throttle {
    pub(crate) fn new(rate: Option<u64>, cancel: CancellationToken) -> Arc<Self> {
        let (free_at, passed) = (Mutex::new(Instant::now()), AtomicU64::new(0));
        Arc::new(Self { rate: rate.map(|rate| rate.max(1)), free_at, passed, cancel })
    }

    /// Bytes that have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Waits, on a blocking thread, until `bytes` may pass. Ends early when the work is cancelled.
    pub(crate) fn pass(&self, bytes: u64) {
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        let Some(rate) = self.rate else { return };
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            // Time that was not used is lost: a pause is no credit for a burst.
            let from = (*free_at).max(Instant::now());
            *free_at = from + Duration::from_secs_f64(bytes as f64 / rate as f64);
            from
        };
        while !self.cancel.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(SLICE));
        }
    }
}

/// The archive on its way, counted, slowed, and cut off when nobody wants it any more.
struct Passage<R> {
    inner: R,
    throttle: Arc<Throttle>,
    done: Arc<AtomicU64>,
}

impl<R: Read> Read for Passage<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.throttle.cancel.is_cancelled() {
            return Err(std::io::Error::other("cancelled"));
        }
        let n = self.inner.read(buf)?;
        self.throttle.pass(n as u64);
        self.done.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Applies what the layer `old` changes over `chain` to the fresh layer `new`. `done` counts bytes.
pub(crate) async fn apply_changes(
    layers: &Arc<dyn LayerStore>,
    cx: &Ctx,
    chain: &Chain,
    old: &ContainerLayer,
    new: &ContainerLayer,
    throttle: &Arc<Throttle>,
    done: &Arc<AtomicU64>,
) -> Result<()> {
    let target = layers.mount(cx, new).await?;
    let (reader, writer) = std::io::pipe().map_err(|e| Error::internal("cannot make a pipe", e))?;
    let passage = Passage { inner: reader, throttle: throttle.clone(), done: done.clone() };
    let unpacking = tokio::task::spawn_blocking(move || {
        let options = ExtractOptions { whiteouts: Whiteouts::Remove, ..ExtractOptions::default() };
        extract(passage, target.as_fd(), &options).map(drop).map_err(explain)
    });
    let archived = layers.diff(cx, old, chain, true, Box::new(writer)).await;
    let unpacked = unpacking.await?;
    match (archived, unpacked) {
        (Ok(()), unpacked) => unpacked,
        // Nobody read on: what stopped the reader is the reason.
        (Err(_), Err(error)) if error.kind() == ErrorKind::NoSpace => Err(error),
        (Err(error), _) => Err(error),
    }
}

/// Compares the trees of both layers and brings the new one to the disk.
pub(crate) async fn compare(
    layers: &Arc<dyn LayerStore>,
    cx: &Ctx,
    old: &ContainerLayer,
    new: &ContainerLayer,
    deep: bool,
    cancel: &CancellationToken,
) -> Result<Differences> {
    let (old, new) = (layers.mount(cx, old).await?, layers.mount(cx, new).await?);
    let cancel = cancel.clone();
    tokio::task::spawn_blocking(move || {
        let found = tree::mend_and_compare(&old, &new, deep, &cancel)?;
        tree::sync(&new)?;
        Ok(found)
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_at_the_rate_and_not_faster() {
        let cancel = CancellationToken::new();
        let throttle = Throttle::new(Some(1_000_000), cancel.clone());
        let start = Instant::now();
        for _ in 0..21 {
            throttle.pass(10_000);
        }
        // The last ones have passed and are paid for by whoever comes next.
        assert!(start.elapsed() >= Duration::from_millis(195), "{:?}", start.elapsed());
        throttle.pass(1 << 40);
        cancel.cancel();
        throttle.pass(1);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(throttle.passed(), 210_000 + (1 << 40) + 1);
    }
}
