//! From an OCI specification to what a shim is told: pure, so every rule can be tested without
//! privilege.
//!
//! | file | holds |
//! |---|---|
//! | `mounts` | mounts and their options, the root |
//! | `devices` | nodes, links, device rules |
//! | `process` | a program and its identity |
//! | `sysctls` | which kernel parameters belong to a container |
//!
//! What a specification may say and this runtime does not do is an error that names the field.

mod devices;
mod mounts;
mod process;
mod sysctls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_sdk::Error;
use gantry_seccomp::Compiled;
use gantry_shim_protocol::{
    FdIndex, IdMap, Launch, LaunchHead, LogSink, Namespace, NamespaceMode, Namespaces, Process,
    Stdio, TargetKind,
};
use gantry_sys::cgroup::{Group, Layout, Resources};
use oci_spec::runtime as oci;

pub(crate) use mounts::is_bind;

/// Most descriptors of one launch, so that the memfd and clients fit beside them.
pub(crate) const DESCRIPTORS_MAX: usize = 200;

type Result<T, E = Error> = std::result::Result<T, E>;

/// What a launch is compiled from, besides the specification.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    /// Container id.
    pub(crate) id: &'a str,
    /// The specification.
    pub(crate) spec: &'a oci::Spec,
    /// The control groups of the machine.
    pub(crate) layout: &'a Layout,
    /// Position of the root's mount among the descriptors.
    pub(crate) root: FdIndex,
    /// Trees for mounts, by position in the specification.
    pub(crate) trees: BTreeMap<usize, Tree>,
    /// Namespaces to join, by kind.
    pub(crate) joined: Vec<(Namespace, FdIndex)>,
    /// Whether the container uses the host's network.
    pub(crate) host_network: bool,
    /// Streams.
    pub(crate) stdio: Stdio,
    /// Output.
    pub(crate) log: LogSink,
    /// Whether a tiny init is process 1.
    pub(crate) init: bool,
    /// The filter's program.
    pub(crate) seccomp: Option<&'a Program>,
}

/// A tree to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Position among the descriptors.
    pub(crate) index: FdIndex,
    /// What it is.
    pub(crate) kind: TargetKind,
}

/// A compiled seccomp filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Program {
    /// BPF.
    pub(crate) code: Vec<u8>,
    /// Flags to load it with.
    pub(crate) flags: u32,
}

impl From<&Compiled> for Program {
    fn from(compiled: &Compiled) -> Self {
        Self { code: compiled.program.clone(), flags: compiled.load_flags }
    }
}

/// Compiles a launch. Clients are added by the caller.
///
/// # Errors
///
/// `InvalidArgument` for what contradicts itself, `Unsupported` for what is not done here; both name
/// the field.
pub(crate) fn compile(input: &Input<'_>) -> Result<(LaunchHead, Launch)> {
    let spec = input.spec;
    refuse_unsupported(spec)?;
    let linux = spec.linux().as_ref();
    let linux = linux.ok_or_else(|| Error::invalid("the specification has no linux section"))?;
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| Error::invalid("the specification has no process"))?;
    let namespaces = namespaces(linux, input)?;
    let group = Group::new(input.layout, &group_path(input.id, linux)?)
        .map_err(|error| Error::invalid("bad cgroupsPath").caused_by(error))?;
    let resources = resources(linux)?;
    let plan = group
        .creation(&resources)
        .map_err(|error| Error::invalid("bad resources").caused_by(error))?;
    let (mounts, rootfs) = mounts::compile(spec, linux, input)?;
    let has_own_dev = mounts::makes_dev(spec);
    let launch = Launch {
        rootfs,
        mounts,
        devices: if has_own_dev { devices::nodes(linux, input.stdio)? } else { Vec::new() },
        links: if has_own_dev { devices::links() } else { Vec::new() },
        masked: linux.masked_paths().clone().unwrap_or_default(),
        readonly: linux.readonly_paths().clone().unwrap_or_default(),
        sysctls: sysctls::compile(linux, &namespaces)?,
        hostname: name_of(spec.hostname().as_deref(), &namespaces, "hostname")?,
        domainname: name_of(spec.domainname().as_deref(), &namespaces, "domainname")?,
        process: compile_process(process, input.seccomp)?,
    };
    let maps = |maps: &Option<Vec<oci::LinuxIdMapping>>| -> Vec<IdMap> {
        let maps = maps.iter().flatten();
        maps.map(|map| IdMap {
            inside: map.container_id(),
            outside: map.host_id(),
            count: map.size(),
        })
        .collect()
    };
    let id_maps = namespaces
        .is_new(Namespace::User)
        .then(|| (maps(linux.uid_mappings()), maps(linux.gid_mappings())));
    if let Some((users, groups)) = &id_maps
        && (users.is_empty() || groups.is_empty())
    {
        return Err(Error::invalid("a new user namespace needs uidMappings and gidMappings"));
    }
    let head = LaunchHead {
        id: input.id.to_owned(),
        namespaces,
        id_maps,
        group,
        plan,
        oom_score_adj: process.oom_score_adj(),
        stdio: input.stdio,
        log: input.log.clone(),
        init: input.init,
        attach: Vec::new(),
        external: None,
    };
    Ok((head, launch))
}

/// Compiles a program that runs beside the first.
///
/// # Errors
///
/// As [`compile`].
pub(crate) fn compile_process(
    process: &oci::Process,
    seccomp: Option<&Program>,
) -> Result<Process> {
    process::compile(process, seccomp)
}

/// What a specification may ask for and this runtime does not do.
fn refuse_unsupported(spec: &oci::Spec) -> Result<()> {
    let has_hooks = spec.hooks().as_ref().is_some_and(|hooks| *hooks != oci::Hooks::default());
    let linux = spec.linux().as_ref();
    let asks = |what: fn(&oci::Linux) -> bool| linux.is_some_and(what);
    for (field, asked) in [
        ("hooks", has_hooks),
        ("linux.intelRdt", asks(|it| it.intel_rdt().is_some())),
        ("linux.personality", asks(|it| it.personality().is_some())),
        ("linux.memoryPolicy", asks(|it| it.memory_policy().is_some())),
        ("linux.timeOffsets", asks(|it| it.time_offsets().is_some())),
        ("linux.netDevices", asks(|it| it.net_devices().is_some())),
        ("linux.mountLabel", asks(|it| it.mount_label().as_ref().is_some_and(|it| !it.is_empty()))),
    ] {
        if asked {
            return Err(Error::unsupported(format!(
                "{field} is not supported by the built-in runtime, use an external one"
            )));
        }
    }
    Ok(())
}

fn namespaces(linux: &oci::Linux, input: &Input<'_>) -> Result<Namespaces> {
    let mut list = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = match namespace.typ() {
            oci::LinuxNamespaceType::Mount => Namespace::Mount,
            oci::LinuxNamespaceType::Cgroup => Namespace::Cgroup,
            oci::LinuxNamespaceType::Uts => Namespace::Uts,
            oci::LinuxNamespaceType::Ipc => Namespace::Ipc,
            oci::LinuxNamespaceType::User => Namespace::User,
            oci::LinuxNamespaceType::Pid => Namespace::Pid,
            oci::LinuxNamespaceType::Network => Namespace::Network,
            oci::LinuxNamespaceType::Time => {
                return Err(Error::unsupported("time namespaces are not supported"));
            }
        };
        if kind == Namespace::Network && input.host_network {
            continue;
        }
        if kind == Namespace::Mount && namespace.path().is_some() {
            return Err(Error::unsupported("joining a mount namespace is not supported"));
        }
        if list.iter().any(|(have, _)| *have == kind) {
            return Err(Error::invalid(format!("namespace {kind:?} is given twice")));
        }
        let joined = input.joined.iter().find(|(have, _)| *have == kind);
        let mode = joined.map_or(NamespaceMode::New, |(_, index)| NamespaceMode::Join(*index));
        list.push((kind, mode));
    }
    if !list.iter().any(|(kind, _)| *kind == Namespace::Mount) {
        return Err(Error::invalid("a container without a mount namespace is not supported"));
    }
    Ok(Namespaces { list })
}

/// The group's path beneath each hierarchy.
fn group_path(id: &str, linux: &oci::Linux) -> Result<PathBuf> {
    match linux.cgroups_path() {
        None => Ok(Path::new("gantry").join(id)),
        Some(path) if path.to_string_lossy().contains(':') => Err(Error::unsupported(format!(
            "cgroupsPath {} is for systemd, which is not used here",
            path.display()
        ))),
        Some(path) => Ok(path.clone()),
    }
}

/// The limits, with the device rules every container has.
fn resources(linux: &oci::Linux) -> Result<Resources> {
    let mut resources = match linux.resources() {
        None => Resources::default(),
        Some(resources) => {
            let mut value = serde_json::to_value(resources)
                .map_err(|error| Error::invalid("bad resources").caused_by(error))?;
            drop_obsolete(&mut value);
            serde_json::from_value(value)
                .map_err(|error| Error::invalid(format!("bad resources: {error}")))?
        }
    };
    resources.devices.extend(devices::default_rules());
    Ok(resources)
}

/// Limits that kernels in use no longer have; runc leaves them out as well.
fn drop_obsolete(resources: &mut serde_json::Value) {
    if let Some(memory) = resources.get_mut("memory").and_then(serde_json::Value::as_object_mut) {
        for field in ["kernel", "useHierarchy", "checkBeforeUpdate"] {
            memory.remove(field);
        }
    }
}

fn name_of(name: Option<&str>, namespaces: &Namespaces, what: &str) -> Result<Option<String>> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    match namespaces.get(Namespace::Uts) {
        Some(_) => Ok(Some(name.to_owned())),
        None => {
            Err(Error::invalid(format!("unable to set {what} without a private UTS namespace")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            v1: Vec::new(),
            v2: Some(gantry_sys::cgroup::Unified {
                controllers: ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"]
                    .map(str::to_owned)
                    .to_vec(),
                mount: "/sys/fs/cgroup".into(),
                own: PathBuf::new(),
            }),
        }
    }

    fn compile_text(change: impl FnOnce(&mut serde_json::Value)) -> Result<(LaunchHead, Launch)> {
        let mut spec = serde_json::to_value(oci::Spec::default()).unwrap();
        change(&mut spec);
        let spec: oci::Spec = serde_json::from_value(spec).unwrap();
        compile(&Input {
            id: "c1",
            spec: &spec,
            layout: &layout(),
            root: 0,
            trees: BTreeMap::new(),
            joined: Vec::new(),
            host_network: false,
            stdio: Stdio::default(),
            log: LogSink::None,
            init: false,
            seccomp: None,
        })
    }

    #[test]
    fn the_default_specification_compiles() {
        let (head, launch) = compile_text(|_| {}).unwrap();
        assert!(head.namespaces.is_new(Namespace::Pid));
        assert!(head.group.dirs[0].dir.ends_with("gantry/c1") || head.group.dirs.len() == 1);
        assert!(launch.devices.iter().any(|device| device.path == "/dev/null"));
        assert!(launch.mounts.iter().any(|mount| mount.target == "/proc"));
        assert_eq!(launch.process.cwd, "/");
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        use serde_json::json;
        for (field, change) in [
            ("hooks", json!({"hooks": {"prestart": [{"path": "/bin/true"}]}})),
            ("systemd", json!({"linux": {"cgroupsPath": "system.slice:docker:x"}})),
            ("mountLabel", json!({"linux": {"mountLabel": "x"}})),
        ] {
            let error = compile_text(|spec| merge(spec, &change)).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    #[test]
    fn a_hostname_needs_its_namespace() {
        let error = compile_text(|spec| {
            merge(
                spec,
                &serde_json::json!({"hostname": "x", "linux": {"namespaces": [{"type": "mount"}]}}),
            );
        })
        .unwrap_err();
        assert!(error.to_string().contains("private UTS"));
    }

    #[test]
    fn limits_become_a_plan() {
        let (head, _) = compile_text(|spec| {
            merge(
                spec,
                &serde_json::json!({"linux": {"resources": {"memory": {"limit": 1_048_576, "kernel": 5}}}}),
            );
        })
        .unwrap();
        let text = format!("{:?}", head.plan);
        assert!(text.contains("memory.max") && text.contains("1048576"), "{text}");
    }

    fn merge(into: &mut serde_json::Value, from: &serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, from) => *into = from.clone(),
        }
    }
}
