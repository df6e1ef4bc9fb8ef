//! Registration, and the question whether this host can mount images here.

use async_trait::async_trait;
use gantry_layer_dirs::{Instances, SIZE, STORAGE_OPTS, check_options, serve};
use gantry_sdk::kinds::storage::Storage;
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    ConfigKey, Context, Descriptor, Init, Phase, Plugin, Provide, Registration, Result,
};

use crate::{Erofs, STEPS};

const NAME: &str = "erofs";

/// Its options in `storage-opts`, all of which are sizes.
const SIZES: &[&str] = &[SIZE];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Storage::NAME, NAME)],
    config: &[ConfigKey::fixed(STORAGE_OPTS)],
    check_config: |view| check_options(view, NAME, SIZES),
    check_section: Instances::check,
    required: false,
    ..Descriptor::new("storage.erofs", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(ErofsPlugin)) }

struct ErofsPlugin;

#[async_trait]
impl Plugin for ErofsPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let mounts = cx.mounts.clone();
        let usable = move |layers, grants| {
            let mounts = mounts.clone();
            async move {
                Erofs::new(layers).probe(&grants, mounts.as_ref()).await.map_err(|e| e.chain())
            }
        };
        match serve(cx, NAME, STEPS, SIZES, Erofs::new, usable).await? {
            None => Ok(Init::Ready),
            Some(why) => Ok(Init::Skipped(format!("EROFS images cannot be mounted: {why}"))),
        }
    }
}
