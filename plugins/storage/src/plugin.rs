//! Registration and configuration.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::blobs::Blobs;
use gantry_sdk::kinds::info::Info;
use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::kinds::metadata::Metadata;
use gantry_sdk::kinds::storage::Storage;
use gantry_sdk::registry::{Kind, Registry};
use gantry_sdk::{
    ConfigKey, ConfigView, Context, Descriptor, Error, Init, Need, Phase, Plugin, Provide,
    Registration, Result,
};
use serde::Deserialize;

use crate::admin::rules::Rules;
use crate::info::StorageInfo;
use crate::store::{Parts, open};

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Layers::NAME, "default"), Provide::new(Info::NAME, "storage")],
    needs: &[Need::Kind(Storage::NAME), Need::Kind(Blobs::NAME), Need::Kind(Metadata::NAME)],
    config: &[ConfigKey::fixed("storage-driver"), ConfigKey::fixed("storage-opts")],
    check_config,
    ..Descriptor::new("layers", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(LayersPlugin)) }

struct LayersPlugin;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
struct Config {
    /// The default instance; empty lets the host decide.
    storage_driver: String,
    /// `driver.option=value`.
    storage_opts: Vec<String>,
}

/// Obsolete in the reference engine too, which reads it and does nothing; old files still have it.
const WITHOUT_EFFECT: &str = "overlay2.override_kernel_check";

fn check_config(view: &ConfigView) -> Vec<String> {
    let config: Config = match view.parse() {
        Ok(config) => config,
        Err(error) => return vec![error.chain()],
    };
    let name = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
    let options = config.storage_opts.iter().map(|option| name(option));
    options
        .filter(|name| name != WITHOUT_EFFECT)
        .map(|name| format!("storage-opts: option {name:?} is not supported by any storage driver"))
        .collect()
}

#[async_trait]
impl Plugin for LayersPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let config: Config = cx.config.parse()?;
        if !config.storage_opts.is_empty() {
            tracing::warn!(option = WITHOUT_EFFECT, "The storage option has no effect.");
        }
        let store = open(Parts {
            registry: cx.registry.clone(),
            mounts: cx.mounts.clone(),
            blobs: cx.registry.only::<Blobs>()?,
            metadata: cx.registry.only::<Metadata>()?,
            tasks: cx.tasks.clone(),
            default: default_instance(&cx.registry, &config.storage_driver)?,
            rules: Rules::parse(&cx.own_config, &instance_names(&cx.registry))?,
        })
        .await?;
        cx.provide::<Info>("storage", Arc::new(StorageInfo(store.clone())))?;
        cx.provide::<Layers>("default", store)?;
        Ok(Init::Ready)
    }
}

/// Every instance that there is, usable or not.
fn instance_names(registry: &Registry) -> Vec<String> {
    let slots = registry.slots().into_iter();
    slots.filter(|(kind, ..)| *kind == Storage::NAME).map(|(_, name, _)| name).collect()
}

/// The configured instance, or nothing else; without configuration the best of what is there.
fn default_instance(registry: &Registry, configured: &str) -> Result<String> {
    let ready: Vec<String> = registry.all::<Storage>().into_iter().map(|(name, _)| name).collect();
    if !configured.is_empty() {
        return match registry.get::<Storage>(configured) {
            Ok(_) => Ok(configured.to_owned()),
            Err(error) => {
                let names = ready.join(", ");
                Err(error.context(format!("storage-driver {configured:?} (available: {names})")))
            }
        };
    }
    // Never by accident one that somebody configured for a purpose of its own.
    for (name, is_slow) in [("overlay2", false), ("vfs", true)] {
        if ready.iter().any(|instance| instance == name) {
            if is_slow {
                tracing::warn!(
                    "Overlay mounts do not work here: every layer will be a whole copy."
                );
            }
            return Ok(name.to_owned());
        }
    }
    Err(Error::unavailable("no storage driver is available; name one by storage-driver"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_refused_by_name() {
        let view = |json: serde_json::Value| {
            ConfigView::new(json.as_object().cloned().unwrap_or_default())
        };
        let options = ["overlay2.override_kernel_check=true", "overlay2.size=10G"];
        let mistakes = check_config(&view(serde_json::json!({ "storage-opts": options })));
        assert_eq!(mistakes.len(), 1);
        assert!(mistakes[0].contains("overlay2.size"), "{mistakes:?}");
        assert!(check_config(&view(serde_json::json!({ "storage-driver": "vfs" }))).is_empty());
    }
}
