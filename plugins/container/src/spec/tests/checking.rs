//! Requests to create a container, as a whole.

use super::{Case, ID};
use crate::spec::adapt;
use crate::spec::facts::CgroupDriver;
use gantry_sdk::api::RestartPolicy;

#[test]
fn what_makes_no_sense_is_refused() {
    let cases = [
        (
            r#"{"Hostname":"h"}"#,
            r#"{"NetworkMode":"container:x"}"#,
            "conflicting options: hostname and the network mode",
        ),
        (
            "{}",
            r#"{"NetworkMode":"container:"}"#,
            "invalid network mode: invalid container format container:<name|id>",
        ),
        (
            "{}",
            r#"{"NetworkMode":"container"}"#,
            "invalid network mode: invalid container format container:<name|id>",
        ),
        (
            "{}",
            r#"{"NetworkMode":"container:x","Dns":["1.1.1.1"]}"#,
            "conflicting options: dns and the network mode",
        ),
        (
            "{}",
            r#"{"NetworkMode":"container:x","PublishAllPorts":true}"#,
            "conflicting options: port publishing and the container type network mode",
        ),
        (
            r#"{"ExposedPorts":{"80/tcp":{}}}"#,
            r#"{"NetworkMode":"container:x"}"#,
            "conflicting options: port exposing and the container type network mode",
        ),
        (
            r#"{"Hostname":"h"}"#,
            r#"{"UTSMode":"host"}"#,
            "conflicting options: hostname and the UTS mode",
        ),
        (
            "{}",
            r#"{"NetworkMode":"host","Links":["a:b"]}"#,
            "conflicting options: host type networking can't be used with links. This would result \
             in undefined behavior",
        ),
        (
            "{}",
            r#"{"Isolation":"hyperv"}"#,
            "invalid isolation (hyperv): linux only supports 'default'",
        ),
        (
            r#"{"WorkingDir":"srv"}"#,
            "{}",
            "the working directory 'srv' is invalid, it needs to be an absolute path",
        ),
        (r#"{"StopSignal":"FLY"}"#, "{}", "invalid signal: FLY"),
        (r#"{"Env":["=x"]}"#, "{}", "invalid environment variable: =x"),
        (r#"{"Env":[""]}"#, "{}", "invalid environment variable: "),
        (r#"{"Cmd":["a\u0000b"]}"#, "{}", "command and environment must not contain zero bytes"),
        (
            r#"{"Healthcheck":{"Interval":1}}"#,
            "{}",
            "Interval in Healthcheck cannot be less than 1ms",
        ),
        (r#"{"Healthcheck":{"Retries":-1}}"#, "{}", "Retries in Healthcheck cannot be negative"),
        (
            "{}",
            r#"{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}"#,
            "can't create 'AutoRemove' container with restart policy",
        ),
        (
            "{}",
            r#"{"RestartPolicy":{"Name":"always","MaximumRetryCount":-1}}"#,
            "invalid restart policy: maximum retry count can only be used with 'on-failure' and \
             cannot be negative",
        ),
        (
            "{}",
            r#"{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":-1}}"#,
            "invalid restart policy: maximum retry count cannot be negative",
        ),
        (
            "{}",
            r#"{"RestartPolicy":{"Name":"x"}}"#,
            "invalid restart policy: unknown policy 'x'; use one of 'no', 'always', 'on-failure', \
             or 'unless-stopped'",
        ),
        (
            "{}",
            r#"{"Mounts":[{"Type":"bind","Source":"/missing","Target":"/x"}]}"#,
            "invalid mount config for type \"bind\": bind source path does not exist: /missing",
        ),
        ("{}", r#"{"ExtraHosts":["x"]}"#, "bad format for add-host: \"x\""),
        ("{}", r#"{"ExtraHosts":["x:y"]}"#, "invalid IP address in add-host: \"y\""),
        ("{}", r#"{"PortBindings":{"0/tcp":[]}}"#, "invalid port specification: \"0/tcp\""),
        (
            "{}",
            r#"{"PortBindings":{"80/tcp":[{"HostPort":"9-8"}]}}"#,
            "invalid port specification: \"9-8\"",
        ),
        ("{}", r#"{"CapAdd":["x"]}"#, "invalid CapAdd: unknown capability: \"CAP_X\""),
        ("{}", r#"{"CapDrop":["x"]}"#, "invalid CapDrop: unknown capability: \"CAP_X\""),
        (
            "{}",
            r#"{"Annotations":{"":"x"}}"#,
            "invalid Annotations: the empty string is not permitted as an annotation key",
        ),
        ("{}", r#"{"IpcMode":"x"}"#, "invalid IPC mode: x"),
        ("{}", r#"{"PidMode":"x"}"#, "invalid PID mode: x"),
        ("{}", r#"{"UTSMode":"x"}"#, "invalid UTS mode: x"),
        ("{}", r#"{"CgroupnsMode":"x"}"#, "invalid cgroup namespace mode: x"),
        ("{}", r#"{"ShmSize":-1}"#, "SHM size can not be less than 0"),
        (
            "{}",
            r#"{"OomScoreAdj":1001}"#,
            "Invalid value 1001, range for oom score adj is [-1000, 1000]",
        ),
        ("{}", r#"{"Runtime":"x"}"#, "unknown or invalid runtime name: x"),
        ("{}", r#"{"Tmpfs":{"/":""}}"#, "invalid specification: destination can't be '/'"),
        ("{}", r#"{"SecurityOpt":["x"]}"#, "invalid --security-opt 1: \"x\""),
        (
            "{}",
            r#"{"Cgroup":"container:x"}"#,
            "invalid cgroup mode: container:x: sharing another container's cgroup is not supported",
        ),
        ("{}", r#"{"CgroupParent":"/../x"}"#, "invalid cgroup-parent: \"/../x\""),
        (
            "{}",
            r#"{"CgroupParent":"machine.slice"}"#,
            "cgroup-parent \"machine.slice\" is a systemd slice, but the cgroup driver is \
             cgroupfs: use a path",
        ),
    ];
    for (config, host, expected) in cases {
        let error = Case::new(config, host).check().unwrap_err();
        assert_eq!(error.to_string(), expected, "{config} {host}");
        assert_eq!(error.kind(), gantry_sdk::ErrorKind::InvalidArgument);
    }
}

#[test]
fn long_names_and_large_requests() {
    let name = "h".repeat(65);
    let mut case = Case::new("{}", "{}");
    case.config.hostname.clone_from(&name);
    let error = case.check().unwrap_err().to_string();
    assert_eq!(error, format!("hostname \"{name}\" is too long (maximum 64 bytes)"));

    let mut case = Case::new("{}", "{}");
    case.config.env = Some(vec!["A=1".into(); 20_000]);
    assert!(case.check().is_err());
    case.config.env = Some(vec![format!("A={}", "x".repeat(3 << 20))]);
    assert!(case.check().is_err());
}

#[test]
fn slices_are_for_systemd() {
    let mut case = Case::new("{}", r#"{"CgroupParent":"/x"}"#);
    case.defaults.cgroup_driver = CgroupDriver::Systemd;
    assert_eq!(
        case.check().unwrap_err().to_string(),
        "cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\""
    );
    case.host.cgroup_parent = "x.slice".into();
    case.check().unwrap();
}

#[test]
fn what_may_surprise_is_said() {
    let cases = [
        ("{}", None),
        (
            r#"{"NetworkMode":"host","PortBindings":{"80/tcp":[{"HostPort":"80"}]}}"#,
            Some("Published ports are discarded when using host network mode"),
        ),
        (
            r#"{"SecurityOpt":["apparmor=mine"]}"#,
            Some("AppArmor is not enabled on this host. Profile \"mine\" has no effect."),
        ),
        (r#"{"SecurityOpt":["apparmor=unconfined"]}"#, None),
    ];
    for (host, expected) in cases {
        let warnings = Case::new("{}", host).check().unwrap();
        assert_eq!(warnings.first().map(String::as_str), expected, "{host}");
    }
    let mut case = Case::new("{}", "{}");
    case.facts.ipv4_forwarding = false;
    assert_eq!(case.check().unwrap(), ["IPv4 forwarding is disabled. Networking will not work."]);
}

#[test]
fn what_was_left_open_is_filled_in() {
    let mut case = Case::new("{}", r#"{"Memory":10000000}"#);
    adapt(&mut case.config, &mut case.host, ID, &case.facts, &case.defaults).unwrap();
    assert_eq!(case.config.hostname, &ID[..12]);
    assert_eq!(case.host.memory_swap, 20_000_000);
    assert_eq!(case.host.shm_size, 64 << 20);
    assert_eq!(case.host.ipc_mode, "private");
    assert_eq!(case.host.cgroupns_mode, "private");
    assert_eq!(case.host.network_mode, "default");
    assert_eq!(case.host.runtime, "runc");
    assert_eq!(case.host.oom_kill_disable, None);
    assert_eq!(case.host.masked_paths.as_ref().map(Vec::len), Some(13));

    let mut case = Case::new("{}", r#"{"Privileged":true,"NetworkMode":"host"}"#);
    case.facts = super::facts(false);
    adapt(&mut case.config, &mut case.host, ID, &case.facts, &case.defaults).unwrap();
    assert_eq!(case.config.hostname, "machine");
    assert_eq!(case.host.cgroupns_mode, "host");
    assert_eq!(case.host.oom_kill_disable, Some(false));
    assert_eq!(case.host.masked_paths, None);
}

#[test]
fn bad_policies_are_refused_by_name() {
    let check = |name: &str, maximum_retry_count| {
        let policy = RestartPolicy { name: name.into(), maximum_retry_count };
        crate::spec::check::check_restart_policy(&policy)
    };
    assert!(check("sometimes", 0).unwrap_err().to_string().contains("sometimes"));
    assert!(check("always", 3).is_err());
    assert!(check("", 3).is_err());
    assert!(check("on-failure", 3).is_ok());
}
