//! Registration.

use async_trait::async_trait;
use gantry_layer_dirs::{Instances, SIZE, STORAGE_OPTS, check_options, serve};
use gantry_sdk::kinds::storage::Storage;
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    ConfigKey, Context, Descriptor, Init, Phase, Plugin, Provide, Registration, Result,
};

use crate::{STEPS, Vfs};

const NAME: &str = "vfs";

/// Its options in `storage-opts`, all of which are sizes.
const SIZES: &[&str] = &[SIZE];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Storage::NAME, NAME)],
    config: &[ConfigKey::fixed(STORAGE_OPTS)],
    check_config: |view| check_options(view, NAME, SIZES),
    check_section: Instances::check,
    required: false,
    ..Descriptor::new("storage.vfs", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(VfsPlugin)) }

struct VfsPlugin;

#[async_trait]
impl Plugin for VfsPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        match serve(cx, NAME, STEPS, SIZES, Vfs::new, |_, _| async { Ok(()) }).await? {
            None => Ok(Init::Ready),
            Some(why) => Ok(Init::Skipped(why)),
        }
    }
}
