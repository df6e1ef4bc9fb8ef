//! The specification itself.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use gantry_sdk::api::{ContainerConfig, HostConfig};
use gantry_sdk::{Error, Result};
use oci_spec::runtime as oci;

use super::check::cgroup_parent;
use super::facts::{CgroupDriver, Defaults, HostFacts};
use super::mode::{self, IpcMode, NetworkMode, PidMode};
use super::mounts::{WantedMount, merge_options};
use super::security::{SeccompProfile, seccomp_profile};
use super::sysctl::{self, OwnNamespaces};
use super::view::HostView;
use super::{SecurityOptions, User, adapt, capability, command, path, resources};

/// The version of the runtime specification that is named. Older runtimes (crun 1.8) refuse a newer
/// one, whatever is in it; what is newer in here is there only if the runtime is known to take it.
const VERSION: &str = "1.0.2";
/// Parameters that a container's own network namespace gets if the kernel has them: anybody may
/// ping, and use ports below 1024. Source: the reference engine.
const NETWORK_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ping_group_range", "0 2147483647"), ("net.ipv4.ip_unprivileged_port_start", "0")];

/// Resolves a seccomp profile for a bounding set (names with `CAP_`).
pub type SeccompSource<'a> =
    &'a dyn Fn(SeccompProfile<'_>, &[String]) -> Result<Option<oci::LinuxSeccomp>>;

/// Namespaces that exist already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Joined<'a> {
    /// For `container:…`, or one that was prepared.
    pub network: Option<&'a Path>,
    /// For `container:…`.
    pub ipc: Option<&'a Path>,
    /// For `container:…`.
    pub pid: Option<&'a Path>,
}

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A path of the host.
    Path(PathBuf),
    /// Memory, with comma-separated options.
    Tmpfs(String),
}

/// A mount whose source is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyMount {
    /// Absolute path in the container.
    pub destination: String,
    /// What is there.
    pub source: MountSource,
    /// Whether it is writable. A tmpfs says so in its options.
    pub writable: bool,
    /// How mounts spread; empty to say nothing.
    pub propagation: String,
    /// Without the mounts below the source.
    pub non_recursive: bool,
    /// Read-only stops at the mount itself.
    pub read_only_non_recursive: bool,
    /// It is an error if read-only cannot reach the mounts below.
    pub read_only_force_recursive: bool,
}

impl ReadyMount {
    /// A wanted mount with its source, which is ignored for a tmpfs.
    #[must_use]
    pub fn new(wanted: &WantedMount, source: PathBuf) -> Self {
        let bind = wanted.object.bind_options.clone().unwrap_or_default();
        Self {
            destination: wanted.destination.clone(),
            source: match wanted.kind {
                super::MountKind::Tmpfs => MountSource::Tmpfs(wanted.tmpfs_options.clone()),
                _ => MountSource::Path(source),
            },
            writable: wanted.writable,
            propagation: wanted.propagation.clone(),
            non_recursive: bind.non_recursive,
            read_only_non_recursive: bind.read_only_non_recursive,
            read_only_force_recursive: bind.read_only_force_recursive,
        }
    }

    /// A file or directory of the daemon's, as `/etc/resolv.conf` or another container's `/dev/shm`.
    #[must_use]
    pub fn own(destination: &str, source: PathBuf, writable: bool) -> Self {
        Self {
            destination: destination.to_owned(),
            source: MountSource::Path(source),
            writable,
            propagation: super::mounts::DEFAULT_PROPAGATION.into(),
            non_recursive: false,
            read_only_non_recursive: false,
            read_only_force_recursive: false,
        }
    }
}

/// Everything that decides about a specification.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Container id.
    pub id: &'a str,
    /// Merged with the image's ([`command::merge_image`]) and adapted ([`mod@adapt`]).
    pub config: &'a ContainerConfig,
    /// Checked and adapted.
    pub host: &'a HostConfig,
    /// The user the process runs as.
    pub user: &'a User,
    /// Where the root file system is mounted.
    pub rootfs: &'a Path,
    /// Mounts with their sources. A shareable or shared `/dev/shm` is among them.
    pub mounts: &'a [ReadyMount],
    /// Namespaces that exist already.
    pub joined: Joined<'a>,
    /// Questions about the host's files.
    pub view: &'a dyn HostView,
    /// Seccomp profiles.
    pub seccomp: SeccompSource<'a>,
    /// The host.
    pub facts: &'a HostFacts,
    /// The daemon.
    pub defaults: &'a Defaults,
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A specification, and where its mounts come from.
#[derive(Clone, Debug)]
pub struct Built {
    /// The specification.
    pub spec: oci::Spec,
    /// By index in the specification's mounts: the index in [`Input::mounts`].
    pub sources: BTreeMap<usize, usize>,
}

/// Builds the specification of a container.
///
/// # Errors
///
/// `InvalidArgument`: something that only shows now, as a device that is gone or a source that is
/// not a shared mount. `Internal`: a namespace to join is missing from the input.
pub fn build(input: &Input<'_>) -> Result<Built> {
    let host = input.host;
    let security = SecurityOptions::parse(
        host.security_opt.as_deref().unwrap_or_default(),
        input.defaults.no_new_privileges,
    )?;
    let namespaces = namespaces(input)?;
    let own = OwnNamespaces {
        ipc: has(&namespaces, oci::LinuxNamespaceType::Ipc),
        network: has(&namespaces, oci::LinuxNamespaceType::Network),
        uts: has(&namespaces, oci::LinuxNamespaceType::Uts),
    };
    let capabilities = capability::resolve(
        host.cap_add.as_deref().unwrap_or_default(),
        host.cap_drop.as_deref().unwrap_or_default(),
        host.privileged,
        &input.facts.capabilities,
    )?;
    let mut mounts = Mounts::new(input, &security);
    mounts.add_defaults();
    mounts.add_own()?;
    mounts.settle_access();

    let mut linux = oci::Linux::default();
    let devices = resources::devices(host, input.view)?;
    let mut limits = resources::limits(host, input.view)?;
    limits.set_devices(Some(devices.rules));
    linux
        .set_sysctl(sysctls(input, own)?)
        .set_resources(Some(limits))
        .set_cgroups_path(Some(cgroup_path(input)?))
        .set_namespaces(Some(namespaces))
        .set_devices((!devices.nodes.is_empty()).then_some(devices.nodes))
        .set_seccomp(seccomp(input, &security, &capabilities)?)
        .set_rootfs_propagation(mounts.root_propagation.map(str::to_owned))
        .set_masked_paths(paths(host, host.masked_paths.as_ref(), || {
            adapt::default_masked_paths(input.facts)
        }))
        .set_readonly_paths(paths(
            host,
            host.readonly_paths.as_ref(),
            adapt::default_readonly_paths,
        ));

    let mut root = oci::Root::default();
    root.set_path(input.rootfs.to_owned()).set_readonly(Some(host.readonly_rootfs));
    let hostname = own.uts.then(|| input.config.hostname.clone());
    let annotations: HashMap<_, _> =
        host.annotations.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let sources = mounts.sources;
    let mut spec = oci::Spec::default();
    spec.set_version(VERSION.into())
        .set_root(Some(root))
        .set_mounts(Some(mounts.list))
        .set_process(Some(process(input, &security, capabilities)?))
        .set_hostname(hostname.filter(|name| !name.is_empty()))
        .set_domainname(None)
        .set_hooks(None)
        .set_annotations((!annotations.is_empty()).then_some(annotations))
        .set_linux(Some(linux));
    Ok(Built { spec, sources })
}

/// A container's own list, which may be empty; else the default, unless it is privileged.
fn paths(
    host: &HostConfig,
    own: Option<&Vec<String>>,
    default: impl FnOnce() -> Vec<String>,
) -> Option<Vec<String>> {
    match own {
        Some(own) => (!own.is_empty()).then(|| own.clone()),
        None => (!host.privileged).then(default),
    }
}

fn has(namespaces: &[oci::LinuxNamespace], kind: oci::LinuxNamespaceType) -> bool {
    namespaces.iter().any(|namespace| namespace.typ() == kind)
}

fn namespaces(input: &Input<'_>) -> Result<Vec<oci::LinuxNamespace>> {
    use oci::LinuxNamespaceType as Type;
    let (host, joined) = (input.host, input.joined);
    let other = |what: &str, path: Option<&Path>| match path {
        Some(path) => Ok(Some(path.to_owned())),
        None => Err(Error::new(
            gantry_sdk::ErrorKind::Internal,
            format!("the {what} namespace that container {} joins is not known", input.id),
        )),
    };
    // None: the host's. Some(None): a new one. Some(path): one that exists.
    let network = match NetworkMode::parse(&host.network_mode) {
        _ if input.config.network_disabled => Some(None),
        NetworkMode::Host => None,
        NetworkMode::Container(_) => Some(other("network", joined.network)?),
        _ => Some(joined.network.map(Path::to_owned)),
    };
    let ipc = match IpcMode::parse(&host.ipc_mode)? {
        IpcMode::Host => None,
        IpcMode::Container(_) => Some(other("IPC", joined.ipc)?),
        _ => Some(None),
    };
    let pid = match PidMode::parse(&host.pid_mode)? {
        PidMode::Host => None,
        PidMode::Container(_) => Some(other("PID", joined.pid)?),
        PidMode::Private => Some(None),
    };
    let cgroup =
        mode::private_cgroups(&host.cgroupns_mode)? == Some(true) && input.facts.cgroup_namespaces;
    let wanted = [
        (Type::Mount, Some(None)),
        (Type::Network, network),
        (Type::Time, input.facts.time_namespaces.then_some(None)),
        (Type::Uts, (!mode::shares_uts(&host.uts_mode)?).then_some(None)),
        (Type::Pid, pid),
        (Type::Ipc, ipc),
        (Type::Cgroup, cgroup.then_some(None)),
    ];
    let namespace = |(kind, path): (Type, Option<Option<PathBuf>>)| {
        path.map(|path| {
            let mut namespace = oci::LinuxNamespace::default();
            namespace.set_typ(kind).set_path(path);
            namespace
        })
    };
    Ok(wanted.into_iter().filter_map(namespace).collect())
}

fn sysctls(input: &Input<'_>, own: OwnNamespaces) -> Result<Option<HashMap<String, String>>> {
    let mut all = HashMap::new();
    if !input.config.domainname.is_empty() {
        // The specification's field for it is newer than many runtimes.
        sysctl::check("kernel.domainname", own)?;
        all.insert("kernel.domainname".to_owned(), input.config.domainname.clone());
    }
    if NetworkMode::parse(&input.host.network_mode).is_private() {
        for (name, value) in NETWORK_SYSCTLS {
            if input.facts.sysctls.contains(name) {
                all.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    for (name, value) in input.host.sysctls.iter().flatten() {
        sysctl::check(name, own)?;
        all.insert(name.clone(), value.clone());
    }
    Ok((!all.is_empty()).then_some(all))
}

fn cgroup_path(input: &Input<'_>) -> Result<PathBuf> {
    let parent = cgroup_parent(input.host, input.defaults)?;
    Ok(match input.defaults.cgroup_driver {
        CgroupDriver::Systemd => format!("{parent}:docker:{}", input.id).into(),
        CgroupDriver::Cgroupfs => path::clean(&format!("/{parent}/{}", input.id)).into(),
    })
}

pub(super) fn seccomp(
    input: &Input<'_>,
    security: &SecurityOptions,
    capabilities: &[oci::Capability],
) -> Result<Option<oci::LinuxSeccomp>> {
    let profile = seccomp_profile(
        &security.seccomp,
        input.host.privileged,
        &input.defaults.seccomp_profile,
        input.facts.seccomp,
    )?;
    let Some(profile) = profile else { return Ok(None) };
    let names: Vec<String> = capabilities.iter().copied().map(capability::full_name).collect();
    (input.seccomp)(profile, &names)
}

fn process(
    input: &Input<'_>,
    security: &SecurityOptions,
    capabilities: Vec<oci::Capability>,
) -> Result<oci::Process> {
    let (config, host) = (input.config, input.host);
    let args = command::command_line(config);
    if args.is_empty() {
        return Err(Error::invalid("no command specified"));
    }
    let set: oci::Capabilities = capabilities.into_iter().collect();
    let mut granted = oci::LinuxCapabilities::default();
    granted
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    let mut user = oci::User::default();
    user.set_uid(input.user.uid)
        .set_gid(input.user.gid)
        .set_additional_gids(Some(input.user.groups.clone()));
    let cwd = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
    let rlimits =
        resources::rlimits(host.ulimits.as_deref().unwrap_or_default(), &input.defaults.ulimits)?;
    let score = i32::try_from(host.oom_score_adj)
        .map_err(|_| Error::invalid(format!("Invalid value {}", host.oom_score_adj)))?;

    let mut process = oci::Process::default();
    process
        .set_terminal(config.tty.then_some(true))
        .set_console_size(console_size(config, host)?)
        .set_user(user)
        .set_args(Some(args))
        .set_env(Some(command::environment(config)))
        .set_cwd(cwd.into())
        .set_capabilities(Some(granted))
        .set_rlimits((!rlimits.is_empty()).then_some(rlimits))
        .set_no_new_privileges(Some(security.no_new_privileges))
        .set_apparmor_profile(security.apparmor_profile(input.host.privileged, input.facts))
        .set_oom_score_adj(Some(score))
        .set_selinux_label(None);
    Ok(process)
}

/// The process alone, for an exec.
pub(super) fn process_of(
    input: &Input<'_>,
    capabilities: Vec<oci::Capability>,
) -> Result<oci::Process> {
    let security = SecurityOptions::parse(
        input.host.security_opt.as_deref().unwrap_or_default(),
        input.defaults.no_new_privileges,
    )?;
    process(input, &security, capabilities)
}

fn console_size(config: &ContainerConfig, host: &HostConfig) -> Result<Option<oci::Box>> {
    let [height, width] = host.console_size;
    if !config.tty || (height == 0 && width == 0) {
        return Ok(None);
    }
    let size = oci::BoxBuilder::default().height(height).width(width).build();
    size.map(Some).map_err(|error| Error::internal("cannot set the terminal's size", error))
}

/// The mounts of a specification while they are put together.
struct Mounts<'a> {
    input: &'a Input<'a>,
    writable_cgroups: bool,
    list: Vec<oci::Mount>,
    sources: BTreeMap<usize, usize>,
    root_propagation: Option<&'static str>,
}

/// What every container has: destination, type, source, options. Source: the reference engine.
const DEFAULT_MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
];

/// Default mounts that stay writable with a read-only root file system.
const WRITABLE_ANYWAY: [&str; 5] = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"];

impl<'a> Mounts<'a> {
    fn new(input: &'a Input<'a>, security: &SecurityOptions) -> Self {
        Self {
            input,
            writable_cgroups: security.writable_cgroups.unwrap_or(input.host.privileged),
            list: Vec::new(),
            sources: BTreeMap::new(),
            root_propagation: None,
        }
    }

    fn is_replaced(&self, destination: &str) -> bool {
        self.input.mounts.iter().any(|mount| {
            mount.destination == destination
                || (mount.destination == "/dev" && destination.starts_with("/dev/"))
        })
    }

    fn add_defaults(&mut self) {
        for (destination, kind, source, options) in DEFAULT_MOUNTS {
            let without_shm =
                destination == "/dev/shm" && self.input.host.ipc_mode.as_str() == "none";
            if self.is_replaced(destination) || without_shm {
                continue;
            }
            let mut options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
            if destination == "/dev/shm" {
                options.push(format!("size={}", self.input.host.shm_size));
            }
            self.push(destination, kind, source.into(), options);
        }
    }

    /// The container's own mounts, parents before children.
    fn add_own(&mut self) -> Result<()> {
        let input = self.input;
        let mut order: Vec<usize> = (0..input.mounts.len()).collect();
        order.sort_by_key(|index| input.mounts[*index].destination.matches('/').count());
        for index in order {
            let mount = &input.mounts[index];
            let (kind, source, options) = match &mount.source {
                MountSource::Tmpfs(options) => {
                    ("tmpfs", PathBuf::from("tmpfs"), tmpfs_options(options)?)
                }
                MountSource::Path(source) => {
                    self.spread(mount, source)?;
                    ("bind", source.clone(), self.bind_options(mount)?)
                }
            };
            self.sources.insert(self.list.len(), index);
            self.push(&mount.destination, kind, source, options);
        }
        Ok(())
    }

    fn push(&mut self, destination: &str, kind: &str, source: PathBuf, options: Vec<String>) {
        let mut mount = oci::Mount::default();
        mount
            .set_destination(destination.into())
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(source))
            .set_options(Some(options));
        self.list.push(mount);
    }

    fn bind_options(&self, mount: &ReadyMount) -> Result<Vec<String>> {
        let mut options = vec![if mount.non_recursive { "bind" } else { "rbind" }.to_owned()];
        if !mount.writable {
            if mount.read_only_non_recursive && mount.read_only_force_recursive {
                return Err(Error::invalid(
                    "mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive",
                ));
            }
            let can = self.input.facts.recursive_read_only;
            if mount.read_only_force_recursive && !can {
                return Err(Error::invalid(format!(
                    "{} cannot be mounted read-only with the mounts below it: kernel or runtime \
                     does not support it",
                    mount.destination
                )));
            }
            let is_deep = can && !mount.read_only_non_recursive;
            options.push(if is_deep { "rro" } else { "ro" }.to_owned());
        }
        if !mount.propagation.is_empty() {
            options.push(mount.propagation.clone());
        }
        Ok(options)
    }

    /// A mount that spreads needs a source that does, and a root that lets it.
    fn spread(&mut self, mount: &ReadyMount, source: &Path) -> Result<()> {
        let not = |what: &str, mount_point: &Path| {
            Error::invalid(format!(
                "path {} is mounted on {} but it is not a {what} mount",
                source.display(),
                mount_point.display()
            ))
        };
        match mount.propagation.as_str() {
            "shared" | "rshared" => {
                let sharing = self.input.view.sharing(source)?;
                if !sharing.is_shared {
                    return Err(not("shared", &sharing.mount_point));
                }
                self.root_propagation = Some("shared");
            }
            "slave" | "rslave" => {
                let sharing = self.input.view.sharing(source)?;
                if !sharing.is_shared && !sharing.is_slave {
                    return Err(not("shared or slave", &sharing.mount_point));
                }
                self.root_propagation = self.root_propagation.or(Some("rslave"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Read-only roots, privileged containers and writable cgroups change the default mounts.
    fn settle_access(&mut self) {
        let host = self.input.host;
        for (index, mount) in self.list.iter_mut().enumerate() {
            if self.sources.contains_key(&index) {
                continue;
            }
            let destination = mount.destination().to_string_lossy().into_owned();
            let mut options = mount.options().clone().unwrap_or_default();
            let is_read_only = options.iter().any(|option| option == "ro");
            if host.readonly_rootfs
                && !WRITABLE_ANYWAY.contains(&destination.as_str())
                && !is_read_only
            {
                options.push("ro".into());
            }
            let is_freed = (host.privileged && destination == "/sys")
                || (self.writable_cgroups && mount.typ().as_deref() == Some("cgroup"));
            if is_freed {
                options.retain(|option| option != "ro");
            }
            mount.set_options(Some(options));
        }
    }
}

fn tmpfs_options(text: &str) -> Result<Vec<String>> {
    let mut options = vec!["noexec", "nosuid", "nodev", super::mounts::DEFAULT_PROPAGATION];
    if !text.is_empty() {
        options.extend(text.split(','));
    }
    Ok(merge_options(&options)?.into_iter().map(str::to_owned).collect())
}
