//! Limits: what is refused, what is discarded, what becomes of the rest.

use serde_json::{Value, json};

use super::{Case, facts, host};
use crate::spec::limits::{self, parse_set};
use crate::spec::{Controllers, resources};

#[test]
fn what_makes_no_sense_is_refused() {
    let cases = [
        (r#"{"Memory":6291455}"#, "Minimum memory limit allowed is 6MB"),
        (r#"{"Memory":-1}"#, "Minimum memory limit allowed is 6MB"),
        (
            r#"{"Memory":10000000,"MemorySwap":9999999}"#,
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            r#"{"MemorySwap":10000000}"#,
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        (
            r#"{"MemorySwappiness":101}"#,
            "Invalid value: 101, valid memory swappiness range is 0-100",
        ),
        (r#"{"MemoryReservation":1}"#, "Minimum memory reservation allowed is 6MB"),
        (
            r#"{"Memory":10000000,"MemoryReservation":10000001}"#,
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        (
            r#"{"NanoCpus":4000000001}"#,
            "range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available",
        ),
        (
            r#"{"NanoCpus":-1}"#,
            "range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available",
        ),
        (
            r#"{"NanoCpus":1,"CpuPeriod":1000}"#,
            "Conflicting options: Nano CPUs and CPU Period cannot both be set",
        ),
        (
            r#"{"NanoCpus":1,"CpuQuota":1000}"#,
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
        ),
        (r#"{"CpuShares":-1}"#, "invalid CPU shares (-1): value must be a positive integer"),
        (
            r#"{"CpuPeriod":999}"#,
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ),
        (r#"{"CpuQuota":999}"#, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        (r#"{"CpuRealtimePeriod":1}"#, "kernel does not support CPU real-time scheduler"),
        (
            r#"{"CpusetCpus":"0-4"}"#,
            "Requested CPUs are not available - requested 0-4, available: 0-3",
        ),
        (r#"{"CpusetCpus":"a"}"#, "Invalid value a for cpuset cpus: invalid format: a"),
        (
            r#"{"CpusetMems":"1"}"#,
            "Requested memory nodes are not available - requested 1, available: 0",
        ),
        (r#"{"BlkioWeight":9}"#, "Range of blkio weight is from 10 to 1000"),
        (r#"{"BlkioWeight":1001}"#, "Range of blkio weight is from 10 to 1000"),
        (
            r#"{"IOMaximumIOps":1}"#,
            "Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps",
        ),
    ];
    for (json, expected) in cases {
        let error = limits::check(&mut host(json), &facts(false), false).unwrap_err();
        assert_eq!(error.to_string(), expected, "{json}");
        assert_eq!(error.kind(), gantry_sdk::ErrorKind::InvalidArgument);
    }
    assert!(limits::check(&mut host(r#"{"MemorySwap":10000000}"#), &facts(true), true).is_ok());
}

#[test]
fn what_the_host_cannot_do_is_discarded_with_a_warning() {
    let mut facts = facts(true);
    facts.controllers = Controllers {
        memory: false,
        swap: false,
        memory_reservation: false,
        cpu_shares: false,
        cpu_cfs: false,
        cpuset: false,
        pids: false,
        blkio_weight: false,
        blkio_weight_device: false,
        blkio_throttle: false,
        ..Controllers::all(true)
    };
    let cases = [
        (r#"{"Memory":10000000}"#, 1),
        (r#"{"MemorySwappiness":5}"#, 1),
        (r#"{"MemorySwappiness":-1}"#, 0),
        (r#"{"MemoryReservation":10000000}"#, 1),
        (r#"{"OomKillDisable":true}"#, 1),
        (r#"{"OomKillDisable":false}"#, 0),
        (r#"{"PidsLimit":5}"#, 1),
        (r#"{"PidsLimit":-1}"#, 0),
        (r#"{"CpuShares":5,"CpuQuota":5000}"#, 2),
        (r#"{"CpusetCpus":"9"}"#, 1),
        (r#"{"BlkioWeight":500,"BlkioWeightDevice":[{"Path":"/dev/sda","Weight":10}]}"#, 2),
        (r#"{"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1}],"BlkioDeviceWriteIOps":[]}"#, 1),
        (r#"{"CpuPercent":5}"#, 1),
        ("{}", 0),
    ];
    for (json, count) in cases {
        let mut host = host(json);
        let warnings = limits::check(&mut host, &facts, false).unwrap();
        assert_eq!(warnings.len(), count, "{json}: {warnings:?}");
        let left = resources::limits(&host, &super::FakeView).unwrap();
        let left = serde_json::to_value(left).unwrap();
        assert!(left.get("memory").is_none_or(|m| m.get("limit").is_none()), "{json}: {left}");
        assert!(left.get("blockIO").is_none(), "{json}: {left}");
    }
}

#[test]
fn sets_of_cpus() {
    let cases = [
        ("", Some(vec![])),
        ("0", Some(vec![0])),
        ("0-2,4, 6", Some(vec![0, 1, 2, 4, 6])),
        ("2-0", None),
        ("a", None),
        ("1,", None),
        ("-1", None),
        ("0-99999999", None),
    ];
    for (text, expected) in cases {
        let set = parse_set(text).map(|set| set.into_iter().collect::<Vec<_>>());
        assert_eq!(set, expected, "{text}");
    }
}

/// The part of the specification at `pointer` for a host configuration.
fn part(host: &str, pointer: &str) -> Value {
    let mut case = Case::new(r#"{"Cmd":["sh"]}"#, host);
    case.facts = facts(false);
    case.json().pointer(pointer).cloned().unwrap_or(Value::Null)
}

#[test]
fn limits_reach_the_specification() {
    let resources = "/linux/resources";
    let cases = [
        (
            r#"{"Memory":10000000}"#,
            "/memory",
            json!({"limit":10_000_000,"swap":20_000_000,"disableOOMKiller":false}),
        ),
        (
            r#"{"Memory":10000000,"MemorySwap":-1,"MemoryReservation":7000000,"MemorySwappiness":0}"#,
            "/memory",
            json!({"limit":10_000_000,"reservation":7_000_000,"swappiness":0,
                   "disableOOMKiller":false}),
        ),
        (r#"{"NanoCpus":1500000000}"#, "/cpu", json!({"quota":150_000,"period":100_000})),
        (
            r#"{"CpuShares":512,"CpuPeriod":50000,"CpuQuota":-1,"CpusetCpus":"0-1","CpusetMems":"0"}"#,
            "/cpu",
            json!({"shares":512,"quota":-1,"period":50_000,"cpus":"0-1","mems":"0"}),
        ),
        ("{}", "/cpu", Value::Null),
        (r#"{"PidsLimit":100}"#, "/pids", json!({"limit":100})),
        (r#"{"PidsLimit":0}"#, "/pids", json!({"limit":-1})),
        ("{}", "/pids", Value::Null),
        (
            r#"{"BlkioWeight":100,"BlkioWeightDevice":[{"Path":"/dev/sda","Weight":20}],
                "BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1000}]}"#,
            "/blockIO",
            json!({"weight":100,"weightDevice":[{"major":8,"minor":0,"weight":20}],
                   "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}]}),
        ),
    ];
    for (host, pointer, expected) in cases {
        assert_eq!(part(host, &format!("{resources}{pointer}")), expected, "{host}");
    }
}

#[test]
fn ulimits_and_the_daemons() {
    let mut case = Case::new(
        r#"{"Cmd":["sh"]}"#,
        r#"{"Ulimits":[{"Name":"nofile","Soft":10,"Hard":20},{"Name":"core","Soft":-1,"Hard":-1}]}"#,
    );
    let ulimit = |name: &str| gantry_sdk::api::Ulimit { name: name.into(), hard: 5, soft: 5 };
    case.defaults.ulimits = vec![ulimit("nofile"), ulimit("nproc")];
    assert_eq!(
        case.json()["process"]["rlimits"],
        json!([
            {"type":"RLIMIT_NOFILE","soft":10,"hard":20},
            {"type":"RLIMIT_CORE","soft":u64::MAX,"hard":u64::MAX},
            {"type":"RLIMIT_NPROC","soft":5,"hard":5},
        ])
    );
}

#[test]
fn devices_and_rules() {
    let devices = r#"{"Devices":[
        {"PathOnHost":"/dev/fuse","PathInContainer":"/dev/f","CgroupPermissions":"rw"},
        {"PathOnHost":"/dev/snd","PathInContainer":"/dev/sound","CgroupPermissions":"r"}],
        "DeviceCgroupRules":["b 8:* rm"]}"#;
    let nodes = part(devices, "/linux/devices");
    let paths: Vec<_> = nodes.as_array().unwrap().iter().map(|n| n["path"].clone()).collect();
    assert_eq!(paths, ["/dev/f", "/dev/sound/seq", "/dev/sound/by/timer"]);
    assert_eq!(
        nodes[0],
        json!({"path":"/dev/f","type":"c","major":10,"minor":229,"fileMode":0o660,"uid":0,"gid":6})
    );
    let rules = part(devices, "/linux/resources/devices");
    let rules = rules.as_array().unwrap();
    assert_eq!(rules[0], json!({"allow":false,"access":"rwm"}));
    assert_eq!(rules[8], json!({"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}));
    assert_eq!(rules[11], json!({"allow":true,"type":"b","major":8,"minor":-1,"access":"rm"}));
    assert_eq!(rules.len(), 12);

    let privileged = r#"{"Privileged":true,"Devices":[
        {"PathOnHost":"/dev/sda","PathInContainer":"/dev/sda","CgroupPermissions":"rwm"},
        {"PathOnHost":"/dev/sda","PathInContainer":"/dev/disk","CgroupPermissions":"r"}]}"#;
    let nodes = part(privileged, "/linux/devices");
    let paths: Vec<_> = nodes.as_array().unwrap().iter().map(|n| n["path"].clone()).collect();
    assert_eq!(paths, ["/dev/null", "/dev/sda", "/dev/disk"]);
    let rules = part(privileged, "/linux/resources/devices");
    assert_eq!(rules.as_array().unwrap().last(), Some(&json!({"allow":true,"access":"rwm"})));
}

#[test]
fn devices_that_are_none() {
    let cases = [
        (
            r#"{"Devices":[{"PathOnHost":"/dev/no","PathInContainer":"/dev/no",
                "CgroupPermissions":"rwm"}]}"#,
            "error gathering device information while adding custom device \"/dev/no\": no such \
             file or directory",
        ),
        (
            r#"{"Devices":[{"PathOnHost":"/dev/sda","PathInContainer":"/dev/sda",
                "CgroupPermissions":"x"}]}"#,
            "invalid cgroup permissions \"x\" of device /dev/sda: use letters of rwm",
        ),
        (
            r#"{"Devices":[{"PathOnHost":"/dev/sda","PathInContainer":"sda",
                "CgroupPermissions":"r"}]}"#,
            "'sda' is not an absolute path",
        ),
        (r#"{"DeviceCgroupRules":["c 1:3"]}"#, "invalid device cgroup rule format: 'c 1:3'"),
        (
            r#"{"DeviceCgroupRules":["c 1:3 rwmx"]}"#,
            "invalid device cgroup rule format: 'c 1:3 rwmx'",
        ),
        (
            r#"{"DeviceRequests":[{"Driver":"","Count":-1,"Capabilities":[["gpu"]]}]}"#,
            "could not select device driver \"\" with capabilities: [[gpu]]",
        ),
        (
            r#"{"BlkioDeviceReadBps":[{"Path":"/dev/fuse","Rate":1}]}"#,
            "/dev/fuse is not a block device",
        ),
        (r#"{"Ulimits":[{"Name":"x","Soft":1,"Hard":1}]}"#, "invalid ulimit type: x"),
        (
            r#"{"Ulimits":[{"Name":"nofile","Soft":2,"Hard":1}]}"#,
            "ulimit soft limit must be less than or equal to hard limit: 2 > 1",
        ),
        (
            r#"{"Ulimits":[{"Name":"nofile","Soft":-1,"Hard":1}]}"#,
            "ulimit soft limit must be less than or equal to hard limit: -1 > 1",
        ),
    ];
    for (host, expected) in cases {
        let error = Case::new(r#"{"Cmd":["sh"]}"#, host).build().unwrap_err();
        assert_eq!(error.to_string(), expected, "{host}");
    }
}
