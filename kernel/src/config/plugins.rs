//! Sections for single plugins: `kernel-plugins` in `daemon.json`, and `plugins.d/*.json` beside it.
//!
//! Each file of `plugins.d` is an object from plugin id to settings, exactly what `kernel-plugins`
//! holds; it exists because the reference engine refuses keys it does not know.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::file;
use super::problem::{Place, Problems};

/// The most files read from `plugins.d`.
const FILES_LIMIT: usize = 256;
/// The longest start of one plugin that can be configured.
const START_LIMIT_SECONDS: u64 = 3600;

/// What an operator says about one plugin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PluginSettings {
    /// Off means: do not start it.
    pub enabled: Option<bool>,
    /// Whether the daemon must not run without it; none leaves it to the descriptor.
    pub required: Option<bool>,
    /// How long its initialisation may take.
    pub init_timeout: Option<Duration>,
    /// Its own section, passed on as it is. Null if there is none.
    pub config: Value,
    /// Where the section was written, for messages.
    pub(crate) place: Option<Place>,
}

/// Sections by plugin id.
pub type PluginSections = BTreeMap<String, PluginSettings>;

/// Settings for code that is not built in; no carrier in this build could load it.
const FOR_OTHER_CARRIERS: [&str; 8] =
    ["source", "file", "sha256", "on-fault", "limits", "grants", "instances", "interfaces"];

/// Reads the sections of `daemon.json` and of the directory `plugins.d`.
pub(crate) fn read(
    in_file: Option<&(Value, Place)>,
    directory: &Path,
    problems: &mut Problems,
) -> PluginSections {
    let mut sections = PluginSections::new();
    if let Some((Value::Object(map), place)) = in_file {
        add(&mut sections, map.clone(), place, problems);
    }
    for path in files(directory, problems) {
        if let Some(map) = file::read(&path, problems) {
            add(&mut sections, map, &Place::file(&path, &[]), problems);
        }
    }
    sections
}

/// The JSON files of `directory` in the order of their names; none if there is no such directory.
fn files(directory: &Path, problems: &mut Problems) -> Vec<std::path::PathBuf> {
    let place = Place::file(directory, &[]);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.add(&place, format!("cannot read the directory: {error}"));
            return Vec::new();
        }
    };
    let mut files: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
        .collect();
    files.sort();
    if files.len() > FILES_LIMIT {
        problems.add(&place, format!("more than {FILES_LIMIT} files"));
        files.clear();
    }
    files
}

fn add(
    sections: &mut PluginSections,
    map: Map<String, Value>,
    place: &Place,
    problems: &mut Problems,
) {
    for (id, value) in map {
        let place = place.child(&id);
        let Value::Object(fields) = value else {
            problems.add(&place, "must be an object");
            continue;
        };
        let settings = settings(fields, &place, problems);
        if let Some(other) = sections.get(&id).and_then(|other| other.place.as_ref()) {
            problems.add(&place, format!("plugin {id:?} also has a section in {other}"));
        } else {
            sections.insert(id, settings);
        }
    }
}

fn settings(fields: Map<String, Value>, place: &Place, problems: &mut Problems) -> PluginSettings {
    let mut settings = PluginSettings { place: Some(place.clone()), ..Default::default() };
    for (name, value) in fields {
        let place = place.child(&name);
        match name.as_str() {
            "config" => settings.config = value,
            "enabled" | "required" => match value.as_bool() {
                Some(on) if name == "enabled" => settings.enabled = Some(on),
                Some(on) => settings.required = Some(on),
                None => problems.add(&place, "must be true or false"),
            },
            "init-timeout" => match value.as_u64() {
                Some(seconds) if (1..=START_LIMIT_SECONDS).contains(&seconds) => {
                    settings.init_timeout = Some(Duration::from_secs(seconds));
                }
                _ => problems.add(
                    &place,
                    format!("must be a number of seconds from 1 to {START_LIMIT_SECONDS}"),
                ),
            },
            other if FOR_OTHER_CARRIERS.contains(&other) => problems.add(
                &place,
                "applies to plugins that are loaded, and this build only has built-in ones",
            ),
            _ => problems.add(&place, "unknown key"),
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sections_come_from_the_file_and_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let section = json!({"b": {"required": false, "init-timeout": 3}});
        std::fs::write(dir.path().join("b.json"), section.to_string()).unwrap();
        std::fs::write(dir.path().join("README"), "not read").unwrap();
        let mut problems = Problems::default();
        let in_file = (json!({"a": {"enabled": false, "config": {"x": 1}}}), Place::Whole);
        let sections = read(Some(&in_file), dir.path(), &mut problems);
        problems.into_result().unwrap();
        assert_eq!(sections["a"].enabled, Some(false));
        assert_eq!(sections["a"].config["x"], 1);
        assert_eq!(sections["b"].required, Some(false));
        assert_eq!(sections["b"].init_timeout, Some(Duration::from_secs(3)));
    }

    #[test]
    fn mistakes_name_file_and_pointer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let section = json!({
            "a": {"enabled": 1, "source": "oci://x", "no": 1, "init-timeout": 0}, "b": 3
        });
        std::fs::write(&path, section.to_string()).unwrap();
        let mut problems = Problems::default();
        let in_file = (json!({"a": {}}), Place::Whole);
        read(Some(&in_file), dir.path(), &mut problems);
        let error = problems.into_result().unwrap_err();
        assert_eq!(error.0.len(), 6, "{error}");
        assert!(error.to_string().contains("a.json: /a/source"), "{error}");
    }
}
