//! Creating a container: check everything, then make a layer, volumes and a record. All or nothing.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_sdk::api::container::{ContainerConfig, HostConfig};
use gantry_sdk::api::network::EndpointSettings;
use gantry_sdk::api::version::request::NewContainer;
use gantry_sdk::id::ContainerId;
use gantry_sdk::kinds::images::{Image, Images};
use gantry_sdk::kinds::layers::{ContainerLayer, Layers, Wanted};
use gantry_sdk::kinds::logs::Log;
use gantry_sdk::kinds::networks::Networks;
use gantry_sdk::kinds::runtime::Runtimes;
use gantry_sdk::kinds::volumes::{NewVolume, Volumes};
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};
use gantry_sys::path::{Links, Mode, OFlags, open_beneath};

use crate::engine::Engine;
use crate::handle::Handle;
use crate::names;
use crate::record::{FORMAT, Life, MountRecord, MountSource, Record};
use crate::spec::mode::NetworkMode;
use crate::spec::mounts::parse_volumes_from;
use crate::spec::{self, MountKind, WantedMount};
use crate::state::State;
use crate::task::Task;

/// The storage instance, as a storage option so that unmodified clients can say it.
pub const DRIVER_OPTION: &str = "gantry.driver";
/// Tries for a free random name.
const NAME_TRIES: u32 = 64;

/// Creates a container and returns its handle and warnings for the client.
///
/// # Errors
///
/// `InvalidArgument` for what can never work, `NotFound` for an image, network, volume driver or
/// container it refers to, `Conflict` for a name in use; the reference engine's texts.
pub async fn create(
    engine: &Arc<Engine>,
    cx: &Ctx,
    name: &str,
    platform: Option<&str>,
    mut new: NewContainer,
) -> Result<(Handle, Vec<String>)> {
    let settings = engine.settings();
    let image = resolve_image(engine, cx, &new.config, platform).await?;
    spec::command::merge_image(&mut new.config, &image.config)?;
    let mut warnings = std::mem::take(&mut new.warnings);
    warnings.extend(check(engine, &mut new).await?);

    let id = ContainerId::random();
    let name = take_name(engine, name, &id)?;
    let (config, mut host) = (new.config, new.host_config);
    let mut config = config;
    let made = async {
        if let NetworkMode::Container(other) = NetworkMode::parse(&host.network_mode)
            && let Ok(other) = engine.find(other)
        {
            // Who shares a network is known by the same names. That the other is missing is said
            // when the container is started, as the reference engine does.
            let other = other.view();
            config.hostname.clone_from(&other.record.config.hostname);
            config.domainname.clone_from(&other.record.config.domainname);
        }
        spec::adapt(&mut config, &mut host, id.as_str(), &engine.facts, &settings.defaults)?;
        settle_log(&settings, &mut host);
        let endpoints = endpoints(engine, cx, &host, new.networks).await?;
        check_drivers(engine, cx, &host).await?;
        let mut record = Record {
            format: FORMAT,
            id: id.clone(),
            name: name.clone(),
            created: SystemTime::now(),
            image: config.image.clone(),
            image_id: image.id.clone(),
            platform: image.platform.clone(),
            chain: image.chain.clone(),
            layer: ContainerLayer { key: id.to_string(), instance: String::new() },
            mounts: Vec::new(),
            log_driver: host.log_config.kind.clone(),
            log_options: host.log_config.config.clone().unwrap_or_default(),
            runtime: host.runtime.clone(),
            life: Life::default(),
            config,
            host,
            endpoints,
        };
        match make(engine, cx, &mut record, &image).await {
            Ok(()) => Ok(record),
            Err(error) => Err(undo(engine, &mut record, error).await),
        }
    };
    let record = match made.await {
        Ok(record) => record,
        Err(error) => {
            engine.release_name(&name, &id);
            return Err(error);
        }
    };
    engine.report(&record, "create", &[]);
    Ok((Task::spawn(engine, record, State::Created, None), warnings))
}

async fn resolve_image(
    engine: &Engine,
    cx: &Ctx,
    config: &ContainerConfig,
    platform: Option<&str>,
) -> Result<Image> {
    if config.image.is_empty() {
        return Err(Error::invalid("no image specified"));
    }
    engine.registry.only::<Images>()?.resolve(cx, &config.image, platform).await
}

/// Everything about the request that can be judged without making anything.
async fn check(engine: &Arc<Engine>, new: &mut NewContainer) -> Result<Vec<String>> {
    refuse_unsupported(&new.config, &new.host_config)?;
    let (engine, mut config, mut host) =
        (engine.clone(), std::mem::take(&mut new.config), std::mem::take(&mut new.host_config));
    let (config, host, warnings) = tokio::task::spawn_blocking(move || {
        let settings = engine.settings();
        let exists = |path: &str| Ok(Path::new(path).exists());
        let checks =
            spec::Checks { facts: &engine.facts, defaults: &settings.defaults, exists: &exists };
        let warnings = spec::check_create(&mut config, &mut host, &checks)?;
        // Also finds bad and doubled mounts before anything is made.
        spec::mounts::collect(&config, &host, Vec::new(), &exists)?;
        Ok::<_, Error>((config, host, warnings))
    })
    .await??;
    (new.config, new.host_config) = (config, host);
    Ok(warnings)
}

/// What later issues bring: refused by name, never ignored.
fn refuse_unsupported(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    let health = config.healthcheck.as_ref().and_then(|h| h.test.as_deref()).unwrap_or_default();
    if !matches!(health, [] | [_]) || matches!(health, [one] if !one.is_empty() && one != "NONE") {
        return Err(Error::unsupported(
            "health checks are not supported yet; run with --no-healthcheck",
        ));
    }
    if host.links.iter().flatten().next().is_some() {
        return Err(Error::unsupported(
            "links are not supported yet; publish a port or share a network namespace",
        ));
    }
    if host.device_requests.iter().flatten().next().is_some() {
        return Err(Error::unsupported(
            "device requests (--gpus, CDI) are not supported yet; use --device",
        ));
    }
    let image_mount = host.mounts.iter().flatten().find(|m| m.kind == "image");
    if let Some(mount) = image_mount {
        return Err(Error::unsupported(format!(
            "image mounts are not supported yet (at {})",
            mount.target
        )));
    }
    Ok(())
}

fn take_name(engine: &Engine, wanted: &str, id: &ContainerId) -> Result<String> {
    let wanted = wanted.strip_prefix('/').unwrap_or(wanted);
    if !wanted.is_empty() {
        crate::handlers::life::check_name(wanted)?;
        engine.reserve_name(wanted, id)?;
        return Ok(wanted.to_owned());
    }
    for attempt in 0..NAME_TRIES {
        let name = names::random(attempt);
        if engine.reserve_name(&name, id).is_ok() {
            return Ok(name);
        }
    }
    engine.reserve_name(id.short(), id)?;
    Ok(id.short().to_owned())
}

/// The daemon's defaults for what the client left open.
fn settle_log(settings: &crate::settings::Settings, host: &mut HostConfig) {
    let log = &mut host.log_config;
    if log.kind.is_empty() {
        log.kind = settings.log_driver.clone();
    }
    let options = log.config.get_or_insert_default();
    if log.kind == settings.log_driver {
        for (name, value) in &settings.log_options {
            options.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// The networks of the container by name.
async fn endpoints(
    engine: &Engine,
    cx: &Ctx,
    host: &HostConfig,
    given: BTreeMap<String, EndpointSettings>,
) -> Result<BTreeMap<String, EndpointSettings>> {
    let mode = match NetworkMode::parse(&host.network_mode) {
        NetworkMode::Container(_) => return Ok(BTreeMap::new()),
        NetworkMode::Default => "bridge",
        _ => host.network_mode.as_str(),
    };
    let networks = engine.registry.only::<Networks>()?;
    let (id, name) = match networks.resolve(cx, mode).await {
        // That it is missing is said when the container is started, as the reference engine does:
        // a client that hears "not found" now would go and look for the image.
        Err(e) if e.kind() == ErrorKind::NotFound => (String::new(), mode.to_owned()),
        found => found?,
    };
    if given.len() > 1 {
        return Err(Error::unsupported("more than one network is not supported yet"));
    }
    let mut settings = match given.into_iter().next() {
        Some((key, settings)) => {
            let key = if key == "default" { mode } else { &key };
            if key != mode && networks.resolve(cx, key).await?.0 != id {
                return Err(Error::unsupported(
                    "a second network beside the network mode is not supported yet",
                ));
            }
            settings
        }
        None => EndpointSettings::default(),
    };
    settings.network_id = id;
    Ok(BTreeMap::from([(name, settings)]))
}

async fn check_drivers(engine: &Engine, cx: &Ctx, host: &HostConfig) -> Result<()> {
    engine.registry.get::<Runtimes>(&host.runtime).map_err(|_| {
        Error::invalid(format!("unknown or invalid runtime name: {}", host.runtime))
    })?;
    let log = engine.registry.get::<Log>(&host.log_config.kind).map_err(|_| {
        Error::invalid(format!(
            "logger: no log driver named '{}' is registered",
            host.log_config.kind
        ))
    })?;
    log.validate(cx, &host.log_config.config.clone().unwrap_or_default()).await?;
    Ok(())
}

/// Makes what the record describes, completing it on the way; the record is on disk at the end.
async fn make(engine: &Arc<Engine>, cx: &Ctx, record: &mut Record, image: &Image) -> Result<()> {
    let layers = engine.registry.only::<Layers>()?;
    let wanted = Wanted {
        instance: record.host.storage_opt.as_ref().and_then(|o| o.get(DRIVER_OPTION)).cloned(),
        image: record.image.clone(),
        labels: image.config.labels.clone(),
        runtime: record.runtime.clone(),
    };
    let instance = layers.choose(cx, &wanted).await?;
    let options = storage_options(&record.host);
    record.layer =
        layers.create(cx, record.id.as_str(), &record.chain, Some(&instance), &options).await?;
    record.mounts = make_mounts(engine, cx, record).await?;
    engine.save(record).await
}

/// What the storage driver is asked for.
pub fn storage_options(host: &HostConfig) -> Labels {
    let mut options: Labels = host.storage_opt.clone().unwrap_or_default();
    options.remove(DRIVER_OPTION);
    options
}

async fn undo(engine: &Engine, record: &mut Record, cause: Error) -> Error {
    if record.layer.instance.is_empty() {
        return cause;
    }
    match crate::remove::remove(engine, record, true, None).await {
        Ok(()) => cause,
        Err(error) => {
            let left = format!("{} (and could not clean up: {})", cause.chain(), error.chain());
            Error::new(cause.kind(), left)
        }
    }
}

async fn make_mounts(
    engine: &Arc<Engine>,
    cx: &Ctx,
    record: &mut Record,
) -> Result<Vec<MountRecord>> {
    let inherited = inherited(engine, &record.host)?;
    let exists = |path: &str| Ok(Path::new(path).exists());
    let wanted = spec::mounts::collect(&record.config, &record.host, inherited, &exists)?;
    let mut mounts = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        let source = match wanted.kind {
            MountKind::Bind => {
                make_bind_source(&wanted)?;
                MountSource::Bind { path: wanted.source.clone() }
            }
            MountKind::Tmpfs => MountSource::Tmpfs { options: wanted.tmpfs_options.clone() },
            MountKind::Volume => make_volume(engine, cx, record, &wanted).await?,
            MountKind::Image => {
                return Err(Error::unsupported("image mounts are not supported yet"));
            }
        };
        // Kept in the record at once, so that undoing knows the volume.
        record.mounts.push(mount_record(&wanted, source.clone()));
        mounts.push(mount_record(&wanted, source));
    }
    Ok(mounts)
}

fn mount_record(wanted: &WantedMount, source: MountSource) -> MountRecord {
    let bind = wanted.object.bind_options.clone().unwrap_or_default();
    MountRecord {
        source,
        destination: wanted.destination.clone(),
        mode: wanted.mode.clone(),
        read_only: !wanted.writable,
        propagation: wanted.propagation.clone(),
        non_recursive: bind.non_recursive,
        read_only_non_recursive: bind.read_only_non_recursive,
        read_only_force_recursive: bind.read_only_force_recursive,
    }
}

/// The mounts of `--volumes-from`.
fn inherited(engine: &Engine, host: &HostConfig) -> Result<Vec<WantedMount>> {
    let mut mounts = Vec::new();
    for text in host.volumes_from.iter().flatten() {
        let (other, writable) = parse_volumes_from(text)?;
        for mount in &engine.find(other)?.view().record.mounts {
            let (kind, name, source, driver) = match &mount.source {
                MountSource::Bind { path } => {
                    (MountKind::Bind, String::new(), path.clone(), String::new())
                }
                MountSource::Volume { name, driver, .. } => {
                    (MountKind::Volume, name.clone(), String::new(), driver.clone())
                }
                MountSource::Tmpfs { .. } => continue,
            };
            mounts.push(WantedMount {
                kind,
                name,
                source,
                driver,
                destination: mount.destination.clone(),
                writable: writable && !mount.read_only,
                mode: mount.mode.clone(),
                propagation: mount.propagation.clone(),
                ..WantedMount::default()
            });
        }
    }
    Ok(mounts)
}

fn make_bind_source(wanted: &WantedMount) -> Result<()> {
    let path = Path::new(&wanted.source);
    if wanted.create_source && !path.exists() {
        std::fs::create_dir_all(path)
            .map_err(|e| Error::io("make the source of a bind mount", path.display(), e))?;
    }
    if !path.exists() {
        return Err(Error::invalid(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {}",
            wanted.source
        )));
    }
    Ok(())
}

async fn make_volume(
    engine: &Arc<Engine>,
    cx: &Ctx,
    record: &Record,
    wanted: &WantedMount,
) -> Result<MountSource> {
    let volumes = engine.registry.only::<Volumes>()?;
    let options = wanted.object.volume_options.clone().unwrap_or_default();
    let driver = options.driver_config.clone().unwrap_or_default();
    let named = [&driver.name, &wanted.driver].into_iter().find(|name| !name.is_empty()).cloned();
    let new = NewVolume {
        name: (!wanted.name.is_empty()).then(|| wanted.name.clone()),
        driver: named,
        options: driver.options.unwrap_or_default(),
        labels: options.labels.unwrap_or_default(),
    };
    let anonymous = new.name.is_none();
    let volume = volumes.create(cx, new).await?;
    volumes.hold(cx, &volume.name, record.id.as_str()).await?;
    if wanted.copy_up && options.subpath.is_empty() {
        copy_up(engine, cx, record, &volume.name, &wanted.destination).await?;
    }
    Ok(MountSource::Volume {
        name: volume.name,
        driver: volume.driver,
        mountpoint: volume.mountpoint,
        subpath: options.subpath,
        anonymous,
    })
}

/// Gives an empty volume what the image has at its destination, and the owner and mode of that
/// directory.
async fn copy_up(
    engine: &Arc<Engine>,
    cx: &Ctx,
    record: &Record,
    volume: &str,
    destination: &str,
) -> Result<()> {
    let layers = engine.registry.only::<Layers>()?;
    let image = layers.mount_chain(cx, &record.chain, Some(&record.layer.instance)).await?;
    let from = destination.trim_start_matches('/').to_owned();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Ok(source) = open_beneath(&image, Path::new(&from), flags, Mode::empty(), Links::InRoot)
    else {
        return Ok(()); // nothing there, or not a directory
    };
    let volumes = engine.registry.only::<Volumes>()?;
    let user = format!("{}-copy-up", record.id);
    let target = volumes.publish(cx, volume, &user).await?;
    let what = format!("the content of {destination} into volume {volume}");
    let copied = tokio::task::spawn_blocking(move || {
        let target = open_beneath(&target, Path::new(""), flags, Mode::empty(), Links::Refuse)
            .map_err(|e| Error::internal("cannot open a volume", e))?;
        if !is_empty(&target)? {
            return Ok(());
        }
        gantry_archive::copy_tree(source.as_fd(), target.as_fd())
            .map_err(|e| Error::internal(format!("cannot copy {what}"), e))
    })
    .await?;
    volumes.unpublish(cx, volume, &user).await?;
    copied
}

fn is_empty(directory: impl AsFd) -> Result<bool> {
    let path = gantry_sys::path::proc_fd(directory);
    let mut entries = std::fs::read_dir(&path).map_err(|e| Error::io("list", path.display(), e))?;
    Ok(entries.next().is_none())
}
