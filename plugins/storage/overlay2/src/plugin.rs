//! Registration, and the question whether this host can mount overlays here.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_layer_dirs::{Layers, serve};
use gantry_sdk::kinds::storage::{Storage, StorageDriver};
use gantry_sdk::mounts::{Grants, MountExecutor};
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    Context, Ctx, Descriptor, Init, Labels, Phase, Plugin, Provide, Registration, Result,
};

use crate::{Overlay2, STEPS};

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Storage::NAME, "overlay2")],
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
            async move { probe(layers, &grants, mounts.as_ref()).await.map_err(|e| e.chain()) }
        };
        match serve(cx, "overlay2", STEPS, Overlay2::new, usable).await? {
            None => Ok(Init::Ready),
            Some(why) => Ok(Init::Skipped(format!("overlay mounts do not work: {why}"))),
        }
    }
}

/// Makes an overlay on two empty layers. Nothing else answers for certain: it depends on the
/// kernel, on the file system beneath, and on being allowed to.
async fn probe(layers: Arc<Layers>, grants: &Grants, mounts: &dyn MountExecutor) -> Result<()> {
    const KEYS: [&str; 3] = ["probe-upper", "probe-lower", "probe-making"];
    let driver = Overlay2::new(layers);
    let cx = Ctx::background();
    for key in KEYS {
        driver.remove(&cx, key).await?;
    }
    let outcome = async {
        driver.prepare(&cx, KEYS[2], None, &Labels::new()).await?;
        driver.commit(&cx, KEYS[2], KEYS[1]).await?;
        let plan = driver.prepare(&cx, KEYS[0], Some(KEYS[1]), &Labels::new()).await?;
        mounts.mount(&cx, &plan, grants).await.map(drop)
    }
    .await;
    for key in KEYS {
        driver.remove(&cx, key).await?;
    }
    outcome
}
