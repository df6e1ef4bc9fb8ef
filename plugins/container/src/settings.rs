//! Defaults for containers from the daemon's configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use gantry_sdk::api::Ulimit;
use gantry_sdk::kinds::logs::Log;
use gantry_sdk::kinds::runtime::Runtimes;
use gantry_sdk::registry::{Kind, Registry};
use gantry_sdk::{ConfigKey, ConfigView, Error, Labels, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::handle::StopGrace;
use crate::spec::facts::{CgroupDriver, DEFAULT_SHM_SIZE, Defaults};

/// The keys that this plugin honours.
pub const KEYS: &[ConfigKey] = &[
    ConfigKey::fixed("cgroup-parent"),
    ConfigKey::reloadable("default-cgroupns-mode"),
    ConfigKey::reloadable("default-ipc-mode"),
    ConfigKey::reloadable("default-shm-size"),
    ConfigKey::reloadable("default-ulimits"),
    ConfigKey::reloadable("default-stop-timeout"),
    ConfigKey::reloadable("default-runtime"),
    ConfigKey::fixed("exec-opts"),
    ConfigKey::fixed("init"),
    ConfigKey::fixed("seccomp-profile"),
    ConfigKey::fixed("no-new-privileges"),
    ConfigKey::reloadable("live-restore"),
    ConfigKey::fixed("log-driver"),
    ConfigKey::fixed("log-opts"),
];

/// The runtime of containers that name none.
pub const DEFAULT_RUNTIME: &str = "runc";

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    cgroup_parent: String,
    default_cgroupns_mode: String,
    default_ipc_mode: String,
    default_shm_size: Value,
    default_ulimits: BTreeMap<String, Ulimit>,
    default_stop_timeout: Option<i64>,
    default_runtime: String,
    exec_opts: Vec<String>,
    init: bool,
    seccomp_profile: String,
    no_new_privileges: bool,
    live_restore: Option<bool>,
    log_driver: String,
    log_opts: Labels,
}

/// What a container gets if it asks for nothing else.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What decides about the specification.
    pub defaults: Defaults,
    /// Time between stop signal and kill.
    pub stop_grace: StopGrace,
    /// Whether containers go on when the daemon is stopped cleanly. Ours do unless told otherwise.
    pub live_restore: bool,
    /// Log driver.
    pub log_driver: String,
    /// Its options.
    pub log_options: Labels,
}

impl Settings {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the key.
    pub fn parse(view: &ConfigView) -> Result<Self> {
        let raw: Raw = view.parse()?;
        let default = Defaults::default();
        let or =
            |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let ipc_mode = or(raw.default_ipc_mode, &default.ipc_mode);
        if !matches!(ipc_mode.as_str(), "private" | "shareable") {
            return Err(Error::invalid(format!(
                "default-ipc-mode: {ipc_mode:?} is not private or shareable"
            )));
        }
        if !matches!(raw.default_cgroupns_mode.as_str(), "" | "private" | "host") {
            return Err(Error::invalid(format!(
                "default-cgroupns-mode: {:?} is not private or host",
                raw.default_cgroupns_mode
            )));
        }
        let defaults = Defaults {
            shm_size: size("default-shm-size", &raw.default_shm_size)?.unwrap_or(DEFAULT_SHM_SIZE),
            ipc_mode,
            cgroupns_mode: raw.default_cgroupns_mode,
            cgroup_parent: raw.cgroup_parent,
            cgroup_driver: cgroup_driver(&raw.exec_opts)?,
            init: raw.init,
            no_new_privileges: raw.no_new_privileges,
            ulimits: ulimits(raw.default_ulimits),
            runtime: or(raw.default_runtime, DEFAULT_RUNTIME),
            seccomp_profile: seccomp(&raw.seccomp_profile)?,
            ..default
        };
        Ok(Self {
            defaults,
            stop_grace: raw
                .default_stop_timeout
                .map_or(StopGrace::After(Duration::from_secs(10)), StopGrace::from_seconds),
            live_restore: raw.live_restore.unwrap_or(true),
            log_driver: or(raw.log_driver, "json-file"),
            log_options: raw.log_opts,
        })
    }

    /// Learns which runtimes there are, and whether what containers use by default is in service.
    ///
    /// # Errors
    ///
    /// What [`Registry::get`] says, with the key and what there is.
    pub fn meet_backends(&mut self, registry: &Registry) -> Result<()> {
        let runtimes = registry.all::<Runtimes>().into_iter().map(|(name, _)| name);
        self.defaults.runtimes = runtimes.collect();
        is_there::<Log>(registry, "log-driver", &self.log_driver)?;
        is_there::<Runtimes>(registry, "default-runtime", &self.defaults.runtime)
    }
}

fn is_there<K: Kind>(registry: &Registry, key: &str, instance: &str) -> Result<()> {
    registry.get::<K>(instance).map(|_| ()).map_err(|error| {
        let ready: Vec<String> = registry.all::<K>().into_iter().map(|(name, _)| name).collect();
        error.context(format!("{key} {instance:?} (available: {})", ready.join(", ")))
    })
}

fn ulimits(limits: BTreeMap<String, Ulimit>) -> Vec<Ulimit> {
    let named = |(name, limit): (String, Ulimit)| Ulimit { name, ..limit };
    limits.into_iter().map(named).collect()
}

fn cgroup_driver(options: &[String]) -> Result<CgroupDriver> {
    for option in options {
        match option.split_once('=') {
            Some(("native.cgroupdriver", "cgroupfs")) => {}
            Some(("native.cgroupdriver", "systemd")) => {
                return Err(Error::invalid(
                    "exec-opts: native.cgroupdriver=systemd is not supported yet; use cgroupfs",
                ));
            }
            _ => return Err(Error::invalid(format!("exec-opts: unknown option {option:?}"))),
        }
    }
    Ok(CgroupDriver::Cgroupfs)
}

/// The profile's text: read once, so that a later change of the file cannot surprise.
fn seccomp(setting: &str) -> Result<String> {
    match setting {
        "" | "builtin" => Ok("builtin".into()),
        "unconfined" => Ok("unconfined".into()),
        path => std::fs::read_to_string(path).map_err(|e| {
            Error::invalid(format!("seccomp-profile: cannot read {path}")).caused_by(e)
        }),
    }
}

fn size(key: &str, value: &Value) -> Result<Option<i64>> {
    let bad = || Error::invalid(format!("{key}: {value} is not a size"));
    match value {
        Value::Null => Ok(None),
        Value::Number(n) => n.as_i64().map(Some).ok_or_else(bad),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => parse_size(text).map(Some).ok_or_else(bad),
        _ => Err(bad()),
    }
}

/// `64m`, `1g`, `512kb`, `100`: binary units, any case.
fn parse_size(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix("ib").or_else(|| text.strip_suffix('b')).unwrap_or(&text);
    let (number, shift) = match text.chars().last()? {
        'k' => (&text[..text.len() - 1], 10),
        'm' => (&text[..text.len() - 1], 20),
        'g' => (&text[..text.len() - 1], 30),
        't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    number.trim().parse::<i64>().ok()?.checked_mul(1 << shift)
}

/// Every mistake in the configuration, for `--validate`.
pub fn check(view: &ConfigView) -> Vec<String> {
    Settings::parse(view).err().map(|e| e.chain()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: Value) -> Result<Settings> {
        let Value::Object(map) = json else { unreachable!("an object") };
        Settings::parse(&ConfigView::new(map))
    }

    #[test]
    fn nothing_configured_is_the_default() {
        let settings = parse(serde_json::json!({})).unwrap();
        assert_eq!(settings.defaults.shm_size, DEFAULT_SHM_SIZE);
        assert_eq!(settings.log_driver, "json-file");
        assert!(settings.live_restore);
    }

    #[test]
    fn values_are_checked_by_name() {
        let settings = parse(serde_json::json!({"default-shm-size": "128m"})).unwrap();
        assert_eq!(settings.defaults.shm_size, 128 << 20);
        for bad in [
            serde_json::json!({"default-ipc-mode": "host"}),
            serde_json::json!({"default-shm-size": "lots"}),
            serde_json::json!({"exec-opts": ["native.cgroupdriver=systemd"]}),
        ] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
    }
    #[test]
    fn a_default_that_is_not_there_is_an_error() {
        let mut settings = parse(serde_json::json!({"log-driver": "syslog"})).unwrap();
        let error = settings.meet_backends(&Registry::default()).unwrap_err().chain();
        assert!(error.contains("log-driver \"syslog\""), "{error}");
    }
}
