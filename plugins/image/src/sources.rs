//! What images contribute to `/info` and `/system/df`.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_api::{DiskUsage, ImagesDiskUsage};
use gantry_sdk::kinds::info::{DiskUsageSource, InfoSource};
use gantry_sdk::{Ctx, Result};
use serde_json::{Map, Value, json};

use crate::list::{self, Query};
use crate::record::signed;
use crate::store::Store;

/// The store, seen by the system plugin.
#[derive(Debug)]
pub struct Sources(pub Arc<Store>);

#[async_trait]
impl InfoSource for Sources {
    async fn info(&self, _: &Ctx) -> Result<Map<String, Value>> {
        let count = self.0.index().images().count();
        Ok(Map::from_iter([("Images".to_owned(), json!(count))]))
    }
}

#[async_trait]
impl DiskUsageSource for Sources {
    async fn usage(&self, cx: &Ctx) -> Result<DiskUsage> {
        let query = Query { shared_size: true, ..Query::default() };
        let items = list::list(&self.0, cx, &query).await?;
        let unused = items.iter().filter(|image| image.containers == 0);
        let usage = ImagesDiskUsage {
            active_count: signed(items.iter().filter(|i| i.containers > 0).count() as u64),
            reclaimable: unused.map(|image| image.size - image.shared_size).sum(),
            total_count: signed(items.len() as u64),
            total_size: list::layers_size(&self.0.index()),
            items,
        };
        Ok(DiskUsage { image_usage: Some(usage), ..DiskUsage::default() })
    }

    fn section(&self) -> &'static str {
        "image"
    }
}
