//! What each version changed in what clients ask for.
//!
//! Each function takes a request as a client of `version` meant it and makes it one of the newest
//! version: fields that did not exist yet are dropped, defaults that changed are written out, and
//! what an old version could not say is refused. Handlers call them before anything else.

use std::collections::BTreeMap;

use super::ApiVersion;
use super::steps::is_user_defined;
use crate::container::{
    ContainerConfig, ContainerCreateRequest, ContainerUpdateRequest, ExecCreateRequest,
    ExecStartRequest, HostConfig, Mount, PortBinding,
};
use crate::filters::Filters;
use crate::network::{
    EndpointSettings, NetworkConnectRequest, NetworkCreateRequest, NetworkingConfig,
};

/// Driver option of an endpoint that holds its kernel parameters.
const ENDPOINT_SYSCTLS: &str = "com.docker.network.endpoint.sysctls";

/// Why a request cannot be one of its version; the status is 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RequestError(String);

fn refuse<T>(text: impl Into<String>) -> Result<T, RequestError> {
    Err(RequestError(text.into()))
}

/// What defaults depend on.
#[derive(Clone, Copy, Debug)]
pub struct HostFacts<'a> {
    /// Whether the host has cgroups of version 2 only.
    pub cgroup_v2: bool,
    /// The network that mode `default` means.
    pub default_network: &'a str,
}

/// A create request of the newest version, with every part present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewContainer {
    /// What it runs.
    pub config: ContainerConfig,
    /// What it gets from the host. The network mode is never empty or `default`.
    pub host_config: HostConfig,
    /// How it joins networks; no entry is `null`.
    pub networks: BTreeMap<String, EndpointSettings>,
    /// Whether read-only binds stop at the mount itself unless they say otherwise (before 1.44).
    pub read_only_non_recursive: bool,
    /// For the answer.
    pub warnings: Vec<String>,
}

/// `POST /containers/create`.
///
/// # Errors
///
/// No configuration at all, or something `version` could not say.
pub fn container_create(
    version: ApiVersion,
    request: ContainerCreateRequest,
    facts: HostFacts<'_>,
) -> Result<NewContainer, RequestError> {
    let Some(config) = request.config else {
        return refuse("config cannot be empty in order to create a container");
    };
    let NetworkingConfig { endpoints_config } = request.networking_config.unwrap_or_default();
    let mut new = NewContainer {
        config,
        host_config: request.host_config.unwrap_or_default(),
        networks: endpoints_config.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect(),
        read_only_non_recursive: version < ApiVersion::v1(44),
        warnings: Vec::new(),
    };
    new.config.volumes.get_or_insert_default();
    new.host_config.port_bindings.get_or_insert_default();
    name_default_network(&mut new, facts.default_network);
    write_out_defaults(version, &mut new, facts);
    for mount in new.host_config.mounts.iter_mut().flatten() {
        create_mount(version, mount)?;
    }
    create_networks(version, &mut new)?;
    if warns_of_volume_driver(version, &new.host_config) {
        new.warnings.push(
            "WARNING: the container-wide volume-driver configuration is ignored for volumes \
             specified via 'mount'. Use '--mount type=volume,volume-driver=...' instead"
                .to_owned(),
        );
    }
    create_mac_address(version, &mut new)?;
    create_sysctls(version, &mut new)?;
    create_port_bindings(version, &mut new);
    Ok(new)
}

fn name_default_network(new: &mut NewContainer, default_network: &str) {
    let mode = &mut new.host_config.network_mode;
    if matches!(mode.as_str(), "" | "default") {
        default_network.clone_into(mode);
        if let Some(endpoint) = new.networks.remove("default") {
            new.networks.insert(default_network.to_owned(), endpoint);
        }
    }
}

/// Defaults that were others, and single fields that did not exist.
fn write_out_defaults(version: ApiVersion, new: &mut NewContainer, facts: HostFacts<'_>) {
    let host = &mut new.host_config;
    if version < ApiVersion::v1(40) && host.ipc_mode.is_empty() {
        "shareable".clone_into(&mut host.ipc_mode);
    }
    if version < ApiVersion::v1(41) && host.cgroupns_mode.is_empty() && !facts.cgroup_v2 {
        "host".clone_into(&mut host.cgroupns_mode);
    }
    if version < ApiVersion::v1(42) {
        host.console_size = [0, 0];
    }
    if version < ApiVersion::v1(43) {
        host.annotations = None;
    }
    if version < ApiVersion::v1(44)
        && let Some(health) = &mut new.config.healthcheck
    {
        health.start_interval = 0;
    }
    if host.pids_limit.is_some_and(|limit| limit <= 0) {
        host.pids_limit = None;
    }
}

fn create_mount(version: ApiVersion, mount: &mut Mount) -> Result<(), RequestError> {
    let kind = mount.kind.as_str();
    if version < ApiVersion::v1(42) {
        // Not checked then: options of another kind had no effect.
        if kind != "volume" {
            mount.volume_options = None;
        }
        if kind != "tmpfs" {
            mount.tmpfs_options = None;
        }
    } else {
        let of_another_kind = [
            ("VolumeOptions", "volume", mount.volume_options.is_some()),
            ("BindOptions", "bind", mount.bind_options.is_some()),
            ("TmpfsOptions", "tmpfs", mount.tmpfs_options.is_some()),
        ];
        for (options, of, given) in of_another_kind {
            if given && kind != of {
                return refuse(format!("{options} must not be specified on mount type {kind:?}"));
            }
        }
    }
    if let Some(bind) = &mut mount.bind_options {
        if version < ApiVersion::v1(40) {
            bind.non_recursive = false;
        }
        if version < ApiVersion::v1(42) {
            bind.create_mountpoint = false;
        }
        if version < ApiVersion::v1(44) && kind == "bind" && bind.read_only_force_recursive {
            return refuse("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer");
        }
    }
    let subpath = mount.volume_options.as_ref().is_some_and(|options| !options.subpath.is_empty());
    if version < ApiVersion::v1(45) && subpath {
        return refuse("VolumeOptions.Subpath needs API v1.45 or newer");
    }
    if version < ApiVersion::v1(48) && kind == "image" {
        return refuse("Mount type \"Image\" needs API v1.48 or newer");
    }
    Ok(())
}

fn create_networks(version: ApiVersion, new: &mut NewContainer) -> Result<(), RequestError> {
    if version < ApiVersion::v1(44) && new.networks.len() > 1 {
        let names: Vec<&str> = new.networks.keys().map(String::as_str).collect();
        return refuse(format!(
            "Container cannot be created with multiple network endpoints: {}",
            names.join(", ")
        ));
    }
    if version < ApiVersion::v1(48) {
        new.networks.values_mut().for_each(|endpoint| endpoint.gw_priority = 0);
    }
    Ok(())
}

/// Before 1.48 the client warned by itself.
fn warns_of_volume_driver(version: ApiVersion, host: &HostConfig) -> bool {
    let without_driver = |mount: &Mount| {
        let driver = mount.volume_options.as_ref().and_then(|o| o.driver_config.as_ref());
        mount.kind == "volume" && driver.is_none_or(|d| d.name.is_empty())
    };
    version >= ApiVersion::v1(48)
        && !host.volume_driver.is_empty()
        && host.mounts.iter().flatten().any(without_driver)
}

/// One hardware address for the container became one for each of its endpoints.
fn create_mac_address(version: ApiVersion, new: &mut NewContainer) -> Result<(), RequestError> {
    let wanted = std::mem::take(&mut new.config.mac_address);
    if wanted.is_empty() {
        if version < ApiVersion::v1(44) {
            new.networks.values_mut().for_each(|endpoint| endpoint.mac_address.clear());
        }
        return Ok(());
    }
    if version >= ApiVersion::v1(52) {
        return refuse(
            "container-wide MAC address no longer supported; use endpoint-specific MAC address \
             instead",
        );
    }
    let mode = new.host_config.network_mode.as_str();
    let has_endpoint = mode == "bridge" || is_user_defined(mode);
    if version < ApiVersion::v1(44) {
        if !has_endpoint {
            return refuse("conflicting options: mac-address and the network mode");
        }
        main_endpoint(version, new)?.mac_address = wanted;
        return Ok(());
    }
    if has_endpoint {
        let endpoint = main_endpoint(version, new)?;
        if endpoint.mac_address.is_empty() {
            endpoint.mac_address = wanted;
        } else if !endpoint.mac_address.eq_ignore_ascii_case(&wanted) {
            return refuse(
                "the container-wide MAC address must match the endpoint-specific MAC address for \
                 the main network, or be left empty",
            );
        }
    }
    new.warnings.push(
        "The container-wide MacAddress field is now deprecated. It should be specified in \
         EndpointsConfig instead."
            .to_owned(),
    );
    Ok(())
}

/// The endpoint in the network of the network mode, made if there are no endpoints at all.
///
/// With others there, making it could give one network two endpoints under two of its names.
fn main_endpoint(
    version: ApiVersion,
    new: &mut NewContainer,
) -> Result<&mut EndpointSettings, RequestError> {
    let mode = new.host_config.network_mode.clone();
    let name = match new.networks.keys().next() {
        Some(only) if version < ApiVersion::v1(44) => only.clone(),
        Some(_) if !new.networks.contains_key(&mode) => {
            return refuse(
                "HostConfig.NetworkMode must match the identity of a network in \
                 NetworkSettings.Networks",
            );
        }
        _ => mode,
    };
    Ok(new.networks.entry(name).or_default())
}

/// Kernel parameters of an interface cannot be set before it exists: they became the endpoint's.
fn create_sysctls(version: ApiVersion, new: &mut NewContainer) -> Result<(), RequestError> {
    let mode = &new.host_config.network_mode;
    if mode == "host" || mode.starts_with("container:") {
        return Ok(());
    }
    let mut moved: Vec<(String, String)> = Vec::new();
    for (name, value) in new.host_config.sysctls.iter().flatten() {
        let parts: Vec<&str> = name.splitn(5, '.').collect();
        let &["net", family, table, interface, parameter] = parts.as_slice() else { continue };
        if !interface.starts_with("eth") {
            continue;
        }
        if version >= ApiVersion::v1(48) {
            return refuse(format!(
                "interface specific sysctl setting {name:?} must be supplied using driver option \
                 '{ENDPOINT_SYSCTLS}'"
            ));
        }
        if interface != "eth0" {
            return refuse(format!(
                "unable to determine network endpoint for sysctl {name}, use driver option \
                 '{ENDPOINT_SYSCTLS}' to set per-interface sysctls"
            ));
        }
        moved.push((name.clone(), format!("net.{family}.{table}.IFNAME.{parameter}={value}")));
    }
    if moved.is_empty() {
        return Ok(());
    }
    let names = moved.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
    let settings = moved.iter().map(|(_, s)| s.as_str()).collect::<Vec<_>>().join(",");
    let warning =
        format!("Migrated sysctl {names:?} to DriverOpts{{{ENDPOINT_SYSCTLS:?}:{settings:?}}}.");

    let options = main_endpoint(version, new)?.driver_opts.get_or_insert_default();
    // What was set for the endpoint comes later, so it wins.
    let settings = match options.get(ENDPOINT_SYSCTLS) {
        Some(own) => format!("{settings},{own}"),
        None => settings,
    };
    options.insert(ENDPOINT_SYSCTLS.to_owned(), settings);
    if let Some(sysctls) = &mut new.host_config.sysctls {
        moved.iter().for_each(|(name, _)| {
            sysctls.remove(name);
        });
    }
    new.warnings.push(warning);
    Ok(())
}

/// An empty list of bindings means one of any address and port; from 1.52 with a warning.
fn create_port_bindings(version: ApiVersion, new: &mut NewContainer) {
    let mut empty = Vec::new();
    for (port, bindings) in new.host_config.port_bindings.iter_mut().flatten() {
        let bindings = bindings.get_or_insert_default();
        if bindings.is_empty() {
            bindings.push(PortBinding::default());
            empty.push(port.as_str());
        }
    }
    if version >= ApiVersion::v1(52) && !empty.is_empty() {
        let warning = format!(
            "Following container port(s) have an empty list of port-bindings: {}. Such bindings \
             will be discarded in a future version.",
            empty.join(", ")
        );
        new.warnings.push(warning);
    }
}

/// `POST /containers/{id}/update`.
pub fn container_update(version: ApiVersion, request: &mut ContainerUpdateRequest) {
    if version < ApiVersion::v1(40) {
        request.pids_limit = None;
    }
    if version < ApiVersion::v1(55) {
        request.blkio_weight_device = None;
        request.blkio_device_read_bps = None;
        request.blkio_device_write_bps = None;
        request.blkio_device_read_iops = None;
        request.blkio_device_write_iops = None;
    }
    if request.pids_limit.is_some_and(|limit| limit <= 0) {
        request.pids_limit = Some(0);
    }
}

/// `POST /containers/{id}/exec`.
pub fn exec_create(version: ApiVersion, request: &mut ExecCreateRequest) {
    if version < ApiVersion::v1(42) {
        request.console_size = None;
    }
}

/// `POST /exec/{id}/start`.
pub fn exec_start(version: ApiVersion, request: &mut ExecStartRequest) {
    if version < ApiVersion::v1(42) || !request.tty {
        request.console_size = None;
    }
}

/// `POST /networks/create`.
pub fn network_create(version: ApiVersion, request: &mut NetworkCreateRequest) {
    if version < ApiVersion::v1(48) {
        request.enable_ipv4 = None;
    }
}

/// `POST /networks/{id}/connect`.
pub fn network_connect(version: ApiVersion, request: &mut NetworkConnectRequest) {
    if version < ApiVersion::v1(54)
        && let Some(endpoint) = &mut request.endpoint_config
    {
        endpoint.mac_address.clear();
    }
}

/// `POST /volumes/prune`: named volumes were pruned too.
pub fn volume_prune(version: ApiVersion, filters: &mut Filters) {
    if version < ApiVersion::v1(42) {
        filters.add("all", "true");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const FACTS: HostFacts<'_> = HostFacts { cgroup_v2: false, default_network: "bridge" };

    fn create(minor: u16, body: Value) -> Result<NewContainer, String> {
        let request = crate::json::from_value(&body).unwrap();
        container_create(ApiVersion::v1(minor), request, FACTS).map_err(|e| e.to_string())
    }

    fn created(minor: u16, body: Value) -> NewContainer {
        create(minor, body).unwrap()
    }

    #[test]
    fn a_request_without_configuration_is_refused() {
        let error = create(50, json!({"HostConfig": {}})).unwrap_err();
        assert_eq!(error, "config cannot be empty in order to create a container");
    }

    #[test]
    fn defaults_of_old_versions_are_written_out() {
        let body = json!({"Image": "a"});
        let old = created(39, body.clone());
        assert_eq!(old.host_config.ipc_mode, "shareable");
        assert_eq!(old.host_config.cgroupns_mode, "host");
        assert!(old.read_only_non_recursive);
        let new = created(50, body);
        assert_eq!(
            (new.host_config.ipc_mode.as_str(), new.host_config.cgroupns_mode.as_str()),
            ("", "")
        );
        assert!(!new.read_only_non_recursive);
        assert_eq!(new.host_config.network_mode, "bridge");
        assert!(new.config.volumes.is_some() && new.host_config.port_bindings.is_some());
    }

    #[test]
    fn the_default_network_is_named_everywhere() {
        let new = created(
            50,
            json!({"Image": "a", "HostConfig": {"NetworkMode": "default"},
                "NetworkingConfig": {"EndpointsConfig": {"default": null}}}),
        );
        assert_eq!(new.networks.keys().collect::<Vec<_>>(), ["bridge"]);
    }

    #[test]
    fn fields_are_dropped_before_their_version() {
        let body = json!({"Image": "a", "Healthcheck": {"StartInterval": 5},
            "HostConfig": {"Annotations": {"a": "b"}, "ConsoleSize": [1, 2], "PidsLimit": -1}});
        let (old, new) = (created(41, body.clone()), created(44, body));
        assert_eq!(old.host_config.annotations, None);
        assert_eq!(old.host_config.console_size, [0, 0]);
        assert_eq!(old.config.healthcheck.unwrap().start_interval, 0);
        assert!(new.host_config.annotations.is_some());
        assert_eq!(new.host_config.console_size, [1, 2]);
        assert_eq!(new.config.healthcheck.unwrap().start_interval, 5);
        assert_eq!(new.host_config.pids_limit, None);
    }

    #[test]
    fn mounts_that_a_version_cannot_say_are_refused() {
        let cases = [
            (47, json!({"Type": "image"}), "Mount type \"Image\" needs API v1.48 or newer"),
            (
                44,
                json!({"Type": "volume", "VolumeOptions": {"Subpath": "a"}}),
                "VolumeOptions.Subpath needs API v1.45 or newer",
            ),
            (
                43,
                json!({"Type": "bind", "BindOptions": {"ReadOnlyForceRecursive": true}}),
                "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer",
            ),
            (
                42,
                json!({"Type": "bind", "VolumeOptions": {}}),
                "VolumeOptions must not be specified on mount type \"bind\"",
            ),
        ];
        for (minor, mount, text) in cases {
            let body = |mount: &Value| json!({"Image": "a", "HostConfig": {"Mounts": [mount]}});
            assert_eq!(create(minor, body(&mount)).unwrap_err(), text);
            if minor != 42 {
                assert!(create(minor + 1, body(&mount)).is_ok(), "{text}");
            } else {
                assert!(create(41, body(&mount)).is_ok(), "{text}");
            }
        }
    }

    #[test]
    fn several_networks_need_1_44() {
        let body = json!({"Image": "a",
            "NetworkingConfig": {"EndpointsConfig": {"a": {"GwPriority": 3}, "b": null}}});
        assert_eq!(
            create(43, body.clone()).unwrap_err(),
            "Container cannot be created with multiple network endpoints: a, b"
        );
        assert_eq!(created(47, body.clone()).networks["a"].gw_priority, 0);
        assert_eq!(created(48, body).networks["a"].gw_priority, 3);
    }

    #[test]
    fn the_hardware_address_moves_to_the_endpoint() {
        let body = json!({"Image": "a", "MacAddress": "02:00:00:00:00:01"});
        for (minor, warnings) in [(43, 0), (44, 1)] {
            let new = created(minor, body.clone());
            assert_eq!(new.networks["bridge"].mac_address, "02:00:00:00:00:01");
            assert_eq!(new.config.mac_address, "");
            assert_eq!(new.warnings.len(), warnings);
        }
        assert!(create(52, body).unwrap_err().contains("no longer supported"));

        let host = json!({"Image": "a", "MacAddress": "02:00:00:00:00:01",
            "HostConfig": {"NetworkMode": "host"}});
        assert!(create(43, host).unwrap_err().contains("conflicting options"));
        let elsewhere = json!({"Image": "a", "MacAddress": "02:00:00:00:00:01",
            "NetworkingConfig": {"EndpointsConfig": {"x": {}}}});
        assert!(create(44, elsewhere).unwrap_err().contains("must match the identity"));
    }

    #[test]
    fn parameters_of_interfaces_move_to_the_endpoint() {
        let body = |name: &str| {
            json!({"Image": "a", "HostConfig":
                {"Sysctls": {name: "1", "net.core.somaxconn": "2"}}})
        };
        let new = created(47, body("net.ipv4.conf.eth0.forwarding"));
        let options = new.networks["bridge"].driver_opts.as_ref().unwrap();
        assert_eq!(options[ENDPOINT_SYSCTLS], "net.ipv4.conf.IFNAME.forwarding=1");
        assert_eq!(new.host_config.sysctls.unwrap().len(), 1);
        assert_eq!(
            new.warnings,
            ["Migrated sysctl \"net.ipv4.conf.eth0.forwarding\" to \
              DriverOpts{\"com.docker.network.endpoint.sysctls\":\
              \"net.ipv4.conf.IFNAME.forwarding=1\"}."]
        );
        assert!(create(47, body("net.ipv4.conf.eth1.forwarding")).is_err());
        assert!(create(48, body("net.ipv4.conf.eth0.forwarding")).is_err());
        assert!(create(48, body("net.ipv4.conf.all.forwarding")).is_ok());
    }

    #[test]
    fn empty_port_lists_get_one_binding() {
        let body =
            json!({"Image": "a", "HostConfig": {"PortBindings": {"80/tcp": null, "81/tcp": []}}});
        for (minor, warnings) in [(51, 0), (52, 1)] {
            let new = created(minor, body.clone());
            let ports = new.host_config.port_bindings.unwrap();
            assert!(ports.values().all(|p| *p == Some(vec![PortBinding::default()])));
            assert_eq!(new.warnings.len(), warnings);
        }
    }

    #[test]
    fn small_requests() {
        let mut update = ContainerUpdateRequest { pids_limit: Some(-1), ..Default::default() };
        update.blkio_weight_device = Some(vec![]);
        container_update(ApiVersion::v1(54), &mut update);
        assert_eq!((update.pids_limit, update.blkio_weight_device.clone()), (Some(0), None));
        container_update(ApiVersion::v1(39), &mut update);
        assert_eq!(update.pids_limit, None);

        let mut start = ExecStartRequest { console_size: Some([1, 2]), ..Default::default() };
        exec_start(ApiVersion::v1(50), &mut start);
        assert_eq!(start.console_size, None);

        let mut filters = Filters::default();
        volume_prune(ApiVersion::v1(42), &mut filters);
        assert!(filters.is_empty());
        volume_prune(ApiVersion::v1(41), &mut filters);
        assert_eq!(filters.flag("all"), Ok(Some(true)));
    }
}
