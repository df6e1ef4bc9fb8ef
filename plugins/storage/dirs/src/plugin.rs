//! A driver's instances: the default one, and those of the plugin's own configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_sdk::kinds::storage::{Storage, StorageDriver};
use gantry_sdk::mounts::Grants;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Context, Error, Labels, Result};
use serde::Deserialize;

use crate::Layers;
use crate::options::{check_sizes, options_of};

/// A driver plugin's own section of the configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Instances {
    /// Instances beside the default one, by the name that users type.
    pub instances: BTreeMap<String, InstanceConfig>,
}

/// One named instance.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InstanceConfig {
    /// Where it keeps its layers, absolute.
    pub root: PathBuf,
    /// Options as in `storage-opts`, without the driver's name, in place of those there.
    #[serde(default)]
    pub options: Option<Labels>,
}

impl Instances {
    /// Every mistake of a driver's section, for
    /// [`Descriptor::check_section`](gantry_sdk::Descriptor::check_section).
    pub fn check(section: &serde_json::Value) -> Vec<String> {
        gantry_sdk::plugin::mistakes(Self::parse(section))
    }

    /// From [`Context::own_config`].
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the mistake.
    pub fn parse(own_config: &serde_json::Value) -> Result<Self> {
        if own_config.is_null() {
            return Ok(Self::default());
        }
        let parsed: Self = serde_json::from_value(own_config.clone()).map_err(|e| {
            Error::invalid("invalid configuration of storage instances").caused_by(e)
        })?;
        if let Some((name, _)) = parsed.instances.iter().find(|(_, i)| !i.root.is_absolute()) {
            return Err(Error::invalid(format!(
                "storage instance {name}: its root is not absolute"
            )));
        }
        Ok(parsed)
    }
}

/// Opens the default instance `name` in the data root and the configured ones, provides each as a
/// storage driver that may use `steps` in its plans, and starts the tasks that empty their trash.
///
/// Its plugin claims [`STORAGE_OPTS`](crate::STORAGE_OPTS); `sizes` are the driver's options there,
/// all of which are sizes.
///
/// `usable` sees each instance before it is provided and may refuse it with a reason; a refused
/// default instance is returned as `Some`. A configured one that is refused or cannot be opened is
/// known and down: what refers to it says why, and everything else works.
///
/// # Errors
///
/// Those of opening; `InvalidArgument` for a mistaken configuration.
pub async fn serve<D, F>(
    cx: &mut Context,
    name: &'static str,
    steps: &[&'static str],
    sizes: &[&str],
    make: impl Fn(Arc<Layers>) -> D,
    usable: impl Fn(Arc<Layers>, Grants) -> F,
) -> Result<Option<String>>
where
    D: StorageDriver,
    F: Future<Output = std::result::Result<(), String>>,
{
    let mut refused = None;
    let shared = options_of(&cx.config, name)?;
    let default = InstanceConfig { root: cx.data_dir(&format!("storage/{name}"))?, options: None };
    let configured = Instances::parse(&cx.own_config)?.instances;
    for (instance, config) in std::iter::once((name.to_owned(), default)).chain(configured) {
        let options = config.options.unwrap_or_else(|| shared.clone());
        if let Some(why) = check_sizes(&options, sizes).into_iter().next() {
            return Err(Error::invalid(format!("storage instance {instance}: option {why}")));
        }
        let root = config.root.clone();
        let opened = tokio::task::spawn_blocking(move || Layers::open(&root)).await?;
        let layers = match opened {
            Err(error) if instance != name => {
                put_out_of_service(cx, &instance, &error.chain());
                continue;
            }
            opened => Arc::new(opened?.with_options(options)),
        };
        let grants = Grants::on_root(&config.root, steps);
        if let Err(why) = usable(layers.clone(), grants.clone()).await {
            if instance != name {
                put_out_of_service(cx, &instance, &why);
                continue;
            }
            drop(layers);
            forget_empty(&config.root);
            refused = Some(why);
            continue;
        }
        spawn_emptier(cx, layers.clone());
        cx.provide_driver::<Storage>(&instance, Arc::new(make(layers)), grants)?;
    }
    Ok(refused)
}

fn put_out_of_service(cx: &Context, instance: &str, why: &str) {
    tracing::error!(instance, why, "A storage instance cannot be used.");
    cx.registry.mark_down(Storage::NAME, instance, why);
}

/// Leaves nothing of an instance that was never used.
fn forget_empty(root: &Path) {
    for name in ["l", "r", "t", ""] {
        // What holds something stays, and so does the root then.
        let _ = std::fs::remove_dir(root.join(name));
    }
}

fn spawn_emptier(cx: &Context, layers: Arc<Layers>) {
    let stop = cx.tasks.stopping().clone();
    cx.tasks.spawn("empty-trash", async move {
        while stop.run_until_cancelled(layers.trashed()).await.is_some() {
            let layers = layers.clone();
            match tokio::task::spawn_blocking(move || layers.empty_trash()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = %error.chain(), "Removed layers are still on disk.");
                }
                Err(error) => tracing::error!(%error, "Emptying the trash ended early."),
            }
        }
    });
}
