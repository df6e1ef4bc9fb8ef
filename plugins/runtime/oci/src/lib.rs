//! The OCI runtime: compiles specs, starts and re-finds shims.
//!
//! The default runtime `runc` is the shim's own core; `runtimes` in the configuration adds programs
//! with runc's command line, which the same shim drives.
//!
//! ```text
//! Launch ──sources──▶ descriptors ─┐
//!        ──compile──▶ plan ────────┴──▶ shim ──▶ container
//!                                        ▲
//! recover ──run directory────────────────┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `compile` | from a specification to a plan; pure |
//! | `sources` | the descriptors a plan refers to |
//! | `seccomp` | programs compiled before |
//! | `shim` | the shim's program in memory, and starting it |
//! | `connection` | requests, answers, events |
//! | `container` | what the container store holds |
//! | `native`, `external` | the two ways to run |

mod compile;
mod connection;
mod container;
mod error;
mod external;
mod native;
mod seccomp;
mod shim;
mod sources;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::runtime::Runtimes;
use gantry_sdk::{
    ConfigKey, ConfigView, Context, Descriptor, Error, Init, Phase, Plugin, Provide, Registration,
    Result,
};

use external::{Config, External};
use native::{Machine, Oci};

/// Names of the built-in runtime. The second is how the reference's configuration knows it, too.
const BUILT_IN: [&str; 2] = ["runc", "io.containerd.runc.v2"];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new("runtime", BUILT_IN[0]), Provide::new("runtime", BUILT_IN[1])],
    // Which of them is the default is the container store's business.
    config: &[ConfigKey::fixed("runtimes")],
    check_config,
    ..Descriptor::new("runtime.oci", Phase::Runtime)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(OciPlugin)) }

/// The plugin.
#[derive(Debug)]
struct OciPlugin;

#[async_trait]
impl Plugin for OciPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let tasks = cx.tasks.clone();
        let machine = container::blocking(|| Machine::read(tasks).map(Arc::new)).await?;
        for name in BUILT_IN {
            cx.provide::<Runtimes>(
                name,
                Arc::new(Oci { machine: machine.clone(), external: None }),
            )?;
        }
        let root = cx.run_dir("runtime-state")?;
        for (name, config) in configured(&cx.config)? {
            cx.run_dir(&format!("runtime-state/{name}"))?;
            let external = External::configured(&name, &config, &root)?;
            cx.provide::<Runtimes>(
                &name,
                Arc::new(Oci { machine: machine.clone(), external: Some(external) }),
            )?;
        }
        Ok(Init::Ready)
    }
}

/// The runtimes of the configuration.
fn configured(view: &ConfigView) -> Result<BTreeMap<String, Config>> {
    match view.get("runtimes") {
        None => Ok(BTreeMap::new()),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|error| Error::invalid(format!("runtimes: {error}"))),
    }
}

/// Every mistake in `runtimes`.
fn check_config(view: &ConfigView) -> Vec<String> {
    let runtimes = match configured(view) {
        Ok(runtimes) => runtimes,
        Err(error) => return vec![error.to_string()],
    };
    let mut mistakes = Vec::new();
    for (name, config) in &runtimes {
        if BUILT_IN.contains(&name.as_str()) {
            mistakes
                .push(format!("runtimes: {name} is the built-in runtime and cannot be replaced"));
        } else if let Err(error) = External::configured(name, config, std::path::Path::new("/")) {
            mistakes.push(format!("runtimes: {error}"));
        }
    }
    mistakes
}
