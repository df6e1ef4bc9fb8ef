//! What `docker info` shows of storage.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::info::InfoSource;
use gantry_sdk::kinds::layers::LayerStore;
use gantry_sdk::{Ctx, Result};
use serde_json::{Map, Value, json};

/// `Driver` and `DriverStatus`: the default instance's rows, then one for each other instance.
pub(crate) struct StorageInfo(pub(crate) Arc<dyn LayerStore>);

#[async_trait]
impl InfoSource for StorageInfo {
    async fn info(&self, cx: &Ctx) -> Result<Map<String, Value>> {
        let instances = self.0.instances(cx).await?;
        let Some((default, others)) = instances.split_first() else { return Ok(Map::new()) };
        let own = default.status.iter().map(|(name, value)| [name.clone(), value.clone()]);
        let more = others.iter().map(|other| ["Also available".to_owned(), other.name.clone()]);
        let rows: Vec<[String; 2]> = own.chain(more).collect();
        let info = json!({ "Driver": default.name, "DriverStatus": rows });
        Ok(info.as_object().cloned().unwrap_or_default())
    }
}
