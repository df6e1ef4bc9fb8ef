//! What the layer store knows about chains, whatever instance holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layers::Chain;
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::{Ctx, Error, Result};

/// Table of the metadata database.
///
/// | key | value |
/// |---|---|
/// | `chain/<chain id>` | the [`Chain`], to unpack it again when nobody says it |
/// | `size/<chain id>` | apparent bytes of the files in its topmost layer |
const TABLE: &str = "layers";

/// Chains and sizes, in memory and in the database.
pub(crate) struct Records {
    metadata: Arc<dyn MetadataStore>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    chains: BTreeSet<Digest>,
    sizes: BTreeMap<Digest, u64>,
    unsaved: BTreeSet<Digest>,
}

impl Records {
    /// Reads what there is.
    pub(crate) async fn open(metadata: Arc<dyn MetadataStore>, cx: &Ctx) -> Result<Self> {
        let mut known = Known::default();
        for (key, value) in metadata.scan(cx, TABLE, "").await? {
            match key.split_once('/') {
                Some(("chain", id)) => drop(known.chains.insert(id.parse()?)),
                Some(("size", id)) => {
                    let size = serde_json::from_slice(&value)
                        .map_err(|e| Error::internal(format!("cannot read record {key}"), e))?;
                    known.sizes.insert(id.parse()?, size);
                }
                _ => tracing::warn!(key, "A record of layers is not understood."),
            }
        }
        Ok(Self { metadata, known: Mutex::new(known) })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size of the layer on top of chain `id`.
    pub(crate) fn size(&self, id: &Digest) -> Option<u64> {
        self.known().sizes.get(id).copied()
    }

    /// Remembers a size; written with the next chain.
    pub(crate) fn note_size(&self, id: &Digest, bytes: u64) {
        let mut known = self.known();
        if known.sizes.insert(id.clone(), bytes) != Some(bytes) {
            known.unsaved.insert(id.clone());
        }
    }

    /// Remembers a chain for good. Costs nothing for a known one.
    pub(crate) async fn note_chain(&self, cx: &Ctx, chain: &Chain) -> Result<()> {
        let Some(id) = chain.id() else { return Ok(()) };
        let mut changes = Vec::new();
        let saved: BTreeSet<Digest> = {
            let mut known = self.known();
            if known.chains.contains(&id) && known.unsaved.is_empty() {
                return Ok(());
            }
            for layer in &known.unsaved {
                if let Some(bytes) = known.sizes.get(layer) {
                    changes.push(Change::put_json(TABLE, format!("size/{layer}"), bytes)?);
                }
            }
            std::mem::take(&mut known.unsaved)
        };
        changes.push(Change::put_json(TABLE, format!("chain/{id}"), chain)?);
        let written = self.metadata.commit(cx, changes).await;
        let mut known = self.known();
        match written {
            Ok(()) => drop(known.chains.insert(id)),
            Err(_) => known.unsaved.extend(saved),
        }
        written
    }

    /// The chain `id`, if it was ever unpacked.
    pub(crate) async fn chain(&self, cx: &Ctx, id: &Digest) -> Result<Option<Chain>> {
        let key = format!("chain/{id}");
        let Some(value) = self.metadata.get(cx, TABLE, &key).await? else { return Ok(None) };
        serde_json::from_slice(&value)
            .map(Some)
            .map_err(|e| Error::internal(format!("cannot read record {key}"), e))
    }

    /// Forgets chains that no instance holds any more.
    pub(crate) async fn forget(&self, cx: &Ctx, gone: &BTreeSet<Digest>) -> Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let changes = gone.iter().flat_map(|id| {
            ["chain", "size"].map(|kind| Change::delete(TABLE, format!("{kind}/{id}")))
        });
        self.metadata.commit(cx, changes.collect()).await?;
        let mut known = self.known();
        for id in gone {
            known.chains.remove(id);
            known.sizes.remove(id);
            known.unsaved.remove(id);
        }
        Ok(())
    }
}
