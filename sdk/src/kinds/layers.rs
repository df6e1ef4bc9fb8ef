//! The layer store: images' chains of layers, unpacked by a storage instance on demand, and the
//! writable layers of containers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::Digest;
use crate::mounts::MountFd;
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

/// A container's writable layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLayer {
    /// The container's id.
    pub key: String,
    /// The storage instance that holds it, remembered by the container.
    pub instance: String,
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
    pub trait LayerStore: Layers = "layers" (1, 0), budget None => {
        /// Sees that `chain` is unpacked in `instance` (none: the default).
        async fn unpack(&self, cx: &Ctx, chain: &Chain, instance: Option<&str>, progress: Option<LayerProgress>) -> Result<()>;

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

        /// Mounts the image below a container, read-only and detached; for copying image content
        /// into volumes and for comparisons.
        async fn mount_chain(&self, cx: &Ctx, chain: &Chain, instance: Option<&str>) -> Result<MountFd>;

        /// Removes a container's layer; a missing one is no error.
        async fn remove(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<()>;

        /// Bytes that the container wrote.
        async fn usage(&self, cx: &Ctx, layer: &ContainerLayer) -> Result<u64>;

        /// Bytes of an unpacked chain, summed over its layers; 0 for what is not unpacked.
        async fn chain_usage(&self, cx: &Ctx, chain: &Chain) -> Result<u64>;

        /// Bytes of every unpacked layer by chain id, each counted once.
        async fn chain_sizes(&self, cx: &Ctx) -> Result<Vec<(Digest, u64)>>;

        /// Forgets unpacked chains that no longer belong to any of `keep` and carry no container.
        async fn collect(&self, cx: &Ctx, keep: &[Chain]) -> Result<()>;

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
