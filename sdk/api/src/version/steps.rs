//! What each version changed in what the daemon answers.
//!
//! Sources: the API's version history, and what the reference daemon still does for old versions.
//!
//! A step never fails: what is not there, or not of the expected type, is left alone.

use serde_json::{Map, Value, json};

use super::{ApiVersion, ObjectKind};
use crate::common::ZERO_TIME;
use crate::container::ContainerConfig;

/// A change of one object by one version.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The first version with the newer form.
    pub since: ApiVersion,
    /// The object.
    pub kind: ObjectKind,
    /// For older versions: makes the older form of the newer one.
    pub down: fn(&mut Value),
    /// For this version and newer ones: takes away what is there for `down` only, or adds what
    /// follows from the rest.
    pub keep: Option<fn(&mut Value)>,
}

const fn step(minor: u16, kind: ObjectKind, down: fn(&mut Value)) -> Step {
    Step { since: ApiVersion::v1(minor), kind, down, keep: None }
}

/// Every step, newest first.
pub const STEPS: &[Step] = &[
    step(53, ObjectKind::Info, |v| remove(v, &["NRI"])),
    step(53, ObjectKind::ImageInspect, |v| remove(v, &["Identity"])),
    Step {
        since: ApiVersion::v1(52),
        kind: ObjectKind::ContainerInspect,
        down: container_inspect_1_51,
        keep: Some(|v| with(v, "Config", |config| remove_from(config, &["MacAddress"]))),
    },
    step(52, ObjectKind::ContainerList, |v| each(v, |c| remove(c, &["Health"]))),
    step(52, ObjectKind::ImageInspect, image_inspect_1_51),
    Step {
        since: ApiVersion::v1(52),
        kind: ObjectKind::DiskUsage,
        down: disk_usage_1_51,
        keep: Some(disk_usage_both),
    },
    step(52, ObjectKind::DiskUsageVerbose, disk_usage_1_51),
    step(52, ObjectKind::Network, |v| remove(v, &["Status"])),
    step(52, ObjectKind::Event, event_1_51),
    step(51, ObjectKind::ImageList, |v| each(v, |i| set(i, "Containers", json!(-1)))),
    step(50, ObjectKind::Info, info_1_49),
    step(50, ObjectKind::ImageInspect, image_inspect_1_49),
    step(49, ObjectKind::Info, info_1_48),
    step(48, ObjectKind::ContainerInspect, |v| remove(v, &["ImageManifestDescriptor"])),
    step(48, ObjectKind::ContainerList, |v| each(v, |c| remove(c, &["ImageManifestDescriptor"]))),
    step(48, ObjectKind::ImageInspect, |v| remove(v, &["Descriptor", "Manifests"])),
    step(48, ObjectKind::ImageList, |v| each(v, |i| remove(i, &["Descriptor"]))),
    step(47, ObjectKind::ImageList, |v| each(v, |i| remove(i, &["Manifests"]))),
    step(46, ObjectKind::Info, |v| remove(v, &["Containerd"])),
    step(46, ObjectKind::ContainerList, |v| {
        each(v, |c| with(c, "HostConfig", |host| remove_from(host, &["Annotations"])));
    }),
    step(45, ObjectKind::ContainerInspect, container_inspect_1_44),
    step(45, ObjectKind::ImageInspect, image_inspect_1_44),
    step(44, ObjectKind::ImageInspect, image_inspect_1_43),
    step(44, ObjectKind::ImageList, |v| each(v, virtual_size)),
    step(44, ObjectKind::DiskUsage, disk_usage_1_43),
    step(44, ObjectKind::DiskUsageVerbose, disk_usage_1_43),
    step(44, ObjectKind::Info, info_1_43),
    step(43, ObjectKind::ImageList, |v| each(v, untagged_as_none)),
];

/// Network settings of the whole container, a copy of the default bridge's, and four that have long
/// been empty; `Config.OnBuild` even if empty; `GraphDriver` also for a snapshotter.
fn container_inspect_1_51(container: &mut Value) {
    with(container, "Config", |config| default_to(config, "OnBuild", Value::Null));
    with(container, "NetworkSettings", legacy_network_settings);

    let snapshotter = container.pointer("/Storage/RootFS/Snapshot/Name").cloned();
    if let (Some(name), Some(container)) = (snapshotter, container.as_object_mut()) {
        if !container.contains_key("GraphDriver") {
            container.insert("GraphDriver".to_owned(), json!({ "Name": name, "Data": null }));
        }
        container.remove("Storage");
    }
}

fn legacy_network_settings(settings: &mut Map<String, Value>) {
    let bridge =
        settings.get("Networks").and_then(|n| n.get("bridge")).cloned().unwrap_or_default();
    for field in ["EndpointID", "Gateway", "GlobalIPv6Address", "IPAddress", "IPv6Gateway"]
        .into_iter()
        .chain(["MacAddress"])
    {
        default_to(settings, field, bridge.get(field).cloned().unwrap_or_else(|| json!("")));
    }
    for field in ["GlobalIPv6PrefixLen", "IPPrefixLen"] {
        default_to(settings, field, bridge.get(field).cloned().unwrap_or_else(|| json!(0)));
    }
    default_to(settings, "Bridge", json!(""));
    default_to(settings, "HairpinMode", json!(false));
    default_to(settings, "LinkLocalIPv6Address", json!(""));
    default_to(settings, "LinkLocalIPv6PrefixLen", json!(0));
    default_to(settings, "SecondaryIPAddresses", Value::Null);
    default_to(settings, "SecondaryIPv6Addresses", Value::Null);
}

/// `Aliases` held the short id and the host name too.
fn container_inspect_1_44(container: &mut Value) {
    let id = container.get("Id").and_then(Value::as_str).unwrap_or_default();
    let short: String = id.chars().take(12).collect();
    let hostname =
        container.pointer("/Config/Hostname").and_then(Value::as_str).unwrap_or_default();
    let names = [short, hostname.to_owned()];

    let Some(networks) = container.pointer_mut("/NetworkSettings/Networks") else { return };
    let Some(networks) = networks.as_object_mut() else { return };
    for (_, endpoint) in networks.iter_mut().filter(|(name, _)| is_user_defined(name)) {
        let Some(endpoint) = endpoint.as_object_mut() else { continue };
        let aliases = endpoint.entry("Aliases").or_insert(Value::Null);
        if aliases.is_null() {
            *aliases = json!([]);
        }
        let Some(aliases) = aliases.as_array_mut() else { continue };
        for name in &names {
            if !aliases.iter().any(|alias| alias == name.as_str()) {
                aliases.push(json!(name));
            }
        }
    }
}

/// Whether a network mode is a network of the user's.
pub(crate) fn is_user_defined(mode: &str) -> bool {
    !matches!(mode, "" | "default" | "bridge" | "host" | "none") && !mode.starts_with("container:")
}

/// Four fields even if empty, and eight of the configuration.
fn image_inspect_1_51(image: &mut Value) {
    if let Some(image) = image.as_object_mut() {
        for field in ["Parent", "Comment", "DockerVersion", "Author"] {
            default_to(image, field, json!(""));
        }
    }
    with_config(image, |config| {
        for field in ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes"] {
            default_to(config, field, Value::Null);
        }
        for field in ["User", "WorkingDir"] {
            default_to(config, field, json!(""));
        }
    });
}

/// The configuration had the fields of a container's, always empty.
fn image_inspect_1_49(image: &mut Value) {
    with_config(image, |config| {
        for field in ["Domainname", "Hostname", "Image"] {
            default_to(config, field, json!(""));
        }
        let flags =
            ["AttachStderr", "AttachStdin", "AttachStdout", "OpenStdin", "StdinOnce", "Tty"];
        for field in flags {
            default_to(config, field, json!(false));
        }
    });
}

/// Changes the configuration of an image, made if it is missing.
fn with_config(image: &mut Value, change: impl FnOnce(&mut Map<String, Value>)) {
    if let Some(image) = image.as_object_mut() {
        default_to(image, "Config", json!({}));
    }
    with(image, "Config", change);
}

/// The container it was committed from: unknown, so empty.
fn image_inspect_1_44(image: &mut Value) {
    let Some(image) = image.as_object_mut() else { return };
    default_to(image, "Container", json!(""));
    let config = serde_json::to_value(ContainerConfig::default()).unwrap_or_default();
    default_to(image, "ContainerConfig", config);
}

/// A second name for the size; a time even if unknown.
fn image_inspect_1_43(image: &mut Value) {
    virtual_size(image);
    if let Some(image) = image.as_object_mut() {
        default_to(image, "Created", json!(ZERO_TIME));
    }
}

fn virtual_size(image: &mut Value) {
    let size = image.get("Size").cloned().unwrap_or_else(|| json!(0));
    set(image, "VirtualSize", size);
}

/// An image without a name had a name for that.
fn untagged_as_none(image: &mut Value) {
    let empty =
        |field: &str| image.get(field).is_none_or(|v| v.as_array().is_none_or(Vec::is_empty));
    if empty("RepoTags") && empty("RepoDigests") {
        set(image, "RepoTags", json!(["<none>:<none>"]));
        set(image, "RepoDigests", json!(["<none>@<none>"]));
    }
}

/// Two flags that have long been false; no devices.
fn info_1_49(info: &mut Value) {
    remove(info, &["DiscoveredDevices"]);
    let Some(info) = info.as_object_mut() else { return };
    default_to(info, "BridgeNfIptables", json!(false));
    default_to(info, "BridgeNfIp6tables", json!(false));
}

/// The commit each part was expected at; two lists of registries, always `null`; no firewall.
fn info_1_48(info: &mut Value) {
    remove(info, &["FirewallBackend"]);
    for part in ["ContainerdCommit", "RuncCommit", "InitCommit"] {
        with(info, part, |commit| {
            let id = commit.get("ID").cloned().unwrap_or_else(|| json!(""));
            default_to(commit, "Expected", id);
        });
    }
    with(info, "RegistryConfig", |registries| {
        default_to(registries, "AllowNondistributableArtifactsCIDRs", Value::Null);
        default_to(registries, "AllowNondistributableArtifactsHostnames", Value::Null);
    });
}

/// Runtimes said nothing about themselves.
fn info_1_43(info: &mut Value) {
    with(info, "Runtimes", |runtimes| {
        for (_, runtime) in runtimes.iter_mut() {
            remove(runtime, &["status"]);
        }
    });
}

/// The old form's name for each part of the new form.
const DISK_USAGE: [(&str, &str); 4] = [
    ("ImageUsage", "Images"),
    ("ContainerUsage", "Containers"),
    ("VolumeUsage", "Volumes"),
    ("BuildCacheUsage", "BuildCache"),
];

/// Lists only, and the size of all layers.
fn disk_usage_1_51(usage: &mut Value) {
    disk_usage_both(usage);
    remove(usage, &DISK_USAGE.map(|(new, _)| new));
}

/// Both forms: clients that ask for no version are often older than the new one.
fn disk_usage_both(usage: &mut Value) {
    let Some(usage) = usage.as_object_mut() else { return };
    for (new, old) in DISK_USAGE {
        let Some(part) = usage.get(new) else { continue };
        let items = part.get("Items").cloned().unwrap_or_else(|| json!([]));
        let size = part.get("TotalSize").and_then(Value::as_i64).unwrap_or_default();
        if new == "ImageUsage" && size != 0 {
            default_to(usage, "LayersSize", json!(size));
        }
        default_to(usage, old, items);
    }
}

fn disk_usage_1_43(usage: &mut Value) {
    if let Some(images) = usage.get_mut("Images") {
        each(images, virtual_size);
    }
}

/// The names of fields before there were actors.
fn event_1_51(event: &mut Value) {
    let kind = event.get("Type").and_then(Value::as_str).unwrap_or_default();
    let of_container = kind == "container";
    if !of_container && kind != "image" {
        return;
    }
    let text = |v: Option<&Value>| v.cloned().unwrap_or_else(|| json!(""));
    let id = text(event.pointer("/Actor/ID"));
    let status = text(event.get("Action"));
    let from = text(event.pointer("/Actor/Attributes/image"));
    set(event, "id", id);
    set(event, "status", status);
    if of_container {
        set(event, "from", from);
    }
}

fn each(list: &mut Value, change: impl Fn(&mut Value)) {
    if let Some(list) = list.as_array_mut() {
        list.iter_mut().for_each(change);
    }
}

fn with(object: &mut Value, field: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    if let Some(inner) = object.get_mut(field).and_then(Value::as_object_mut) {
        change(inner);
    }
}

fn remove(object: &mut Value, fields: &[&str]) {
    if let Some(object) = object.as_object_mut() {
        remove_from(object, fields);
    }
}

fn remove_from(object: &mut Map<String, Value>, fields: &[&str]) {
    for field in fields {
        object.remove(*field);
    }
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(field.to_owned(), value);
    }
}

/// Sets a field that is missing or `null`.
fn default_to(object: &mut Map<String, Value>, field: &str, value: Value) {
    if object.get(field).is_none_or(Value::is_null) {
        object.insert(field.to_owned(), value);
    }
}
