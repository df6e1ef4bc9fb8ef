//! The plugins that the directories name. Reads directories and small files; never dials.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// The most entries of one directory that are looked at.
const MAX_ENTRIES: usize = 4096;
/// The most plugins.
const MAX_PLUGINS: usize = 1024;
/// The largest file with an address, in bytes.
const MAX_FILE: u64 = 64 << 10;
/// The longest name of a plugin, in bytes.
const MAX_NAME: usize = 128;

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`, unencrypted.
    Tcp(String),
}

/// Which file it was: another file, or a changed one, is another plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Print {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

/// A plugin by what a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) print: Print,
    /// Its address, or why it has none.
    pub(crate) address: Result<Address, String>,
}

/// All plugins by name. A directory that is missing holds none. Blocking.
pub(crate) fn scan(settings: &Settings) -> BTreeMap<String, Found> {
    let mut all = BTreeMap::new();
    look(&settings.sockets, "sock", &mut all, |path, stat| {
        stat.file_type().is_socket().then(|| Ok(Address::Unix(path.to_owned())))
    });
    for directory in &settings.specs {
        for (extension, parse) in [("spec", parse_spec as Parse), ("json", parse_json)] {
            look(directory, extension, &mut all, |path, stat| {
                stat.is_file().then(|| read(path).and_then(|text| parse(&text)))
            });
        }
    }
    all
}

type Parse = fn(&str) -> Result<Address, String>;

/// Adds the plugins of `directory` whose files end in `extension`, unless their names are taken.
fn look(
    directory: &Path,
    extension: &str,
    all: &mut BTreeMap<String, Found>,
    address: impl Fn(&Path, &Metadata) -> Option<Result<Address, String>>,
) {
    for name in names(directory, extension) {
        if all.len() >= MAX_PLUGINS || all.contains_key(&name) {
            continue;
        }
        let file = format!("{name}.{extension}");
        let found = [directory.join(&file), directory.join(&name).join(&file)]
            .into_iter()
            .find_map(|path| {
                let stat = path.metadata().ok()?;
                let address = address(&path, &stat)?;
                Some(Found { print: Print::of(path, &stat), address })
            });
        if let Some(found) = found {
            all.insert(name, found);
        }
    }
}

/// Names that files or directories of `directory` may stand for.
fn names(directory: &Path, extension: &str) -> BTreeSet<String> {
    let entries = directory.read_dir().into_iter().flatten().take(MAX_ENTRIES).flatten();
    let names = entries.filter_map(|entry| {
        let file = entry.file_name();
        let file = file.to_str()?;
        let stem = file.strip_suffix(extension).and_then(|stem| stem.strip_suffix('.'));
        let is_name = |name: &str| {
            !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
        };
        let name = stem.unwrap_or(file);
        is_name(name).then(|| name.to_owned())
    });
    names.collect()
}

impl Print {
    fn of(path: PathBuf, stat: &Metadata) -> Self {
        Self {
            path,
            device: stat.dev(),
            inode: stat.ino(),
            changed: (stat.mtime(), stat.mtime_nsec()),
        }
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    file.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("{} is larger than {MAX_FILE} bytes", path.display()));
    }
    Ok(text)
}

fn parse_spec(text: &str) -> Result<Address, String> {
    parse_address(text.trim())
}

/// Source: Docker's plugin discovery, `{"Name", "Addr", "TLSConfig"}`.
fn parse_json(text: &str) -> Result<Address, String> {
    #[derive(Deserialize)]
    struct Spec {
        #[serde(rename = "Addr")]
        address: String,
        #[serde(rename = "TLSConfig")]
        tls: Option<serde_json::Value>,
    }
    let spec: Spec = serde_json::from_str(text).map_err(|error| format!("bad JSON: {error}"))?;
    if spec.tls.is_some() {
        return Err("plugins over TLS are not supported yet".to_owned());
    }
    parse_address(&spec.address)
}

fn parse_address(text: &str) -> Result<Address, String> {
    let shown = || format!("{text:.200?}");
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| format!("{} is no address", shown()))?;
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Address::Unix(rest.into())),
        "unix" => Err(format!("{} is not an absolute path", shown())),
        "tcp" | "http" => {
            let host = rest.split('/').next().unwrap_or_default();
            match host.rsplit_once(':') {
                Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Address::Tcp(host.to_owned()))
                }
                _ => Err(format!("{} has no host and port", shown())),
            }
        }
        "https" => Err("plugins over TLS are not supported yet".to_owned()),
        _ => Err(format!("{} has an unknown scheme", shown())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn addresses() {
        let table: [(&str, Result<Address, ()>); 9] = [
            ("unix:///run/x.sock\n", Ok(Address::Unix("/run/x.sock".into()))),
            ("tcp://localhost:8080", Ok(Address::Tcp("localhost:8080".into()))),
            ("http://[::1]:80/plugin", Ok(Address::Tcp("[::1]:80".into()))),
            ("unix://x.sock", Err(())),
            ("tcp://localhost", Err(())),
            ("tcp://:1", Err(())),
            ("https://localhost:1", Err(())),
            ("localhost:1", Err(())),
            ("", Err(())),
        ];
        for (text, expected) in table {
            assert_eq!(parse_spec(text).map_err(drop), expected, "{text}");
        }
        let json = parse_json(r#"{"Name":"x","Addr":"tcp://h:1"}"#);
        assert_eq!(json, Ok(Address::Tcp("h:1".into())));
        assert!(parse_json(r#"{"Addr":"tcp://h:1","TLSConfig":{}}"#).is_err());
        assert!(parse_json("{").is_err());
    }

    #[test]
    fn a_socket_goes_before_specs_and_the_first_directory_before_the_second() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            sockets: dir.path().join("run"),
            specs: vec![dir.path().join("etc"), dir.path().join("lib"), dir.path().join("none")],
        };
        for name in ["run/nested", "run/empty", "etc/deep", "lib"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let _sockets = ["run/a.sock", "run/nested/nested.sock"]
            .map(|name| UnixListener::bind(dir.path().join(name)).unwrap());
        for (name, text) in [
            ("run/file.sock", "not a socket"),
            ("etc/a.spec", "tcp://h:1"),
            ("etc/b.json", r#"{"Addr":"tcp://h:2"}"#),
            ("etc/b.spec", "tcp://h:3"),
            ("etc/deep/deep.json", r#"{"Addr":"tcp://h:4"}"#),
            ("lib/b.spec", "tcp://h:5"),
            ("lib/c.spec", "nonsense"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let found = scan(&settings);
        let seen: Vec<_> =
            found.iter().map(|(name, found)| (name.as_str(), found.address.clone().ok())).collect();
        let unix = |name: &str| Some(Address::Unix(dir.path().join(name)));
        let tcp = |text: &str| Some(Address::Tcp(text.into()));
        let expected = [
            ("a", unix("run/a.sock")),
            ("b", tcp("h:3")),
            ("c", None),
            ("deep", tcp("h:4")),
            ("nested", unix("run/nested/nested.sock")),
        ];
        assert_eq!(seen, expected);
    }
}
