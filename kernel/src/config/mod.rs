//! Configuration: flags and files into one checked [`Config`].
//!
//! # Map
//!
//! - `options`: the table of every option
//! - [`flags`], `file`, [`plugins`]: the command line, `daemon.json`, `plugins.d`
//! - [`typed`], [`host`]: what the kernel itself reads
//! - [`reload`]: which changes a running daemon takes over
//! - [`problem`]: mistakes and their places
//!
//! # Invariants
//!
//! 1. No setting is ignored: the kernel reads it, a plugin of this build declares it, it is said to
//!    be without effect, or the start is refused by its name.
//! 2. All mistakes are reported together.
//! 3. The kernel knows the names of options and of no plugin: who honours an option is in the
//!    descriptors it is given.

pub mod flags;
pub mod host;
pub mod plugins;
pub mod problem;
pub mod reload;
pub mod typed;

mod file;
mod options;

use std::collections::BTreeMap;
use std::path::PathBuf;

use gantry_sdk::{ConfigView, Descriptor};
use serde_json::{Map, Value};

pub use flags::{Flags, Usage};
pub use plugins::{PluginSections, PluginSettings};
pub use problem::{ConfigError, Place, Problem, Problems};
pub use typed::KernelConfig;

use options::{Opt, Owner};

/// Values by their key in the file, with where they come from.
pub(crate) type Settings = BTreeMap<String, (Value, Place)>;

/// Where the file is when no flag says so.
pub const DEFAULT_FILE: &str = "/etc/docker/daemon.json";

/// What the reference engine reads from the environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `DOCKER_CERT_PATH`, else `DOCKER_CONFIG`, else `~/.docker`.
    pub cert_dir: PathBuf,
    /// `DOCKER_TLS_VERIFY` is set and not empty.
    pub tls_verify: bool,
    /// `DOCKER_MIN_API_VERSION`.
    pub min_api_version: Option<String>,
}

impl Environment {
    /// From this process.
    #[must_use]
    pub fn of_process() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = || PathBuf::from(var("HOME").unwrap_or_else(|| "/root".into()));
        Self {
            cert_dir: var("DOCKER_CERT_PATH")
                .or_else(|| var("DOCKER_CONFIG"))
                .map_or_else(|| home().join(".docker"), PathBuf::from),
            tls_verify: var("DOCKER_TLS_VERIFY").is_some(),
            min_api_version: var("DOCKER_MIN_API_VERSION")
                .map(|value| value.to_string_lossy().into_owned()),
        }
    }
}

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, or would be if it existed.
    pub file: PathBuf,
    /// The kernel's part.
    pub kernel: KernelConfig,
    /// Every value that was set, by its key in the file: what plugins and `/info` read.
    pub values: BTreeMap<String, Value>,
    /// Sections of single plugins.
    pub plugins: PluginSections,
    /// Settings without effect: said once in the log.
    pub notices: Vec<String>,
}

impl Config {
    /// Reads the files that `flags` name and checks everything against what `descriptors` declare.
    ///
    /// # Errors
    ///
    /// Every mistake.
    pub fn load(
        flags: &Flags,
        environment: &Environment,
        descriptors: &[&Descriptor],
    ) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let mut notices = Vec::new();
        let path = flags.config_file.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        let from_file = match file::read(&path, &mut problems) {
            Some(map) => {
                let declared = |key: &str| {
                    descriptors.iter().flat_map(|d| d.config).any(|claim| claim.name == key)
                };
                file::settings(&path, map, declared, &mut problems)
            }
            None => {
                if flags.config_file.is_some() && !path.exists() {
                    problems.add(&Place::file(&path, &[]), "there is no such file");
                }
                Settings::new()
            }
        };
        let settings = file::merge(flags.settings(&mut problems), from_file, &mut problems);
        let kernel = KernelConfig::read(&settings, environment, &mut problems, &mut notices);
        check_owners(&settings, descriptors, &mut problems, &mut notices);
        let directory = path.with_file_name("plugins.d");
        let plugins = plugins::read(settings.get("kernel-plugins"), &directory, &mut problems);
        check_sections(&plugins, descriptors, &mut problems);
        let values: BTreeMap<_, _> =
            settings.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect();
        for descriptor in descriptors {
            check_plugin(descriptor, &settings, &values, &mut problems);
        }
        problems.into_result()?;
        Ok(Self { file: path, kernel, values, plugins, notices })
    }

    /// What `descriptor`'s plugin may see.
    #[must_use]
    pub fn view(&self, descriptor: &Descriptor) -> ConfigView {
        view(descriptor, &self.values)
    }

    /// What the operator says about the plugin `id`.
    #[must_use]
    pub fn plugin(&self, id: &str) -> PluginSettings {
        self.plugins.get(id).cloned().unwrap_or_default()
    }
}

/// Who reads a key, as far as the table of options says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The kernel; plugins may read it too.
    Kernel,
    /// Those plugins that declare it.
    Plugins,
    /// It is without effect.
    Nobody,
}

/// Who reads `key`.
#[must_use]
pub fn reader(key: &str) -> Reader {
    match options::by_key(key).map(|opt| opt.owner) {
        Some(Owner::Kernel) => Reader::Kernel,
        Some(Owner::NoEffect(_)) => Reader::Nobody,
        Some(Owner::Plugin { .. } | Owner::Refused(_)) | None => Reader::Plugins,
    }
}

fn view(descriptor: &Descriptor, values: &BTreeMap<String, Value>) -> ConfigView {
    let claimed = descriptor
        .config
        .iter()
        .filter_map(|key| values.get(key.name).map(|value| (key.name.to_owned(), value.clone())));
    ConfigView::new(claimed.collect::<Map<_, _>>())
}

/// Invariant 1 of this module.
fn check_owners(
    settings: &Settings,
    descriptors: &[&Descriptor],
    problems: &mut Problems,
    notices: &mut Vec<String>,
) {
    for (key, (value, place)) in settings {
        let Some(opt) = options::by_key(key) else { continue };
        match opt.owner {
            Owner::Kernel => {}
            Owner::Plugin { .. } if is_claimed(opt, descriptors) || opt.is_neutral(value) => {}
            Owner::Plugin { missing, .. } => {
                problems.add(place, format!("not supported by this build: {missing}"));
            }
            Owner::NoEffect(why) => notices.push(format!("{place}: {why}")),
            Owner::Refused(why) => problems.add(place, format!("not supported: {why}")),
        }
    }
}

fn is_claimed(opt: &Opt, descriptors: &[&Descriptor]) -> bool {
    descriptors.iter().flat_map(|d| d.config).any(|key| key.name == opt.key)
}

fn check_sections(sections: &PluginSections, descriptors: &[&Descriptor], problems: &mut Problems) {
    for (id, section) in sections {
        let place = section.place.clone().unwrap_or(Place::Whole);
        let Some(descriptor) = descriptors.iter().find(|d| d.id == id) else {
            problems.add(&place, format!("there is no plugin {id:?} in this build"));
            continue;
        };
        for message in (descriptor.check_section)(&section.config) {
            problems.add(&place.child("config"), message);
        }
    }
}

/// Lets a plugin check its keys. A message that one key alone brings about belongs to that key;
/// others are about how keys go together.
fn check_plugin(
    descriptor: &Descriptor,
    settings: &Settings,
    values: &BTreeMap<String, Value>,
    problems: &mut Problems,
) {
    for message in (descriptor.check_config)(&view(descriptor, values)) {
        let culprit = descriptor.config.iter().find_map(|key| {
            let (value, place) = settings.get(key.name)?;
            let alone = BTreeMap::from([(key.name.to_owned(), value.clone())]);
            (descriptor.check_config)(&view(descriptor, &alone)).contains(&message).then_some(place)
        });
        problems.add(culprit.unwrap_or(&Place::Whole), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::{ConfigKey, Phase};
    use serde_json::json;

    fn check(view: &ConfigView) -> Vec<String> {
        let bad = |key: &str| view.get(key).is_some_and(|v| v == "bad");
        let mut messages = Vec::new();
        if bad("bip") {
            messages.push("invalid address \"bad\"".to_owned());
        }
        if view.get("bridge").is_some() && view.get("bip").is_some() {
            messages.push("bip and bridge exclude each other".to_owned());
        }
        messages
    }

    const NET: Descriptor = Descriptor {
        config: &[
            ConfigKey::fixed("bip"),
            ConfigKey::fixed("bridge"),
            ConfigKey::reloadable("runtimes"),
        ],
        check_config: check,
        ..Descriptor::new("net", Phase::Network)
    };

    fn load(args: &[&str], file: Value) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let file_flag = format!("--config-file={}", path.display());
        let args = args.iter().copied().chain([file_flag.as_str()]);
        let flags = Flags::parse(args, "test").unwrap();
        Config::load(&flags, &Environment::default(), &[&NET])
            .map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), ""))
    }

    #[test]
    fn defaults_are_the_reference_engines() {
        let config = load(&[], json!({})).unwrap();
        assert_eq!(config.kernel.hosts[0].to_string(), "unix:///var/run/docker.sock");
        assert_eq!(config.kernel.data_root, PathBuf::from("/var/lib/docker"));
        assert_eq!(config.kernel.shutdown_timeout, Some(std::time::Duration::from_secs(15)));
        assert!(config.kernel.tls.is_none() && config.notices.is_empty());
    }

    #[test]
    fn a_key_is_honoured_refused_or_said_to_be_without_effect() {
        let cases: &[(&[&str], Value, Result<usize, &str>)] = &[
            (&["--bip=10.0.0.1/8"], json!({}), Ok(0)),
            (&["--containerd=/x", "--userland-proxy-path=/y"], json!({}), Ok(2)),
            (&["--selinux-enabled=false"], json!({}), Ok(0)),
            (
                &["--selinux-enabled"],
                json!({}),
                Err("--selinux-enabled: not supported by this build"),
            ),
            (&[], json!({"builder": {"gc": {"enabled": true}}}), Err("/builder: not supported")),
            (&["--api-cors-header=*"], json!({}), Err("--api-cors-header: not supported: removed")),
            (&["--feature=containerd-snapshotter"], json!({}), Ok(1)),
            (&["--feature=cdi=false"], json!({}), Ok(0)),
            (&["--feature=cdi"], json!({}), Err("feature \"cdi\" is not in this build")),
            (&["--mtu=9000"], json!({"mtu": 1}), Err("--mtu: mtu is set both")),
        ];
        for (args, file, expected) in cases {
            match (load(args, file.clone()), expected) {
                (Ok(config), Ok(notices)) => {
                    assert_eq!(config.notices.len(), *notices, "{args:?} {file}");
                }
                (Err(error), Err(part)) => assert!(error.contains(part), "{args:?}: {error}"),
                (other, _) => panic!("{args:?} {file}: {other:?}"),
            }
        }
    }

    #[test]
    fn every_mistake_of_every_layer_is_in_one_message() {
        let error = load(
            &["--bip=bad", "--bridge=br0", "--log-level=loud", "-H", "ftp://x", "--label=nolabel"],
            json!({
                "debug": 1, "min-api-version": "9.9",
                "kernel-plugins": {"ghost": {}, "net": {"config": {"mtu": 9}}},
            }),
        )
        .unwrap_err();
        assert_eq!(
            error,
            "invalid configuration, 9 mistakes:\n  \
             --bip: invalid address \"bad\"\n  \
             --host: invalid bind address (ftp://x): unsupported proto 'ftp'\n  \
             --label: bad attribute format: nolabel\n  \
             --log-level: invalid logging level: loud\n  \
             /daemon.json: /debug: must be true or false, not a number\n  \
             /daemon.json: /kernel-plugins/ghost: there is no plugin \"ghost\" in this build\n  \
             /daemon.json: /kernel-plugins/net/config: this plugin takes no configuration of its own\n  \
             /daemon.json: /min-api-version: maximum supported API version is 1.55: 9.9\n  \
             configuration: bip and bridge exclude each other"
                .replace("1.55", &crate::version::NEWEST.to_string())
        );
    }

    #[test]
    fn tcp_off_loopback_needs_mutual_tls_or_words() {
        for (args, ok) in [
            (&["-H", "tcp://0.0.0.0:1"][..], false),
            (&["-H", "tcp://0.0.0.0:1", "--tls=false"], true),
            (&["-H", "tcp://127.0.0.1:1"], true),
            (&["-H", "tcp://localhost:1"], true),
            (&["-H", "tcp://example.org:1"], false),
        ] {
            assert_eq!(load(args, json!({})).is_ok(), ok, "{args:?}");
        }
    }

    #[test]
    fn tls_names_every_file_that_is_missing() {
        let error = load(&["--tlsverify"], json!({})).unwrap_err();
        for file in ["ca.pem", "cert.pem", "key.pem"] {
            assert!(error.contains(file), "{error}");
        }
    }

    #[test]
    fn a_named_file_must_exist_and_the_default_one_need_not() {
        let flags = Flags::parse(["--config-file=/no/such/file.json"], "test").unwrap();
        let error = Config::load(&flags, &Environment::default(), &[]).unwrap_err();
        assert!(error.to_string().contains("there is no such file"), "{error}");
    }

    #[test]
    fn a_plugin_sees_its_own_keys_only() {
        let config = load(&["--bip=10.0.0.1/8", "-D"], json!({})).unwrap();
        let view = config.view(&NET);
        assert_eq!(view.get("bip").unwrap(), "10.0.0.1/8");
        assert!(view.get("debug").is_none());
        assert_eq!(config.values["debug"], true);
    }
}
