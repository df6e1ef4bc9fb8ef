//! What is mounted where: `Binds`, `Mounts`, `Tmpfs` and `Volumes` as one checked list.
//!
//! Nothing here touches a file system: whether a source exists is asked of the caller.

mod bind;
mod object;
mod tmpfs;

use std::collections::BTreeSet;

pub use bind::{parse_bind, parse_volumes_from};
use gantry_sdk::api::{ContainerConfig, HostConfig, Mount, MountPoint};
use gantry_sdk::{Error, Result};
pub use object::{check_mount, parse_mount};
pub use tmpfs::{check_destination, merge_options, options_text};

use serde::{Deserialize, Serialize};

use super::path::clean;

/// How mounts spread if nobody says so.
pub const DEFAULT_PROPAGATION: &str = "rprivate";

/// The ways mounts can spread. Source: mount_namespaces(7).
pub(crate) const PROPAGATIONS: [&str; 6] =
    ["private", "rprivate", "slave", "rslave", "shared", "rshared"];

/// Most mounts of one container, all sources together.
pub const MAX_MOUNTS: usize = 4096;

/// What is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the host.
    Bind,
    /// A volume, named or anonymous.
    #[default]
    Volume,
    /// A file system in memory.
    Tmpfs,
    /// The content of an image.
    Image,
}

impl MountKind {
    /// As in `Mount.Type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
            Self::Image => "image",
        }
    }
}

/// A mount that a container asks for, checked and in one form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WantedMount {
    /// What.
    pub kind: MountKind,
    /// Volume name; empty for an anonymous volume and everything else.
    pub name: String,
    /// Path of a bind, image of an image mount; empty otherwise.
    pub source: String,
    /// Absolute, clean path in the container.
    pub destination: String,
    /// Volume driver; empty for the default.
    pub driver: String,
    /// Whether it is writable.
    pub writable: bool,
    /// The options of the `Binds` form, as written.
    pub mode: String,
    /// How mounts spread; empty for volumes and tmpfs.
    pub propagation: String,
    /// Whether an empty volume gets the image's content.
    pub copy_up: bool,
    /// Whether a missing source of a bind is made as a directory.
    pub create_source: bool,
    /// Comma-separated options of a tmpfs.
    pub tmpfs_options: String,
    /// The object it came from; made up for the `Binds` form.
    pub object: Mount,
}

impl WantedMount {
    /// As inspecting a container shows it; `source` is the path of a volume or image on the host.
    /// `None` for an entry of `HostConfig.Tmpfs`, which clients know from there.
    #[must_use]
    pub fn to_api(&self, source: &str) -> Option<MountPoint> {
        let is_tmpfs = self.kind == MountKind::Tmpfs;
        if is_tmpfs && self.object.kind.is_empty() {
            return None;
        }
        let source = match self.kind {
            MountKind::Bind => &self.source,
            MountKind::Tmpfs => "",
            MountKind::Volume | MountKind::Image => source,
        };
        Some(MountPoint {
            kind: self.kind.as_str().into(),
            name: self.name.clone(),
            source: source.into(),
            destination: self.destination.clone(),
            driver: self.driver.clone(),
            mode: self.mode.clone(),
            rw: self.writable,
            propagation: self.propagation.clone(),
        })
    }
}

/// All mounts of a new container.
///
/// `inherited` are those of `VolumesFrom`, which the container's own replace. An anonymous volume of
/// `config` gives way to anything else at its path. The result is sorted by depth, so that a mount
/// never hides one made before it.
///
/// # Errors
///
/// `InvalidArgument`: a bad specification, or two for one path ("Duplicate mount point").
pub fn collect(
    config: &ContainerConfig,
    host: &HostConfig,
    inherited: Vec<WantedMount>,
    exists: &dyn Fn(&str) -> Result<bool>,
) -> Result<Vec<WantedMount>> {
    let mut own: Vec<WantedMount> = Vec::new();
    let mut taken = BTreeSet::new();
    for (destination, options) in host.tmpfs.iter().flatten() {
        check_destination(destination)?;
        let destination = clean(destination);
        claim(&mut taken, &destination)?;
        own.push(WantedMount {
            kind: MountKind::Tmpfs,
            destination,
            writable: true,
            tmpfs_options: options.clone(),
            ..WantedMount::default()
        });
    }
    for raw in host.binds.iter().flatten() {
        let mount = parse_bind(raw, &host.volume_driver)?;
        claim(&mut taken, &mount.destination)?;
        own.push(mount);
    }
    for object in host.mounts.iter().flatten() {
        let mount = parse_mount(object, exists)?;
        claim(&mut taken, &mount.destination)?;
        own.push(mount);
    }
    for mount in inherited {
        if taken.insert(mount.destination.clone()) {
            own.push(mount);
        }
    }
    for destination in config.volumes.iter().flatten().map(|(path, _)| path) {
        check_destination(destination)?;
        let destination = clean(destination);
        if taken.insert(destination.clone()) {
            own.push(WantedMount {
                destination,
                driver: host.volume_driver.clone(),
                writable: true,
                copy_up: true,
                ..WantedMount::default()
            });
        }
    }
    if own.len() > MAX_MOUNTS {
        return Err(Error::invalid(format!("more than {MAX_MOUNTS} mounts")));
    }
    own.sort_by_cached_key(|mount| {
        (mount.destination.matches('/').count(), mount.destination.clone())
    });
    Ok(own)
}

fn claim(taken: &mut BTreeSet<String>, destination: &str) -> Result<()> {
    if taken.insert(destination.to_owned()) {
        return Ok(());
    }
    Err(Error::invalid(format!("Duplicate mount point: {destination}")))
}

/// The message of a bad mount, as the reference words it.
fn bad_mount(kind: &str, why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("invalid mount config for type \"{kind}\": {why}"))
}

#[cfg(test)]
mod tests {
    use gantry_sdk::api::{NameSet, StringMap};

    use super::*;

    fn names(items: &[&str]) -> Vec<String> {
        items.iter().map(|s| (*s).to_owned()).collect()
    }

    fn volume_at(destination: &str) -> Mount {
        Mount { kind: "volume".into(), target: destination.into(), ..Mount::default() }
    }

    #[test]
    fn everything_ends_in_one_sorted_list() {
        let config = ContainerConfig {
            volumes: Some(NameSet::from([
                ("/data/".into(), Default::default()),
                ("/anon".into(), Default::default()),
            ])),
            ..ContainerConfig::default()
        };
        let host = HostConfig {
            binds: Some(names(&["/src:/data/deep:ro", "vol:/data"])),
            mounts: Some(vec![volume_at("/m")]),
            tmpfs: Some(StringMap::from([("/t/".into(), "size=1m".into())])),
            ..HostConfig::default()
        };
        let inherited = vec![
            WantedMount { destination: "/m".into(), ..WantedMount::default() },
            WantedMount { destination: "/from".into(), ..WantedMount::default() },
        ];
        let all = collect(&config, &host, inherited, &|_| Ok(true)).unwrap();
        let found: Vec<_> =
            all.iter().map(|m| (m.destination.as_str(), m.kind, m.name.as_str())).collect();
        assert_eq!(
            found,
            [
                ("/anon", MountKind::Volume, ""),
                ("/data", MountKind::Volume, "vol"),
                ("/from", MountKind::Volume, ""),
                ("/m", MountKind::Volume, ""),
                ("/t", MountKind::Tmpfs, ""),
                ("/data/deep", MountKind::Bind, ""),
            ]
        );
    }

    #[test]
    fn what_inspecting_shows() {
        let bind = parse_bind("/a:/x:ro", "").unwrap().to_api("").unwrap();
        assert_eq!(
            (&*bind.kind, &*bind.source, &*bind.mode, bind.rw, &*bind.propagation),
            ("bind", "/a", "ro", false, "rprivate")
        );
        let volume = parse_bind("v:/x", "").unwrap().to_api("/volumes/v").unwrap();
        assert_eq!((&*volume.name, &*volume.source), ("v", "/volumes/v"));
        let tmpfs = WantedMount { kind: MountKind::Tmpfs, ..WantedMount::default() };
        assert_eq!(tmpfs.to_api(""), None);
    }

    #[test]
    fn one_path_one_mount() {
        let host = |binds: &[&str], mounts: &[&str], tmpfs: &[&str]| HostConfig {
            binds: Some(names(binds)),
            mounts: Some(mounts.iter().map(|path| volume_at(path)).collect()),
            tmpfs: Some(tmpfs.iter().map(|path| ((*path).into(), String::new())).collect()),
            ..HostConfig::default()
        };
        let cases = [
            host(&["/a:/x", "/b:/x/"], &[], &[]),
            host(&["/a:/x"], &["/x"], &[]),
            host(&["v:/x"], &[], &["/x"]),
            host(&[], &["/x", "/y/../x"], &[]),
            host(&[], &["/x"], &["/x"]),
        ];
        for host in cases {
            let error = collect(&ContainerConfig::default(), &host, Vec::new(), &|_| Ok(true))
                .unwrap_err()
                .to_string();
            assert_eq!(error, "Duplicate mount point: /x", "{host:?}");
        }
    }
}
