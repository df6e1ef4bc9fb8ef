//! How much volumes take, and removing those that nobody uses.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use gantry_api::{DiskUsage, Filters, VolumeUsage, VolumesDiskUsage, VolumesPruneReport};
use gantry_sdk::events::Event;
use gantry_sdk::kinds::info::DiskUsageSource;
use gantry_sdk::{ApiVersion, Ctx, Error, Labels, Result};

use crate::list::everything;
use crate::record::{ANONYMOUS, Record};
use crate::store::{DEFAULT_DRIVER, Store};

/// The filters that pruning knows.
pub const FILTERS: &[&str] = &["all", "label", "label!"];

/// From here on only anonymous volumes are pruned, unless `all` says otherwise.
const ANONYMOUS_ONLY: ApiVersion = ApiVersion::v1(42);

/// Removes the volumes of the local driver that nobody uses and `filters` select. Those that are
/// mounts of something else are kept: their content is not ours, and removing them frees nothing.
///
/// # Errors
///
/// `Conflict` while another prune runs; `InvalidArgument` for a filter's value.
pub async fn prune(
    store: &Store,
    cx: &Ctx,
    version: ApiVersion,
    mut filters: Filters,
) -> Result<VolumesPruneReport> {
    if store.pruning.swap(true, Ordering::AcqRel) {
        return Err(Error::conflict("a prune operation is already running"));
    }
    let _running = Running(store);
    if version < ANONYMOUS_ONLY {
        filters.add("all", "true");
    }
    if !all(&filters)? {
        filters.add("label", ANONYMOUS);
    }
    let mut report = VolumesPruneReport::default();
    // What has no record was not made here, or its record was lost: not ours to clear away.
    let records = store.state().records.values().cloned().collect::<Vec<_>>();
    for record in records.into_iter().filter(|record| selected(record, &filters)) {
        if cx.cancelled.is_cancelled() {
            break;
        }
        if !store.state().users(&record.name).is_empty() {
            continue;
        }
        let bytes = match store.find(cx, &record.name).await {
            Ok((_, info)) => size(&info.mountpoint).await.unwrap_or(0),
            Err(_) => 0,
        };
        match store.delete(cx, &record.name, false).await {
            Ok(()) => {
                report.space_reclaimed += bytes;
                report.volumes_deleted.push(record.name);
            }
            Err(error) => {
                tracing::warn!(volume = record.name, error = %error.chain(), "Cannot prune a volume.");
            }
        }
    }
    let event = Event::now("volume", "prune", "");
    store.events.publish(event.with("reclaimed", report.space_reclaimed.to_string()));
    Ok(report)
}

struct Running<'a>(&'a Store);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.pruning.store(false, Ordering::Release);
    }
}

fn all(filters: &Filters) -> Result<bool> {
    let values = filters.get("all").collect::<Vec<_>>();
    match values.as_slice() {
        [] => Ok(false),
        ["1" | "t" | "T" | "TRUE" | "true" | "True"] => Ok(true),
        ["0" | "f" | "F" | "FALSE" | "false" | "False"] => Ok(false),
        [other] => Err(Error::invalid(format!(
            "invalid filter 'all': strconv.ParseBool: parsing {other:.80?}: invalid syntax"
        ))),
        many => Err(Error::invalid(format!(
            "invalid filter 'all=[{}]': only one value is expected",
            many.join(" ")
        ))),
    }
}

fn selected(record: &Record, filters: &Filters) -> bool {
    let none = Labels::new();
    let labels = record.labels.as_ref().unwrap_or(&none);
    is_plain(record)
        && filters.matches_labels("label", labels)
        && !filters.excludes_labels("label!", labels)
}

/// A directory of this machine and nothing else.
fn is_plain(record: &Record) -> bool {
    record.driver == DEFAULT_DRIVER && !record.has_options()
}

/// Bytes of the files beneath `path`, as the reference counts them; none if there is nothing, or it cannot be read.
async fn size(path: &str) -> Option<u64> {
    let path = path.to_owned();
    let measured = tokio::task::spawn_blocking(move || {
        let dir = gantry_sys::path::open_root(Path::new(&path)).ok()?;
        gantry_sys::path::usage(dir).ok().map(|usage| usage.apparent_bytes)
    });
    measured.await.ok().flatten()
}

/// The volume section of `/system/df`.
#[derive(Debug)]
pub struct Usage(pub Arc<Store>);

#[async_trait]
impl DiskUsageSource for Usage {
    async fn usage(&self, cx: &Ctx) -> Result<DiskUsage> {
        let (volumes, _) = everything(&self.0, cx).await;
        let mut usage = VolumesDiskUsage::default();
        for (record, info) in volumes.values().filter(|(record, _)| is_plain(record)) {
            let mut item = self.0.to_api(record, info.as_ref());
            let bytes = size(&item.mountpoint).await.and_then(|bytes| i64::try_from(bytes).ok());
            let users = self.0.state().users(&record.name).len();
            let (known, users) = (bytes.unwrap_or(0), i64::try_from(users).unwrap_or(i64::MAX));
            item.usage_data = Some(VolumeUsage { ref_count: users, size: bytes.unwrap_or(-1) });
            usage.items.push(item);
            usage.total_count += 1;
            usage.total_size += known;
            if users > 0 {
                usage.active_count += 1;
            } else {
                usage.reclaimable += known;
            }
        }
        Ok(DiskUsage { volume_usage: Some(usage), ..DiskUsage::default() })
    }

    fn section(&self) -> &'static str {
        "volume"
    }
}
