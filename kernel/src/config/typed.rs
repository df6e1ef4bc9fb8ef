//! The kernel's own settings, checked and typed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_sdk::ApiVersion;
use serde_json::Value;

use super::host::HostAddr;
use super::problem::{Place, Problems};
use super::{Environment, Settings};
use crate::version;

/// What the kernel itself is configured to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// Addresses to listen on; at least one.
    pub hosts: Vec<HostAddr>,
    /// TLS for TCP listeners.
    pub tls: Option<TlsConfig>,
    /// Group of unix sockets, and whether it was asked for by name.
    pub group: SocketGroup,
    /// Debug mode: more logs.
    pub debug: bool,
    /// The least level that is logged when debug mode is off.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Full timestamps, no colours.
    pub raw_logs: bool,
    /// The truth on disk.
    pub data_root: PathBuf,
    /// Run-time state.
    pub exec_root: PathBuf,
    /// Where the process id is written; none if empty.
    pub pidfile: Option<PathBuf>,
    /// How long a shutdown may take; none waits for ever.
    pub shutdown_timeout: Option<Duration>,
    /// Where Prometheus fetches metrics.
    pub metrics_addr: Option<SocketAddr>,
    /// The oldest API version served.
    pub min_api: ApiVersion,
    /// Labels of the daemon, `key=value`, one per key.
    pub labels: Vec<String>,
    /// Whether experimental features are on.
    pub experimental: bool,
    /// Features by name.
    pub features: BTreeMap<String, bool>,
}

/// The group of unix sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketGroup {
    /// `docker`, if there is such a group.
    Default,
    /// This one; it must exist. Empty means the daemon's own group.
    Named(String),
}

/// TLS files and whether clients must present a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM: the CA that signs clients.
    pub ca: PathBuf,
    /// PEM: the server's certificate chain.
    pub cert: PathBuf,
    /// PEM: the server's private key.
    pub key: PathBuf,
    /// Mutual TLS.
    pub verify_clients: bool,
}

/// The levels of the reference engine; `panic` and `fatal` are its names for rarer errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// The look of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Features that another engine's parts read. They parse, and are said to be without effect.
const FEATURES_WITHOUT_EFFECT: [&str; 5] = [
    "containerd-snapshotter",
    "containerd-migration",
    "embedded-containerd",
    "windows-dns-proxy",
    "buildkit",
];
/// Features that exist in the reference engine and not here: refused unless they are off.
const FEATURES_MISSING: [&str; 3] = ["cdi", "time-namespaces", "swarm-nftables"];

/// Takes values out of the settings, noting what is wrong with them.
struct Reader<'a> {
    settings: &'a Settings,
    problems: &'a mut Problems,
}

impl Reader<'_> {
    fn get(&self, key: &str) -> Option<(&Value, &Place)> {
        self.settings.get(key).map(|(value, place)| (value, place))
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key)?.0.as_str().map(str::to_owned)
    }

    fn switch(&self, key: &str) -> Option<bool> {
        self.get(key)?.0.as_bool()
    }

    fn place(&self, key: &str) -> Place {
        self.get(key).map_or(Place::Whole, |(_, place)| place.clone())
    }

    /// The text of `key` through `parse`, or `default`.
    fn parsed<T>(
        &mut self,
        key: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(text) = self.text(key) else { return default };
        let place = self.place(key);
        self.problems.check(&place, parse(&text)).unwrap_or(default)
    }

    /// A path that must be absolute.
    fn path(&mut self, key: &str, default: &str) -> PathBuf {
        self.parsed(key, default.into(), |text| {
            if Path::new(text).is_absolute() {
                Ok(text.into())
            } else {
                Err(format!("must be an absolute path, not {text:?}"))
            }
        })
    }
}

impl KernelConfig {
    pub(crate) fn read(
        settings: &Settings,
        environment: &Environment,
        problems: &mut Problems,
        notices: &mut Vec<String>,
    ) -> Self {
        let mut reader = Reader { settings, problems };
        let (tls, plain_on_purpose) = tls(&mut reader, environment);
        let hosts = hosts(&mut reader, tls.is_some());
        refuse_open_tcp(&mut reader, &hosts, tls.as_ref(), plain_on_purpose);
        Self {
            group: reader.text("group").map_or(SocketGroup::Default, SocketGroup::Named),
            debug: reader.switch("debug").unwrap_or_default(),
            log_level: reader.parsed("log-level", LogLevel::Info, log_level),
            log_format: reader.parsed("log-format", LogFormat::Text, log_format),
            raw_logs: reader.switch("raw-logs").unwrap_or_default(),
            data_root: reader.path("data-root", "/var/lib/docker"),
            exec_root: reader.path("exec-root", "/var/run/docker"),
            pidfile: pidfile(&mut reader),
            shutdown_timeout: shutdown_timeout(&reader),
            metrics_addr: reader.parsed("metrics-addr", None, metrics_addr),
            min_api: min_api(&mut reader, environment),
            labels: labels(&mut reader),
            experimental: reader.switch("experimental").unwrap_or_default(),
            features: features(&mut reader, notices),
            hosts,
            tls,
        }
    }
}

/// TLS settings, and whether plain TCP was asked for in words.
///
/// `tlsverify`, whatever its value, turns TLS on; `tls` alone verifies clients. Source: the
/// reference engine's `loadDaemonCliConfig`.
fn tls(reader: &mut Reader<'_>, environment: &Environment) -> (Option<TlsConfig>, bool) {
    let tls = reader.switch("tls");
    let verify = reader.switch("tlsverify").or(environment.tls_verify.then_some(true));
    let on_purpose = tls == Some(false) || verify == Some(false);
    let on = verify.is_some() || tls == Some(true);
    if !on {
        return (None, on_purpose);
    }
    let file = |key: &str, default: &str| {
        let path =
            reader.text(key).map_or_else(|| environment.cert_dir.join(default), PathBuf::from);
        (path, reader.place(key))
    };
    let ca = file("tlscacert", "ca.pem");
    let cert = file("tlscert", "cert.pem");
    let key = file("tlskey", "key.pem");
    let verify_clients = verify.unwrap_or(true);
    let needed = [Some(&cert), Some(&key), verify_clients.then_some(&ca)];
    for (path, place) in needed.into_iter().flatten() {
        if let Err(error) = std::fs::metadata(path) {
            reader.problems.add(place, format!("TLS needs {}: {error}", path.display()));
        }
    }
    (Some(TlsConfig { ca: ca.0, cert: cert.0, key: key.0, verify_clients }), on_purpose)
}

fn hosts(reader: &mut Reader<'_>, tls: bool) -> Vec<HostAddr> {
    let place = reader.place("hosts");
    let texts: Vec<String> = match reader.get("hosts") {
        Some((Value::Array(list), _)) => {
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    let mut hosts = Vec::new();
    for text in texts.iter().filter(|text| !text.trim().is_empty()) {
        match HostAddr::parse(text, tls) {
            Ok(host) if hosts.contains(&host) => {
                reader.problems.add(&place, format!("{host} is listed twice"));
            }
            Ok(host) => hosts.push(host),
            Err(error) => reader.problems.add(&place, error),
        }
    }
    if hosts.is_empty() {
        hosts.push(HostAddr::default_for(tls));
    }
    hosts
}

/// Whoever reaches the API is root on this machine.
fn refuse_open_tcp(
    reader: &mut Reader<'_>,
    hosts: &[HostAddr],
    tls: Option<&TlsConfig>,
    on_purpose: bool,
) {
    if on_purpose || tls.is_some_and(|tls| tls.verify_clients) {
        return;
    }
    let place = reader.place("hosts");
    for host in hosts.iter().filter(|host| !host.is_local()) {
        reader.problems.add(
            &place,
            format!(
                "{host} would give everybody who reaches it root access: use --tlsverify, or \
                 say --tls=false if that is meant"
            ),
        );
    }
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    match text.to_ascii_lowercase().as_str() {
        "trace" => Ok(LogLevel::Trace),
        "debug" => Ok(LogLevel::Debug),
        "" | "info" => Ok(LogLevel::Info),
        "warn" | "warning" => Ok(LogLevel::Warn),
        "error" | "fatal" | "panic" => Ok(LogLevel::Error),
        _ => Err(format!("invalid logging level: {text}")),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "" | "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("invalid log format: {text}")),
    }
}

fn pidfile(reader: &mut Reader<'_>) -> Option<PathBuf> {
    if reader.text("pidfile").is_some_and(|text| text.is_empty()) {
        return None;
    }
    Some(reader.path("pidfile", "/var/run/docker.pid"))
}

fn shutdown_timeout(reader: &Reader<'_>) -> Option<Duration> {
    let seconds = reader.get("shutdown-timeout").and_then(|(v, _)| v.as_i64()).unwrap_or(15);
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

fn metrics_addr(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let text = text.replace("localhost", "127.0.0.1");
    text.parse().map(Some).map_err(|_| format!("invalid address {text:?}: must be address:port"))
}

fn min_api(reader: &mut Reader<'_>, environment: &Environment) -> ApiVersion {
    let mut check = |text: &str, place: &Place| {
        reader.problems.check(place, version::minimum(text)).unwrap_or(version::DEFAULT_MIN)
    };
    if let Some(text) = &environment.min_api_version {
        return check(text, &Place::Env("DOCKER_MIN_API_VERSION"));
    }
    match reader.settings.get("min-api-version") {
        Some((Value::String(text), place)) => check(text, place),
        _ => version::DEFAULT_MIN,
    }
}

/// `key=value` each; a key may come twice only with one value.
fn labels(reader: &mut Reader<'_>) -> Vec<String> {
    let place = reader.place("labels");
    let Some((Value::Array(list), _)) = reader.get("labels") else { return Vec::new() };
    let texts: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let mut labels = BTreeMap::<&str, &str>::new();
    for text in &texts {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                if labels.insert(key, value).is_some_and(|other| other != value) {
                    reader.problems.add(&place, format!("label {key:?} has two values"));
                }
            }
            _ => reader.problems.add(&place, format!("bad attribute format: {text}")),
        }
    }
    labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn features(reader: &mut Reader<'_>, notices: &mut Vec<String>) -> BTreeMap<String, bool> {
    let Some((Value::Object(map), place)) = reader.get("features") else {
        return BTreeMap::new();
    };
    let (map, place) = (map.clone(), place.clone());
    let mut unknown = BTreeSet::new();
    for (name, on) in &map {
        if FEATURES_WITHOUT_EFFECT.contains(&name.as_str()) {
            notices.push(format!("feature {name} ({place}) is without effect here"));
        } else if !FEATURES_MISSING.contains(&name.as_str()) {
            unknown.insert(format!("unknown feature {name:?}"));
        } else if on.as_bool() == Some(true) {
            unknown.insert(format!("feature {name:?} is not in this build"));
        }
    }
    for message in unknown {
        reader.problems.add(&place, message);
    }
    map.into_iter().filter_map(|(name, on)| Some((name, on.as_bool()?))).collect()
}
