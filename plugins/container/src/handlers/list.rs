//! `GET /containers/json`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_sdk::api::container::ContainerSummary;
use gantry_sdk::api::version::shape_containers;
use gantry_sdk::api::{FilterError, Filters};
use gantry_sdk::kinds::images::Images;
use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::{Ctx, Error, Request, Response, Result};

use crate::engine::Engine;
use crate::handle::View;
use crate::record::Record;
use crate::state::State;
use crate::{ports, show};

const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATES: &[&str] =
    &["created", "running", "paused", "restarting", "removing", "exited", "dead"];
const HEALTH: &[&str] = &["none", "starting", "healthy", "unhealthy"];

/// Newest first. `limit` and the filters of ended containers imply `all`.
pub async fn list(engine: Arc<Engine>, request: Request) -> Result<Response> {
    let filters = request.filters(FILTERS)?;
    let limit = request.query.number::<i64>("limit")?.unwrap_or(0);
    let wanted = Wanted::new(&engine, &request.ctx(), &filters).await?;
    let all = request.query.bool("all")
        || limit > 0
        || filters.contains("status")
        || filters.contains("exited");

    let mut views = engine.views();
    views.sort_by_key(|v| std::cmp::Reverse(v.record.created));
    views.retain(|v| !v.removed && (all || is_up(v)) && wanted.matches(v));
    if limit > 0 {
        views.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    let now = SystemTime::now();
    let mut rows: Vec<ContainerSummary> = views.iter().map(|v| show::summary(v, now)).collect();
    if request.query.bool("size") {
        add_sizes(&engine, &request.ctx(), &views, &mut rows).await?;
    }
    shape_containers(request.version, &mut rows);
    Response::ok(&rows)
}

const fn is_up(view: &View) -> bool {
    matches!(view.state, State::Running { .. } | State::Restarting { .. })
}

async fn add_sizes(
    engine: &Engine,
    cx: &Ctx,
    views: &[Arc<View>],
    rows: &mut [ContainerSummary],
) -> Result<()> {
    for (view, row) in views.iter().zip(rows) {
        if let Ok((rw, all)) = sizes(engine, cx, &view.record).await {
            (row.size_rw, row.size_root_fs) = (rw, all);
        }
    }
    Ok(())
}

/// Bytes of a container's own layer, and of that with its image.
///
/// # Errors
///
/// Those of the layer store.
pub async fn sizes(engine: &Engine, cx: &Ctx, record: &Record) -> Result<(i64, i64)> {
    let layers = engine.registry.only::<Layers>()?;
    let own = layers.usage(cx, &record.layer).await?;
    let image = layers.chain_usage(cx, &record.chain).await?;
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    Ok((bytes(own), bytes(own.saturating_add(image))))
}

/// The filters, prepared once for the whole list.
struct Wanted<'a> {
    filters: &'a Filters,
    names: gantry_sdk::api::filters::Patterns,
    ids: gantry_sdk::api::filters::Patterns,
    images: Option<BTreeSet<String>>,
    exits: BTreeSet<i32>,
    before: Option<SystemTime>,
    since: Option<SystemTime>,
}

impl<'a> Wanted<'a> {
    async fn new(engine: &Engine, cx: &Ctx, filters: &'a Filters) -> Result<Self> {
        let invalid = |e: FilterError| Error::invalid(e.to_string());
        for (name, known) in [("status", STATES), ("health", HEALTH)] {
            if filters.get(name).any(|value| !known.contains(&value)) {
                return Err(invalid(filters.bad_value(name)));
            }
        }
        filters.flag("is-task").map_err(invalid)?;
        let mut exits = BTreeSet::new();
        for text in filters.get("exited") {
            exits.insert(text.parse().map_err(|_| invalid(filters.bad_value("exited")))?);
        }
        for name in ["publish", "expose"] {
            for text in filters.get(name) {
                port_range(text).ok_or_else(|| invalid(filters.bad_value(name)))?;
            }
        }
        let created = |name: &str| -> Result<Option<SystemTime>> {
            let found: Result<Vec<_>> =
                filters.get(name).map(|r| Ok(engine.find(r)?.view().record.created)).collect();
            Ok(found?.into_iter().max())
        };
        Ok(Self {
            filters,
            names: filters.patterns("name"),
            ids: filters.patterns("id"),
            images: ancestors(engine, cx, filters).await?,
            exits,
            before: created("before")?,
            since: created("since")?,
        })
    }

    fn matches(&self, view: &View) -> bool {
        let record = &view.record;
        let filters = self.filters;
        if filters.is_empty() {
            return true; // the usual question, of every container
        }
        let code = record.life.exit.as_ref().map_or(0, |e| e.code);
        self.matches_identity(record)
            && self.before.is_none_or(|at| record.created < at)
            && self.since.is_none_or(|at| record.created > at)
            && (self.exits.is_empty()
                || matches!(view.state, State::Exited { .. }) && self.exits.contains(&code))
            && filters.matches_exactly("status", view.state.word())
            && filters.matches_exactly("health", "none")
            && filters.matches_exactly("isolation", &record.host.isolation)
            && filters.matches_exactly("is-task", "false")
            && self.images.as_ref().is_none_or(|ids| {
                ids.contains(record.image_id.as_str()) || ids.contains(&record.image)
            })
            && self.matches_parts(record)
    }

    fn matches_identity(&self, record: &Record) -> bool {
        let name = &record.name;
        (self.names.matches(name) || self.names.matches(&format!("/{name}")))
            && (self.ids.matches(record.id.as_str())
                || self.filters.matches_prefix("id", record.id.as_str()))
    }

    fn matches_parts(&self, record: &Record) -> bool {
        let filters = self.filters;
        let labels = record.config.labels.clone().unwrap_or_default();
        filters.matches_labels("label", &labels)
            && self.any("volume", |wanted| {
                record.volumes().any(|v| v == wanted)
                    || record.mounts.iter().any(|m| m.destination == wanted)
                    || record.mounts.iter().any(|m| show::mount_point(m).source == wanted)
            })
            && self.any("network", |wanted| {
                record.endpoints.iter().any(|(name, e)| name == wanted || e.network_id == wanted)
            })
            && self.any("publish", |wanted| matches_port(wanted, &published(record)))
            && self.any("expose", |wanted| {
                matches_port(wanted, &ports::exposed(&record.config).unwrap_or_default())
            })
    }

    /// Whether the filter is absent or one of its values satisfies `test`.
    fn any(&self, name: &str, test: impl Fn(&str) -> bool) -> bool {
        !self.filters.contains(name) || self.filters.get(name).any(test)
    }
}

fn published(record: &Record) -> Vec<(gantry_sdk::kinds::network::Protocol, u16)> {
    let keys = record.host.port_bindings.iter().flatten().filter_map(|(k, _)| ports::parse(k).ok());
    keys.map(|(port, protocol)| (protocol, port)).collect()
}

/// `80`, `80/udp`, `80-90/tcp`.
fn port_range(text: &str) -> Option<(u16, u16, gantry_sdk::kinds::network::Protocol)> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, protocol) = ports::parse(&format!("{first}/{protocol}")).ok()?;
    let last = last.parse().ok().filter(|last| first <= *last)?;
    Some((first, last, protocol))
}

fn matches_port(wanted: &str, have: &[(gantry_sdk::kinds::network::Protocol, u16)]) -> bool {
    port_range(wanted).is_some_and(|(first, last, protocol)| {
        have.iter().any(|(p, port)| *p == protocol && (first..=last).contains(port))
    })
}

/// The ids of the images that `ancestor` names; an unknown image matches by its name alone.
async fn ancestors(
    engine: &Engine,
    cx: &Ctx,
    filters: &Filters,
) -> Result<Option<BTreeSet<String>>> {
    if !filters.contains("ancestor") {
        return Ok(None);
    }
    let images = engine.registry.only::<Images>()?;
    let mut found = BTreeSet::new();
    for reference in filters.get("ancestor") {
        match images.resolve(cx, reference, None).await {
            Ok(image) => found.insert(image.id.to_string()),
            Err(_) => found.insert(reference.to_owned()),
        };
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::kinds::network::Protocol;

    #[test]
    fn port_ranges() {
        assert_eq!(port_range("80"), Some((80, 80, Protocol::Tcp)));
        assert_eq!(port_range("80-90/udp"), Some((80, 90, Protocol::Udp)));
        for bad in ["", "90-80", "x", "80/icmp"] {
            assert_eq!(port_range(bad), None, "{bad}");
        }
    }
}
