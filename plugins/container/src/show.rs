//! Containers as the API shows them: `inspect`, `ps` and the log target. The domain types know no
//! wire format; this is the only bridge.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_sdk::api::container::{
    ContainerInspect, ContainerState, ContainerSummary, DriverData, MountPoint, NetworkSettings,
    SummaryHostConfig, SummaryNetworkSettings,
};
use gantry_sdk::api::network::EndpointSettings;
use gantry_sdk::api::{StringMap, ZERO_TIME};
use gantry_sdk::kinds::networks::{EndpointStatus, SandboxStatus};
use gantry_sdk::kinds::runtime::Exit;
use gantry_sdk::time::{human, rfc3339, unix};

use crate::engine::Engine;
use crate::handle::View;
use crate::ports;
use crate::record::{MountRecord, MountSource, Record};
use crate::spec::SecurityOptions;
use crate::spec::command::command_line;
use crate::state::State;

/// The `State` of `inspect`.
pub fn state(view: &View) -> ContainerState {
    let life = &view.record.life;
    let exit = exit_of(view);
    let running = matches!(view.state, State::Running { .. } | State::Restarting { .. });
    ContainerState {
        status: view.state.word().into(),
        running,
        paused: false,
        restarting: matches!(view.state, State::Restarting { .. }),
        oom_killed: exit.is_some_and(|e| e.oom),
        dead: matches!(view.state, State::Dead),
        pid: i64::from(view.state.pid().unwrap_or(0)),
        exit_code: exit.map_or(0, |e| i64::from(e.code)),
        error: life.error.clone(),
        started_at: life.started.map_or_else(|| ZERO_TIME.to_owned(), rfc3339),
        finished_at: finished(view),
        health: None,
    }
}

fn exit_of(view: &View) -> Option<&Exit> {
    match &view.state {
        State::Running { .. } => None,
        _ => view.record.life.exit.as_ref(),
    }
}

/// The end of the last run; a container that never ran never finished, even if a start failed.
fn finished(view: &View) -> String {
    let life = &view.record.life;
    match (&life.exit, life.started) {
        (Some(exit), Some(_)) => rfc3339(exit.at),
        _ => ZERO_TIME.to_owned(),
    }
}

/// The sentence of `docker ps`.
pub fn status(view: &View, now: SystemTime) -> String {
    let since = |at: SystemTime| human(now.duration_since(at).unwrap_or_default());
    match &view.state {
        State::Created => "Created".into(),
        State::Running { since: at, .. } => format!("Up {}", since(*at)),
        State::Restarting { exit } => format!("Restarting ({}) {} ago", exit.code, since(exit.at)),
        State::Exited { exit } => format!("Exited ({}) {} ago", exit.code, since(exit.at)),
        State::Removing => "Removal In Progress".into(),
        State::Dead => "Dead".into(),
    }
}

/// A mount as the API shows it.
pub fn mount_point(mount: &MountRecord) -> MountPoint {
    let mut shown = MountPoint {
        destination: mount.destination.clone(),
        mode: mount.mode.clone(),
        rw: !mount.read_only,
        propagation: mount.propagation.clone(),
        ..MountPoint::default()
    };
    match &mount.source {
        MountSource::Bind { path } => {
            shown.kind = "bind".into();
            shown.source = path.clone();
        }
        MountSource::Volume { name, driver, mountpoint, .. } => {
            shown.kind = "volume".into();
            shown.name = name.clone();
            shown.driver = driver.clone();
            shown.source = mountpoint.clone();
        }
        MountSource::Tmpfs { .. } => shown.kind = "tmpfs".into(),
    }
    shown
}

fn mount_points(record: &Record) -> Vec<MountPoint> {
    // The reference engine lists what HostConfig.Tmpfs asks for there only.
    let in_host_config = |m: &MountRecord| {
        record.host.tmpfs.iter().flatten().any(|(path, _)| {
            path.trim_end_matches('/') == m.destination
                && matches!(m.source, MountSource::Tmpfs { .. })
        })
    };
    record.mounts.iter().filter(|m| !in_host_config(m)).map(mount_point).collect()
}

fn networks(record: &Record) -> BTreeMap<String, EndpointSettings> {
    let sandbox = record.life.sandbox.as_ref();
    record
        .endpoints
        .iter()
        .map(|(name, wanted)| {
            let mut shown = wanted.clone();
            if let Some(status) = sandbox.and_then(|s| s.networks.get(name)) {
                fill(&mut shown, status);
            }
            (name.clone(), shown)
        })
        .collect()
}

fn fill(shown: &mut EndpointSettings, status: &EndpointStatus) {
    shown.network_id = status.network_id.clone();
    shown.endpoint_id = status.endpoint_id.clone();
    shown.gateway = status.gateway.clone();
    shown.ip_address = status.ip.clone();
    shown.ip_prefix_len = i64::from(status.prefix);
    shown.ipv6_gateway = status.gateway6.clone();
    shown.global_ipv6_address = status.ip6.clone();
    shown.global_ipv6_prefix_len = i64::from(status.prefix6);
    shown.mac_address = status.mac.clone();
}

fn network_settings(record: &Record) -> NetworkSettings {
    let sandbox = record.life.sandbox.as_ref();
    let published = sandbox.map(|s| s.ports.as_slice()).unwrap_or_default();
    let ports = if record.life.sandbox.is_some() {
        ports::port_map(&record.config, published)
    } else {
        BTreeMap::new()
    };
    NetworkSettings {
        sandbox_id: sandbox.map(|s: &SandboxStatus| s.sandbox_id.clone()).unwrap_or_default(),
        sandbox_key: String::new(),
        ports,
        networks: networks(record),
    }
}

/// What only drivers know about a container, gathered before [`inspect`].
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Path of the log.
    pub log_path: String,
    /// `GraphDriver.Data`.
    pub graph: StringMap,
    /// Bytes of the writable layer and of the whole tree.
    pub sizes: Option<(i64, i64)>,
}

fn apparmor(engine: &Engine, record: &Record) -> Option<String> {
    let options = record.host.security_opt.as_deref().unwrap_or_default();
    let options = SecurityOptions::parse(options, false).ok()?; // checked at creation
    options.apparmor_profile(record.host.privileged, &engine.facts)
}

/// `GET /containers/{id}/json`.
pub fn inspect(engine: &Engine, view: &View, details: Details) -> ContainerInspect {
    let record = &view.record;
    let mut command = command_line(&record.config).into_iter();
    let path = command.next().unwrap_or_default();
    let files = engine.files_of(&record.id);
    let file = |name: &str| {
        let path = files.join(name);
        if path.exists() { path.to_string_lossy().into_owned() } else { String::new() }
    };
    let execs = engine.execs.of_container(&record.id);
    ContainerInspect {
        id: record.id.to_string(),
        created: rfc3339(record.created),
        path,
        args: Some(command.collect()),
        state: Some(state(view)),
        image: record.image_id.to_string(),
        resolv_conf_path: file("resolv.conf"),
        hostname_path: file("hostname"),
        hosts_path: file("hosts"),
        log_path: details.log_path,
        name: format!("/{}", record.name),
        restart_count: i64::from(record.life.restarts),
        driver: record.layer.instance.clone(),
        platform: "linux".into(),
        app_armor_profile: apparmor(engine, record).unwrap_or_default(),
        exec_ids: (!execs.is_empty()).then_some(execs),
        host_config: Some(record.host.clone()),
        graph_driver: Some(DriverData {
            data: Some(details.graph),
            name: record.layer.instance.clone(),
        }),
        size_rw: details.sizes.map(|(rw, _)| rw),
        size_root_fs: details.sizes.map(|(_, all)| all),
        mounts: mount_points(record),
        config: Some(record.config.clone()),
        network_settings: Some(network_settings(record)),
        ..ContainerInspect::default()
    }
}

/// One row of `GET /containers/json`.
pub fn summary(view: &View, now: SystemTime) -> ContainerSummary {
    let record = &view.record;
    let published = record.life.sandbox.as_ref().map(|s| s.ports.as_slice()).unwrap_or_default();
    ContainerSummary {
        id: record.id.to_string(),
        names: vec![format!("/{}", record.name)],
        image: record.image.clone(),
        image_id: record.image_id.to_string(),
        command: shell_words(&command_line(&record.config)),
        created: unix(record.created),
        ports: if view.state.is_running() {
            ports::summaries(&record.config, published)
        } else {
            Vec::new()
        },
        labels: record.config.labels.clone().unwrap_or_default(),
        state: view.state.word().into(),
        status: status(view, now),
        host_config: SummaryHostConfig {
            network_mode: record.host.network_mode.clone(),
            annotations: record.host.annotations.clone().unwrap_or_default(),
        },
        network_settings: Some(SummaryNetworkSettings { networks: networks(record) }),
        mounts: mount_points(record),
        ..ContainerSummary::default()
    }
}

/// A command line as `docker ps` shows it: words with spaces are quoted.
fn shell_words(words: &[String]) -> String {
    let quote = |word: &String| {
        if word.contains(' ') { format!("'{word}'") } else { word.clone() }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}
