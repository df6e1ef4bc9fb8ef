//! From a socket to a blocking writer, in large pieces.

use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_sdk::kinds::blobs::BlobWriter;
use gantry_sdk::kinds::registry::TransferProgress;
use gantry_sdk::{Error, ErrorKind, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What is smaller is collected; what is larger goes through as it is.
const SMALL: usize = 128 << 10;
const PIECE: usize = 2 * SMALL;
/// Pieces on their way to the writer.
const AHEAD: usize = 4;
/// How often progress is told at least while bytes come.
const BEAT: Duration = Duration::from_millis(100);

enum Order {
    Write(Bytes),
    Restart,
}

/// A writer on a blocking thread, and what is collected for it. Dropping it leaves the writer with what it has.
pub(super) struct Pump {
    orders: mpsc::Sender<Order>,
    worker: JoinHandle<Result<Box<dyn BlobWriter>>>,
    collected: Vec<u8>,
    offset: u64,
    size: u64,
    told: TransferProgress,
    told_at: Instant,
}

/// The writer has given up; [`Pump::finish`] says why.
#[derive(Debug)]
pub(super) struct Stopped;

impl Pump {
    /// Begins at the writer's offset; there will be `size` bytes in all.
    pub(super) fn start(writer: Box<dyn BlobWriter>, size: u64, told: TransferProgress) -> Self {
        let (orders, receiver) = mpsc::channel(AHEAD);
        let offset = writer.offset();
        told(offset, size);
        let worker = tokio::task::spawn_blocking(move || work(writer, receiver));
        let told_at = Instant::now();
        Self { orders, worker, collected: Vec::new(), offset, size, told, told_at }
    }

    /// Bytes that are there or on their way.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Stopped> {
        self.offset += bytes.len() as u64;
        if self.collected.len() + bytes.len() > PIECE || bytes.len() >= SMALL {
            self.hand_on().await?;
        }
        if bytes.len() >= SMALL {
            self.order(Order::Write(bytes)).await?;
            self.tell();
        } else {
            if self.collected.capacity() == 0 {
                self.collected.reserve_exact(PIECE);
            }
            self.collected.extend_from_slice(&bytes);
            if self.told_at.elapsed() >= BEAT {
                self.tell();
            }
        }
        Ok(())
    }

    /// Hands on what is collected.
    pub(super) async fn flush(&mut self) -> Result<(), Stopped> {
        self.hand_on().await?;
        self.tell();
        Ok(())
    }

    async fn hand_on(&mut self) -> Result<(), Stopped> {
        if self.collected.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.collected);
        self.order(Order::Write(piece.into())).await
    }

    /// Throws everything away and begins at 0.
    pub(super) async fn restart(&mut self) -> Result<(), Stopped> {
        self.collected.clear();
        self.offset = 0;
        self.order(Order::Restart).await?;
        self.tell();
        Ok(())
    }

    /// The writer, when it has written everything.
    ///
    /// # Errors
    ///
    /// Why it could not.
    pub(super) async fn finish(self) -> Result<Box<dyn BlobWriter>> {
        let Self { orders, worker, .. } = self;
        drop(orders);
        worker.await?
    }

    async fn order(&self, order: Order) -> Result<(), Stopped> {
        self.orders.send(order).await.map_err(|_| Stopped)
    }

    fn tell(&mut self) {
        (self.told)(self.offset, self.size);
        self.told_at = Instant::now();
    }
}

fn work(
    mut writer: Box<dyn BlobWriter>,
    mut orders: mpsc::Receiver<Order>,
) -> Result<Box<dyn BlobWriter>> {
    while let Some(order) = orders.blocking_recv() {
        match order {
            Order::Write(bytes) => {
                writer.write_all(&bytes).map_err(|e| Error::io("write", "a blob", e))?;
            }
            Order::Restart => writer.restart()?,
        }
    }
    Ok(writer)
}

/// A writer that stopped without an error is a defect.
pub(super) fn without_reason() -> Error {
    Error::new(ErrorKind::Internal, "the writer of a blob ended without a word")
}
