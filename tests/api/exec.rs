//! `exec`: more processes in a container that runs.

use std::io::{Read, Write};
use std::net::Shutdown;

use anyhow::{Context, Result};
use gantry_test_harness::http::{self, Request, demultiplex};
use gantry_test_harness::{TestDaemon, TestResult, wait_until};
use serde_json::{Value, json};

use crate::support::{sleeper, with_busybox};

fn create(daemon: &TestDaemon, container: &str, body: &Value) -> Result<String> {
    let path = format!("/containers/{container}/exec");
    let answer = daemon.http("POST", &path, body.to_string().as_bytes())?;
    anyhow::ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
    Ok(answer.json()?["Id"].as_str().context("no Id")?.to_owned())
}

#[test]
fn commands_run_with_their_streams_and_codes() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "host", "-e FROM_RUN=yes -w /tmp --user app")?;
        let output = daemon.docker("exec host sh -c 'echo out; echo err >&2; exit 7'")?;
        assert_eq!(
            (output.status, output.stdout.as_str(), output.stderr.as_str()),
            (7, "out\n", "err\n")
        );
        assert_eq!(
            daemon.ok("exec host sh -c 'id -un; pwd; echo $FROM_RUN; echo $HOME'")?,
            "app\n/tmp\nyes\n/home/app"
        );
        let other = "exec --user 0:extra --workdir /etc -e FROM_RUN=no -e MORE=1";
        assert_eq!(
            daemon.ok(format!("{other} host sh -c 'id -u; id -g; pwd; echo $FROM_RUN$MORE'"))?,
            "0\n1234\n/etc\nno1"
        );
        let piped =
            daemon.docker_with_input("exec -i host sh -c 'cat | wc -c'", &[b'x'; 300_000])?;
        assert_eq!(piped.success()?, "300000");
        for (command, statuses, part) in [
            ("no-such-program", [126, 127], "not found"),
            ("/etc/passwd", [126, 126], "permission denied"),
        ] {
            let output = daemon.docker(format!("exec host {command}"))?;
            assert!(statuses.contains(&output.status), "{output}");
            let said = format!("{}{}", output.stdout, output.stderr);
            assert!(said.contains(part), "{output}");
        }
        assert_eq!(daemon.inspect("host")?["State"]["Running"], true);
        Ok(())
    })
}

#[test]
fn it_is_in_the_containers_namespaces_and_under_its_rules() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "host", "--memory 64m")?;
        let here = daemon.ok(
            "exec host sh -c 'for n in mnt pid net ipc uts; do readlink /proc/self/ns/$n; done'",
        )?;
        let there = daemon.ok(
            "exec host sh -c 'for n in mnt pid net ipc uts; do readlink /proc/1/ns/$n; done'",
        )?;
        assert_eq!(here, there);
        let groups = |pid: &str| daemon.ok(format!("exec host cat /proc/{pid}/cgroup"));
        assert_eq!(groups("self")?, groups("1")?);
        let status =
            daemon.ok("exec host grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status")?;
        assert!(status.contains("00000000a80425fb") && status.contains("Seccomp:\t2"), "{status}");
        let status = daemon.ok("exec --privileged host grep CapEff /proc/self/status")?;
        assert!(!status.contains("00000000a80425fb"), "{status}");
        Ok(())
    })
}

#[test]
fn a_terminal_of_its_own_with_a_size() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "host", "")?;
        let output = daemon.on_a_terminal("exec -it host sh -c 'tty; exit 3'", b"")?;
        assert_eq!(output.status, 3, "{output}");
        assert!(output.stdout.contains("/dev/pts/"), "{output}");

        let body = json!({"Tty": true, "AttachStdin": true, "AttachStdout": true, "Cmd": ["sh"]});
        let exec = create(daemon, "host", &body)?;
        let path = format!("/exec/{exec}/start");
        let start = br#"{"Detach":false,"Tty":true}"#;
        let json = [("Content-Type", "application/json")];
        let request = Request { method: "POST", path: &path, headers: &json, body: start };
        let (head, mut stream) = http::open(&daemon.socket(), &request, true)?;
        assert_eq!((head.status, head.reason.as_str()), (101, "UPGRADED"));
        let resized = daemon.http("POST", &format!("/exec/{exec}/resize?h=44&w=111"), b"")?;
        assert_eq!(resized.status, 200, "{}", resized.text());
        stream.write_all(b"stty size; exit\n")?;
        let mut all = String::new();
        stream.read_to_string(&mut all)?;
        assert!(all.contains("44 111"), "{all}");
        Ok(())
    })
}

#[test]
fn inspect_follows_it_from_creation_to_its_code() -> TestResult {
    with_busybox(|daemon| {
        let id = sleeper(daemon, "host", "")?;
        let body =
            json!({"AttachStdout": true, "AttachStdin": true, "Cmd": ["sh", "-c", "cat; exit 9"]});
        let exec = create(daemon, "host", &body)?;
        let inspect = |exec: &str| daemon.get(&format!("/exec/{exec}/json"));
        let before = inspect(&exec)?;
        assert_eq!((&before["Running"], &before["ExitCode"]), (&false.into(), &Value::Null));
        assert_eq!(before["ContainerID"].as_str(), Some(id.as_str()));
        assert_eq!(before["ProcessConfig"]["entrypoint"], "sh");

        let path = format!("/exec/{exec}/start");
        let json = [("Content-Type", "application/json")];
        let request = Request { method: "POST", path: &path, headers: &json, body: b"{}" };
        let (_, mut stream) = http::open(&daemon.socket(), &request, true)?;
        wait_until("it runs", 5, || Ok(inspect(&exec)?["Pid"].as_u64() > Some(0)))?;
        assert_eq!(inspect(&exec)?["Running"], true);
        assert_eq!(daemon.inspect("host")?["ExecIDs"][0].as_str(), Some(exec.as_str()));
        stream.write_all(b"bye")?;
        stream.shutdown(Shutdown::Write)?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        assert_eq!(demultiplex(&all)?, [(1, b"bye".to_vec())]);
        wait_until("it is over", 5, || Ok(inspect(&exec)?["ExitCode"] == 9))?;

        let again = daemon.http("POST", &path, b"{}")?;
        assert!(again.text().contains("has already run"), "{}", again.text());
        let lost = daemon.http("GET", "/exec/nosuch/json", b"")?;
        assert_eq!((lost.status, lost.message().contains("No such exec instance")), (404, true));
        Ok(())
    })
}

#[test]
fn detached_ones_go_on_without_a_client() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "host", "")?;
        daemon.ok("exec -d host sh -c 'sleep 0.2; echo done > /tmp/done'")?;
        wait_until("it did its work", 5, || {
            Ok(daemon.docker("exec host cat /tmp/done")?.status == 0)
        })?;

        // A client that goes away does not take the process along.
        let body =
            json!({"AttachStdout": true, "Cmd": ["sh", "-c", "sleep 0.4; echo x > /tmp/went-on"]});
        let exec = create(daemon, "host", &body)?;
        let path = format!("/exec/{exec}/start");
        let json = [("Content-Type", "application/json")];
        let request = Request { method: "POST", path: &path, headers: &json, body: b"{}" };
        drop(http::open(&daemon.socket(), &request, true)?);
        wait_until("it went on", 5, || Ok(daemon.docker("exec host cat /tmp/went-on")?.status == 0))
    })
}

#[test]
fn only_where_something_runs() -> TestResult {
    with_busybox(|daemon| {
        let id = daemon.ok("create --name still busybox true")?;
        let body = br#"{"Cmd":["true"]}"#;
        let answer = daemon.http("POST", "/containers/still/exec", body)?;
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert!(
            answer.message().contains(&format!("container {id} is not running")),
            "{}",
            answer.message()
        );
        let answer = daemon.http("POST", "/containers/nosuch/exec", body)?;
        assert_eq!(answer.status, 404, "{}", answer.text());

        sleeper(daemon, "host", "")?;
        let answer = daemon.http("POST", "/containers/host/exec", b"{}")?;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(
            answer.message().to_lowercase().contains("no exec command specified"),
            "{}",
            answer.message()
        );
        // What runs in a container ends with it.
        let exec = create(daemon, "host", &json!({"Cmd": ["sleep", "60"]}))?;
        let started = daemon.http("POST", &format!("/exec/{exec}/start"), br#"{"Detach":true}"#)?;
        assert_eq!(started.status, 200, "{}", started.text());
        daemon.ok("kill host")?;
        wait_until("it ended too", 5, || {
            let answer = daemon.http("GET", &format!("/exec/{exec}/json"), b"")?;
            Ok(answer.status == 404 || answer.json()?["Running"] == false)
        })
    })
}

#[test]
fn many_at_once_do_not_disturb_each_other() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "host", "")?;
        std::thread::scope(|scope| {
            let daemon = &*daemon;
            let all: Vec<_> = (0..20)
                .map(|i| {
                    scope.spawn(move || {
                        daemon.docker(format!("exec host sh -c 'echo {i}; exit {i}'"))
                    })
                })
                .collect();
            for (i, one) in all.into_iter().enumerate() {
                let output = one.join().map_err(|_| anyhow::anyhow!("panicked"))??;
                assert_eq!(
                    (output.status, output.stdout.trim()),
                    (i as i32, i.to_string().as_str())
                );
            }
            anyhow::Ok(())
        })
    })
}

/// Output that comes just before the end is output too.
#[test]
fn no_output_is_lost_at_the_end() -> TestResult {
    with_busybox(|daemon| {
        let daemon = &*daemon;
        sleeper(daemon, "host", "")?;
        let round = || -> Result<()> {
            for i in 0..50 {
                let body = json!({"AttachStdout": true, "Cmd": ["echo", i.to_string()]});
                let exec = create(daemon, "host", &body)?;
                let path = format!("/exec/{exec}/start");
                let json = [("Content-Type", "application/json")];
                let request = Request { method: "POST", path: &path, headers: &json, body: b"{}" };
                let (_, mut stream) = http::open(&daemon.socket(), &request, true)?;
                let mut all = Vec::new();
                stream.read_to_end(&mut all)?;
                let said = demultiplex(&all)?;
                anyhow::ensure!(said == [(1, format!("{i}\n").into_bytes())], "{i}: {said:?}");
                let code = daemon.get(&format!("/exec/{exec}/json"))?["ExitCode"].clone();
                anyhow::ensure!(code == 0, "{i}: the code is {code} at the end of the output");
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(round)).collect();
            for one in all {
                one.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            }
            Ok(())
        })
    })
}
