//! Registration, and the question whether the data lies on Btrfs.

use async_trait::async_trait;
use gantry_layer_dirs::{Instances, Layers, SIZE, STORAGE_OPTS, check_options, serve};
use gantry_sdk::kinds::storage::{Storage, StorageDriver};
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    ConfigKey, Context, Ctx, Descriptor, Init, Labels, Phase, Plugin, Provide, Registration, Result,
};
use std::sync::Arc;

use crate::driver::MIN_SPACE;
use crate::{Btrfs, STEPS};

const NAME: &str = "btrfs";

/// Its options in `storage-opts`, all of which are sizes.
const SIZES: &[&str] = &[SIZE, MIN_SPACE];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Storage::NAME, NAME)],
    config: &[ConfigKey::fixed(STORAGE_OPTS)],
    check_config: |view| check_options(view, NAME, SIZES),
    check_section: Instances::check,
    required: false,
    ..Descriptor::new("storage.btrfs", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(BtrfsPlugin)) }

struct BtrfsPlugin;

#[async_trait]
impl Plugin for BtrfsPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let usable = |layers, _| async move { probe(layers).await };
        match serve(cx, NAME, STEPS, SIZES, Btrfs::new, usable).await? {
            None => Ok(Init::Ready),
            Some(why) => Ok(Init::Skipped(why)),
        }
    }
}

/// Makes a snapshot, where the file system is the right one: it may still not be allowed to.
async fn probe(layers: Arc<Layers>) -> std::result::Result<(), String> {
    if !layers.is_on_btrfs() {
        let (root, found) = (layers.root().display(), layers.backing_file_system());
        return Err(format!("{root} lies on {found}, not on btrfs"));
    }
    const KEYS: [&str; 3] = ["probe-child", "probe-parent", "probe-making"];
    let (driver, cx) = (Btrfs::new(layers), Ctx::background());
    let clean = async || {
        for key in KEYS {
            driver.remove(&cx, key).await?;
        }
        Ok(())
    };
    let outcome: Result<()> = async {
        clean().await?;
        driver.prepare(&cx, KEYS[2], None, &Labels::new()).await?;
        driver.commit(&cx, KEYS[2], KEYS[1]).await?;
        driver.prepare(&cx, KEYS[0], Some(KEYS[1]), &Labels::new()).await?;
        clean().await
    }
    .await;
    outcome.map_err(|error| format!("snapshots do not work: {}", error.chain()))
}
