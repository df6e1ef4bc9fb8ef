//! `daemon.json`: JSON text into settings, each with its place.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::Settings;
use super::options::{self, Shape};
use super::problem::{Place, Problems};

/// The most bytes a configuration file may have.
const SIZE_LIMIT: u64 = 4 << 20;
/// Keys inside the `proxies` object.
const PROXIES: [&str; 3] = ["http-proxy", "https-proxy", "no-proxy"];

/// Reads `path`; `None` if there is no such file.
pub(crate) fn read(path: &Path, problems: &mut Problems) -> Option<Map<String, Value>> {
    let place = Place::file(path, &[]);
    let text = match text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            problems.add(&place, format!("cannot read the file: {error}"));
            return None;
        }
    };
    if text.trim().is_empty() {
        return Some(Map::new());
    }
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Some(map),
        Ok(_) => {
            problems.add(&place, "must be a JSON object");
            None
        }
        Err(error) => {
            problems.add(&place, format!("invalid JSON: {error}"));
            None
        }
    }
}

/// The text of `path`. A byte order mark is honoured, as in the reference engine: UTF-8 and UTF-16
/// with one, UTF-8 without.
fn text(path: &Path) -> std::io::Result<String> {
    use std::io::{Error, ErrorKind::InvalidData};

    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(SIZE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE_LIMIT {
        return Err(Error::new(InvalidData, format!("larger than {SIZE_LIMIT} bytes")));
    }
    let wide = |rest: &[u8], from: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest.chunks_exact(2).map(|pair| from([pair[0], pair[1]])).collect();
        String::from_utf16(&units).map_err(|error| Error::new(InvalidData, error))
    };
    match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()),
        [0xff, 0xfe, rest @ ..] => return wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => return wide(rest, u16::from_be_bytes),
        _ => String::from_utf8(bytes),
    }
    .map_err(|error| Error::new(InvalidData, error))
}

/// The entries of a file as settings. Unknown keys and values of the wrong type are noted.
///
/// Beside the options of the table, a plugin may declare keys of its own: `declared` knows them, and
/// their values are the plugin's to check.
pub(crate) fn settings(
    path: &Path,
    map: Map<String, Value>,
    declared: impl Fn(&str) -> bool,
    problems: &mut Problems,
) -> Settings {
    let mut settings = Settings::new();
    for (key, value) in map {
        let place = Place::file(path, &[&key]);
        match (key.as_str(), value) {
            (_, Value::Null) => {} // Go decodes null as "leave it".
            ("proxies", Value::Object(proxies)) => {
                for (name, value) in proxies {
                    let place = place.child(&name);
                    if PROXIES.contains(&name.as_str()) {
                        insert(&mut settings, name, value, place, problems);
                    } else {
                        problems.add(&place, "unknown key");
                    }
                }
            }
            ("proxies", _) => problems.add(&place, "must be an object"),
            // The older name of one address, moved to a list.
            ("host-gateway-ip", Value::String(ip)) => {
                let list = Value::from(vec![ip]);
                insert(&mut settings, "host-gateway-ips".to_owned(), list, place, problems);
            }
            ("host-gateway-ip", _) => problems.add(&place, "must be a string"),
            (name, value) if options::by_key(name).is_none() && declared(name) => {
                settings.insert(key, (value, place));
            }
            (_, value) => insert(&mut settings, key, value, place, problems),
        }
    }
    settings
}

fn insert(
    settings: &mut Settings,
    key: String,
    value: Value,
    place: Place,
    problems: &mut Problems,
) {
    let Some(opt) = options::by_key(&key) else {
        let hint = options::by_flag(&key)
            .filter(|opt| !opt.key.is_empty())
            .map(|opt| format!("; the key of --{} is {:?}", opt.flag, opt.key))
            .unwrap_or_default();
        return problems.add(&place, format!("no configuration option has this name{hint}"));
    };
    if let Err(expected) = matches_shape(opt.shape, &value) {
        return problems.add(&place, format!("must be {expected}, not {}", type_name(&value)));
    }
    if let Some((_, other)) = settings.get(&key) {
        return problems.add(&place, format!("is also set by {other}"));
    }
    settings.insert(key, (value, place));
}

fn matches_shape(shape: Shape, value: &Value) -> Result<(), &'static str> {
    let object_of =
        |check: fn(&Value) -> bool| value.as_object().is_some_and(|map| map.values().all(check));
    let (fits, expected) = match shape {
        Shape::Switch => (value.is_boolean(), "true or false"),
        Shape::Text => (value.is_string(), "a string"),
        Shape::Whole => (value.is_i64() || value.is_u64(), "a whole number"),
        Shape::Size => (value.is_string() || value.is_u64(), "a number of bytes"),
        Shape::List => (
            value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            "a list of strings",
        ),
        Shape::Pairs => (object_of(Value::is_string), "an object of strings"),
        Shape::NestedPairs => (
            object_of(|v| v.as_object().is_some_and(|m| m.values().all(Value::is_string))),
            "an object of objects of strings",
        ),
        Shape::Toggles => (object_of(Value::is_boolean), "an object of true or false"),
        Shape::Runtimes | Shape::Ulimits => (object_of(Value::is_object), "an object of objects"),
        Shape::Pools => (
            value.as_array().is_some_and(|list| list.iter().all(Value::is_object)),
            "a list of objects",
        ),
        Shape::Fields | Shape::Object => (value.is_object(), "an object"),
    };
    if fits { Ok(()) } else { Err(expected) }
}

const fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Flags over file. A key set by both is a mistake that names both, but for `runtimes`, which merge.
///
/// Source: the reference engine's `findConfigurationConflicts`.
pub(crate) fn merge(flags: Settings, file: Settings, problems: &mut Problems) -> Settings {
    let mut merged = file;
    for (key, (value, place)) in flags {
        match merged.get_mut(&key) {
            None => {
                merged.insert(key, (value, place));
            }
            Some((Value::Object(of_file), file_place)) if key == "runtimes" => {
                for (name, runtime) in value.as_object().into_iter().flatten() {
                    if of_file.insert(name.clone(), runtime.clone()).is_some() {
                        problems.add(
                            &place,
                            format!("runtime {name:?} is also defined in {file_place}"),
                        );
                    }
                }
            }
            Some((_, file_place)) => problems.add(
                &place,
                format!("{key} is set both as a flag and in the file ({file_place}): remove one"),
            ),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> (Settings, Vec<String>) {
        let mut problems = Problems::default();
        let Value::Object(map) = value else { panic!("not an object") };
        let settings = settings(Path::new("/d.json"), map, |key| key == "own-key", &mut problems);
        let texts = problems
            .into_result()
            .err()
            .map_or(Vec::new(), |error| error.0.iter().map(ToString::to_string).collect());
        (settings, texts)
    }

    #[test]
    fn mistakes_are_found_together_and_by_pointer() {
        let (_, problems) = parse(json!({
            "debug": "yes", "label": ["a=b"], "nope": 1, "mtu": 1.5,
            "log-opts": {"max-file": 3}, "proxies": {"ftp-proxy": "x"},
            "host-gateway-ip": "1.2.3.4", "host-gateway-ips": ["1.2.3.4"],
        }));
        assert_eq!(
            problems,
            [
                "/d.json: /debug: must be true or false, not a string",
                "/d.json: /host-gateway-ips: is also set by /d.json: /host-gateway-ip",
                "/d.json: /label: no configuration option has this name; the key of --label is \
                 \"labels\"",
                "/d.json: /log-opts: must be an object of strings, not an object",
                "/d.json: /mtu: must be a whole number, not a number",
                "/d.json: /nope: no configuration option has this name",
                "/d.json: /proxies/ftp-proxy: unknown key",
            ]
        );
    }

    #[test]
    fn a_key_that_a_plugin_declares_is_its_own_to_check() {
        let (settings, problems) = parse(json!({"own-key": [1]}));
        assert!(problems.is_empty());
        assert_eq!(settings["own-key"].0, json!([1]));
    }

    #[test]
    fn proxies_are_lifted_out() {
        let (settings, problems) = parse(json!({"proxies": {"http-proxy": "http://p"}}));
        assert!(problems.is_empty());
        assert_eq!(settings["http-proxy"].0, "http://p");
    }

    #[test]
    fn every_byte_order_mark_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        let wide: Vec<u16> = "{\"debug\":true}".encode_utf16().collect();
        let cases: [Vec<u8>; 4] = [
            b"{\"debug\":true}".to_vec(),
            b"\xef\xbb\xbf{\"debug\":true}".to_vec(),
            [0xff, 0xfe].into_iter().chain(wide.iter().flat_map(|u| u.to_le_bytes())).collect(),
            [0xfe, 0xff].into_iter().chain(wide.iter().flat_map(|u| u.to_be_bytes())).collect(),
        ];
        for bytes in cases {
            std::fs::write(&path, &bytes).unwrap();
            let mut problems = Problems::default();
            assert_eq!(read(&path, &mut problems).unwrap()["debug"], true, "{bytes:?}");
        }
    }

    #[test]
    fn flag_and_file_conflict_but_runtimes_merge() {
        let place = Place::Flag("x".into());
        let flags = Settings::from([
            ("mtu".to_owned(), (json!(1), place.clone())),
            ("runtimes".to_owned(), (json!({"a": {}, "b": {}}), place)),
        ]);
        let (file, _) = parse(json!({"mtu": 2, "runtimes": {"b": {}, "c": {}}}));
        let mut problems = Problems::default();
        let merged = merge(flags, file, &mut problems);
        assert_eq!(merged["runtimes"].0.as_object().unwrap().len(), 3);
        assert_eq!(problems.into_result().unwrap_err().0.len(), 2);
    }
}
