//! Which changes of the configuration a running daemon takes over.

use std::collections::{BTreeMap, BTreeSet};

use gantry_sdk::Descriptor;
use serde_json::Value;

use super::Config;

/// The kernel's own keys that take effect at once. The reference engine reloads these too.
const KERNEL_KEYS: [&str; 4] = ["debug", "labels", "features", "shutdown-timeout"];

/// What differs between two configurations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Keys with a new value that takes effect now.
    pub now: BTreeSet<String>,
    /// Keys with a new value that a restart would bring into effect.
    pub after_restart: BTreeSet<String>,
}

/// Compares the configuration in force with a newly read one.
#[must_use]
pub fn changes(old: &Config, new: &Config, descriptors: &[&Descriptor]) -> Changes {
    let keys: BTreeSet<&String> = old.values.keys().chain(new.values.keys()).collect();
    let mut changes = Changes::default();
    for key in keys {
        if old.values.get(key) == new.values.get(key) {
            continue;
        }
        let into = if is_reloadable(key, descriptors) {
            &mut changes.now
        } else {
            &mut changes.after_restart
        };
        into.insert(key.clone());
    }
    let sections = |config: &Config| -> BTreeMap<String, (Option<bool>, Option<bool>, Value)> {
        let entry = |(id, s): (&String, &super::PluginSettings)| {
            (id.clone(), (s.enabled, s.required, s.config.clone()))
        };
        config.plugins.iter().map(entry).collect()
    };
    if sections(old) != sections(new) {
        changes.after_restart.insert("kernel-plugins".to_owned());
    }
    changes
}

/// A key that several plugins read is reloadable only if all of them can.
pub(crate) fn is_reloadable(key: &str, descriptors: &[&Descriptor]) -> bool {
    let mut claims =
        descriptors.iter().flat_map(|d| d.config).filter(|claim| claim.name == key).peekable();
    KERNEL_KEYS.contains(&key) || (claims.peek().is_some() && claims.all(|claim| claim.reloadable))
}

/// The configuration in force after a reload: `old` with the values of `new` that take effect now.
#[must_use]
pub fn merged(old: &Config, new: &Config, changes: &Changes) -> Config {
    let mut config = old.clone();
    for key in &changes.now {
        match new.values.get(key) {
            Some(value) => config.values.insert(key.clone(), value.clone()),
            None => config.values.remove(key),
        };
    }
    let (from, to) = (&new.kernel, &mut config.kernel);
    to.debug = from.debug;
    to.labels = from.labels.clone();
    to.features = from.features.clone();
    to.shutdown_timeout = from.shutdown_timeout;
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags};
    use gantry_sdk::{ConfigKey, Phase};
    use serde_json::json;

    const A: Descriptor = Descriptor {
        config: &[ConfigKey::reloadable("live-restore"), ConfigKey::reloadable("mtu")],
        ..Descriptor::new("a", Phase::Container)
    };
    const B: Descriptor = Descriptor {
        config: &[ConfigKey::fixed("mtu"), ConfigKey::fixed("bip")],
        ..Descriptor::new("b", Phase::Network)
    };

    fn config(file: &Value) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let flags = Flags::parse([format!("--config-file={}", path.display())], "t").unwrap();
        Config::load(&flags, &Environment::default(), &[&A, &B]).unwrap()
    }

    #[test]
    fn only_what_every_reader_can_reload_takes_effect() {
        let old = config(&json!({"debug": false, "mtu": 1500, "bip": "1.1.1.1/8"}));
        let new = config(&json!({
            "debug": true, "mtu": 9000, "live-restore": true, "labels": ["a=b"],
            "kernel-plugins": {"a": {"init-timeout": 9}},
        }));
        let changes = changes(&old, &new, &[&A, &B]);
        let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(names(&changes.now), "debug labels live-restore");
        assert_eq!(names(&changes.after_restart), "bip kernel-plugins mtu");
        let after = merged(&old, &new, &changes);
        assert!(after.kernel.debug);
        assert_eq!(after.values["mtu"], 1500);
        assert_eq!(after.values["live-restore"], true);
    }
}
