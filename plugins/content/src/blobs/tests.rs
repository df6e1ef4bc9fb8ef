//! The store on a directory, with owners and sources made up by the test.

use std::collections::BTreeSet;
use std::io::Write;

use gantry_sdk::kinds::blobs::{BlobSource, BlobSources, ContentOwner, ContentOwners, Droppable};
use gantry_sdk::mounts::Grants;
use gantry_sdk::{ErrorKind, registry::Kind as _};
use sha2::{Digest as _, Sha256};

use super::*;

mod collecting;
mod full;
mod retaining;
mod writing;

/// An owner that wants what it is told to.
#[derive(Debug, Default)]
struct Owner {
    wanted: Mutex<BTreeSet<Digest>>,
    droppable: Mutex<Vec<Droppable>>,
    fails: AtomicBool,
}

impl Owner {
    fn want(&self, digest: &Digest) {
        self.wanted.lock().unwrap().insert(digest.clone());
    }

    fn offer(&self, digest: &Digest, unpacked: bool, remote: bool) {
        let source = "example.org/app".to_owned();
        let offer = Droppable { digest: digest.clone(), source, unpacked, remote };
        self.droppable.lock().unwrap().push(offer);
    }
}

#[async_trait]
impl ContentOwner for Owner {
    async fn wanted(&self, _: &Ctx) -> Result<Vec<Digest>> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(Error::unavailable("cannot say"));
        }
        Ok(self.wanted.lock().unwrap().iter().cloned().collect())
    }

    async fn droppable(&self, _: &Ctx) -> Result<Vec<Droppable>> {
        Ok(self.droppable.lock().unwrap().clone())
    }
}

/// A store, its directory and its one owner.
struct World {
    dir: tempfile::TempDir,
    owner: Arc<Owner>,
    registry: Arc<Registry>,
    blobs: Arc<FileBlobs>,
    cx: Ctx,
}

impl World {
    fn new() -> Self {
        Self::with(Retention::Keep)
    }

    fn with(retention: Retention) -> Self {
        let (dir, owner) = (tempfile::tempdir().unwrap(), Arc::<Owner>::default());
        let registry = Arc::<Registry>::default();
        registry.provide::<ContentOwners>("test", owner.clone(), Grants::default(), false).unwrap();
        let blobs = open(dir.path(), &registry, retention);
        Self { dir, owner, registry, blobs, cx: Ctx::background() }
    }

    /// The same after the daemon was killed: nothing gets a chance to clean up.
    fn killed(self) -> Self {
        let Self { dir, owner, registry, blobs, cx } = self;
        std::mem::forget(blobs);
        let blobs = open(dir.path(), &registry, Retention::Keep);
        Self { dir, owner, registry, blobs, cx }
    }

    async fn lease(&self) -> Lease {
        self.blobs.lease(&self.cx).await.unwrap()
    }

    async fn put(&self, content: &[u8], expected: Option<&Digest>) -> Result<BlobInfo> {
        let mut writer = self.blobs.writer(&self.cx, &self.lease().await).await?;
        writer.write_all(content).unwrap();
        writer.commit(expected)
    }

    async fn resume(&self, content: &[u8]) -> Result<Box<dyn BlobWriter>> {
        self.blobs.resume(&self.cx, &digest(content), &self.lease().await).await
    }

    /// Leaves the first half of `content` behind.
    async fn leave_half(&self, content: &[u8]) -> Digest {
        let mut writer = self.resume(content).await.unwrap();
        writer.write_all(&content[..content.len() / 2]).unwrap();
        digest(content)
    }

    async fn is_here(&self, digest: &Digest) -> bool {
        self.blobs.stat(&self.cx, digest).await.is_ok()
    }

    fn files(&self, dir: &str) -> usize {
        fs::read_dir(self.dir.path().join(dir)).unwrap().count()
    }
}

fn open(dir: &Path, registry: &Arc<Registry>, retention: Retention) -> Arc<FileBlobs> {
    let blobs = FileBlobs::open(dir, registry.clone()).unwrap().with_retention(retention);
    blobs.owners_complete();
    Arc::new(blobs)
}

fn digest(content: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(content).into())
}

/// Bytes that do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}
