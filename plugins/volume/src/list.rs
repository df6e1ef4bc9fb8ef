//! Volumes of all drivers; none of them can hold a list up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use gantry_api::{Filters, VolumeListResponse};
use gantry_sdk::kinds::volume::{Volume, VolumeDriver, VolumeInfo};
use gantry_sdk::{Ctx, Error, Labels, Result};

use crate::record::Record;
use crate::store::{SOFT, Store};

/// Volumes asked for at a time.
const PAGE: u32 = 1000;
/// The most volumes of one driver in a list.
const MOST: usize = 100_000;

/// The filters that a list knows.
pub const FILTERS: &[&str] = &["dangling", "driver", "label", "name"];

/// A volume with what its driver says; none if the driver did not answer.
pub(crate) type Listed = (Record, Option<VolumeInfo>);

/// Lists the volumes that `filters` select, by name.
///
/// # Errors
///
/// `InvalidArgument` for a filter's value.
pub async fn list(store: &Store, cx: &Ctx, filters: &Filters) -> Result<VolumeListResponse> {
    let dangling = filters.flag("dangling").map_err(|e| Error::invalid(e.to_string()))?;
    let (volumes, warnings) = everything(store, cx).await;
    let (patterns, no_labels) = (filters.patterns("name"), Labels::new());
    let used = {
        let state = store.state();
        let used = |name: &str| !state.users(name).is_empty();
        volumes.keys().filter(|name| used(name)).cloned().collect::<BTreeSet<_>>()
    };
    let volumes = volumes
        .values()
        .filter(|(record, _)| {
            filters.matches_exactly("driver", &record.driver)
                && patterns.matches(&record.name)
                && filters.matches_labels("label", record.labels.as_ref().unwrap_or(&no_labels))
                && dangling.is_none_or(|dangling| dangling != used.contains(&record.name))
        })
        .map(|(record, info)| store.to_api(record, info.as_ref()))
        .collect();
    Ok(VolumeListResponse { volumes, warnings: (!warnings.is_empty()).then_some(warnings) })
}

/// All volumes by name, and why some drivers are missing: their volumes are shown from the records.
pub(crate) async fn everything(store: &Store, cx: &Ctx) -> (BTreeMap<String, Listed>, Vec<String>) {
    let drivers = store.registry.all::<Volume>();
    let cx = &cx.within(SOFT);
    let asked = drivers.into_iter().map(|(instance, driver)| async move {
        let answer = all_of(&driver, cx).await;
        (instance, answer)
    });
    let answers = join_all(asked).await;

    let records = store.state().records.clone();
    let mut volumes = BTreeMap::<String, Listed>::new();
    let (mut warnings, mut answered) = (Vec::new(), BTreeSet::new());
    for (instance, answer) in answers {
        match answer {
            Ok(found) => {
                for info in found {
                    let record = match records.get(&info.name) {
                        // Another driver's volume has the name.
                        Some(record) if record.driver != instance => continue,
                        Some(record) => record.clone(),
                        None => Record::found(&info.name, &instance),
                    };
                    volumes.entry(info.name.clone()).or_insert((record, Some(info)));
                }
                answered.insert(instance);
            }
            Err(error) => warnings.push(format!("list {instance}: {}", error.chain())),
        }
    }
    let asked = store.registry.all::<Volume>().into_iter().map(|(instance, _)| instance);
    let asked = asked.collect::<BTreeSet<_>>();
    let mut absent = BTreeSet::new();
    for (name, record) in records {
        if answered.contains(&record.driver) {
            continue;
        }
        if !asked.contains(&record.driver) && absent.insert(record.driver.clone()) {
            let why = store.driver(&record.driver).map(drop).err();
            let why = why.map(|error| error.chain()).unwrap_or_default();
            warnings.push(format!("list {}: {why}", record.driver));
        }
        volumes.insert(name, (record, None));
    }
    (volumes, warnings)
}

async fn all_of(driver: &Arc<dyn VolumeDriver>, cx: &Ctx) -> Result<Vec<VolumeInfo>> {
    let mut all = Vec::<VolumeInfo>::new();
    loop {
        let after = all.last().map(|info| info.name.clone());
        let page = driver.list(cx, after.as_deref(), PAGE).await?;
        // A driver that ignores `after` would keep us here.
        let done = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX)
            || page.last().is_some_and(|last| after.is_some_and(|after| last.name <= after));
        all.extend(page);
        if done || all.len() >= MOST {
            return Ok(all);
        }
    }
}
