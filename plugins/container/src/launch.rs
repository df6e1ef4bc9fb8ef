//! Starting a container: everything it needs, side by side, then the runtime.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_sdk::api::ContainerConfig;
use gantry_sdk::kinds::layers::Layers;
use gantry_sdk::kinds::logs::Log;
use gantry_sdk::kinds::networks::{Networks, Sandbox, SandboxNs, SandboxSpec, SandboxStatus};
use gantry_sdk::kinds::runtime::{Attach, ContainerProcess, Launch, Runtimes, Stdio};
use gantry_sdk::kinds::volumes::Volumes;
use gantry_sdk::mounts::MountFd;
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use gantry_sys::path::{
    Links, Mode, NewDirectory, OFlags, mkdir_all_beneath, open_beneath, read_bounded,
};

use crate::apparmor;
use crate::engine::Engine;
use crate::ports;
use crate::record::{MountRecord, MountSource, Record};
use crate::spec::mode::{IpcMode, NetworkMode, PidMode};
use crate::spec::{self, Built, Joined, ReadyMount, User};

/// SIGTERM, when a configured stop signal is not one (it was checked at creation).
const DEFAULT_STOP_SIGNAL: i32 = 15;
/// The largest `/etc/passwd` or `/etc/group` that is read.
const MAX_USER_FILE: usize = spec::user::MAX_FILE_BYTES;

/// The signal that asks a container to stop.
pub fn stop_signal(config: &ContainerConfig) -> i32 {
    spec::signal::stop_signal(&config.stop_signal).unwrap_or(DEFAULT_STOP_SIGNAL)
}

/// The exit code that tells a shell why a program could not be started, and the error as clients get
/// it: what is wrong with the program is wrong with the request.
pub fn start_failure(error: Error) -> (i32, Error) {
    match error.kind() {
        ErrorKind::NotFound => (127, error.with_kind(ErrorKind::InvalidArgument)),
        ErrorKind::Forbidden => (126, error.with_kind(ErrorKind::InvalidArgument)),
        _ => (128, error),
    }
}

/// Starts `record`'s container. All or nothing.
///
/// # Errors
///
/// Those of the layer store, the volumes, the network and the runtime.
pub async fn launch(
    engine: &Arc<Engine>,
    record: &Record,
    attach: Vec<Attach>,
) -> Result<(Arc<dyn ContainerProcess>, SandboxStatus)> {
    let launched = launch_steps(engine, record, attach).await;
    if launched.is_err() {
        release(engine, record).await;
        remove_run_dir(engine, record).await;
    }
    launched
}

async fn launch_steps(
    engine: &Arc<Engine>,
    record: &Record,
    attach: Vec<Attach>,
) -> Result<(Arc<dyn ContainerProcess>, SandboxStatus)> {
    let cx = Ctx::background();
    let run_dir = make_dirs(engine, record)?;
    let layers = engine.registry.only::<Layers>()?;
    let joined = joined(engine, record)?;
    let (root, sandbox, mounts) = tokio::try_join!(
        layers.mount(&cx, &record.layer),
        sandbox(engine, &cx, record, &joined),
        mounts(engine, &cx, record, &joined),
    )?;
    let built = {
        let (engine, record, root) = (engine.clone(), record.clone(), root.clone());
        let (joined, mounts) = (joined.clone(), mounts.ready.clone());
        tokio::task::spawn_blocking(move || {
            let user = prepare_root(&record, &root)?;
            build(&engine, &record, &user, &joined, &mounts)
        })
        .await??
    };
    let sources = built
        .sources
        .iter()
        .filter_map(|(index, from)| Some((*index, mounts.fds.get(from)?.clone())))
        .collect();
    let log = engine.registry.get::<Log>(&record.log_driver)?;
    let log = log.open(&cx, &engine.log_target(record)).await?;
    let runtime = engine.registry.get::<Runtimes>(&record.runtime)?;
    let launch = Launch {
        id: record.id.to_string(),
        run_dir,
        spec: Arc::new(built.spec),
        root,
        mounts: sources,
        netns: sandbox.netns,
        stdio: stdio(record),
        log,
        init: spec::wants_init(&record.host, &engine.settings().defaults),
        attach,
    };
    let process = runtime.launch(&cx, launch).await?;
    Ok((process, sandbox.status))
}

/// Gives back what a container held while it ran. Never fails: what cannot be given back is logged,
/// and collected when the daemon starts.
pub async fn release(engine: &Engine, record: &Record) {
    let cx = Ctx::background();
    let id = record.id.as_str();
    if let Ok(networks) = engine.registry.only::<Networks>()
        && let Err(error) = networks.close(&cx, id).await
    {
        tracing::warn!(container = id, error = %error.chain(), "Cannot close a sandbox.");
    }
    if let Ok(volumes) = engine.registry.only::<Volumes>() {
        for name in record.volumes() {
            if let Err(error) = volumes.unpublish(&cx, name, id).await {
                tracing::warn!(container = id, volume = name, error = %error.chain(), "Cannot give back a volume.");
            }
        }
    }
}

async fn remove_run_dir(engine: &Engine, record: &Record) {
    let path = engine.run_of(&record.id);
    let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await;
}

fn make_dirs(engine: &Engine, record: &Record) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let run_dir = engine.run_of(&record.id);
    for path in [&run_dir, &engine.files_of(&record.id)] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o710)
            .create(path)
            .map_err(|e| Error::io("create", path.display(), e))?;
    }
    Ok(run_dir)
}

fn stdio(record: &Record) -> Stdio {
    let size = |n: u64| u16::try_from(n).unwrap_or(0);
    let [rows, columns] = record.host.console_size;
    Stdio {
        tty: record.config.tty,
        stdin: record.config.open_stdin,
        stdin_once: record.config.stdin_once,
        size: (size(rows), size(columns)),
    }
}

/// Namespaces of other containers that this one joins, by path.
#[derive(Clone, Debug, Default)]
pub struct JoinedPaths {
    network: Option<PathBuf>,
    ipc: Option<PathBuf>,
    pid: Option<PathBuf>,
    shm: Option<MountFd>,
}

/// Finds the containers whose namespaces are shared.
///
/// # Errors
///
/// `NotFound`; `Conflict` if one does not run, with the reference engine's texts.
pub fn joined(engine: &Engine, record: &Record) -> Result<JoinedPaths> {
    let namespace = |other: &str, what: &str, name: &str| -> Result<Option<PathBuf>> {
        let view = engine.find(other)?.view();
        if view.record.id == record.id {
            return Err(Error::conflict(format!("cannot join own {what}")));
        }
        let pid = view.state.pid().ok_or_else(|| {
            Error::conflict(format!(
                "cannot join {what} of a non running container: {}",
                view.record.id
            ))
        })?;
        Ok(Some(PathBuf::from(format!("/proc/{pid}/ns/{name}"))))
    };
    let host = &record.host;
    let mut paths = JoinedPaths::default();
    if let NetworkMode::Container(other) = NetworkMode::parse(&host.network_mode) {
        paths.network = namespace(other, "network", "net")?;
    }
    if let IpcMode::Container(other) = IpcMode::parse(&host.ipc_mode)? {
        let view = engine.find(other)?.view();
        if !matches!(
            IpcMode::parse(&view.record.host.ipc_mode)?,
            IpcMode::Shareable | IpcMode::Host
        ) {
            return Err(Error::conflict(format!(
                "cannot join IPC of container {other}: non-shareable IPC"
            )));
        }
        paths.ipc = namespace(other, "IPC", "ipc")?;
        let pid = view.state.pid().unwrap_or(0);
        paths.shm = Some(shared_memory(pid, other)?);
    }
    if let PidMode::Container(other) = PidMode::parse(&host.pid_mode)? {
        paths.pid = namespace(other, "PID", "pid")?;
    }
    Ok(paths)
}

/// The `/dev/shm` of a running container: the mount is in its namespace, and nowhere else.
fn shared_memory(pid: i32, other: &str) -> Result<MountFd> {
    let namespace = format!("/proc/{pid}/ns/mnt");
    let failed = |e: gantry_sys::Error| {
        Error::conflict(format!("cannot share /dev/shm of container {other}")).caused_by(e)
    };
    gantry_sys::mount::clone_from_namespace(Path::new(&namespace), Path::new("/dev/shm"))
        .map(MountFd::new)
        .map_err(failed)
}

async fn sandbox(
    engine: &Engine,
    cx: &Ctx,
    record: &Record,
    joined: &JoinedPaths,
) -> Result<Sandbox> {
    if let Some(path) = &joined.network {
        share_files(engine, record)?;
        let netns = std::fs::File::open(path)
            .map_err(|e| Error::io("open", path.display(), e).with_kind(ErrorKind::Conflict))?;
        return Ok(Sandbox {
            netns: SandboxNs::Ready(Arc::new(OwnedFd::from(netns))),
            status: SandboxStatus::default(),
        });
    }
    let networks = engine.registry.only::<Networks>()?;
    networks.open(cx, &sandbox_spec(engine, record)?).await
}

/// What a container asks of the network.
///
/// # Errors
///
/// `InvalidArgument` naming a bad port.
pub fn sandbox_spec(engine: &Engine, record: &Record) -> Result<SandboxSpec> {
    let (config, host) = (&record.config, &record.host);
    let network = match NetworkMode::parse(&host.network_mode) {
        _ if config.network_disabled => "none".to_owned(),
        NetworkMode::Default => "bridge".to_owned(),
        _ => host.network_mode.clone(),
    };
    let endpoint = record.endpoints.values().next();
    let mac = [Some(&config.mac_address), endpoint.map(|e| &e.mac_address)];
    let mac = mac.into_iter().flatten().find(|mac| !mac.is_empty()).cloned();
    let wanted = endpoint.and_then(|e| e.ipam_config.as_ref());
    let addresses = wanted.map(|w| [&w.ipv4_address, &w.ipv6_address]).into_iter().flatten();
    Ok(SandboxSpec {
        container: record.id.to_string(),
        name: record.name.clone(),
        network,
        hostname: config.hostname.clone(),
        domainname: config.domainname.clone(),
        extra_hosts: host.extra_hosts.clone().unwrap_or_default(),
        dns: host.dns.clone().unwrap_or_default(),
        dns_search: host.dns_search.clone().unwrap_or_default(),
        dns_options: host.dns_options.clone().unwrap_or_default(),
        ports: ports::mappings(host)?,
        exposed: ports::exposed(config)?,
        publish_all: host.publish_all_ports,
        mac,
        addresses: addresses.filter_map(|a| a.parse().ok()).collect(),
        options: endpoint.and_then(|e| e.driver_opts.clone()).unwrap_or_default(),
        files: engine.files_of(&record.id),
    })
}

const NETWORK_FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// A container that shares another's network also has its files.
fn share_files(engine: &Engine, record: &Record) -> Result<()> {
    let NetworkMode::Container(other) = NetworkMode::parse(&record.host.network_mode) else {
        return Ok(());
    };
    let from = engine.files_of(&engine.find(other)?.view().record.id);
    let to = engine.files_of(&record.id);
    for (name, _) in NETWORK_FILES {
        let _ = std::fs::remove_file(to.join(name));
        match std::fs::hard_link(from.join(name), to.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("link", to.join(name).display(), e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Mounts with sources, and their descriptors by index.
#[derive(Default)]
struct Mounts {
    ready: Vec<ReadyMount>,
    fds: BTreeMap<usize, MountFd>,
}

impl Mounts {
    fn push(&mut self, mount: ReadyMount, fd: Option<MountFd>) {
        if let Some(fd) = fd {
            self.fds.insert(self.ready.len(), fd);
        }
        self.ready.push(mount);
    }
}

async fn mounts(
    engine: &Arc<Engine>,
    cx: &Ctx,
    record: &Record,
    joined: &JoinedPaths,
) -> Result<Mounts> {
    let mut mounts = Mounts::default();
    for mount in &record.mounts {
        let fd = match &mount.source {
            MountSource::Volume { name, subpath, .. } => {
                Some(publish(engine, cx, record, name, subpath).await?)
            }
            _ => None,
        };
        mounts.push(ready(mount), fd);
    }
    let taken = record.mounts.iter().any(|m| m.destination == "/dev/shm");
    match IpcMode::parse(&record.host.ipc_mode)? {
        _ if taken => {}
        IpcMode::Host => mounts.push(ReadyMount::own("/dev/shm", "/dev/shm".into(), true), None),
        IpcMode::Container(_) => {
            mounts.push(ReadyMount::own("/dev/shm", "/dev/shm".into(), true), joined.shm.clone());
        }
        _ => {}
    }
    Ok(mounts)
}

async fn publish(
    engine: &Engine,
    cx: &Ctx,
    record: &Record,
    name: &str,
    subpath: &str,
) -> Result<MountFd> {
    let volumes = engine.registry.only::<Volumes>()?;
    let whole = volumes.publish(cx, name, record.id.as_str()).await?;
    if subpath.is_empty() {
        return Ok(whole);
    }
    let refuse = |e: gantry_sys::Error| {
        Error::invalid(format!("cannot use subpath {subpath:?} of volume {name}")).caused_by(e)
    };
    let beneath = PathBuf::from(subpath);
    let work = move || gantry_sys::mount::clone_beneath(&whole, &beneath);
    tokio::task::spawn_blocking(work).await?.map(MountFd::new).map_err(refuse)
}

fn ready(mount: &MountRecord) -> ReadyMount {
    let source = match &mount.source {
        MountSource::Bind { path } => spec::MountSource::Path(path.into()),
        MountSource::Volume { mountpoint, .. } => spec::MountSource::Path(mountpoint.into()),
        MountSource::Tmpfs { options } => spec::MountSource::Tmpfs(options.clone()),
    };
    ReadyMount {
        destination: mount.destination.clone(),
        source,
        writable: !mount.read_only,
        propagation: mount.propagation.clone(),
        non_recursive: mount.non_recursive,
        read_only_non_recursive: mount.read_only_non_recursive,
        read_only_force_recursive: mount.read_only_force_recursive,
    }
}

/// Looks the user up in the container's own files and makes its working directory.
fn prepare_root(record: &Record, root: &MountFd) -> Result<User> {
    let cwd = record.config.working_dir.trim_start_matches('/');
    if !cwd.is_empty() {
        let new = NewDirectory { mode: 0o755, owner: None };
        mkdir_all_beneath(root, Path::new(cwd), new, Links::InRoot).map_err(|e| {
            Error::invalid(format!(
                "cannot make the working directory {:?}",
                record.config.working_dir
            ))
            .caused_by(e)
        })?;
    }
    resolve_user(&record.config.user, record.host.group_add.as_deref().unwrap_or_default(), root)
}

/// Looks `user` up in the files beneath `root`.
///
/// # Errors
///
/// `InvalidArgument` with the reference engine's texts.
pub fn resolve_user(user: &str, groups: &[String], root: impl AsFd) -> Result<User> {
    let passwd = user_file(root.as_fd(), "etc/passwd")?;
    let group = user_file(root.as_fd(), "etc/group")?;
    spec::user::resolve(user, groups, passwd.as_deref(), group.as_deref())
}

fn user_file(root: std::os::fd::BorrowedFd<'_>, path: &str) -> Result<Option<Vec<u8>>> {
    // Not a fifo that blocks, not a device.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let Ok(file) = open_beneath(root, Path::new(path), flags, Mode::empty(), Links::InRoot) else {
        return Ok(None);
    };
    let file = std::fs::File::from(file);
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Ok(None);
    }
    read_bounded(file, MAX_USER_FILE).map(Some).map_err(|e| Error::io("read", path, e))
}

/// Builds a container's specification.
///
/// # Errors
///
/// Those of [`spec::build()`]; `Unavailable` if the default AppArmor profile cannot be loaded.
pub fn build(
    engine: &Engine,
    record: &Record,
    user: &User,
    joined: &JoinedPaths,
    mounts: &[ReadyMount],
) -> Result<Built> {
    let settings = engine.settings();
    let mut all = mounts.to_vec();
    let files = engine.files_of(&record.id);
    for (name, destination) in NETWORK_FILES {
        let taken = mounts.iter().any(|m| m.destination == destination);
        if !taken && files.join(name).exists() {
            all.push(ReadyMount::own(destination, files.join(name), true));
        }
    }
    let seccomp = |profile: spec::SeccompProfile<'_>, capabilities: &[String]| {
        engine.seccomp.resolve(profile, capabilities)
    };
    let built = spec::build(&spec::Input {
        id: record.id.as_str(),
        config: &record.config,
        host: &record.host,
        user,
        rootfs: Path::new("/"),
        mounts: &all,
        joined: Joined {
            network: joined.network.as_deref(),
            ipc: joined.ipc.as_deref(),
            pid: joined.pid.as_deref(),
        },
        view: &spec::SystemView,
        seccomp: &seccomp,
        facts: &engine.facts,
        defaults: &settings.defaults,
    })?;
    let process = built.spec.process().as_ref();
    apparmor::ensure(process.and_then(|process| process.apparmor_profile().as_deref()))?;
    Ok(built)
}
