//! Registration and configuration.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use gantry_sdk::events::EventBus;
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
use crate::admin::{Admin, command, handlers};
use crate::info::StorageInfo;
use crate::store::{Parts, open_with_admin};

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Layers::NAME, "default"), Provide::new(Info::NAME, "storage")],
    needs: &[Need::Kind(Storage::NAME), Need::Kind(Blobs::NAME), Need::Kind(Metadata::NAME)],
    routes: handlers::ROUTES,
    commands: command::COMMANDS,
    config: &[ConfigKey::fixed("storage-driver"), ConfigKey::fixed("storage-opts")],
    check_config,
    check_section: Rules::check,
    ..Descriptor::new("layers", Phase::Storage)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(LayersPlugin::default())) }

#[derive(Default)]
struct LayersPlugin(OnceLock<(Arc<Admin>, EventBus)>);

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

/// Options are their drivers' business, who check those of their own. Here only what can belong to none.
fn check_config(view: &ConfigView) -> Vec<String> {
    let config: Config = match view.parse() {
        Ok(config) => config,
        Err(error) => return vec![error.chain()],
    };
    let mistake = |option: &String| {
        let (name, _) = option.split_once('=')?;
        let driver = name.split_once('.').map(|(driver, _)| driver.to_ascii_lowercase());
        match driver.as_deref() {
            None => Some(format!("storage-opts: {name:?} does not begin with a driver's name")),
            Some(gone @ ("dm" | "zfs" | "aufs" | "devicemapper" | "windowsfilter")) => {
                Some(format!("storage-opts: {name:?}: there is no storage driver {gone}"))
            }
            Some(_) => None,
        }
    };
    config.storage_opts.iter().filter_map(mistake).collect()
}

/// Sees that every option has a driver that has read it.
fn check_options(registry: &Registry, options: &[String]) -> Result<()> {
    let ready: Vec<String> = registry.all::<Storage>().into_iter().map(|(name, _)| name).collect();
    for option in options {
        let name = option.split('=').next().unwrap_or_default();
        let driver = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
        if name.eq_ignore_ascii_case(WITHOUT_EFFECT) {
            tracing::warn!(option = WITHOUT_EFFECT, "The storage option has no effect.");
        } else if !ready.contains(&driver) {
            let ready = ready.join(", ");
            return Err(Error::invalid(format!(
                "storage-opts: {name:?}: there is no storage driver {driver} here (available: {ready})"
            )));
        }
    }
    Ok(())
}

#[async_trait]
impl Plugin for LayersPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let config: Config = cx.config.parse()?;
        check_options(&cx.registry, &config.storage_opts)?;
        let (store, admin) = open_with_admin(Parts {
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
        handlers::bind(cx, &admin);
        let _ = self.0.set((admin, cx.events.clone()));
        Ok(Init::Ready)
    }

    /// Only now those who have containers can say what became of them.
    async fn started(&self) -> Result<()> {
        if let Some((admin, events)) = self.0.get() {
            admin.clone().spawn(events.clone());
        }
        Ok(())
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
    for name in ["overlay2", "fuse-overlayfs", "vfs"] {
        if ready.iter().any(|instance| instance == name) {
            match name {
                "vfs" => tracing::warn!(
                    "Overlay mounts do not work here: every layer will be a whole copy."
                ),
                "fuse-overlayfs" => tracing::warn!(
                    "The kernel's overlay mounts do not work here: a program serves each, slowly."
                ),
                _ => {}
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
        let check = |options: &[&str]| {
            check_config(&view(serde_json::json!({ "storage-opts": options }))).len()
        };
        assert_eq!(check(&["overlay2.override_kernel_check=true", "overlay2.size=10G"]), 0);
        assert_eq!(check(&["dm.basesize=20G", "zfs.fsname=x", "size=10G"]), 3);
        assert!(check_config(&view(serde_json::json!({ "storage-driver": "vfs" }))).is_empty());
    }
}
