//! The configuration: keys of the reference engine, and rules for every registry.

use std::collections::BTreeMap;
use std::path::PathBuf;

use gantry_sdk::kinds::registry::TransferLimits;
use gantry_sdk::{ConfigKey, ConfigView, Error, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::http::address::Url;
use crate::http::proxy::{self, Proxies};
use crate::insecure::{self, Insecure};

/// Where names without a registry live, under the names it goes by.
pub(crate) const DEFAULT: &str = "docker.io";
const DEFAULT_ALIASES: [&str; 3] = [DEFAULT, "index.docker.io", "registry-1.docker.io"];
/// Where that registry is.
pub(crate) const DEFAULT_HOST: &str = "registry-1.docker.io";

const MIRRORS: &str = "registry-mirrors";
const DOWNLOADS: &str = "max-concurrent-downloads";
const UPLOADS: &str = "max-concurrent-uploads";
const ATTEMPTS: &str = "max-download-attempts";

/// What "no limit" means.
const UNLIMITED: usize = 1024;
const MAX_ATTEMPTS: u64 = 1000;

/// The keys. The reference engine reloads the same ones.
pub(crate) const KEYS: &[ConfigKey] = &[
    ConfigKey::reloadable(insecure::KEY),
    ConfigKey::reloadable(MIRRORS),
    ConfigKey::reloadable(DOWNLOADS),
    ConfigKey::reloadable(UPLOADS),
    ConfigKey::reloadable(ATTEMPTS),
    ConfigKey::fixed(proxy::KEYS[0].0),
    ConfigKey::fixed(proxy::KEYS[1].0),
    ConfigKey::fixed(proxy::KEYS[2].0),
];

/// `name` as rules and mirrors know it.
pub(crate) fn canonical(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    if DEFAULT_ALIASES.contains(&name.as_str()) { DEFAULT.to_owned() } else { name }
}

/// What can change while the daemon runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Who may be spoken to without proof of who they are.
    pub(crate) insecure: Insecure,
    /// Mirrors of the default registry.
    pub(crate) mirrors: Vec<Url>,
    /// Transfers at once, and attempts.
    pub(crate) limits: TransferLimits,
}

impl Settings {
    /// Reads the keys.
    ///
    /// # Errors
    ///
    /// Every mistake.
    pub(crate) fn parse(config: &ConfigView) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let insecure = Insecure::parse(config.get(insecure::KEY)).unwrap_or_else(|mistakes| {
            wrong.extend(mistakes);
            Insecure::default()
        });
        let mirrors = mirrors(config.get(MIRRORS), &mut wrong);
        let downloads = number(config, DOWNLOADS, 3, 0, &mut wrong);
        let uploads = number(config, UPLOADS, 5, 0, &mut wrong);
        let attempts = number(config, ATTEMPTS, 5, 1, &mut wrong).min(MAX_ATTEMPTS);
        let many = |number: u64| match usize::try_from(number) {
            Ok(1..UNLIMITED) => number as usize,
            Ok(_) | Err(_) => UNLIMITED,
        };
        let limits = TransferLimits {
            max_concurrent_downloads: many(downloads),
            max_concurrent_uploads: many(uploads),
            max_download_attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        };
        if wrong.is_empty() { Ok(Self { insecure, mirrors, limits }) } else { Err(wrong) }
    }
}

/// Every mistake in the keys, the proxies of the environment included.
pub(crate) fn check(config: &ConfigView) -> Vec<String> {
    let mut wrong = Settings::parse(config).err().unwrap_or_default();
    wrong.extend(proxies(config).err().unwrap_or_default());
    wrong
}

/// The proxies in force.
///
/// # Errors
///
/// Every address that is of no use.
pub(crate) fn proxies(config: &ConfigView) -> Result<Proxies, Vec<String>> {
    Proxies::parse(&proxy::values(config, |name| std::env::var(name).ok()))
}

fn number(
    config: &ConfigView,
    key: &str,
    default: u64,
    least: u64,
    wrong: &mut Vec<String>,
) -> u64 {
    match config.get(key) {
        None | Some(Value::Null) => default,
        Some(value) => value.as_u64().filter(|number| *number >= least).unwrap_or_else(|| {
            let words = key.replace('-', " ");
            wrong.push(format!("{key}: invalid {words}: {value:.40}"));
            default
        }),
    }
}

fn mirrors(value: Option<&Value>, wrong: &mut Vec<String>) -> Vec<Url> {
    let entries = match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(entries)) => entries.as_slice(),
        Some(_) => {
            wrong.push(format!("{MIRRORS}: must be a list of strings"));
            return Vec::new();
        }
    };
    let mut all: Vec<Url> = Vec::new();
    for entry in entries {
        match mirror(entry.as_str().unwrap_or_default()) {
            Ok(url) if !all.contains(&url) => all.push(url),
            Ok(_) => {}
            Err(why) => wrong.push(format!("{MIRRORS}: {why}")),
        }
    }
    all
}

/// The address of a mirror; its path ends with a slash.
fn mirror(text: &str) -> Result<Url, String> {
    if !text.contains("://") {
        return Err(format!(
            "invalid mirror: no scheme specified for {text:.300?}: must use either 'https://' or 'http://'"
        ));
    }
    if text.contains(['?', '#']) {
        return Err(format!("invalid mirror: query or fragment at end of the URI {text:.300?}"));
    }
    let shown = proxy::masked(text);
    let url = Url::parse(text).map_err(|e| format!("invalid mirror: {shown:.300?}: {e}"))?;
    let target = format!("{}/", url.target.trim_end_matches('/'));
    Ok(url.at(target))
}

/// The section `kernel-plugins.registry`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Section {
    registries: BTreeMap<String, RuleText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RuleText {
    mirrors: Option<Vec<String>>,
    insecure: Option<bool>,
    blocked: Option<bool>,
    ca: Option<PathBuf>,
}

/// What is said about one registry, or about a part of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    /// Asked in this order, before the registry itself. Their path is put before `/v2/`.
    pub(crate) mirrors: Option<Vec<Url>>,
    /// Whether it may be spoken to without proof of who it is.
    pub(crate) insecure: Option<bool>,
    /// Whether it must not be spoken to.
    pub(crate) blocked: Option<bool>,
    /// A file of certificates to trust, beside those of the machine.
    pub(crate) ca: Option<PathBuf>,
}

/// Rules by `host`, `host/prefix` or `*`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules(BTreeMap<String, Rule>);

impl Rules {
    /// Reads the section.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` with every mistake.
    pub(crate) fn parse(section: &Value) -> Result<Self> {
        if section.is_null() {
            return Ok(Self::default());
        }
        let section: Section = serde_json::from_value(section.clone())
            .map_err(|e| Error::invalid("invalid section of the registry plugin").caused_by(e))?;
        let mut wrong = Vec::new();
        let mut all = BTreeMap::new();
        for (name, text) in section.registries {
            let key = rule_key(&name);
            if key.is_empty() {
                wrong.push(format!(
                    "registries: {name:.300?} is neither a host nor a host with a path nor \"*\""
                ));
            }
            let mut read = |text: &String| {
                mirror(text)
                    .map_err(|why| wrong.push(format!("registries: {name:.300?}: {why}")))
                    .ok()
            };
            let mirrors = text.mirrors.map(|list| list.iter().filter_map(&mut read).collect());
            if text.ca.as_ref().is_some_and(|path| !path.is_absolute()) {
                wrong.push(format!("registries: {name:.300?}: ca must be an absolute path"));
            }
            let (insecure, blocked, ca) = (text.insecure, text.blocked, text.ca);
            all.insert(key, Rule { mirrors, insecure, blocked, ca });
        }
        if wrong.is_empty() { Ok(Self(all)) } else { Err(Error::invalid(wrong.join("; "))) }
    }

    /// What the most specific rule for `host` and `path` that says anything about it says, and that rule's name.
    pub(crate) fn find<'a, T>(
        &'a self,
        host: &str,
        path: &str,
        what: impl Fn(&'a Rule) -> Option<T>,
    ) -> Option<(&'a str, T)> {
        let mut name = format!("{}/{path}", canonical(host));
        loop {
            if let Some((key, rule)) = self.0.get_key_value(&name)
                && let Some(found) = what(rule)
            {
                return Some((key, found));
            }
            match name.rfind('/') {
                Some(slash) => name.truncate(slash),
                None if name == "*" => return None,
                None => "*".clone_into(&mut name),
            }
        }
    }
}

/// The form of a rule's name that is looked for; empty for one that can never be found.
fn rule_key(name: &str) -> String {
    if name == "*" {
        return name.to_owned();
    }
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    if crate::http::address::split(host).is_none() {
        return String::new();
    }
    let path = path.trim_end_matches('/');
    let separator = if path.is_empty() { "" } else { "/" };
    format!("{}{separator}{path}", canonical(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view(value: Value) -> ConfigView {
        match value {
            Value::Object(map) => ConfigView::new(map),
            _ => unreachable!("an object"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let limits = Settings::parse(&view(json!({}))).unwrap().limits;
        let expected = TransferLimits {
            max_concurrent_downloads: 3,
            max_concurrent_uploads: 5,
            max_download_attempts: 5,
        };
        assert_eq!(limits, expected);
        let none = view(json!({"max-concurrent-downloads": 0, "max-concurrent-uploads": 9999999}));
        let limits = Settings::parse(&none).unwrap().limits;
        assert_eq!((limits.max_concurrent_downloads, limits.max_concurrent_uploads), (1024, 1024));
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let bad = view(json!({
            "registry-mirrors": ["mirror.example", "https://a/?x", "https://u:secret@a", "ftp://a", 7, "https://ok"],
            "max-download-attempts": 0,
            "max-concurrent-uploads": -1,
            "insecure-registries": ["a/b"],
        }));
        let wrong = Settings::parse(&bad).unwrap_err();
        assert_eq!(wrong.len(), 8, "{wrong:#?}");
        assert!(!wrong.join("").contains("secret"));
        assert!(wrong.iter().any(|w| w.contains("invalid max download attempts: 0")), "{wrong:?}");
    }

    #[test]
    fn mirrors_once_each() {
        let good =
            view(json!({"registry-mirrors": ["https://a", "https://a/", "http://b:5000/cache"]}));
        let mirrors = Settings::parse(&good).unwrap().mirrors;
        let shown: Vec<_> = mirrors.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["https://a/", "http://b:5000/cache/"]);
    }

    #[test]
    fn the_most_specific_rule_that_says_something_counts() {
        let rules = Rules::parse(&json!({"registries": {
            "*": {"blocked": true},
            "reg.example:5000": {"blocked": false, "insecure": true},
            "reg.example:5000/team/secret": {"blocked": true},
            "index.docker.io": {"blocked": false, "mirrors": ["https://m.example"]},
        }}))
        .unwrap();
        let blocked = |host, path| rules.find(host, path, |rule| rule.blocked).unwrap();
        for (host, path, name, expected) in [
            ("other.example", "a", "*", true),
            ("reg.example:5000", "team/app", "reg.example:5000", false),
            ("REG.example:5000", "team/secret/x", "reg.example:5000/team/secret", true),
            ("reg.example:5000", "team/secrets", "reg.example:5000", false),
            ("docker.io", "library/busybox", "docker.io", false),
        ] {
            assert_eq!(blocked(host, path), (name, expected), "{host}/{path}");
        }
        let insecure = rules.find("reg.example:5000", "team/secret", |rule| rule.insecure);
        assert_eq!(insecure, Some(("reg.example:5000", true)));
        assert!(rules.find("other.example", "a", |rule| rule.ca.as_ref()).is_none());
    }

    #[test]
    fn sections_are_checked() {
        for (bad, part) in [
            (json!({"registry": {}}), "unknown field"),
            (json!({"registries": {"a": {"mirror": []}}}), "unknown field"),
            (json!({"registries": {"https://a": {}}}), "neither a host"),
            (json!({"registries": {"a": {"mirrors": ["b"]}}}), "no scheme"),
            (json!({"registries": {"a": {"ca": "x.pem"}}}), "absolute"),
        ] {
            let error = Rules::parse(&bad).unwrap_err().chain();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}
