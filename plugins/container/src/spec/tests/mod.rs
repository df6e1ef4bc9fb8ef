//! The parts together.

mod building;
mod checking;
mod limiting;

use std::collections::BTreeSet;
use std::path::Path;

use gantry_sdk::api::{ContainerConfig, HostConfig};
use gantry_sdk::{Error, Result};
use oci_spec::runtime::Capability;
use serde_json::Value;

use super::capability::DEFAULT_CAPABILITIES;
use super::view::{DeviceNode, DevicesAt, NodeKind, Sharing};
use super::{Built, Checks, Controllers, Defaults, HostFacts, HostView, Input, Joined};
use super::{ReadyMount, User, adapt, build, check_create};

const ID: &str = "4f5b1d0c9a7e4f5b1d0c9a7e4f5b1d0c9a7e4f5b1d0c9a7e4f5b1d0c9a7e4f5b";

fn facts(unified: bool) -> HostFacts {
    HostFacts {
        hostname: "machine".into(),
        cpus: 4,
        cpuset_cpus: "0-3".into(),
        cpuset_mems: "0".into(),
        cgroup_unified: unified,
        controllers: Controllers::all(unified),
        cgroup_namespaces: true,
        time_namespaces: false,
        ipv4_forwarding: true,
        seccomp: true,
        apparmor: false,
        apparmor_profile: None,
        recursive_read_only: true,
        capabilities: [&DEFAULT_CAPABILITIES[..], &[Capability::SysAdmin]].concat(),
        thermal_paths: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
        sysctls: BTreeSet::from([
            "net.ipv4.ping_group_range".into(),
            "net.ipv4.ip_unprivileged_port_start".into(),
        ]),
    }
}

fn config(json: &str) -> ContainerConfig {
    serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"))
}

fn host(json: &str) -> HostConfig {
    serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"))
}

/// A host with a disk, a directory of sound devices, and a shared mount.
struct FakeView;

fn node(path: &str, kind: NodeKind, major: i64, minor: i64) -> DeviceNode {
    DeviceNode { path: path.into(), kind, major, minor, mode: 0o660, uid: 0, gid: 6 }
}

impl HostView for FakeView {
    fn devices(&self, path: &str) -> Result<DevicesAt> {
        let nodes = match path {
            "/dev/sda" => vec![node(path, NodeKind::Block, 8, 0)],
            "/dev/fuse" => vec![node(path, NodeKind::Char, 10, 229)],
            "/dev/snd" => vec![
                node("/dev/snd/seq", NodeKind::Char, 116, 1),
                node("/dev/snd/by/timer", NodeKind::Char, 116, 33),
            ],
            _ => {
                return Err(Error::invalid(format!(
                    "error gathering device information while adding custom device {path:?}: \
                     no such file or directory"
                )));
            }
        };
        Ok(DevicesAt { root: path.into(), nodes })
    }

    fn all_devices(&self) -> Result<Vec<DeviceNode>> {
        Ok(vec![node("/dev/null", NodeKind::Char, 1, 3), node("/dev/sda", NodeKind::Block, 8, 0)])
    }

    fn sharing(&self, path: &Path) -> Result<Sharing> {
        Ok(Sharing {
            mount_point: "/mnt".into(),
            is_shared: path.starts_with("/mnt/shared"),
            is_slave: path.starts_with("/mnt/slave"),
        })
    }
}

/// A request on its way, as the daemon takes it.
struct Case {
    config: ContainerConfig,
    host: HostConfig,
    facts: HostFacts,
    defaults: Defaults,
    user: User,
    mounts: Vec<ReadyMount>,
}

impl Case {
    fn new(config_json: &str, host_json: &str) -> Self {
        Self {
            config: config(config_json),
            host: host(host_json),
            facts: facts(true),
            defaults: Defaults::default(),
            user: User { groups: vec![0, 10], home: "/root".into(), ..User::default() },
            mounts: Vec::new(),
        }
    }

    fn check(&mut self) -> Result<Vec<String>> {
        let exists = |path: &str| Ok(path != "/missing");
        let cx = Checks { facts: &self.facts, defaults: &self.defaults, exists: &exists };
        check_create(&mut self.config, &mut self.host, &cx)
    }

    fn build(&mut self) -> Result<Built> {
        self.check()?;
        adapt(&mut self.config, &mut self.host, ID, &self.facts, &self.defaults)?;
        build(&self.input())
    }

    fn input(&self) -> Input<'_> {
        Input {
            id: ID,
            config: &self.config,
            host: &self.host,
            user: &self.user,
            rootfs: Path::new("/rootfs"),
            mounts: &self.mounts,
            joined: Joined {
                network: None,
                ipc: Some(Path::new("/proc/7/ns/ipc")),
                pid: Some(Path::new("/proc/7/ns/pid")),
            },
            view: &FakeView,
            seccomp: &|profile, caps| {
                let json = format!(
                    r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                        {{"names":["{}","{}"],"action":"SCMP_ACT_ALLOW"}}]}}"#,
                    match profile {
                        super::SeccompProfile::Default => "default",
                        super::SeccompProfile::Json(text) => text,
                    },
                    caps.len()
                );
                serde_json::from_str(&json).map(Some).map_err(|e| Error::invalid(e.to_string()))
            },
            facts: &self.facts,
            defaults: &self.defaults,
        }
    }

    /// The specification as JSON, sets sorted.
    fn json(&mut self) -> Value {
        let mut spec = serde_json::to_value(self.build().unwrap().spec).unwrap();
        for set in ["bounding", "effective", "permitted"] {
            if let Some(list) = spec
                .pointer_mut(&format!("/process/capabilities/{set}"))
                .and_then(Value::as_array_mut)
            {
                list.sort_by_key(ToString::to_string);
            }
        }
        spec
    }
}
