//! Whole specifications.

use serde_json::{Value, json};

use super::Case;
use crate::spec::{CgroupDriver, MountSource, ReadyMount, User, exec_process, wants_init};

const SH: &str = r#"{"Cmd":["sh"],"Env":["PATH=/bin"],"Hostname":"box"}"#;

fn json(host: &str) -> Value {
    Case::new(SH, host).json()
}

/// What a plain `docker run busybox` becomes: the reference's decisions, written down.
#[test]
fn a_plain_container() {
    let golden: Value = serde_json::from_str(include_str!("busybox.json")).unwrap();
    let spec = json("{}");
    for (part, expected) in golden.as_object().unwrap() {
        assert_eq!(&spec[part], expected, "{part}: {:#}", spec[part]);
    }
    assert_eq!(spec.as_object().unwrap().len(), golden.as_object().unwrap().len());
}

fn kinds(spec: &Value) -> Vec<String> {
    let list = spec["linux"]["namespaces"].as_array().unwrap();
    list.iter()
        .map(|ns| match ns["path"].as_str() {
            Some(path) => format!("{}:{path}", ns["type"].as_str().unwrap()),
            None => ns["type"].as_str().unwrap().to_owned(),
        })
        .collect()
}

#[test]
fn namespaces_follow_the_modes() {
    let cases: [(&str, &[&str]); 6] = [
        (r#"{"NetworkMode":"host"}"#, &["mount", "uts", "pid", "ipc", "cgroup"]),
        (r#"{"PidMode":"host","IpcMode":"host"}"#, &["mount", "network", "uts", "cgroup"]),
        (
            r#"{"PidMode":"container:x","IpcMode":"container:x"}"#,
            &["mount", "network", "uts", "pid:/proc/7/ns/pid", "ipc:/proc/7/ns/ipc", "cgroup"],
        ),
        (r#"{"CgroupnsMode":"host"}"#, &["mount", "network", "uts", "pid", "ipc"]),
        (
            r#"{"IpcMode":"shareable","NetworkMode":"none"}"#,
            &["mount", "network", "uts", "pid", "ipc", "cgroup"],
        ),
        (r#"{"UsernsMode":"host"}"#, &["mount", "network", "uts", "pid", "ipc", "cgroup"]),
    ];
    for (host, expected) in cases {
        assert_eq!(kinds(&json(host)), expected, "{host}");
    }
    let mut case = Case::new(r#"{"Cmd":["sh"]}"#, r#"{"UTSMode":"host"}"#);
    let spec = case.json();
    assert_eq!(kinds(&spec), ["mount", "network", "pid", "ipc", "cgroup"]);
    assert_eq!(spec.get("hostname"), None);

    let mut case = Case::new(r#"{"Cmd":["sh"]}"#, r#"{"NetworkMode":"container:x"}"#);
    case.facts.time_namespaces = true;
    let error = case.build().unwrap_err();
    assert_eq!(error.kind(), gantry_sdk::ErrorKind::Internal);
    case.host.network_mode = "none".into();
    assert_eq!(kinds(&case.json())[2], "time");
}

fn mounts(spec: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| {
            let options: Vec<_> = mount["options"].as_array().unwrap().iter().map(text).collect();
            (text(&mount["destination"]), options.join(","))
        })
        .collect()
}

fn options_of(spec: &Value, destination: &str) -> Option<String> {
    mounts(spec).into_iter().find(|(path, _)| path == destination).map(|(_, options)| options)
}

#[test]
fn default_mounts_give_way_and_change() {
    let shm = |host: &str| options_of(&json(host), "/dev/shm");
    assert_eq!(shm(r#"{"IpcMode":"none"}"#), None);
    assert_eq!(
        shm(r#"{"ShmSize":1000}"#).as_deref(),
        Some("nosuid,noexec,nodev,mode=1777,size=1000")
    );

    let read_only = json(r#"{"ReadonlyRootfs":true}"#);
    assert_eq!(read_only["root"]["readonly"], true);
    assert!(!options_of(&read_only, "/dev").unwrap().contains("ro"));
    assert!(!options_of(&read_only, "/dev/shm").unwrap().contains("ro,"));

    let privileged = json(r#"{"Privileged":true}"#);
    assert_eq!(options_of(&privileged, "/sys").as_deref(), Some("nosuid,noexec,nodev"));
    assert_eq!(options_of(&privileged, "/sys/fs/cgroup").as_deref(), Some("nosuid,noexec,nodev"));
    for part in ["maskedPaths", "readonlyPaths", "seccomp"] {
        assert_eq!(privileged["linux"].get(part), None, "{part}");
    }
    let writable = json(r#"{"SecurityOpt":["writable-cgroups"]}"#);
    assert_eq!(options_of(&writable, "/sys/fs/cgroup").as_deref(), Some("nosuid,noexec,nodev"));
}

fn ready(destination: &str, source: &str) -> ReadyMount {
    ReadyMount::own(destination, source.into(), true)
}

#[test]
fn own_mounts_come_last_and_parents_first() {
    let mut case = Case::new(SH, r#"{"ReadonlyRootfs":true}"#);
    case.mounts = vec![
        ready("/data/deep", "/src/deep"),
        ReadyMount { writable: false, ..ready("/data", "/src") },
        ReadyMount { source: MountSource::Tmpfs("exec,size=1m".into()), ..ready("/tmp", "") },
        ready("/proc", "/src/proc"),
    ];
    let built = case.build().unwrap();
    let spec = case.json();
    let own: Vec<_> = mounts(&spec).into_iter().skip(6).collect();
    let expected = [
        ("/data", "rbind,rro,rprivate"),
        ("/tmp", "nosuid,nodev,rprivate,exec,size=1m"),
        ("/proc", "rbind,rprivate"),
        ("/data/deep", "rbind,rprivate"),
    ];
    assert_eq!(own, expected.map(|(path, options)| (path.to_owned(), options.to_owned())));
    assert_eq!(mounts(&spec).iter().filter(|(path, _)| path == "/proc").count(), 1);
    assert_eq!(built.sources.into_iter().collect::<Vec<_>>(), [(6, 1), (7, 2), (8, 3), (9, 0)]);

    case.mounts = vec![ready("/dev", "/dev")];
    let paths: Vec<_> = mounts(&case.json()).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["/proc", "/sys", "/sys/fs/cgroup", "/dev"]);
}

#[test]
fn read_only_reaches_as_far_as_asked() {
    let mount = |shallow, forced| ReadyMount {
        writable: false,
        read_only_non_recursive: shallow,
        read_only_force_recursive: forced,
        ..ready("/x", "/src")
    };
    let cases = [
        (true, mount(false, false), Some("rbind,rro,rprivate")),
        (true, mount(true, false), Some("rbind,ro,rprivate")),
        (true, mount(false, true), Some("rbind,rro,rprivate")),
        (false, mount(false, false), Some("rbind,ro,rprivate")),
        (false, mount(false, true), None),
        (true, mount(true, true), None),
    ];
    for (can, mount, expected) in cases {
        let mut case = Case::new(SH, "{}");
        case.facts.recursive_read_only = can;
        case.mounts = vec![mount.clone()];
        let found = case.build().is_ok().then(|| options_of(&case.json(), "/x")).flatten();
        assert_eq!(found.as_deref(), expected, "{can} {mount:?}");
    }
}

#[test]
fn spreading_needs_a_source_that_spreads() {
    let cases = [
        ("shared", "/mnt/shared/a", Ok("shared")),
        ("rshared", "/mnt/slave/a", Err("shared")),
        ("rslave", "/mnt/slave/a", Ok("rslave")),
        ("slave", "/mnt/shared/a", Ok("rslave")),
        ("slave", "/mnt/a", Err("shared or slave")),
    ];
    for (propagation, source, expected) in cases {
        let mut case = Case::new(SH, "{}");
        case.mounts = vec![ReadyMount { propagation: propagation.into(), ..ready("/x", source) }];
        match (case.build(), expected) {
            (Ok(built), Ok(root)) => {
                let spec = serde_json::to_value(built.spec).unwrap();
                assert_eq!(spec["linux"]["rootfsPropagation"], root, "{propagation} {source}");
            }
            (Err(error), Err(what)) => assert_eq!(
                error.to_string(),
                format!("path {source} is mounted on /mnt but it is not a {what} mount")
            ),
            (found, _) => panic!("{propagation} {source}: {found:?}"),
        }
    }
}

#[test]
fn security_options_reach_the_specification() {
    let default = json("{}");
    assert_eq!(default["process"]["noNewPrivileges"], false);
    assert_eq!(default["linux"]["seccomp"]["syscalls"][0]["names"], json!(["default", "14"]));

    let own = json(r#"{"SecurityOpt":["seccomp=mine","no-new-privileges"],"CapDrop":["ALL"]}"#);
    assert_eq!(own["process"]["noNewPrivileges"], true);
    assert_eq!(own["linux"]["seccomp"]["syscalls"][0]["names"], json!(["mine", "0"]));

    let open = json(r#"{"SecurityOpt":["seccomp=unconfined","systempaths=unconfined"]}"#);
    for part in ["maskedPaths", "readonlyPaths", "seccomp"] {
        assert_eq!(open["linux"].get(part), None, "{part}");
    }
    let lists = json(r#"{"MaskedPaths":["/proc/x"],"ReadonlyPaths":[]}"#);
    assert_eq!(lists["linux"]["maskedPaths"], json!(["/proc/x"]));
    assert_eq!(lists["linux"].get("readonlyPaths"), None);

    let mut case = Case::new(SH, r#"{"SecurityOpt":["apparmor=mine"]}"#);
    case.facts.apparmor = true;
    assert_eq!(case.json()["process"]["apparmorProfile"], "mine");
    case.host.security_opt = None;
    case.facts.apparmor_profile = Some("docker-default".into());
    assert_eq!(case.json()["process"]["apparmorProfile"], "docker-default");
    case.host.privileged = true;
    assert_eq!(case.json()["process"]["apparmorProfile"], "unconfined");
}

#[test]
fn kernel_parameters() {
    let spec = json(r#"{"Sysctls":{"net.ipv4.ip_unprivileged_port_start":"80","kernel.sem":"1"}}"#);
    assert_eq!(
        spec["linux"]["sysctl"],
        json!({"net.ipv4.ip_unprivileged_port_start":"80","kernel.sem":"1",
               "net.ipv4.ping_group_range":"0 2147483647"})
    );
    let domain =
        Case::new(r#"{"Cmd":["sh"],"Domainname":"d"}"#, r#"{"NetworkMode":"host"}"#).json();
    assert_eq!(domain["linux"]["sysctl"], json!({"kernel.domainname":"d"}));

    let cases = [
        (
            r#"{"NetworkMode":"host","Sysctls":{"net.core.somaxconn":"1"}}"#,
            "sysctl \"net.core.somaxconn\" not allowed in host network namespace",
        ),
        (
            r#"{"Sysctls":{"vm.swappiness":"1"}}"#,
            "sysctl \"vm.swappiness\" is not in a separate kernel namespace",
        ),
    ];
    for (host, expected) in cases {
        assert_eq!(Case::new(SH, host).build().unwrap_err().to_string(), expected);
    }
}

#[test]
fn cgroups_have_a_place() {
    let path = |parent: &str, default: &str, driver| {
        let mut case = Case::new(SH, "{}");
        case.host.cgroup_parent = parent.into();
        case.defaults.cgroup_parent = default.into();
        case.defaults.cgroup_driver = driver;
        case.json()["linux"]["cgroupsPath"].as_str().unwrap().replace(super::ID, "ID")
    };
    let cases = [
        ("", "", CgroupDriver::Cgroupfs, "/gantry/ID"),
        ("", "/lab", CgroupDriver::Cgroupfs, "/lab/ID"),
        ("own/x/", "/lab", CgroupDriver::Cgroupfs, "/own/x/ID"),
        ("", "", CgroupDriver::Systemd, "system.slice:docker:ID"),
        ("a.slice", "", CgroupDriver::Systemd, "a.slice:docker:ID"),
    ];
    for (parent, default, driver, expected) in cases {
        assert_eq!(path(parent, default, driver), expected);
    }
}

#[test]
fn the_first_process() {
    let mut case = Case::new(
        r#"{"Entrypoint":["/init"],"Cmd":["a"],"Tty":true,"WorkingDir":"/srv/./x",
            "Env":["B=2"],"Hostname":"box"}"#,
        r#"{"ConsoleSize":[24,80],"OomScoreAdj":-5,"Annotations":{"k":"v"},"CapAdd":["SYS_ADMIN"]}"#,
    );
    let spec = case.json();
    let process = &spec["process"];
    assert_eq!(process["args"], json!(["/init", "a"]));
    assert_eq!(process["cwd"], "/srv/x");
    assert_eq!(process["terminal"], true);
    assert_eq!(process["consoleSize"], json!({"height":24,"width":80}));
    assert_eq!(process["oomScoreAdj"], -5);
    assert_eq!((&process["env"][2], &process["env"][3]), (&json!("TERM=xterm"), &json!("B=2")));
    assert_eq!(process["capabilities"]["bounding"].as_array().unwrap().len(), 15);
    assert_eq!(spec["annotations"], json!({"k":"v"}));

    case.config.entrypoint = None;
    case.config.cmd = None;
    assert_eq!(case.build().unwrap_err().to_string(), "no command specified");
}

#[test]
fn an_init_needs_its_own_process_namespace() {
    let cases = [
        (r#"{"Init":true}"#, false, true),
        (r#"{"Init":false}"#, true, false),
        ("{}", true, true),
        ("{}", false, false),
        (r#"{"Init":true,"PidMode":"host"}"#, true, false),
    ];
    for (host, default, expected) in cases {
        let mut case = Case::new(SH, host);
        case.defaults.init = default;
        assert_eq!(wants_init(&case.host, &case.defaults), expected, "{host} {default}");
    }
}

#[test]
fn an_exec_shares_the_confinement() {
    let mut case = Case::new(
        r#"{"Entrypoint":["/init"],"Cmd":["a"],"WorkingDir":"/srv","Env":["A=1"],"Hostname":"box"}"#,
        r#"{"CapDrop":["ALL"],"SecurityOpt":["no-new-privileges"],"OomScoreAdj":7}"#,
    );
    case.build().unwrap();
    let user = User { uid: 5, gid: 6, groups: vec![6], home: String::new() };
    let run = |json: &str| {
        let request = serde_json::from_str(json).unwrap();
        let process = exec_process(&case.input(), &request, &user, Some([5, 6]));
        process.map(|process| serde_json::to_value(process).unwrap())
    };
    let plain = run(r#"{"Cmd":["ls","-l"],"Env":["A=2","B=3"]}"#).unwrap();
    assert_eq!(plain["args"], json!(["ls", "-l"]));
    assert_eq!(plain["cwd"], "/srv");
    assert_eq!(plain["user"], json!({"uid":5,"gid":6,"additionalGids":[6]}));
    assert_eq!((&plain["env"][2], &plain["env"][3]), (&json!("A=2"), &json!("B=3")));
    assert_eq!(plain["capabilities"]["bounding"], json!([]));
    assert_eq!(plain["noNewPrivileges"], true);
    assert_eq!(plain.get("consoleSize"), None);

    let grand = run(r#"{"Cmd":["sh"],"Privileged":true,"Tty":true,"WorkingDir":"/x"}"#).unwrap();
    assert_eq!(grand["capabilities"]["bounding"].as_array().unwrap().len(), 15);
    assert_eq!(grand["consoleSize"], json!({"height":5,"width":6}));
    assert_eq!((&grand["cwd"], &grand["env"][2]), (&json!("/x"), &json!("TERM=xterm")));

    let cases = [
        ("{}", "No exec command specified"),
        (r#"{"Cmd":[]}"#, "No exec command specified"),
        (r#"{"Cmd":["a"],"Env":["=b"]}"#, "invalid environment variable: =b"),
        (
            r#"{"Cmd":["a"],"WorkingDir":"b"}"#,
            "the working directory 'b' is invalid, it needs to be an absolute path",
        ),
    ];
    for (json, expected) in cases {
        assert_eq!(run(json).unwrap_err().to_string(), expected, "{json}");
    }
}
