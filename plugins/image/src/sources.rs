//! What images contribute to `/info` and `/system/df`.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_api::{DiskUsage, ImagesDiskUsage};
use gantry_sdk::kinds::info::{DiskUsageSource, InfoSource};
use gantry_sdk::{Ctx, Result};
use serde_json::{Map, Value, json};

use crate::disk::{Disk, Part, parts_of_line};
use crate::list::{self, Query};
use crate::record::signed;
use crate::store::Store;

/// The store, seen by the system plugin.
#[derive(Debug)]
pub struct Sources(pub Arc<Store>);

#[async_trait]
impl InfoSource for Sources {
    async fn info(&self, _: &Ctx) -> Result<Map<String, Value>> {
        let count = self.0.index().lines().count();
        Ok(Map::from_iter([("Images".to_owned(), json!(count))]))
    }
}

#[async_trait]
impl DiskUsageSource for Sources {
    async fn usage(&self, cx: &Ctx) -> Result<DiskUsage> {
        let query = Query { shared_size: true, ..Query::default() };
        let index = self.0.index();
        let disk = Disk::look(&self.0, cx).await?;
        let removing = self.0.layers.removing(cx).await?;
        let items = list::lines(&self.0, cx, &query, &index, &disk).await?;
        // What would be left if every unused image were removed.
        let needed: BTreeSet<Part> = items
            .iter()
            .filter(|image| image.containers != 0)
            .filter_map(|image| image.id.parse().ok())
            .flat_map(|id| parts_of_line(&index, &id))
            .collect();
        let shown: BTreeSet<Part> =
            index.lines().flat_map(|entry| parts_of_line(&index, &entry.id)).collect();
        let unused = shown.difference(&needed).cloned().collect();
        let usage = ImagesDiskUsage {
            active_count: signed(items.iter().filter(|i| i.containers > 0).count() as u64),
            reclaimable: signed(disk.bytes(&unused)),
            total_count: signed(items.len() as u64),
            total_size: signed(disk.total() + removing),
            items,
        };
        Ok(DiskUsage { image_usage: Some(usage), ..DiskUsage::default() })
    }

    fn section(&self) -> &'static str {
        "image"
    }
}
