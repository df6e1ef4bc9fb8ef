//! The driver's options and the file they are kept in.
//!
//! | option | meaning |
//! |---|---|
//! | `type` | file system type as mount(8) takes it: `tmpfs`, `nfs`, `cifs`, `ext4`, `none` |
//! | `device` | what to mount: a device, `:/export`, `tmpfs`, a directory with `o=bind` |
//! | `o` | mount options, comma-separated: `addr=…`, `bind`, `ro`, `size=…` |
//! | `size` | a quota; refused unless it is 0, since this driver has no quotas |
//!
//! Source: the reference engine's documentation, *docker volume create*.

use gantry_sdk::{Error, Labels, Result};
use serde::{Deserialize, Serialize};

/// `opts.json` of a volume, as the reference engine writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Options {
    /// `type`
    pub mount_type: String,
    /// `o`
    pub mount_opts: String,
    /// `device`
    pub mount_device: String,
    /// `size`
    pub quota: Quota,
}

/// Limits of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Quota {
    /// Bytes; 0 is no limit.
    pub size: u64,
}

impl Options {
    /// Checks `options`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the option.
    pub fn parse(options: &Labels) -> Result<Self> {
        const KNOWN: [&str; 4] = ["type", "o", "device", "size"];
        if let Some(name) = options.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(Error::invalid(format!("invalid option: {name:?}")));
        }
        if let Some(size) = options.get("size") {
            no_quota(size)?;
        }
        let required: [(&str, &[&str]); 3] =
            [("device", &["type"]), ("o", &["device", "type"]), ("type", &["device"])];
        for (name, others) in required {
            let missing = others.iter().find(|other| !options.contains_key(**other));
            if let Some(missing) = missing.filter(|_| options.contains_key(name)) {
                return Err(Error::invalid(format!("missing required option: {missing:?}")));
            }
        }
        let value = |name: &str| options.get(name).cloned().unwrap_or_default();
        let parsed = Self {
            mount_type: value("type"),
            mount_opts: value("o"),
            mount_device: value("device"),
            quota: Quota::default(),
        };
        if parsed.needs_mount() && parsed.mount_device.is_empty() {
            return Err(Error::invalid("missing device in volume options"));
        }
        if parsed.mount_type == "cifs" && has_port(&parsed.mount_device) {
            return Err(Error::invalid(
                "port not allowed in CIFS device URL, include 'port' in 'o='",
            ));
        }
        Ok(parsed)
    }

    /// Whether the volume is a mount of its own rather than its directory.
    pub fn needs_mount(&self) -> bool {
        !self.mount_device.is_empty() || !self.mount_type.is_empty()
    }
}

/// Whether the host of `//host:port/share` has a port.
fn has_port(device: &str) -> bool {
    let rest = device.split_once("//").map_or("", |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let after = host.rsplit_once(']').map_or(host, |(_, after)| after);
    after.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty())
}

/// Checks that `text` is a size, and that it asks for nothing.
fn no_quota(text: &str) -> Result<()> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let number = number.parse::<f64>().ok().filter(|n| n.is_finite());
    let known = |unit: &str| {
        let letter = unit.chars().next().is_some_and(|c| "kmgtp".contains(c));
        matches!(unit, "" | "b") || (letter && matches!(unit.get(1..), Some("" | "b" | "ib")))
    };
    match number {
        Some(number) if known(&unit) && number == 0.0 => Ok(()),
        Some(_) if known(&unit) => Err(Error::invalid("quota size requested but no quota support")),
        _ => Err(Error::invalid(format!("invalid size: '{text:.80}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Options> {
        Options::parse(&options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn options_are_taken_or_refused_by_name() {
        assert!(!parse(&[]).unwrap().needs_mount());
        assert!(!parse(&[("size", "0")]).unwrap().needs_mount());
        assert!(parse(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")]).is_ok());
        let cifs = [("type", "cifs"), ("device", "//host/share")];
        assert!(parse(&cifs).is_ok());
        let cases: [(&[(&str, &str)], &str); 8] = [
            (&[("typ", "x")], r#"invalid option: "typ""#),
            (&[("type", "tmpfs")], r#"missing required option: "device""#),
            (&[("device", "x")], r#"missing required option: "type""#),
            (&[("o", "x"), ("type", "nfs")], r#"missing required option: "device""#),
            (&[("size", "10m")], "quota size requested but no quota support"),
            (&[("size", "much")], "invalid size: 'much'"),
            (&[("type", "nfs"), ("device", "")], "missing device in volume options"),
            (&[("type", "cifs"), ("device", "//h:1/s")], "port not allowed in CIFS device URL"),
        ];
        for (options, message) in cases {
            let error = parse(options).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn the_file_has_the_form_of_the_reference() {
        let options = parse(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "ro")]).unwrap();
        assert_eq!(
            serde_json::to_string(&options).unwrap(),
            r#"{"MountType":"tmpfs","MountOpts":"ro","MountDevice":"tmpfs","Quota":{"Size":0}}"#
        );
    }
}
