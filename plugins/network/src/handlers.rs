//! `GET /networks` and `GET /networks/{id}`.

use std::sync::Arc;

use gantry_sdk::api::network as api;
use gantry_sdk::api::version::{ObjectKind, to_json};
use gantry_sdk::api::{ApiVersion, Filters};
use gantry_sdk::{Error, Method, Request, Response, Result, RouteDecl};
use http::StatusCode;

use crate::record::Record;
use crate::store::Store;

/// Every route of this plugin.
pub(crate) const ROUTES: &[RouteDecl] = &[
    RouteDecl::new("list", Method::Get, "/networks"),
    // Old clients send it so, and the reference engine answers.
    RouteDecl::new("list-slash", Method::Get, "/networks/"),
    RouteDecl::new("inspect", Method::Get, "/networks/{id}"),
];

const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

/// From this version on a list says nothing of the containers; before, it was an inspection of each.
const SHORT_LIST: ApiVersion = ApiVersion::v1(28);

/// `GET /networks`: those that match all `filters`; `400` for an unknown filter.
pub(crate) async fn list(store: Arc<Store>, request: Request) -> Result<Response> {
    let filters = Filters::parse(request.query.str("filters")).map_err(refused)?;
    filters.validate(FILTERS).map_err(refused)?;
    let dangling = filters.flag("dangling").map_err(refused)?;
    let mut shown = Vec::new();
    for entry in store.networks() {
        let record = &entry.record;
        let is_dangling = || !record.is_predefined() && !store.is_used(entry);
        if matches(&filters, record)? && dangling.is_none_or(|wanted| wanted == is_dangling()) {
            shown.push(if request.version < SHORT_LIST {
                record.to_api_with(&store.members(entry))
            } else {
                record.to_api()
            });
        }
    }
    answer(ObjectKind::NetworkList, request.version, &shown)
}

/// `GET /networks/{id}`: by id, name or beginning of an id, with the containers in it; `404` if there
/// is none, also in the `scope` that the query asks for.
pub(crate) async fn inspect(store: Arc<Store>, request: Request) -> Result<Response> {
    let wanted = request.param("id");
    let scope = request.query.str("scope");
    if !matches!(scope, "" | "local") {
        return Err(Error::not_found(format!("network {wanted:.80} not found")));
    }
    // `default` stands for a network only where a container names one.
    let entry = match wanted {
        "default" | "" => Err(Error::not_found(format!("network {wanted} not found"))),
        wanted => store.find(wanted),
    }?;
    let shown: api::Network = entry.record.to_api_with(&store.members(&entry));
    answer(ObjectKind::Network, request.version, &shown)
}

fn answer(
    kind: ObjectKind,
    version: ApiVersion,
    object: &impl serde::Serialize,
) -> Result<Response> {
    let mut text = to_json(kind, version, object)
        .map_err(|e| Error::internal("cannot encode the response", e))?;
    text.push(b'\n');
    Ok(Response::full(StatusCode::OK, "application/json", text))
}

fn refused(error: gantry_sdk::api::FilterError) -> Error {
    Error::invalid(error.to_string())
}

fn matches(filters: &Filters, record: &Record) -> Result<bool> {
    for kind in filters.get("type") {
        if !matches!(kind, "custom" | "builtin") {
            return Err(refused(filters.bad_value("type")));
        }
    }
    let kind = if record.is_predefined() { "builtin" } else { "custom" };
    Ok(filters.matches_exactly("driver", &record.driver)
        && filters.matches_exactly("scope", "local")
        && filters.matches_exactly("type", kind)
        && filters.matches_pattern("name", &record.name)
        && filters.matches_pattern("id", record.id.as_str())
        && filters.matches_labels("label", &record.labels))
}

#[cfg(test)]
mod tests {
    use gantry_sdk::id::NetworkId;

    use super::*;

    #[test]
    fn filters_narrow_the_list() {
        let record = Record {
            id: NetworkId::random(),
            name: "bridge".into(),
            driver: "bridge".into(),
            created: String::new(),
            internal: false,
            labels: [("a".to_owned(), "b".to_owned())].into(),
            options: gantry_sdk::Labels::new(),
            subnets: Vec::new(),
        };
        let id = &record.id.as_str()[..12];
        let by_id = format!(r#"{{"id":["{id}"]}}"#);
        let cases = [
            ("", Some(true)),
            (r#"{"name":["bri"]}"#, Some(true)),
            (r#"{"name":["host"]}"#, Some(false)),
            (r#"{"driver":{"bridge":true}}"#, Some(true)),
            (r#"{"driver":["brid"]}"#, Some(false)),
            (r#"{"type":["builtin"]}"#, Some(true)),
            (r#"{"type":["custom"]}"#, Some(false)),
            (r#"{"type":["other"]}"#, None),
            (r#"{"scope":["swarm"]}"#, Some(false)),
            (r#"{"label":["a"]}"#, Some(true)),
            (r#"{"label":["a=c"]}"#, Some(false)),
            (by_id.as_str(), Some(true)),
        ];
        for (text, expected) in cases {
            let filters = Filters::parse(text).unwrap();
            assert_eq!(matches(&filters, &record).ok(), expected, "{text}");
        }
    }
}
