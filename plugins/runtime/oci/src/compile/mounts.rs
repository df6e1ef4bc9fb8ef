//! Mounts: types, options, the root.

use super::{Input, Result};
use gantry_sdk::Error;
use gantry_shim_protocol::{Mount, MountKind, MountSource, Propagation, Rootfs, TargetKind};
use oci_spec::runtime as oci;
use std::path::{Component, Path};

/// `MOUNT_ATTR_*` of linux/mount.h.
mod attr {
    pub(super) const RDONLY: u64 = 0x1;
    pub(super) const NOSUID: u64 = 0x2;
    pub(super) const NODEV: u64 = 0x4;
    pub(super) const NOEXEC: u64 = 0x8;
    pub(super) const ATIME: u64 = 0x70;
    pub(super) const NOATIME: u64 = 0x10;
    pub(super) const STRICTATIME: u64 = 0x20;
    pub(super) const NODIRATIME: u64 = 0x80;
    pub(super) const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// What the options of a mount come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    set: u64,
    clear: u64,
    set_recursive: u64,
    propagation: Option<Propagation>,
    bind: bool,
    data: Vec<(String, Option<String>)>,
}

/// Compiles all mounts, and the root.
pub(super) fn compile(
    spec: &oci::Spec,
    linux: &oci::Linux,
    input: &Input<'_>,
) -> Result<(Vec<Mount>, Rootfs)> {
    let mounts = spec.mounts().iter().flatten().enumerate();
    let mounts: Vec<Mount> =
        mounts.map(|(at, mount)| compile_one(at, mount, input)).collect::<Result<_>>()?;
    let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let propagation = match linux.rootfs_propagation().as_deref() {
        None | Some("") => Propagation::PrivateRecursive,
        Some(name) => propagation_of(name)
            .ok_or_else(|| Error::invalid(format!("rootfsPropagation {name} is unknown")))?,
    };
    Ok((mounts, Rootfs { mount: input.root, propagation, readonly }))
}

/// Whether a mount is a bind mount, whose source is a tree.
pub(crate) fn is_bind(mount: &oci::Mount) -> bool {
    let bind = |option: &String| option == "bind" || option == "rbind";
    mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(bind)
}

/// Whether `/dev` is the container's own, so that nodes and links are made in it.
pub(super) fn makes_dev(spec: &oci::Spec) -> bool {
    let is_dev = |mount: &&oci::Mount| normal(mount.destination()) == Path::new("/dev");
    !spec.mounts().iter().flatten().filter(is_dev).any(is_bind)
}

fn compile_one(at: usize, mount: &oci::Mount, input: &Input<'_>) -> Result<Mount> {
    let target = normal(mount.destination());
    let text = target.to_str().filter(|text| text.starts_with('/') && *text != "/");
    let Some(text) = text else {
        return Err(Error::invalid(format!(
            "mount destination {} is not an absolute path below the root",
            mount.destination().display()
        )));
    };
    let refuse = |why: &str| Error::invalid(format!("mount {text}: {why}"));
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(Error::unsupported(format!("mount {text}: idmapped mounts are not supported")));
    }
    let options = parse(mount.options().iter().flatten()).map_err(|why| refuse(&why))?;
    let tree = input.trees.get(&at);
    let kind = mount.typ().as_deref().unwrap_or("none");
    let source = match (tree, kind) {
        (Some(tree), _) => MountSource::Tree(tree.index),
        (None, _) if is_bind(mount) || options.bind => return Err(refuse("its source is missing")),
        (None, "cgroup" | "cgroup2") => MountSource::Cgroups,
        (None, kind) => MountSource::New {
            kind: new_kind(kind).ok_or_else(|| {
                Error::unsupported(format!("mount {text}: type {kind} is not supported"))
            })?,
            source: mount
                .source()
                .as_ref()
                .map_or_else(|| kind.to_owned(), |source| source.to_string_lossy().into_owned()),
            options: options.data.clone(),
        },
    };
    if matches!(source, MountSource::Tree(_) | MountSource::Cgroups)
        && let Some((name, _)) = options.data.first()
    {
        return Err(refuse(&format!("unknown option {name}")));
    }
    Ok(Mount {
        target: text.to_owned(),
        target_kind: tree.map_or(TargetKind::Directory, |tree| tree.kind),
        source,
        set: options.set,
        clear: options.clear,
        set_recursive: options.set_recursive,
        propagation: options.propagation,
    })
}

fn new_kind(name: &str) -> Option<MountKind> {
    [MountKind::Proc, MountKind::Sysfs, MountKind::Tmpfs, MountKind::Devpts, MountKind::Mqueue]
        .into_iter()
        .find(|kind| kind.name() == name)
}

/// A path without `.`, `..` and double slashes, as runc cleans destinations.
fn normal(path: &Path) -> std::path::PathBuf {
    let mut clean = std::path::PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn propagation_of(name: &str) -> Option<Propagation> {
    Some(match name {
        "private" => Propagation::Private,
        "rprivate" => Propagation::PrivateRecursive,
        "shared" => Propagation::Shared,
        "rshared" => Propagation::SharedRecursive,
        "slave" => Propagation::Slave,
        "rslave" => Propagation::SlaveRecursive,
        "unbindable" => Propagation::Unbindable,
        "runbindable" => Propagation::UnbindableRecursive,
        _ => return None,
    })
}

/// Reads the options of a mount: flags as runc has them, the rest for the file system.
fn parse<'a>(words: impl Iterator<Item = &'a String>) -> Result<Options, String> {
    let mut options = Options::default();
    for word in words {
        let word = word.as_str();
        if let Some(propagation) = propagation_of(word) {
            options.propagation = Some(propagation);
            continue;
        }
        match word {
            "" | "defaults" | "rw" | "suid" | "dev" | "exec" | "diratime" | "symfollow"
            | "async" | "loud" | "nomand" | "norelatime" | "nostrictatime" => {
                undo(&mut options, word)
            }
            "atime" | "relatime" => {
                options.set &= !attr::ATIME;
                options.clear |= attr::ATIME;
            }
            "bind" | "rbind" => options.bind = true,
            "ro" => options.set |= attr::RDONLY,
            "nosuid" => options.set |= attr::NOSUID,
            "nodev" => options.set |= attr::NODEV,
            "noexec" => options.set |= attr::NOEXEC,
            "nodiratime" => options.set |= attr::NODIRATIME,
            "nosymfollow" => options.set |= attr::NOSYMFOLLOW,
            "noatime" => atime(&mut options, attr::NOATIME),
            "strictatime" => atime(&mut options, attr::STRICTATIME),
            "rro" => options.set_recursive |= attr::RDONLY,
            "rnosuid" => options.set_recursive |= attr::NOSUID,
            "rnodev" => options.set_recursive |= attr::NODEV,
            "rnoexec" => options.set_recursive |= attr::NOEXEC,
            "idmap" | "ridmap" | "tmpcopyup" => {
                return Err(format!("option {word} is not supported"));
            }
            word => {
                let (name, value) = match word.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (word, None),
                };
                options.data.push((name.to_owned(), value));
            }
        }
    }
    Ok(options)
}

/// A word that takes an earlier one back.
fn undo(options: &mut Options, word: &str) {
    let bits = match word {
        "rw" => attr::RDONLY,
        "suid" => attr::NOSUID,
        "dev" => attr::NODEV,
        "exec" => attr::NOEXEC,
        "diratime" => attr::NODIRATIME,
        "symfollow" => attr::NOSYMFOLLOW,
        _ => 0,
    };
    options.set &= !bits;
}

/// The modes of access times exclude each other, and a new one replaces the tree's.
fn atime(options: &mut Options, mode: u64) {
    options.set = options.set & !attr::ATIME | mode;
    options.clear |= attr::ATIME;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Options, String> {
        let words: Vec<String> = text.split(',').map(str::to_owned).collect();
        parse(words.iter())
    }

    #[test]
    fn options_become_attributes_or_data() {
        let options = parsed("nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5").unwrap();
        assert_eq!(options.set, 0xA);
        assert_eq!(
            options.data,
            [
                ("newinstance".to_owned(), None),
                ("ptmxmode".to_owned(), Some("0666".to_owned())),
                ("mode".to_owned(), Some("0620".to_owned())),
                ("gid".to_owned(), Some("5".to_owned())),
            ]
        );
        let options = parsed("rbind,ro,rslave,noatime").unwrap();
        assert!(options.bind);
        assert_eq!((options.set, options.clear), (0x11, 0x70));
        assert_eq!(options.propagation, Some(Propagation::SlaveRecursive));
        assert_eq!(parsed("ro,rw").unwrap().set, 0);
        assert_eq!(parsed("rro").unwrap().set_recursive, 1);
        assert_eq!(parsed("noatime,strictatime").unwrap().set, 0x20);
        assert!(parsed("idmap").is_err() && parsed("tmpcopyup").is_err());
    }

    #[test]
    fn destinations_are_cleaned() {
        for (path, clean) in [("/a/../b/./c", "/b/c"), ("//x//", "/x"), ("/../..", "/")] {
            assert_eq!(normal(Path::new(path)), Path::new(clean));
        }
    }
}
