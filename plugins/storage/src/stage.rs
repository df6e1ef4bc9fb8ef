//! Archives that come before anybody knows what they stand on.

use std::io::{self, Read};
use std::sync::Arc;

use gantry_archive::{ArchiveError, Chunks, Compression, decompressed};
use gantry_sdk::Result;
use gantry_sdk::kinds::layers::Staged;

use crate::store::Store;
use crate::unpack::explain;

impl Store {
    /// See [`LayerStore::stage`](gantry_sdk::kinds::layers::LayerStore::stage).
    pub(crate) async fn stage_layer(&self, source: Box<dyn Read + Send>) -> Result<Staged> {
        let drain = |chunks: &mut Chunks| {
            io::copy(chunks, &mut io::sink()).map(drop).map_err(ArchiveError::Read)
        };
        let ((), passed) = tokio::task::spawn_blocking(move || decompressed(source, drain))
            .await?
            .map_err(explain)?;
        let compression = match passed.compression {
            Compression::None => "",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        Ok(Staged {
            diff_id: passed.diff_id.parse()?,
            blob: passed.digest.unwrap_or_default().parse()?,
            bytes: passed.bytes,
            compression: compression.to_owned(),
            unpacked: passed.diff_bytes,
            hold: Arc::new(()),
        })
    }
}
