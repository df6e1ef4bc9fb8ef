//! What a container is given, and what it cannot get at.

use super::fixture::{Fixture, can_run, frames, within};
use gantry_sdk::ErrorKind;
use gantry_sdk::kinds::runtime::{Attach, ExecLaunch, Stdio};
use gantry_sdk::mounts::MountFd;
use gantry_sys::mount::clone_tree_at;
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;

fn push(spec: &mut Value, pointer: &str, value: Value) {
    spec.pointer_mut(pointer).unwrap().as_array_mut().unwrap().push(value);
}

#[tokio::test]
async fn root_mounts_binds_by_path_and_by_descriptor() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let volume = fixture.dir.join("volume");
    std::fs::create_dir_all(volume.join("inner")).unwrap();
    std::fs::write(volume.join("file"), "content").unwrap();
    let script = "cat /deep/er/file /one; echo x > /deep/er/new && echo written; \
        echo x > /ro/new || echo refused; echo x > /tmp/y && busybox df -m /tmp | busybox tail -n 1; \
        busybox grep ' /deep/er ' /proc/self/mountinfo";
    let mut spec = fixture.spec("binds", &["sh", "-c", script]);
    for mount in [
        json!({"destination": "/deep/er", "type": "bind", "source": volume, "options": ["rbind", "rslave"]}),
        json!({"destination": "/ro", "type": "bind", "source": volume, "options": ["rbind", "ro"]}),
        json!({"destination": "/one", "type": "bind", "source": "ignored", "options": ["bind"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=4m", "noexec"]}),
    ] {
        push(&mut spec, "/mounts", mount);
    }
    spec["root"]["readonly"] = json!(true);
    let mut launch = fixture.launch("binds", &spec, Stdio::default());
    let at = spec["mounts"].as_array().unwrap().len() - 2;
    let tree = clone_tree_at(rustix::fs::CWD, &volume.join("file"), false).unwrap();
    launch.mounts.insert(at, MountFd::new(tree));
    let (container, output) = fixture.start(launch).await.unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 0);
    let (out, err) = frames(output);
    assert!(out.starts_with("contentcontentwritten\nrefused\n"), "{out}{err}");
    assert!(out.contains("/tmp") && out.contains(" 4 "), "{out}");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn root_keeps_the_root_read_only_and_the_user_small() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script = "id; echo x > /file || echo refused; busybox grep -E 'Cap|NoNew|Groups' /proc/self/status; \
        pwd; umask; echo visible > /dev/stderr; ulimit -n; busybox touch /job/here/mine || echo cwd is not ours";
    let mut spec = fixture.spec("user", &["sh", "-c", script]);
    spec["root"]["readonly"] = json!(false);
    spec["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [5, 7]});
    spec["process"]["cwd"] = json!("/job/here");
    spec["process"]["noNewPrivileges"] = json!(true);
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    spec["process"]["capabilities"] = json!({
        "bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one
    });
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
    let outcome = fixture.run("user", &spec).await;
    let text = &outcome.stdout;
    for wanted in [
        "uid=1000 gid=1001",
        "groups=5,7",
        "refused",
        "CapEff:\t0000000000000400",
        "CapAmb:\t0000000000000400",
        "CapBnd:\t0000000000000400",
        "NoNewPrivs:\t1",
        "/job/here",
        "0027",
        "77\n",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing in\n{text}{}", outcome.stderr);
    }
    assert!(outcome.stderr.contains("visible"), "{}", outcome.stderr);
}

#[tokio::test]
async fn root_may_do_everything_when_privileged() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script = "busybox mount -t tmpfs x /tmp && echo mounted; \
        busybox mknod /tmp/d b 8 0 && echo made; echo 1 > /proc/sys/net/ipv4/ip_forward && echo set; \
        busybox grep -E 'CapEff|Seccomp:' /proc/self/status; \
        busybox mkdir /sys/fs/cgroup/pids/inner && echo grouped; busybox rmdir /sys/fs/cgroup/pids/inner";
    let mut spec = fixture.spec("priv", &["sh", "-c", script]);
    let all = available_capabilities();
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    spec["linux"]["seccomp"] = Value::Null;
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    for mount in spec["mounts"].as_array_mut().unwrap() {
        mount["options"].as_array_mut().unwrap().retain(|option| option != "ro");
    }
    let outcome = fixture.run("priv", &spec).await;
    for wanted in ["mounted", "made", "set", "Seccomp:\t0", "grouped"] {
        assert!(outcome.stdout.contains(wanted), "{wanted:?}: {outcome:?}");
    }
}

/// Those that this process may hand on: in a container of its own it may lack some.
fn available_capabilities() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let mask = u64::from_str_radix(mask, 16).unwrap();
    let all = ALL_CAPABILITIES.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
    all.map(|(_, name)| format!("CAP_{name}")).collect()
}

const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Links of the image never lead the set-up astray.
#[tokio::test]
async fn root_is_not_led_out_by_links_of_the_image() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let rootfs = fixture.dir.join("rootfs");
    let outside = fixture.dir.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, rootfs.join("out")).unwrap();
    std::os::unix::fs::symlink("/proc", rootfs.join("fake")).unwrap();
    std::os::unix::fs::symlink("../../../../etc", rootfs.join("up")).unwrap();
    std::fs::write(fixture.dir.join("given"), "given").unwrap();
    let bind = |target: &str| json!({"destination": target, "type": "bind", "source": fixture.dir.join("given"), "options": ["bind"]});
    // Beneath the root, a link out of it means a path in it.
    let mut spec = fixture.spec("links", &["sh", "-c", "cat /out/file /etc/new"]);
    std::fs::create_dir_all(rootfs.join(outside.strip_prefix("/").unwrap())).unwrap();
    push(&mut spec, "/mounts", bind("/out/file"));
    push(&mut spec, "/mounts", bind("/up/new"));
    let outcome = fixture.run("links", &spec).await;
    assert_eq!(outcome.stdout, "givengiven", "{outcome:?}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);

    // Nothing is mounted over what procfs shows, however it is named.
    for target in ["/proc/self/attr", "/fake/sys", "/fake/1/../version"] {
        let mut spec = fixture.spec("over", &["true"]);
        push(&mut spec, "/mounts", bind(target));
        let launch = fixture.launch("over", &spec, Stdio::default());
        let error = fixture.start(launch).await.err().unwrap();
        assert!(error.to_string().contains("inside /proc"), "{target}: {error}");
    }
    // Nor is procfs mounted where a link points to.
    std::fs::remove_dir(rootfs.join("proc")).unwrap();
    std::os::unix::fs::symlink("/tmp", rootfs.join("proc")).unwrap();
    let launch = fixture.launch("over", &fixture.spec("over", &["true"]), Stdio::default());
    assert!(fixture.start(launch).await.is_err());
}

/// CVE-2024-21626: no descriptor of the host survives, and none can be a working directory.
#[tokio::test]
async fn root_has_no_descriptor_of_the_host() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    for number in 3..24 {
        let mut spec = fixture.spec("cwd", &["sh", "-c", "pwd; cat ../../../etc/passwd"]);
        spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let launch = fixture.launch("cwd", &spec, Stdio::default());
        if let Ok((container, output)) = fixture.start(launch).await {
            within(container.wait()).await.unwrap();
            let (out, _) = frames(output);
            assert!(!out.contains("unreachable"), "descriptor {number}: {out}");
            assert!(!out.contains("daemon:"), "descriptor {number}: {out}");
            container.delete().await.unwrap();
        }
    }
    let outcome = fixture.sh("fds", "for f in /proc/self/fd/*; do busybox readlink $f; done").await;
    let harmless = |line: &str| line == "/dev/null" || line.starts_with("pipe:");
    assert!(outcome.stdout.lines().all(harmless), "{outcome:?}");
}

/// CVE-2019-5736: the runtime's own program cannot be changed from inside.
#[tokio::test]
async fn root_cannot_write_to_the_runtimes_program() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec =
        fixture.spec("exe", &["sh", "-c", "sleep 0.3; echo x > /proc/1/exe || echo refused"]);
    let all = available_capabilities();
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let mut launch = fixture.launch("exe", &spec, Stdio::default());
    launch.init = true;
    let (container, output) = fixture.start(launch).await.unwrap();
    within(container.wait()).await.unwrap();
    assert!(frames(output).0.contains("refused"));
    container.delete().await.unwrap();
}

#[tokio::test]
async fn root_is_told_of_memory_that_ran_out() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.spec("oom", &["sh", "-c", "busybox tail /dev/zero"]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 16_777_216, "swap": 16_777_216});
    let outcome = fixture.run("oom", &spec).await;
    assert!(outcome.exit.oom, "{outcome:?}");
    assert_eq!(outcome.exit.code, 137);
}

#[tokio::test]
async fn root_ends_everything_that_shares_the_hosts_processes() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script = "echo $$; busybox setsid sleep 61 & echo $!; exit 3";
    let mut spec = fixture.spec("hostpid", &["sh", "-c", script]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|it| it["type"] != "pid");
    let outcome = fixture.run("hostpid", &spec).await;
    assert_eq!(outcome.exit.code, 3);
    let pids: Vec<i32> = outcome.stdout.lines().map(|line| line.parse().unwrap()).collect();
    assert!(pids[0] > 1);
    let left = std::path::PathBuf::from(format!("/proc/{}", pids[1]));
    for _ in 0..100 {
        if !left.exists() {
            return;
        }
        // The shim reaps it on its own way out.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{} is left", left.display());
}

#[tokio::test]
async fn root_runs_on_v2_alone() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new();
    let machine = std::sync::Arc::get_mut(&mut fixture.oci.machine).unwrap();
    if machine.layout.v2.is_none() {
        eprintln!("SKIPPED: there is no v2 hierarchy");
        return;
    }
    machine.layout.v1.clear();
    let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs; \
        busybox mknod /tmp/disk b 254 0; busybox dd if=/tmp/disk of=/dev/null count=1 2>&1; echo > /dev/null && sleep 60";
    let mut spec = fixture.spec("two", &["sh", "-c", script]);
    spec["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let launch = fixture.launch("two", &spec, Stdio::default());
    let (container, output) = fixture.start(launch).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    container.pause().await.unwrap();
    container.resume().await.unwrap();
    container.signal(9, true).await.unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 137);
    container.delete().await.unwrap();
    let (out, _) = frames(output);
    assert!(out.contains("0::/\n") && out.contains("/sys/fs/cgroup/cgroup.procs"), "{out}");
    assert!(out.contains("Operation not permitted"), "{out}");
}

#[tokio::test]
async fn root_executes_with_a_terminal_as_somebody_else() {
    if !can_run() {
        return;
    }
    use std::io::{Read, Write};
    let fixture = Fixture::new();
    let launch = fixture.launch("x", &fixture.spec("x", &["sleep", "60"]), Stdio::default());
    let (container, _output) = fixture.start(launch).await.unwrap();
    let spec = fixture.spec("x", &["sh", "-c", "tty; stty size; id -u; read a; stty size; exit 6"]);
    let mut process: oci_spec::runtime::Process =
        serde_json::from_value(spec["process"].clone()).unwrap();
    process.user_mut().set_uid(1000);
    let (mut near, far) = UnixStream::pair().unwrap();
    let exec = container
        .exec(ExecLaunch {
            id: "t1".to_owned(),
            process,
            seccomp: None,
            stdio: Stdio { tty: true, stdin: true, stdin_once: false, size: (30, 90) },
            attach: Some(Attach { stream: far, stdin: true, stdout: true, stderr: true }),
        })
        .await
        .unwrap();
    exec.resize(31, 91).await.unwrap();
    near.write_all(b"\n").unwrap();
    assert_eq!(within(exec.wait()).await.unwrap().code, 6);
    let mut text = String::new();
    near.read_to_string(&mut text).unwrap();
    assert!(
        text.contains("/dev/pts/0") && text.contains("31 91") && text.contains("1000"),
        "{text}"
    );
    assert_eq!(exec.resize(1, 1).await.unwrap_err().kind(), ErrorKind::NotFound);
    container.signal(9, false).await.unwrap();
    within(container.wait()).await.unwrap();
    container.delete().await.unwrap();
}

/// On v1 the reference leaves a container in the host's cgroup namespace.
#[tokio::test]
async fn root_sees_its_own_groups_without_a_cgroup_namespace() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script =
        "cat /sys/fs/cgroup/pids/pids.max; busybox mkdir /sys/fs/cgroup/pids/x || echo refused";
    let mut spec = fixture.spec("nons", &["sh", "-c", script]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|it| it["type"] != "cgroup");
    let outcome = fixture.run("nons", &spec).await;
    assert_eq!(outcome.stdout, "100\nrefused\n", "{outcome:?}");
}

#[tokio::test]
async fn root_uses_the_hosts_network_when_told() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let mut spec = fixture.spec("hostnet", &["sh", "-c", "busybox readlink /proc/self/ns/net"]);
    spec["linux"]["sysctl"] = json!({});
    let mut launch = fixture.launch("hostnet", &spec, Stdio::default());
    launch.netns = gantry_sdk::kinds::networks::SandboxNs::Host;
    let (container, output) = fixture.start(launch).await.unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 0);
    assert_eq!(frames(output).0.trim(), own.to_str().unwrap());
    container.delete().await.unwrap();
}

/// Links whose targets do not exist are followed inside the root, and the targets are made.
#[tokio::test]
async fn root_makes_what_dangling_links_name() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let etc = fixture.dir.join("rootfs/etc");
    std::os::unix::fs::symlink("../run/resolved/stub.conf", etc.join("resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/var/data", fixture.dir.join("rootfs/data")).unwrap();
    std::os::unix::fs::symlink("loop", etc.join("loop")).unwrap();
    std::fs::write(fixture.dir.join("given"), "given").unwrap();
    let mut spec = fixture.spec(
        "dangling",
        &["sh", "-c", "cat /etc/resolv.conf /run/resolved/stub.conf; ls -d /var/data/in"],
    );
    let bind = |target: &str| json!({"destination": target, "type": "bind", "source": fixture.dir.join("given"), "options": ["bind"]});
    push(&mut spec, "/mounts", bind("/etc/resolv.conf"));
    push(
        &mut spec,
        "/mounts",
        json!({"destination": "/data/in", "type": "tmpfs", "source": "tmpfs"}),
    );
    let outcome = fixture.run("dangling", &spec).await;
    assert_eq!(outcome.stdout, "givengiven/var/data/in\n", "{outcome:?}");
    push(&mut spec, "/mounts", bind("/etc/loop"));
    let launch = fixture.launch("loop", &spec, Stdio::default());
    assert!(fixture.start(launch).await.is_err());
}

/// Set in the process that has a mount namespace of its own.
const PRIVATE: &str = "GANTRY_TEST_PRIVATE_MOUNTS";

/// What is mounted on the host later shows in a volume that is a slave, and in no other.
#[tokio::test]
async fn root_hears_of_mounts_as_far_as_its_volumes_do() {
    if !can_run() {
        return;
    }
    if std::env::var_os(PRIVATE).is_none() {
        let name = "tests::confine::root_hears_of_mounts_as_far_as_its_volumes_do";
        let status = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(PRIVATE, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    let fixture = Fixture::new();
    let volume = fixture.dir.join("volume");
    std::fs::create_dir(&volume).unwrap();
    let tmpfs = |at: &std::path::Path| mount("tmpfs", at, "tmpfs", MountFlags::empty(), None);
    tmpfs(&volume).unwrap();
    mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
    std::fs::create_dir(volume.join("sub")).unwrap();
    let script = "read x; cat /slave/sub/file; cat /private/sub/file";
    let mut spec = fixture.spec("hear", &["sh", "-c", script]);
    spec["linux"]["rootfsPropagation"] = json!("rslave");
    for (target, propagation) in [("/slave", "rslave"), ("/private", "rprivate")] {
        push(
            &mut spec,
            "/mounts",
            json!({
                "destination": target, "type": "bind", "source": volume, "options": ["rbind", propagation]
            }),
        );
    }
    let stdio = Stdio { stdin: true, ..Stdio::default() };
    let (container, stream) = fixture.start(fixture.launch("hear", &spec, stdio)).await.unwrap();
    tmpfs(&volume.join("sub")).unwrap();
    std::fs::write(volume.join("sub/file"), "heard").unwrap();
    std::io::Write::write_all(&mut &stream, b"go\n").unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 1);
    let (out, err) = frames(stream);
    assert_eq!(out, "heard", "{err}");
    container.delete().await.unwrap();
    for path in [volume.join("sub"), volume] {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
