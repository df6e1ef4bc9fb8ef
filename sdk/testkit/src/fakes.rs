//! Blobs and metadata in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, BlobLease, BlobStore, BlobWriter, Collected, Lease};
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::{Ctx, Error, Result};
use sha2::{Digest as _, Sha256};

/// Blobs in memory; [`Blobs::put`] and writers fill it, and nothing but [`BlobStore::remove`] empties
/// it. Clones are the same store.
#[derive(Clone, Debug, Default)]
pub struct Blobs(Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>);

impl Blobs {
    fn map(&self) -> MutexGuard<'_, BTreeMap<Digest, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores `data` and returns its digest.
    pub fn put(&self, data: impl Into<Vec<u8>>) -> Digest {
        let data = data.into();
        let digest = Digest::from_sha256(&Sha256::digest(&data).into());
        self.map().insert(digest.clone(), data);
        digest
    }

    /// Stores `data` under a digest that is not its own.
    pub fn put_wrongly(&self, digest: &Digest, data: impl Into<Vec<u8>>) {
        self.map().insert(digest.clone(), data.into());
    }

    fn find(&self, digest: &Digest) -> Result<Vec<u8>> {
        let found = self.map().get(digest).cloned();
        found.ok_or_else(|| Error::not_found(format!("no blob {digest}")))
    }
}

#[async_trait]
impl BlobStore for Blobs {
    async fn stat(&self, _: &Ctx, digest: &Digest) -> Result<BlobInfo> {
        let size = self.find(digest)?.len() as u64;
        Ok(BlobInfo { digest: digest.clone(), size })
    }

    async fn open(&self, _: &Ctx, digest: &Digest) -> Result<File> {
        let data = self.find(digest)?;
        let fail = |e| Error::io("write", "a temporary file", e);
        let mut file = tempfile::tempfile().map_err(fail)?;
        file.write_all(&data).map_err(fail)?;
        file.rewind().map_err(fail)?;
        Ok(file)
    }

    async fn read(&self, _: &Ctx, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let data = self.find(digest)?;
        if data.len() as u64 > limit {
            return Err(Error::invalid(format!("blob {digest} is larger than {limit} bytes")));
        }
        Ok(data)
    }

    async fn lease(&self, _: &Ctx) -> Result<Lease> {
        Ok(Arc::new(NoLease))
    }

    async fn writer(&self, _: &Ctx, _: &Lease) -> Result<Box<dyn BlobWriter>> {
        Ok(Box::new(Writer { blobs: self.clone(), data: Vec::new() }))
    }

    async fn resume(&self, _: &Ctx, digest: &Digest, _: &Lease) -> Result<Box<dyn BlobWriter>> {
        match self.find(digest) {
            Ok(_) => Err(Error::exists(format!("blob {digest} is here already"))),
            Err(_) => Err(Error::unsupported("this fake is filled by the test")),
        }
    }

    async fn follow(&self, cx: &Ctx, digest: &Digest) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.open(cx, digest).await?))
    }

    async fn partials(&self, _: &Ctx) -> Result<Vec<BlobInfo>> {
        Ok(Vec::new())
    }

    async fn discard_partial(&self, _: &Ctx, _: &Digest) -> Result<()> {
        Ok(())
    }

    async fn remove(&self, _: &Ctx, digest: &Digest) -> Result<()> {
        self.map().remove(digest);
        Ok(())
    }

    async fn list(&self, _: &Ctx) -> Result<Vec<BlobInfo>> {
        let info = |(digest, data): (&Digest, &Vec<u8>)| BlobInfo {
            digest: digest.clone(),
            size: data.len() as u64,
        };
        Ok(self.map().iter().map(info).collect())
    }

    async fn collect(&self, _: &Ctx) -> Result<Collected> {
        Ok(Collected::default())
    }
}

/// A blob in the making.
struct Writer {
    blobs: Blobs,
    data: Vec<u8>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.data.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for Writer {
    fn offset(&self) -> u64 {
        self.data.len() as u64
    }

    fn restart(&mut self) -> Result<()> {
        self.data.clear();
        Ok(())
    }

    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<BlobInfo> {
        let size = self.data.len() as u64;
        let digest = Digest::from_sha256(&Sha256::digest(&self.data).into());
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(Error::invalid(format!("blob {expected} has digest {digest}")));
        }
        self.blobs.map().insert(digest.clone(), self.data);
        Ok(BlobInfo { digest, size })
    }
}

/// Nothing is collected here, so nothing has to be kept.
#[derive(Debug)]
struct NoLease;

impl BlobLease for NoLease {
    fn pin(&self, _: &Digest) {}
}

type Rows = BTreeMap<(&'static str, String), Vec<u8>>;

/// The metadata database in memory.
#[derive(Debug, Default)]
pub struct Metadata(Mutex<Rows>);

impl Metadata {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MetadataStore for Metadata {
    async fn get(&self, _: &Ctx, table: &'static str, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.rows().get(&(table, key.to_owned())).cloned())
    }

    async fn scan(
        &self,
        _: &Ctx,
        table: &'static str,
        prefix: &str,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let rows = self.rows();
        let wanted = rows.iter().filter(|((t, key), _)| *t == table && key.starts_with(prefix));
        Ok(wanted.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, _: &Ctx, changes: Vec<Change>) -> Result<()> {
        let mut rows = self.rows();
        for change in &changes {
            if let Change::Expect { table, key, value } = change
                && rows.get(&(*table, key.clone())) != value.as_ref()
            {
                return Err(Error::conflict(format!("record {key} has changed")));
            }
        }
        for change in changes {
            match change {
                Change::Put { table, key, value } => drop(rows.insert((table, key), value)),
                Change::Delete { table, key } => drop(rows.remove(&(table, key))),
                Change::Expect { .. } => {}
            }
        }
        Ok(())
    }
}
