//! `GET /info`.

use std::sync::Arc;
use std::time::SystemTime;

use gantry_sdk::api::{ObjectKind, SystemInfo};
use gantry_sdk::kinds::info::Info;
use gantry_sdk::{Error, Request, Response, Result};
use serde_json::{Map, Value};

use crate::{State, host};

/// The daemon's own rows, then those of every plugin that has some. A plugin that does not answer in
/// time costs its rows and a warning, never the answer.
pub(crate) async fn info(state: Arc<State>, request: Request) -> Result<Response> {
    let mut warnings = state.kernel.warnings();
    let mut rows = own_rows(&state)?;
    let cx = request.ctx();
    let sources = state.registry.all::<Info>();
    let asked = sources.iter().map(|(name, source)| {
        let cx = &cx;
        async move { (name, source.info(cx).await) }
    });
    for (name, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Ok(contribution) => merge(&mut rows, contribution, &mut warnings),
            Err(error) => warnings.push(format!("WARNING: no rows from {name}: {}", error.chain())),
        }
    }
    let list = (!warnings.is_empty()).then(|| warnings.into_iter().map(Value::String).collect());
    rows.insert("Warnings".into(), list.map_or(Value::Null, Value::Array));
    let answer: SystemInfo = serde_json::from_value(Value::Object(rows))
        .map_err(|e| Error::internal("a plugin's rows of /info are malformed", e))?;
    Response::shaped(ObjectKind::Info, request.version, &answer)
}

/// Lists grow, objects are joined, everything else is replaced.
fn merge(
    rows: &mut Map<String, Value>,
    contribution: Map<String, Value>,
    warnings: &mut Vec<String>,
) {
    for (key, value) in contribution {
        match (rows.get_mut(&key), value) {
            (_, Value::Array(more)) if key == "Warnings" => {
                warnings.extend(more.into_iter().filter_map(|w| w.as_str().map(str::to_owned)));
            }
            (Some(Value::Object(have)), Value::Object(more)) => merge(have, more, warnings),
            (Some(Value::Array(have)), Value::Array(more)) => have.extend(more),
            (_, value) => {
                rows.insert(key, value);
            }
        }
    }
}

fn own_rows(state: &State) -> Result<Map<String, Value>> {
    let facts = &state.host;
    let (distribution, release) = host::distribution();
    let tasks: usize = state.kernel.tasks().iter().map(|(_, names)| names.len()).sum();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let mut labels = state.kernel.labels();
    labels.sort();
    let mut info = SystemInfo {
        id: facts.id.clone(),
        debug: state.kernel.debug(),
        n_fd: host::open_files(),
        n_goroutines: count(tasks),
        system_time: gantry_sdk::time::rfc3339(SystemTime::now()),
        n_events_listener: count(state.events.listeners()),
        kernel_version: host::kernel_release(),
        operating_system: distribution,
        os_version: release,
        os_type: "linux".into(),
        architecture: std::env::consts::ARCH.into(),
        index_server_address: "https://index.docker.io/v1/".into(),
        n_cpu: host::processors(),
        mem_total: host::memory(),
        docker_root_dir: facts.data_root.to_string_lossy().into_owned(),
        name: host::hostname(),
        labels,
        experimental_build: facts.experimental,
        server_version: facts.version.into(),
        ..SystemInfo::default()
    };
    info.plugins = plugins(state);
    match serde_json::to_value(&info) {
        Ok(Value::Object(rows)) => Ok(rows),
        Ok(_) | Err(_) => Err(Error::new(gantry_sdk::ErrorKind::Internal, "cannot encode /info")),
    }
}

/// The drivers by kind, as `docker info` lists them.
fn plugins(state: &State) -> gantry_sdk::api::PluginsInfo {
    let slots = state.registry.slots();
    let of = |wanted: &str| -> Vec<String> {
        slots
            .iter()
            .filter(|(kind, _, down)| *kind == wanted && down.is_none())
            .map(|(_, name, _)| name.clone())
            .collect()
    };
    gantry_sdk::api::PluginsInfo {
        volume: of("volume"),
        network: of("network"),
        authorization: None,
        log: of("log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn contributions_are_joined() {
        let object = |v: Value| match v {
            Value::Object(map) => map,
            _ => unreachable!("an object"),
        };
        let mut rows = object(json!({"Labels": ["a"], "Plugins": {"Log": []}, "NCPU": 1}));
        let mut warnings = Vec::new();
        let more =
            json!({"Labels": ["b"], "Plugins": {"Log": ["x"]}, "NCPU": 2, "Warnings": ["w"]});
        merge(&mut rows, object(more), &mut warnings);
        let expected = json!({"Labels": ["a", "b"], "Plugins": {"Log": ["x"]}, "NCPU": 2});
        assert_eq!(Value::Object(rows), expected);
        assert_eq!(warnings, ["w"]);
    }
}
