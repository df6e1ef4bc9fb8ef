//! Registration, and the question whether this host can mount overlays here.

use async_trait::async_trait;
use gantry_layer_dirs::{Instances, SIZE, STORAGE_OPTS, check_options, serve};
use gantry_sdk::kinds::storage::Storage;
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    ConfigKey, Context, Descriptor, Init, Phase, Plugin, Provide, Registration, Result,
};

use crate::{Overlay2, STEPS};

const NAME: &str = "overlay2";

/// Its options in `storage-opts`, all of which are sizes.
const SIZES: &[&str] = &[SIZE];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Storage::NAME, NAME)],
    config: &[ConfigKey::fixed(STORAGE_OPTS)],
    check_config: |view| check_options(view, NAME, SIZES),
    check_section: Instances::check,
    required: false,
    ..Descriptor::new("storage.overlay2", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(Overlay2Plugin)) }

struct Overlay2Plugin;

#[async_trait]
impl Plugin for Overlay2Plugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let mounts = cx.mounts.clone();
        let usable = move |layers, grants| {
            let mounts = mounts.clone();
            async move {
                Overlay2::new(layers).probe(&grants, mounts.as_ref()).await.map_err(|e| e.chain())
            }
        };
        match serve(cx, NAME, STEPS, SIZES, Overlay2::new, usable).await? {
            None => Ok(Init::Ready),
            Some(why) => Ok(Init::Skipped(format!("overlay mounts do not work: {why}"))),
        }
    }
}
