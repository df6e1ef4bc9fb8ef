//! What `/info` says about registries and proxies.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::api::{IndexInfo, RegistryServiceConfig};
use gantry_sdk::context::Ctx;
use gantry_sdk::kinds::info::InfoSource;
use gantry_sdk::{Error, Result};
use serde_json::{Map, Value, json};

use crate::settings::{DEFAULT, Settings};
use crate::shared::Shared;

/// Rows of `/info`.
pub(crate) struct Rows {
    pub(crate) shared: Arc<Shared>,
    /// HTTP proxy, HTTPS proxy, exceptions; fit to be shown.
    pub(crate) proxies: [String; 3],
}

#[async_trait]
impl InfoSource for Rows {
    async fn info(&self, _: &Ctx) -> Result<Map<String, Value>> {
        let registries = service_config(&self.shared.settings.load());
        let registries = serde_json::to_value(registries)
            .map_err(|e| Error::internal("cannot encode the registry configuration", e))?;
        let [http, https, no] = &self.proxies;
        Ok(Map::from_iter([
            ("RegistryConfig".to_owned(), registries),
            ("HttpProxy".to_owned(), json!(http)),
            ("HttpsProxy".to_owned(), json!(https)),
            ("NoProxy".to_owned(), json!(no)),
        ]))
    }
}

/// The configuration as the reference engine shows it: its keys, not our rules.
fn service_config(settings: &Settings) -> RegistryServiceConfig {
    let mirrors: Vec<String> = settings.mirrors.iter().map(ToString::to_string).collect();
    let index = |name: &str, mirrors: &[String], official| IndexInfo {
        name: name.to_owned(),
        mirrors: mirrors.to_vec(),
        secure: official,
        official,
    };
    let mut index_configs: BTreeMap<_, _> =
        settings.insecure.hosts().map(|name| (name.to_owned(), index(name, &[], false))).collect();
    index_configs.insert(DEFAULT.to_owned(), index(DEFAULT, &mirrors, true));
    RegistryServiceConfig {
        insecure_registry_cidrs: settings.insecure.networks().map(|n| n.to_string()).collect(),
        index_configs,
        mirrors: Some(mirrors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::ConfigView;

    #[test]
    fn as_the_reference_shows_it() {
        let Value::Object(config) = json!({
            "registry-mirrors": ["https://m.example"],
            "insecure-registries": ["reg.example:5000", "10.1.2.3/8"],
        }) else {
            unreachable!("an object")
        };
        let shown = service_config(&Settings::parse(&ConfigView::new(config)).unwrap());
        let expected = json!({
            "InsecureRegistryCIDRs": ["10.0.0.0/8", "127.0.0.0/8", "::1/128"],
            "IndexConfigs": {
                "docker.io": {
                    "Name": "docker.io", "Mirrors": ["https://m.example/"], "Secure": true, "Official": true,
                },
                "reg.example:5000": {
                    "Name": "reg.example:5000", "Mirrors": [], "Secure": false, "Official": false,
                },
            },
            "Mirrors": ["https://m.example/"],
        });
        assert_eq!(serde_json::to_value(shown).unwrap(), expected);
    }
}
