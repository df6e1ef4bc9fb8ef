//! Registration.

use async_trait::async_trait;
use gantry_layer_dirs::serve;
use gantry_sdk::kinds::storage::Storage;
use gantry_sdk::registry::Kind;
use gantry_sdk::{Context, Descriptor, Init, Phase, Plugin, Provide, Registration, Result};

use crate::{STEPS, Vfs};

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Storage::NAME, "vfs")],
    required: false,
    ..Descriptor::new("storage.vfs", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(VfsPlugin)) }

struct VfsPlugin;

#[async_trait]
impl Plugin for VfsPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        match serve(cx, "vfs", STEPS, Vfs::new, |_, _| async { Ok(()) }).await? {
            None => Ok(Init::Ready),
            Some(why) => Ok(Init::Skipped(why)),
        }
    }
}
