//! Whether a request to create a container makes sense, as a whole.

use std::net::IpAddr;

use gantry_sdk::api::{ContainerConfig, HealthConfig, HostConfig, RestartPolicy};
use gantry_sdk::{Error, Result};

use crate::ports;

use super::facts::{CgroupDriver, Defaults, HostFacts};
use super::mode::{self, IpcMode, NetworkMode, PidMode};
use super::mounts::{check_destination, check_mount};
use super::security::seccomp_profile;
use super::{SecurityOptions, capability, command, limits, resources, signal};

/// The longest host name in bytes. Source: `HOST_NAME_MAX` in `linux/limits.h`.
const MAX_HOSTNAME: usize = 64;
/// The shortest time of a health check, nanoseconds. Source: the reference engine.
const MIN_HEALTH_TIME: i64 = 1_000_000;
/// Most entries of any list, and most bytes of a command line and environment together.
const MAX_ENTRIES: usize = 16_384;
const MAX_TEXT: usize = 2 << 20;

/// What a check needs to know.
#[derive(Clone, Copy)]
pub struct Checks<'a> {
    /// The host.
    pub facts: &'a HostFacts,
    /// The daemon.
    pub defaults: &'a Defaults,
    /// Whether a path of the host exists. May block.
    pub exists: &'a dyn Fn(&str) -> Result<bool>,
}

impl std::fmt::Debug for Checks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checks").finish_non_exhaustive()
    }
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::invalid(message))
}

/// Checks a request before anything is done for it. Limits that the host cannot enforce are taken
/// out of `host`, paths are cleaned. Returns warnings for the client.
///
/// # Errors
///
/// `InvalidArgument`, with the reference's words.
pub fn check_create(
    config: &mut ContainerConfig,
    host: &mut HostConfig,
    cx: &Checks<'_>,
) -> Result<Vec<String>> {
    check_sizes(config, host)?;
    check_network(config, host)?;
    if !matches!(host.isolation.to_lowercase().as_str(), "" | "default") {
        return refuse(format!(
            "invalid isolation ({}): linux only supports 'default'",
            host.isolation
        ));
    }
    check_config(config)?;
    check_host(host, cx)?;
    if config.hostname.len() > MAX_HOSTNAME {
        return refuse(format!(
            "hostname {:?} is too long (maximum {MAX_HOSTNAME} bytes)",
            config.hostname
        ));
    }
    let mut warnings = limits::check(host, cx.facts, false)?;
    check_modes(host, cx, &mut warnings)?;
    check_security(host, cx, &mut warnings)?;
    check_cgroup(host, cx.defaults)?;
    for destination in host.tmpfs.iter().flatten().map(|(destination, _)| destination) {
        check_destination(destination)?;
    }
    resources::rlimits(host.ulimits.as_deref().unwrap_or_default(), &[])?;
    for rule in host.device_cgroup_rules.iter().flatten() {
        resources::parse_rule(rule)?;
    }
    Ok(warnings)
}

/// Bounds, so that a hostile request cannot grow what is kept about a container without end.
fn check_sizes(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    fn few<T>(list: &Option<Vec<T>>) -> bool {
        list.as_ref().is_none_or(|list| list.len() <= MAX_ENTRIES)
    }
    let is_small = few(&config.env)
        && few(&config.cmd)
        && few(&config.entrypoint)
        && few(&host.binds)
        && few(&host.mounts)
        && few(&host.devices)
        && few(&host.ulimits)
        && few(&host.security_opt)
        && few(&host.device_cgroup_rules)
        && few(&host.group_add)
        && few(&host.extra_hosts);
    let lists = [&config.env, &config.cmd, &config.entrypoint];
    let text = lists.into_iter().flatten().flatten();
    let bytes: usize = text.clone().map(String::len).sum();
    if !is_small || bytes > MAX_TEXT {
        return refuse("the container's configuration is too large");
    }
    if text.clone().any(|text| text.contains('\0')) {
        return refuse("command and environment must not contain zero bytes");
    }
    Ok(())
}

fn given<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn check_network(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    let mode = NetworkMode::parse(&host.network_mode);
    match mode {
        NetworkMode::Container(other) => check_shared_network(config, host, other)?,
        // Without the colon it would be a network of that name; nobody means that.
        NetworkMode::Named("container") => check_shared_network(config, host, "")?,
        _ => {}
    }
    if host.uts_mode == "host" && !config.hostname.is_empty() {
        return refuse("conflicting options: hostname and the UTS mode");
    }
    if mode == NetworkMode::Host && given(&host.links) {
        return refuse(
            "conflicting options: host type networking can't be used with links. This would result \
             in undefined behavior",
        );
    }
    Ok(())
}

fn check_shared_network(config: &ContainerConfig, host: &HostConfig, other: &str) -> Result<()> {
    if other.is_empty() {
        return refuse("invalid network mode: invalid container format container:<name|id>");
    }
    let publishes = host.publish_all_ports
        || host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty());
    let exposes = config.exposed_ports.as_ref().is_some_and(|ports| !ports.is_empty());
    let conflicts = [
        (!config.hostname.is_empty(), "hostname and the network mode"),
        (
            given(&host.links),
            "container type network can't be used with links. This would result in undefined \
             behavior",
        ),
        (given(&host.dns), "dns and the network mode"),
        (given(&host.extra_hosts), "custom host-to-IP mapping and the network mode"),
        (publishes, "port publishing and the container type network mode"),
        (exposes, "port exposing and the container type network mode"),
    ];
    match conflicts.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, what)) => refuse(format!("conflicting options: {what}")),
        None => Ok(()),
    }
}

fn check_config(config: &mut ContainerConfig) -> Result<()> {
    command::settle_working_dir(config)?;
    signal::stop_signal(&config.stop_signal)?;
    command::check_environment(config.env.as_deref().unwrap_or_default())?;
    ports::exposed(config)?;
    config.healthcheck.as_ref().map_or(Ok(()), check_health)
}

fn check_health(health: &HealthConfig) -> Result<()> {
    let times = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
    for (name, nanoseconds) in times {
        if nanoseconds != 0 && nanoseconds < MIN_HEALTH_TIME {
            return refuse(format!("{name} in Healthcheck cannot be less than 1ms"));
        }
    }
    if health.retries < 0 {
        return refuse("Retries in Healthcheck cannot be negative");
    }
    Ok(())
}

fn check_host(host: &HostConfig, cx: &Checks<'_>) -> Result<()> {
    if host.auto_remove && !matches!(host.restart_policy.name.as_str(), "" | "no") {
        return refuse("can't create 'AutoRemove' container with restart policy");
    }
    for mount in host.mounts.iter().flatten() {
        check_mount(mount, cx.exists)?;
    }
    for line in host.extra_hosts.iter().flatten() {
        check_extra_host(line)?;
    }
    for address in host.dns.iter().flatten() {
        if address.parse::<IpAddr>().is_err() {
            return refuse(format!("invalid DNS server address: {address:?}"));
        }
    }
    ports::mappings(host)?;
    check_restart_policy(&host.restart_policy)?;
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    capability::check(&list(&host.cap_add), &list(&host.cap_drop), &cx.facts.capabilities)?;
    if host.annotations.iter().flatten().any(|(name, _)| name.is_empty()) {
        return refuse(
            "invalid Annotations: the empty string is not permitted as an annotation key",
        );
    }
    Ok(())
}

fn check_extra_host(line: &str) -> Result<()> {
    match line.split_once(':') {
        None | Some(("", _)) => refuse(format!("bad format for add-host: {line:?}")),
        Some((_, address)) if address != "host-gateway" && address.parse::<IpAddr>().is_err() => {
            refuse(format!("invalid IP address in add-host: {address:?}"))
        }
        Some(_) => Ok(()),
    }
}

/// Whether a restart policy makes sense.
///
/// # Errors
///
/// `InvalidArgument`, with the reference's words.
pub fn check_restart_policy(policy: &RestartPolicy) -> Result<()> {
    let retries = policy.maximum_retry_count;
    match policy.name.as_str() {
        "always" | "unless-stopped" | "no" if retries != 0 => {
            let negative = if retries < 0 { " and cannot be negative" } else { "" };
            refuse(format!(
                "invalid restart policy: maximum retry count can only be used with \
                 'on-failure'{negative}"
            ))
        }
        "on-failure" if retries < 0 => {
            refuse("invalid restart policy: maximum retry count cannot be negative")
        }
        "" if retries != 0 => {
            refuse("invalid restart policy: maximum retry count can only be used with 'on-failure'")
        }
        "" | "always" | "unless-stopped" | "no" | "on-failure" => Ok(()),
        name => refuse(format!(
            "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', \
             'on-failure', or 'unless-stopped'"
        )),
    }
}

fn check_modes(host: &HostConfig, cx: &Checks<'_>, warnings: &mut Vec<String>) -> Result<()> {
    IpcMode::parse(&host.ipc_mode)?;
    PidMode::parse(&host.pid_mode)?;
    if host.shm_size < 0 {
        return refuse("SHM size can not be less than 0");
    }
    mode::shares_uts(&host.uts_mode)?;
    mode::shares_users(&host.userns_mode)?;
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return refuse(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        ));
    }
    let network = NetworkMode::parse(&host.network_mode);
    let is_routed = !matches!(network, NetworkMode::Host | NetworkMode::None);
    if !cx.facts.ipv4_forwarding && is_routed {
        warnings.push("IPv4 forwarding is disabled. Networking will not work.".into());
    }
    let publishes = host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty());
    if network == NetworkMode::Host && publishes {
        warnings.push("Published ports are discarded when using host network mode".into());
    }
    let is_private = mode::private_cgroups(&host.cgroupns_mode)?;
    if is_private == Some(true) && !cx.facts.cgroup_namespaces {
        warnings.push(
            "Your kernel does not support cgroup namespaces.  Cgroup namespace setting discarded."
                .into(),
        );
    }
    if !host.runtime.is_empty() && !cx.defaults.runtimes.contains(&host.runtime) {
        return refuse(format!("unknown or invalid runtime name: {}", host.runtime));
    }
    Ok(())
}

fn check_security(host: &HostConfig, cx: &Checks<'_>, warnings: &mut Vec<String>) -> Result<()> {
    let options = host.security_opt.as_deref().unwrap_or_default();
    let security = SecurityOptions::parse(options, cx.defaults.no_new_privileges)?;
    seccomp_profile(
        &security.seccomp,
        host.privileged,
        &cx.defaults.seccomp_profile,
        cx.facts.seccomp,
    )?;
    if !cx.facts.apparmor && !matches!(security.apparmor.as_str(), "" | "unconfined") {
        warnings.push(format!(
            "AppArmor is not enabled on this host. Profile {:?} has no effect.",
            security.apparmor
        ));
    }
    Ok(())
}

fn check_cgroup(host: &HostConfig, defaults: &Defaults) -> Result<()> {
    if !host.cgroup.is_empty() {
        return refuse(format!(
            "invalid cgroup mode: {}: sharing another container's cgroup is not supported",
            host.cgroup
        ));
    }
    cgroup_parent(host, defaults).map(|_| ())
}

/// The parent of the container's cgroup: the container's wish, the daemon's, or the built-in one.
///
/// # Errors
///
/// `InvalidArgument`: a slice where cgroups are paths, or the other way round.
pub fn cgroup_parent<'a>(host: &'a HostConfig, defaults: &'a Defaults) -> Result<&'a str> {
    let named = [host.cgroup_parent.as_str(), defaults.cgroup_parent.as_str()];
    let parent = named.into_iter().find(|parent| !parent.is_empty());
    match (defaults.cgroup_driver, parent) {
        (CgroupDriver::Cgroupfs, None) => Ok(super::facts::DEFAULT_CGROUP_PARENT),
        (CgroupDriver::Systemd, None) => Ok("system.slice"),
        (CgroupDriver::Systemd, Some(parent))
            if parent.len() <= ".slice".len() || !parent.ends_with(".slice") =>
        {
            Err(Error::invalid(
                "cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\"",
            ))
        }
        (CgroupDriver::Cgroupfs, Some(parent))
            if parent.ends_with(".slice") && !parent.contains('/') =>
        {
            Err(Error::invalid(format!(
                "cgroup-parent {parent:?} is a systemd slice, but the cgroup driver is cgroupfs: \
                 use a path"
            )))
        }
        (CgroupDriver::Cgroupfs, Some(parent))
            if parent.split('/').any(|part| part == "..") || parent.contains('\0') =>
        {
            Err(Error::invalid(format!("invalid cgroup-parent: {parent:?}")))
        }
        (_, Some(parent)) => Ok(parent),
    }
}
