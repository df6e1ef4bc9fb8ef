//! A container's life: start, end, exec, kill, pause, recovery.

use std::path::Path;

use super::fixture::{Fixture, can_run, frames, within};
use gantry_sdk::kinds::runtime::{Attach, ExecLaunch, Recovered, Runtime, Stdio};
use gantry_sdk::{Ctx, ErrorKind};
use serde_json::json;
use std::os::unix::net::UnixStream;

#[tokio::test]
async fn root_runs_a_command_and_its_exit_code_is_kept() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let outcome = fixture.sh("exit", "echo out; echo err >&2; exit 7").await;
    assert_eq!(outcome.exit.code, 7);
    assert!(!outcome.exit.oom);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
}

#[tokio::test]
async fn root_sees_the_container_as_specified() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script = "cat /proc/self/status; cat /proc/self/mountinfo; cat /proc/self/cgroup; \
        ls -l /dev /proc/self/fd; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
        busybox hostname; echo pid $$; busybox wc -c < /proc/kcore; \
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max";
    let outcome = fixture.sh("view", script).await;
    let text = &outcome.stdout;
    assert_eq!(outcome.exit.code, 0, "{text}{}", outcome.stderr);
    for wanted in [
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "Seccomp:\t2",
        "NoNewPrivs:\t0",
        "pid 1\n",
        "box\n",
        " /proc/sys ro,",
        "268435456\n100\n",
        "\n0\n",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing in\n{text}");
    }
}

#[tokio::test]
async fn root_gets_precise_errors_for_programs_that_cannot_run() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    for (argv, kind, words) in [
        (&["nope"][..], ErrorKind::NotFound, "exec: \"nope\": executable file not found in $PATH"),
        (&["/nope"], ErrorKind::NotFound, "exec: \"/nope\": stat /nope: no such file or directory"),
        (&["/etc"], ErrorKind::Forbidden, "exec: \"/etc\": is a directory: permission denied"),
        (&["/etc/passwd"], ErrorKind::Forbidden, "exec: \"/etc/passwd\": permission denied"),
    ] {
        let launch = fixture.launch("bad", &fixture.spec("bad", argv), Stdio::default());
        let error = fixture.start(launch).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with("failed to create task for container: "), "{error}");
        assert!(error.to_string().ends_with(words), "{error}");
    }
    let left = Path::new("/sys/fs/cgroup/pids").join(fixture.group("bad"));
    assert!(!left.exists());
}

#[tokio::test]
async fn root_executes_beside_the_first_process() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let launch = fixture.launch("exec", &fixture.spec("exec", &["sleep", "60"]), Stdio::default());
    let (container, _output) = fixture.start(launch).await.unwrap();
    let spec =
        fixture.spec("exec", &["sh", "-c", "cat /proc/1/cmdline; busybox hostname; cat; exit 5"]);
    let process: oci_spec::runtime::Process =
        serde_json::from_value(spec["process"].clone()).unwrap();
    let seccomp = serde_json::from_value(spec["linux"]["seccomp"].clone()).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let exec = container
        .exec(ExecLaunch {
            id: "e1".to_owned(),
            process: process.clone(),
            seccomp,
            stdio: Stdio { stdin: true, stdin_once: true, ..Stdio::default() },
            attach: Some(Attach { stream: far, stdin: true, stdout: true, stderr: true }),
        })
        .await
        .unwrap();
    std::io::Write::write_all(&mut &near, b"given").unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(within(exec.wait()).await.unwrap().code, 5);
    assert_eq!(frames(near).0, "sleep\x0060\x00box\ngiven");

    let mut missing = process;
    missing.set_args(Some(vec!["nope".to_owned()]));
    let error = container
        .exec(ExecLaunch {
            id: "e2".to_owned(),
            process: missing,
            seccomp: None,
            stdio: Stdio::default(),
            attach: None,
        })
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("exec: \"nope\": executable file not found in $PATH"));

    container.signal(9, false).await.unwrap();
    let exit = within(container.wait()).await.unwrap();
    assert_eq!(exit.code, 137);
    container.delete().await.unwrap();
    container.delete().await.unwrap();
}

#[tokio::test]
async fn root_pauses_and_resumes() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let launch =
        fixture.launch("pause", &fixture.spec("pause", &["sleep", "60"]), Stdio::default());
    let (container, _output) = fixture.start(launch).await.unwrap();
    container.pause().await.unwrap();
    assert_eq!(container.pause().await.unwrap_err().kind(), ErrorKind::Conflict);
    container.resume().await.unwrap();
    container.signal(15, true).await.unwrap();
    container.signal(9, true).await.unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 137);
    container.delete().await.unwrap();
}

#[tokio::test]
async fn root_finds_a_container_again() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let spec = fixture.spec("again", &["sh", "-c", "sleep 1; exit 3"]);
    let launch = fixture.launch("again", &spec, Stdio::default());
    let run_dir = launch.run_dir.clone();
    let (container, _output) = fixture.start(launch).await.unwrap();
    let pid = container.pid();
    // All that a daemon that was killed leaves behind is the run directory.
    drop(container);
    let cx = Ctx::background();
    let Recovered::Running(found) = fixture.oci.recover(&cx, "again", &run_dir).await.unwrap()
    else {
        panic!("it runs");
    };
    assert_eq!(found.pid(), pid);
    assert_eq!(within(found.wait()).await.unwrap().code, 3);
    drop(found);
    let Recovered::Exited(exit, found) = fixture.oci.recover(&cx, "again", &run_dir).await.unwrap()
    else {
        panic!("it has ended");
    };
    assert_eq!(exit.code, 3);
    found.delete().await.unwrap();
    assert!(!run_dir.exists());
    assert!(matches!(fixture.oci.recover(&cx, "again", &run_dir).await.unwrap(), Recovered::Gone));
}

#[tokio::test]
async fn root_ends_a_container_whose_shim_was_killed() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let launch = fixture.launch("lost", &fixture.spec("lost", &["sleep", "60"]), Stdio::default());
    let (container, _output) = fixture.start(launch).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
    let shim = rustix::process::Pid::from_raw(shim.parse().unwrap()).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 137);
    // Whoever inherited it may not have reaped it yet.
    let state = std::fs::read_to_string(format!("/proc/{}/stat", container.pid()));
    assert!(state.is_err() || state.is_ok_and(|text| text.contains(") Z ")));
    container.delete().await.unwrap();
}

#[tokio::test]
async fn root_runs_under_the_tiny_init() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script = "cat /proc/1/cmdline; echo; echo $$; (sleep 0.1 &) ; trap 'exit 9' TERM; \
        echo ready; while :; do sleep 0.1; done";
    let mut launch =
        fixture.launch("init", &fixture.spec("init", &["sh", "-c", script]), Stdio::default());
    launch.init = true;
    let (container, output) = fixture.start(launch).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    container.signal(15, false).await.unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 9);
    let text = frames(output).0;
    assert!(text.starts_with("/sbin/docker-init\0--\0sh\0"), "{text}");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn root_joins_namespaces_of_another_container() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let launch = fixture.launch("one", &fixture.spec("one", &["sleep", "60"]), Stdio::default());
    let (one, _output) = fixture.start(launch).await.unwrap();
    let mut spec = fixture.spec("two", &["sh", "-c", "cat /proc/1/cmdline; busybox hostname"]);
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", one.pid());
    spec["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"}, {"type": "network"},
        {"type": "pid", "path": path("pid")},
        {"type": "ipc", "path": path("ipc")},
        {"type": "uts", "path": path("uts")}
    ]);
    spec["hostname"] = json!("");
    let outcome = fixture.run("two", &spec).await;
    assert_eq!(outcome.stdout, "sleep\x0060\x00box\n", "{}", outcome.stderr);
    one.signal(9, false).await.unwrap();
    within(one.wait()).await.unwrap();
    one.delete().await.unwrap();
}

#[tokio::test]
async fn root_uses_a_user_namespace() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    std::os::unix::fs::chown(fixture.dir.join("rootfs"), Some(100_000), Some(100_000)).unwrap();
    for name in ["proc", "sys", "dev", "tmp", "etc"] {
        let path = fixture.dir.join("rootfs").join(name);
        std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    let mut spec = fixture.spec("user", &["sleep", "60"]);
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    spec["linux"]["uidMappings"] = maps.clone();
    spec["linux"]["gidMappings"] = maps;
    // Its network namespace must belong to its user namespace, so the shim makes it.
    spec["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"}, {"type": "cgroup"},
        {"type": "user"}
    ]);
    spec["linux"]["sysctl"] = json!({});
    spec["mounts"].as_array_mut().unwrap().retain(|mount| {
        !["/sys", "/sys/fs/cgroup"].contains(&mount["destination"].as_str().unwrap())
    });
    let launch = fixture.launch("user", &spec, Stdio::default());
    let (container, _output) = fixture.start(launch).await.unwrap();
    let mut process: oci_spec::runtime::Process =
        serde_json::from_value(spec["process"].clone()).unwrap();
    let script = "id -u; cat /proc/self/uid_map; ls -l /dev/null; echo > /dev/null && echo opened";
    process.set_args(Some(["sh", "-c", script].map(str::to_owned).to_vec()));
    let (near, far) = UnixStream::pair().unwrap();
    let exec = container
        .exec(ExecLaunch {
            id: "e1".to_owned(),
            process,
            seccomp: None,
            stdio: Stdio::default(),
            attach: Some(Attach { stream: far, stdin: false, stdout: true, stderr: true }),
        })
        .await
        .unwrap();
    let exit = within(exec.wait()).await.unwrap();
    let text = frames(near);
    assert_eq!(exit.code, 0, "{text:?}");
    assert!(text.0.starts_with("0\n") && text.0.contains("100000"), "{text:?}");
    assert!(text.0.contains("opened"), "{text:?}");
    container.signal(9, false).await.unwrap();
    within(container.wait()).await.unwrap();
    container.delete().await.unwrap();
}
