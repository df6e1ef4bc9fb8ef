//! Registration, and the question whether this host can mount anything here.

use async_trait::async_trait;
use gantry_layer_dirs::{Instances, SIZE, STORAGE_OPTS, check_options, serve};
use gantry_sdk::kinds::storage::Storage;
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    ConfigKey, Context, Descriptor, Init, Phase, Plugin, Provide, Registration, Result,
};

use crate::{FuseOverlayfs, STEPS};

const NAME: &str = "fuse-overlayfs";

/// Its options in `storage-opts`, all of which are sizes.
const SIZES: &[&str] = &[SIZE];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Storage::NAME, NAME)],
    config: &[ConfigKey::fixed(STORAGE_OPTS)],
    check_config: |view| check_options(view, NAME, SIZES),
    check_section: Instances::check,
    required: false,
    ..Descriptor::new("storage.fuse-overlayfs", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(FusePlugin)) }

struct FusePlugin;

#[async_trait]
impl Plugin for FusePlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let mounts = cx.mounts.clone();
        let usable = move |layers, grants| {
            let mounts = mounts.clone();
            async move {
                FuseOverlayfs::new(layers)
                    .probe(&grants, mounts.as_ref())
                    .await
                    .map_err(|e| e.chain())
            }
        };
        match serve(cx, NAME, STEPS, SIZES, FuseOverlayfs::new, usable).await? {
            None => Ok(Init::Ready),
            Some(why) => Ok(Init::Skipped(format!("fuse-overlayfs does not work: {why}"))),
        }
    }
}
