//! The form of each object in old versions, from the golden files of the newest.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use gantry_api::version::{needs_shape, sees_event, shape, shape_containers, shape_event, to_json};
use gantry_api::{ApiVersion, ContainerSummary, EventMessage, ObjectKind, json};
use serde_json::{Value, json};

macro_rules! golden {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!("golden/", $name, ".json"))).unwrap()
    };
}

fn v(minor: u16) -> ApiVersion {
    ApiVersion::v1(minor)
}

/// For [`only_in`]: a field that no version has.
const NEVER: std::ops::RangeInclusive<u16> = 0..=0;

/// Every version served.
fn versions() -> impl Iterator<Item = u16> {
    (24..=54).take_while(|minor| v(*minor) <= ApiVersion::MAX)
}

/// Checks that a field is there exactly in the versions of `range`.
fn only_in(
    range: std::ops::RangeInclusive<u16>,
    kind: ObjectKind,
    object: &Value,
    pointers: &[&str],
) {
    for minor in versions() {
        let shaped = shape(kind, v(minor), object.clone());
        for pointer in pointers {
            let there = shaped.pointer(pointer).is_some();
            assert_eq!(there, range.contains(&minor), "{kind:?} {pointer} in 1.{minor}");
        }
    }
}

#[test]
fn the_newest_form_needs_no_work_unless_older_ones_hide_in_it() {
    use ObjectKind::*;
    let always = [ContainerInspect, DiskUsage];
    for kind in [
        ContainerInspect,
        ContainerList,
        ImageInspect,
        ImageList,
        Info,
        Version,
        DiskUsage,
        DiskUsageVerbose,
        Volume,
        VolumeList,
        Network,
        NetworkList,
        Event,
        Stats,
    ] {
        assert_eq!(needs_shape(kind, ApiVersion::MAX), always.contains(&kind), "{kind:?}");
    }
    assert!(!needs_shape(Volume, v(24)) && needs_shape(ImageList, v(50)));
}

#[test]
fn shaping_survives_anything() {
    use ObjectKind::*;
    let odd = [
        json!(null),
        json!([]),
        json!({}),
        json!("x"),
        json!([1, null]),
        json!({"Config": 1, "NetworkSettings": [], "Images": {}, "Actor": "a", "Runtimes": [1]}),
        json!({"NetworkSettings": {"Networks": {"n": {"Aliases": 1}, "m": 2}}, "Type": "image"}),
    ];
    for kind in [
        ContainerInspect,
        ContainerList,
        ImageInspect,
        ImageList,
        Info,
        DiskUsage,
        DiskUsageVerbose,
        Network,
        Event,
    ] {
        for value in &odd {
            for minor in versions() {
                shape(kind, v(minor), value.clone());
            }
        }
    }
}

#[test]
fn container_inspect() {
    let object = golden!("container_inspect");
    let kind = ObjectKind::ContainerInspect;
    only_in(
        24..=51,
        kind,
        &object,
        &[
            "/Config/MacAddress",
            "/Config/OnBuild",
            "/NetworkSettings/Bridge",
            "/NetworkSettings/HairpinMode",
            "/NetworkSettings/SecondaryIPAddresses",
        ],
    );
    only_in(52..=54, kind, &object, &["/Storage"]);
    only_in(24..=54, kind, &object, &["/GraphDriver"]);
    only_in(48..=54, kind, &object, &["/ImageManifestDescriptor"]);

    let old = shape(kind, v(51), object.clone());
    let (settings, bridge) =
        (&old["NetworkSettings"], &object["NetworkSettings"]["Networks"]["bridge"]);
    for field in [
        "EndpointID",
        "Gateway",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "IPAddress",
        "IPPrefixLen",
        "IPv6Gateway",
        "MacAddress",
    ] {
        assert_eq!(settings[field], bridge[field], "{field}");
    }
    assert_eq!(old["GraphDriver"]["Data"]["UpperDir"], "/u");

    let networks =
        |minor| shape(kind, v(minor), object.clone())["NetworkSettings"]["Networks"].clone();
    assert_eq!(networks(45)["front"]["Aliases"], Value::Null);
    assert_eq!(networks(44)["front"]["Aliases"], json!(["4c01db0b339c"]));
    assert_eq!(networks(44)["bridge"]["Aliases"], Value::Null);
}

#[test]
fn a_snapshotter_was_a_graph_driver() {
    let object = json!({"Storage": {"RootFS": {"Snapshot": {"Name": "overlayfs"}}}});
    let old = shape(ObjectKind::ContainerInspect, v(51), object);
    assert_eq!(old, json!({"GraphDriver": {"Name": "overlayfs", "Data": null}}));
}

#[test]
fn without_the_default_bridge_its_fields_are_empty() {
    let object = json!({"NetworkSettings": {"Networks": {}}});
    let old = shape(ObjectKind::ContainerInspect, v(50), object);
    assert_eq!(old["NetworkSettings"]["IPAddress"], "");
    assert_eq!(old["NetworkSettings"]["IPPrefixLen"], 0);
}

#[test]
fn container_list() {
    let object = json!([golden!("container_summary")]);
    let kind = ObjectKind::ContainerList;
    only_in(52..=54, kind, &object, &["/0/Health"]);
    only_in(48..=54, kind, &object, &["/0/ImageManifestDescriptor"]);
    only_in(46..=54, kind, &object, &["/0/HostConfig/Annotations"]);

    for minor in versions() {
        let mut list: Vec<ContainerSummary> = json::from_value(&object).unwrap();
        shape_containers(v(minor), &mut list);
        let typed = serde_json::to_value(&list).unwrap();
        assert_eq!(typed, shape(kind, v(minor), object.clone()), "1.{minor}");
    }
}

#[test]
fn image_inspect() {
    let object = json!({"Id": "sha256:bb", "Size": 7, "Config": {"Cmd": ["sh"]}, "Descriptor": {}});
    let kind = ObjectKind::ImageInspect;
    only_in(
        24..=51,
        kind,
        &object,
        &[
            "/Parent",
            "/Comment",
            "/DockerVersion",
            "/Author",
            "/Config/Entrypoint",
            "/Config/User",
            "/Config/WorkingDir",
        ],
    );
    only_in(24..=49, kind, &object, &["/Config/Hostname", "/Config/Tty", "/Config/Image"]);
    only_in(48..=54, kind, &object, &["/Descriptor"]);
    only_in(24..=44, kind, &object, &["/Container", "/ContainerConfig/Hostname"]);
    only_in(24..=43, kind, &object, &["/VirtualSize", "/Created"]);

    let old = shape(kind, v(43), object);
    assert_eq!((&old["VirtualSize"], &old["Created"]), (&json!(7), &json!("0001-01-01T00:00:00Z")));
    assert_eq!((&old["Config"]["Cmd"], &old["Config"]["Env"]), (&json!(["sh"]), &Value::Null));

    // What is known stays.
    let full = shape(kind, v(43), golden!("image_inspect"));
    assert_eq!((&full["Author"], &full["Config"]["User"]), (&json!("a"), &json!("u")));
    assert_eq!(shape(kind, v(50), json!({"Config": null}))["Config"]["User"], "");
}

#[test]
fn image_list() {
    let object = json!([golden!("image_summary"), {"RepoTags": [], "RepoDigests": [], "Size": 3}]);
    let kind = ObjectKind::ImageList;
    only_in(48..=54, kind, &object, &["/0/Descriptor"]);
    only_in(47..=54, kind, &object, &["/0/Manifests"]);
    only_in(24..=43, kind, &object, &["/0/VirtualSize", "/1/VirtualSize"]);
    assert_eq!(shape(kind, v(51), object.clone())[0]["Containers"], 2);
    assert_eq!(shape(kind, v(50), object.clone())[0]["Containers"], -1);
    assert_eq!(shape(kind, v(43), object.clone())[1]["RepoTags"], json!([]));
    let old = shape(kind, v(42), object);
    assert_eq!(old[1]["RepoTags"], json!(["<none>:<none>"]));
    assert_eq!(old[1]["RepoDigests"], json!(["<none>@<none>"]));
    assert_eq!(old[0]["RepoTags"], json!(["busybox:latest"]));
}

#[test]
fn info() {
    let object = golden!("info");
    let kind = ObjectKind::Info;
    only_in(53..=54, kind, &object, &["/NRI"]);
    only_in(50..=54, kind, &object, &["/DiscoveredDevices"]);
    only_in(24..=49, kind, &object, &["/BridgeNfIptables", "/BridgeNfIp6tables"]);
    only_in(49..=54, kind, &object, &["/FirewallBackend"]);
    only_in(
        24..=48,
        kind,
        &object,
        &[
            "/RuncCommit/Expected",
            "/InitCommit/Expected",
            "/ContainerdCommit/Expected",
            "/RegistryConfig/AllowNondistributableArtifactsCIDRs",
            "/RegistryConfig/AllowNondistributableArtifactsHostnames",
        ],
    );
    only_in(44..=54, kind, &object, &["/Runtimes/gantry/status"]);
    assert_eq!(shape(kind, v(48), object)["RuncCommit"]["Expected"], "r1");
}

#[test]
fn disk_usage() {
    let object = golden!("disk_usage");
    let kind = ObjectKind::DiskUsage;
    let old = ["/LayersSize", "/Images", "/Containers", "/Volumes", "/BuildCache"];
    let new = ["/ImageUsage", "/ContainerUsage", "/VolumeUsage", "/BuildCacheUsage"];
    only_in(24..=54, kind, &object, &old);
    only_in(52..=54, kind, &object, &new);
    only_in(24..=43, kind, &object, &["/Images/0/VirtualSize"]);
    only_in(24..=51, ObjectKind::DiskUsageVerbose, &object, &old);
    only_in(52..=54, ObjectKind::DiskUsageVerbose, &object, &new);

    let shaped = shape(kind, v(50), object);
    assert_eq!((&shaped["LayersSize"], &shaped["Containers"]), (&json!(9), &json!([])));
    assert_eq!(shaped["Volumes"][0]["UsageData"]["Size"], 5);
    assert_eq!(shape(kind, v(50), json!({"VolumeUsage": {}})), json!({"Volumes": []}));
}

#[test]
fn network() {
    only_in(52..=54, ObjectKind::Network, &golden!("network"), &["/Status"]);
}

#[test]
fn events() {
    let object = golden!("event");
    let kind = ObjectKind::Event;
    only_in(24..=51, kind, &object, &["/id", "/status", "/from"]);
    let old = shape(kind, v(51), object.clone());
    assert_eq!(
        (&old["id"], &old["status"], &old["from"]),
        (&json!("4c01"), &json!("die"), &json!("busybox"))
    );

    let mut image = object.clone();
    image["Type"] = json!("image");
    let mut bare = object.clone();
    bare["Actor"]["Attributes"] = json!({});
    let mut network = object.clone();
    network["Type"] = json!("network");
    only_in(24..=51, kind, &image, &["/id", "/status"]);
    only_in(NEVER, kind, &image, &["/from"]);
    only_in(NEVER, kind, &network, &["/id", "/status", "/from"]);

    for event in [object, image, bare, network] {
        for minor in versions() {
            let mut message: EventMessage = json::from_value(&event).unwrap();
            shape_event(v(minor), &mut message);
            let typed = serde_json::to_value(&message).unwrap();
            assert_eq!(typed, shape(kind, v(minor), event.clone()), "1.{minor}");
        }
    }
}

#[test]
fn images_made_by_builds_are_told_from_1_46() {
    let mut event =
        EventMessage { kind: "image".into(), action: "create".into(), ..Default::default() };
    assert!(!sees_event(v(45), &event) && sees_event(v(46), &event));
    event.action = "pull".into();
    assert!(sees_event(v(24), &event));
}

#[test]
fn to_json_shapes_only_where_needed() {
    let object = golden!("volume");
    let text = to_json(ObjectKind::Volume, v(24), &object).unwrap();
    assert_eq!(text, serde_json::to_vec(&object).unwrap());
    let text = to_json(ObjectKind::ImageList, v(43), &json!([{"Size": 3}])).unwrap();
    assert!(String::from_utf8(text).unwrap().contains("\"VirtualSize\":3"));
}
