//! The short form: `source:destination:options`.

use gantry_sdk::api::{BindOptions, Mount, MountDriver, VolumeOptions};
use gantry_sdk::{Error, Result};

use super::{PROPAGATIONS, WantedMount, object};

const COPY_OFF: &str = "nocopy";

/// What an option is about. One of each kind is allowed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Topic {
    Access,
    Label,
    Propagation,
    Copy,
    Consistency,
}

fn topic_of(option: &str) -> Option<Topic> {
    match option {
        "rw" | "ro" => Some(Topic::Access),
        "z" | "Z" => Some(Topic::Label),
        COPY_OFF => Some(Topic::Copy),
        "consistent" | "cached" | "delegated" => Some(Topic::Consistency),
        _ if PROPAGATIONS.contains(&option) => Some(Topic::Propagation),
        _ => None,
    }
}

fn is_valid_mode(mode: &str) -> bool {
    if mode.is_empty() {
        return true;
    }
    let mut seen = Vec::new();
    mode.split(',').all(|option| {
        let topic = topic_of(option);
        let is_first = topic.is_some() && !seen.contains(&topic);
        seen.push(topic);
        is_first
    })
}

fn propagation(mode: &str) -> Option<&str> {
    mode.split(',').find(|option| PROPAGATIONS.contains(option))
}

fn invalid_mode(mode: &str) -> Error {
    Error::invalid(format!("invalid mode: {mode}"))
}

/// Reads an entry of `HostConfig.Binds`; `volume_driver` is for volumes it names.
///
/// # Errors
///
/// `InvalidArgument`, with the reference's words.
pub fn parse_bind(raw: &str, volume_driver: &str) -> Result<WantedMount> {
    let invalid = || Error::invalid(format!("invalid volume specification: '{raw}'"));
    let parts: Vec<&str> = raw.splitn(4, ':').collect();
    let (source, target, mode) = match parts[..] {
        ["", ..] => return Err(invalid()),
        [target] => ("", target, ""),
        // A destination with options would be an anonymous volume, which takes none.
        [_, second] if is_valid_mode(second) => return Err(invalid()),
        [source, target] => (source, target, ""),
        [source, target, mode] => (source, target, mode),
        _ => return Err(invalid()),
    };
    if !is_valid_mode(mode) {
        return Err(invalid_mode(mode));
    }

    let is_bind = source.starts_with('/');
    let no_copy = mode.split(',').any(|option| option == COPY_OFF);
    let driver = (!volume_driver.is_empty() && !is_bind)
        .then(|| MountDriver { name: volume_driver.into(), options: None });
    let object = Mount {
        kind: if is_bind { "bind" } else { "volume" }.into(),
        source: source.into(),
        target: target.into(),
        read_only: mode.split(',').any(|option| option == "ro"),
        bind_options: propagation(mode).map(|propagation| BindOptions {
            propagation: propagation.into(),
            ..BindOptions::default()
        }),
        volume_options: (no_copy || driver.is_some()).then(|| VolumeOptions {
            no_copy,
            driver_config: driver,
            ..VolumeOptions::default()
        }),
        ..Mount::default()
    };
    let mut mount = object::parse(&object, None).map_err(|error| error.context(invalid()))?;
    mode.clone_into(&mut mount.mode);
    mount.create_source = is_bind;
    Ok(mount)
}

/// Reads an entry of `HostConfig.VolumesFrom`: the container, and whether its mounts stay writable.
///
/// # Errors
///
/// `InvalidArgument`: nothing named, or options that make no sense here.
pub fn parse_volumes_from(spec: &str) -> Result<(&str, bool)> {
    if spec.is_empty() {
        return Err(Error::invalid("volumes-from specification cannot be an empty string"));
    }
    let (container, mode) = spec.split_once(':').unwrap_or((spec, ""));
    let takes_over = |option: &str| PROPAGATIONS.contains(&option) || option == COPY_OFF;
    if !is_valid_mode(mode) || mode.split(',').any(takes_over) {
        return Err(invalid_mode(mode));
    }
    Ok((container, !mode.split(',').any(|option| option == "ro")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::mounts::MountKind;

    #[test]
    fn what_is_written_is_understood() {
        type Row = (&'static str, MountKind, &'static str, &'static str, &'static str, bool);
        let cases: [Row; 8] = [
            ("/x", MountKind::Volume, "", "", "/x", true),
            ("/a:/x", MountKind::Bind, "", "/a", "/x", true),
            ("/a//b/:/x/", MountKind::Bind, "", "/a/b", "/x", true),
            ("/a:/x:ro", MountKind::Bind, "", "/a", "/x", false),
            ("/a:/x:rw,z,rslave", MountKind::Bind, "", "/a", "/x", true),
            ("vol:/x", MountKind::Volume, "vol", "", "/x", true),
            ("vol:/x:ro,nocopy", MountKind::Volume, "vol", "", "/x", false),
            ("/a:/x:", MountKind::Bind, "", "/a", "/x", true),
        ];
        for (raw, kind, name, source, destination, writable) in cases {
            let mount = parse_bind(raw, "").unwrap_or_else(|e| panic!("{raw}: {e}"));
            let found = (mount.kind, &*mount.name, &*mount.source, &*mount.destination);
            assert_eq!(found, (kind, name, source, destination), "{raw}");
            assert_eq!(mount.writable, writable, "{raw}");
        }
        assert_eq!(parse_bind("/a:/x:rslave", "").unwrap().propagation, "rslave");
        assert_eq!(parse_bind("/a:/x", "").unwrap().propagation, "rprivate");
        assert!(parse_bind("v:/x", "").unwrap().copy_up);
        assert!(!parse_bind("v:/x:nocopy", "").unwrap().copy_up);
        assert_eq!(parse_bind("v:/x", "nfs").unwrap().driver, "nfs");
        assert_eq!(parse_bind("/a:/x", "nfs").unwrap().driver, "");
    }

    #[test]
    fn mistakes_are_told_as_the_reference_does() {
        let cases = [
            ("", "invalid volume specification: ''"),
            (":/x", "invalid volume specification: ':/x'"),
            ("/x:ro", "invalid volume specification: '/x:ro'"),
            ("/a:/x:ro:z", "invalid volume specification: '/a:/x:ro:z'"),
            ("/a:/x:fast", "invalid mode: fast"),
            ("/a:/x:ro,rw", "invalid mode: ro,rw"),
            ("/a:/x:z,Z", "invalid mode: z,Z"),
            ("/a:/x:ro,ro", "invalid mode: ro,ro"),
            (
                "/a:/",
                "invalid volume specification: '/a:/': invalid mount config for type \"bind\": \
                 invalid specification: destination can't be '/'",
            ),
            (
                "/a:x",
                "invalid volume specification: '/a:x': invalid mount config for type \"bind\": \
                 invalid mount path: 'x' mount path must be absolute",
            ),
            (
                "/a:/x:nocopy",
                "invalid volume specification: '/a:/x:nocopy': invalid mount config for type \
                 \"bind\": field VolumeOptions must not be specified",
            ),
            (
                "v:/x:rslave",
                "invalid volume specification: 'v:/x:rslave': invalid mount config for type \
                 \"volume\": field BindOptions must not be specified",
            ),
        ];
        for (raw, expected) in cases {
            assert_eq!(parse_bind(raw, "").unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn volumes_from() {
        assert_eq!(parse_volumes_from("db").unwrap(), ("db", true));
        assert_eq!(parse_volumes_from("db:ro").unwrap(), ("db", false));
        assert_eq!(parse_volumes_from("db:rw,z").unwrap(), ("db", true));
        for spec in ["", "db:fast", "db:rslave", "db:nocopy"] {
            assert!(parse_volumes_from(spec).is_err(), "{spec}");
        }
    }
}
