//! The layer store: images' chains of layers, unpacked by a storage instance on demand, and the
//! writable layers of containers.

use std::any::Any;
use std::io::{Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::Digest;
use crate::mounts::{IdMap, MountFd};
use crate::{Labels, kind};

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainLayer {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// The blob that holds it, possibly compressed.
    pub blob: Digest,
}

/// The layers of an image, base first. May be empty (`FROM scratch`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain(pub Vec<ChainLayer>);

impl Chain {
    /// The identity of the whole stack; none for an empty one.
    pub fn id(&self) -> Option<Digest> {
        self.ids().pop()
    }

    /// The identities of the stack's prefixes, base first.
    ///
    /// Source: OCI image specification, *Image Configuration*, "Layer ChainID".
    pub fn ids(&self) -> Vec<Digest> {
        let mut ids: Vec<Digest> = Vec::with_capacity(self.0.len());
        for layer in &self.0 {
            let id = match ids.last() {
                None => layer.diff_id.clone(),
                Some(below) => {
                    let text = format!("{below} {}", layer.diff_id);
                    Digest::from_sha256(&Sha256::digest(text.as_bytes()).into())
                }
            };
            ids.push(id);
        }
        ids
    }
}

/// Progress of unpacking: the layer's diff id, bytes done, bytes in all (0: unknown).
pub type LayerProgress = Arc<dyn Fn(&Digest, u64, u64) + Send + Sync>;

/// Keeps something for as long as it lives; what, is said by who gives it.
pub type Hold = Arc<dyn Any + Send + Sync>;

/// What is known of a layer's archive that has passed through [`LayerStore::stage`].
#[derive(Clone, Debug)]
pub struct Staged {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Digest of the archive as it came.
    pub blob: Digest,
    /// Its bytes as it came.
    pub bytes: u64,
    /// `gzip`, `zstd`, or nothing for an uncompressed one.
    pub compression: String,
    /// Its bytes uncompressed.
    pub unpacked: u64,
    /// Keeps what was unpacked on the way, until a chain takes it.
    pub hold: Hold,
}

/// One path that a container changed over its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerChange {
    /// Absolute; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// 0: modified, 1: added, 2: deleted.
    pub kind: u8,
}

/// A container's writable layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLayer {
    /// The container's id.
    pub key: String,
    /// The storage instance that holds it, remembered by the container.
    pub instance: String,
}

/// What the storage instance of a new container is chosen by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The instance that the user asks for.
    pub instance: Option<String>,
    /// The image as the user wrote it.
    pub image: String,
    /// The image's labels.
    pub labels: Labels,
    /// The runtime instance.
    pub runtime: String,
}

/// One row of `docker system df` or `docker info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceStatus {
    /// Instance name.
    pub name: String,
    /// Rows as `docker info` shows them.
    pub status: Vec<(String, String)>,
}

kind! {
    /// Layers of images and containers, whatever driver holds them.
    ///
    /// Unpacking is single-flight per chain and instance; an unpacked chain is a cache and is made
    /// again from blobs when it is missing.
    pub trait LayerStore: Layers = "layers" (1, 1), budget None => {
        /// Sees that `chain` is unpacked in `instance` (none: the default).
        ///
        /// Its blobs may still be arriving, as long as each is here or has a writer. What is missing
        /// is unpacked at the same time where the driver can. Dropping the future stops what nobody
        /// else waits for and no lease keeps.
        async fn unpack(&self, cx: &Ctx, chain: &Chain, instance: Option<&str>, progress: Option<LayerProgress>) -> Result<()>;

        /// Reads a layer's archive from `source` to its end and unpacks it on the way, where the driver
        /// of `instance` can do that without knowing what is below. The first chain with its diff id
        /// that is unpacked there takes the layer. `source` is read on a blocking thread.
        ///
        /// # Errors
        ///
        /// `InvalidArgument` for a damaged archive; `NoSpace`; what `source` reports.
        async fn stage(&self, cx: &Ctx, source: Box<dyn Read + Send>, instance: Option<&str>) -> Result<Staged>;

        /// Keeps the layers of `chain`, unpacked or to be, from [`LayerStore::collect`] while the
        /// result lives.
        async fn lease(&self, cx: &Ctx, chain: &Chain) -> Result<Hold>;

        /// The instance for a new container: the one that the user asks for, or that the image's label
        /// names if the configuration allows it, or that the first fitting rule of the configuration
        /// names, or the default.
        ///
        /// # Errors
        ///
        /// `InvalidArgument` for an instance that does not exist, `Unavailable` for one that is down.
        async fn choose(&self, cx: &Ctx, wanted: &Wanted) -> Result<String>;

        /// Makes the writable layer of a container on `chain`, unpacking it first if necessary.
        /// `options` are the user's `--storage-opt`.
        ///
        /// # Errors
        ///
        /// `InvalidArgument` for an unknown option; those of unpacking.
        async fn create(&self, cx: &Ctx, key: &str, chain: &Chain, instance: Option<&str>, options: &Labels) -> Result<ContainerLayer>;

        /// Mounts a container's tree, detached.
        ///
        /// # Errors
        ///
        /// `NotFound` if the layer is gone.
        async fn mount(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<MountFd>;

        /// As [`mount`](Self::mount), with owners seen through `ids`: for containers with user
        /// namespaces of their own over layers that all share.
        ///
        /// # Errors
        ///
        /// `Unsupported`, naming the driver or what the kernel said.
        async fn mount_mapped(&self, cx: &Ctx, layer: &ContainerLayer, ids: &IdMap) -> Result<MountFd>;

        /// Mounts the image below a container, read-only and detached; for copying image content
        /// into volumes and for comparisons.
        async fn mount_chain(&self, cx: &Ctx, chain: &Chain, instance: Option<&str>) -> Result<MountFd>;

        /// What a container changed over its image `chain`, in the order of paths.
        ///
        /// # Errors
        ///
        /// `NotFound` if the layer is gone.
        async fn changes(&self, cx: &Ctx, layer: &ContainerLayer, chain: &Chain) -> Result<Vec<LayerChange>>;

        /// The same as a layer's archive, not compressed, written to `out` on a blocking thread. That
        /// of an untouched layer has no members. `places` adds what was made for the mounts that every
        /// container has (`/etc/hosts` …), which is no change but lies in the layer.
        ///
        /// # Errors
        ///
        /// `NotFound` if the layer is gone; what `out` reports.
        async fn diff(&self, cx: &Ctx, layer: &ContainerLayer, chain: &Chain, places: bool, out: Box<dyn Write + Send>) -> Result<()>;

        /// Removes a container's layer; a missing one is no error.
        async fn remove(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<()>;

        /// Bytes that the container wrote.
        async fn usage(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<u64>;

        /// Bytes of an unpacked chain, summed over its layers; 0 for what is not unpacked.
        async fn chain_usage(&self, cx: &Ctx, chain: &Chain) -> Result<u64>;

        /// Bytes of every unpacked layer by chain id, each counted once.
        async fn chain_sizes(&self, cx: &Ctx) -> Result<Vec<(Digest, u64)>>;

        /// Forgets unpacked chains that no longer belong to any of `keep`, carry no container and are
        /// kept by no lease; leases that end meanwhile count. Answers before the disk is cleared.
        async fn collect(&self, cx: &Ctx, keep: &[Chain]) -> Result<()>;

        /// Bytes that are being removed in the background right now, over all instances.
        async fn removing(&self, cx: &Ctx) -> Result<u64>;

        /// What `docker inspect` shows as `GraphDriver` of a container.
        async fn details(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<Labels>;

        /// What `docker inspect` shows as `GraphDriver` of an image: driver name and data.
        async fn chain_details(&self, cx: &Ctx, chain: &Chain) -> Result<(String, Labels)>;

        /// Drops the container layers whose keys are not in `known`: leftovers of a crash. Called by
        /// the container store once at start.
        async fn reconcile(&self, cx: &Ctx, known: &[String]) -> Result<Vec<String>>;

        /// The instances: the default first.
        async fn instances(&self, cx: &Ctx) -> Result<Vec<InstanceStatus>>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let digest =
            |c: char| format!("sha256:{}", c.to_string().repeat(64)).parse::<Digest>().unwrap();
        let layer = |c| ChainLayer { diff_id: digest(c), blob: digest(c) };
        let chain = Chain(vec![layer('a'), layer('b')]);
        let ids = chain.ids();
        assert_eq!(ids[0], digest('a'));
        let text = format!("{} {}", digest('a'), digest('b'));
        assert_eq!(ids[1], Digest::from_sha256(&Sha256::digest(text.as_bytes()).into()));
    }
}
