//! `create`, `start`, `stop`, `restart`, `kill`, `wait`, `rename`, `rm`, `ps`, `inspect`.

use std::io::Read;
use std::time::Duration;

use anyhow::Context;
use gantry_test_harness::http::{self, Request};
use gantry_test_harness::{TestResult, wait_until};

use crate::support::{check, sleeper, with_busybox};

#[test]
fn a_container_goes_through_its_states() -> TestResult {
    with_busybox(|daemon| {
        let state =
            |name: &str| daemon.ok(format!("inspect --format '{{{{.State.Status}}}}' {name}"));
        let id = daemon.ok("create --name life busybox \
             sh -c 'trap \"exit 3\" TERM; while :; do sleep 1 & wait $!; done'")?;
        assert_eq!((id.len(), state("life")?.as_str()), (64, "created"));
        assert_eq!(daemon.ok("start life")?, "life");
        assert_eq!(state("life")?, "running");
        let first = daemon.inspect("life")?;
        assert!(first["State"]["Pid"].as_u64() > Some(0));
        daemon.ok("restart life")?;
        let second = daemon.inspect("life")?;
        assert_eq!(state("life")?, "running");
        assert_ne!(first["State"]["StartedAt"], second["State"]["StartedAt"]);
        assert_eq!(daemon.ok("stop life")?, "life");
        let third = daemon.inspect("life")?;
        assert_eq!(
            (&third["State"]["Status"], &third["State"]["ExitCode"]),
            (&"exited".into(), &3.into())
        );
        assert_eq!(third["State"]["Pid"], 0);
        assert!(third["State"]["FinishedAt"].as_str() > second["State"]["StartedAt"].as_str());
        daemon.ok("start life")?;
        daemon.ok("kill life")?;
        wait_until("it is dead", 5, || Ok(state("life")? == "exited"))?;
        assert_eq!(daemon.inspect("life")?["State"]["ExitCode"], 137);
        assert_eq!(daemon.ok("rm life")?, "life");
        assert_eq!(daemon.http("GET", "/containers/life/json", b"")?.status, 404);
        Ok(())
    })
}

#[test]
fn asking_for_what_is_so_already_changes_nothing() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "box", "")?;
        assert_eq!(daemon.http("POST", "/containers/box/start", b"")?.status, 304);
        assert_eq!(daemon.http("POST", "/containers/box/stop?t=5", b"")?.status, 204);
        assert_eq!(daemon.http("POST", "/containers/box/stop", b"")?.status, 304);
        let killed = daemon.http("POST", "/containers/box/kill", b"")?;
        assert_eq!(killed.status, 409, "{}", killed.text());
        assert!(killed.message().contains("is not running"), "{}", killed.message());
        // `restart` of a stopped one starts it.
        assert_eq!(daemon.http("POST", "/containers/box/restart?t=5", b"")?.status, 204);
        assert_eq!(daemon.inspect("box")?["State"]["Running"], true);
        Ok(())
    })
}

#[test]
fn names_ids_and_parts_of_ids_find_a_container() -> TestResult {
    with_busybox(|daemon| {
        let id = daemon.ok("create --name found busybox true")?;
        for name in [id.as_str(), &id[..12], &id[..4], "found"] {
            let answer = daemon.http("GET", &format!("/containers/{name}/json"), b"")?;
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            assert_eq!(answer.json()?["Id"].as_str(), Some(id.as_str()), "{name}");
        }
        let said = daemon.http("GET", "/containers/lost/json", b"")?;
        assert_eq!((said.status, said.message().as_str()), (404, "No such container: lost"));
        Ok(())
    })
}

#[test]
fn signals_go_by_name_and_number() -> TestResult {
    with_busybox(|daemon| {
        let script = "sh -c 'trap \"echo hup\" HUP; trap \"echo usr\" USR1; echo ready; \
            while :; do sleep 1 & wait $!; done'";
        daemon.ok(format!("run -d --name ears busybox {script}"))?;
        let heard = |what: &str| {
            wait_until(what, 5, || Ok(daemon.ok("logs ears")?.lines().any(|l| l == what)))
        };
        heard("ready")?;
        daemon.ok("kill --signal HUP ears")?;
        heard("hup")?;
        daemon.ok("kill --signal 10 ears")?;
        heard("usr")?;
        let said = daemon.fails("kill --signal NOPE ears")?;
        assert!(said.to_lowercase().contains("invalid signal: nope"), "{said}");
        assert_eq!(daemon.inspect("ears")?["State"]["Running"], true);
        Ok(())
    })
}

/// Opens `POST /containers/NAME/wait` and returns its stream once the head of the answer is there.
fn open_wait(
    daemon: &gantry_test_harness::TestDaemon,
    name: &str,
    condition: &str,
) -> anyhow::Result<std::os::unix::net::UnixStream> {
    let path = format!("/v1.44/containers/{name}/wait?condition={condition}");
    let request = Request { method: "POST", path: &path, headers: &[], body: b"" };
    let (head, stream) = http::open(&daemon.socket(), &request, false)?;
    check(head.status == 200, "status", &head)?;
    Ok(stream)
}

#[test]
fn waiting_answers_at_once_and_tells_the_code_when_it_is_known() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("create --name slow busybox sh -c 'exit 6'")?;
        // The head is there before there is anything to tell: clients start the container after it.
        let mut next = open_wait(daemon, "slow", "next-exit")?;
        let mut removed = open_wait(daemon, "slow", "removed")?;
        daemon.ok("start slow")?;
        let mut body = String::new();
        next.read_to_string(&mut body)?;
        assert!(body.contains("\"StatusCode\":6"), "{body}");
        removed.set_read_timeout(Some(Duration::from_millis(300)))?;
        let early = removed.read(&mut [0; 64]);
        assert!(early.is_err(), "not removed yet: {early:?}");
        daemon.ok("rm slow")?;
        removed.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut body = String::new();
        removed.read_to_string(&mut body)?;
        assert!(body.contains("\"StatusCode\":6"), "{body}");

        daemon.ok("run --name done busybox sh -c 'exit 4'").err().context("should have failed")?;
        assert_eq!(daemon.ok("wait done")?, "4");
        let said = daemon.fails("wait nosuch")?;
        assert!(said.contains("No such container: nosuch"), "{said}");
        let bad = daemon.http("POST", "/containers/done/wait?condition=whenever", b"")?;
        assert_eq!(bad.status, 400, "{}", bad.text());
        Ok(())
    })
}

#[test]
fn renaming_frees_the_old_name_and_respects_the_new_ones_owner() -> TestResult {
    with_busybox(|daemon| {
        let id = daemon.ok("create --name old busybox true")?;
        daemon.ok("create --name taken busybox true")?;
        daemon.ok("rename old new")?;
        assert_eq!(daemon.inspect("new")?["Id"].as_str(), Some(id.as_str()));
        assert_eq!(daemon.inspect("new")?["Name"], "/new");
        daemon.ok("create --name old busybox true")?;
        let said = daemon.fails("rename new taken")?;
        assert!(said.contains("is already in use by container"), "{said}");
        for (name, status) in [("new", 400), ("bad%20name", 400), ("", 400)] {
            let answer =
                daemon.http("POST", &format!("/containers/new/rename?name={name}"), b"")?;
            assert_eq!(answer.status, status, "{name:?}: {}", answer.text());
        }
        assert_eq!(daemon.inspect("new")?["Name"], "/new");
        Ok(())
    })
}

#[test]
fn a_running_container_is_removed_by_force_only() -> TestResult {
    with_busybox(|daemon| {
        let id = sleeper(daemon, "busy", "")?;
        let answer = daemon.http("DELETE", "/containers/busy", b"")?;
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert!(answer.message().contains("container is running"), "{}", answer.message());
        daemon.ok(format!("rm --force {id}"))?;
        assert_eq!(daemon.http("DELETE", "/containers/busy", b"")?.status, 404);
        Ok(())
    })
}

#[test]
fn the_list_is_filtered_sorted_and_shaped() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("create --name first --label group=a busybox true")?;
        daemon.ok("run --name second --label group=a --label x busybox sh -c 'exit 3'").err();
        sleeper(daemon, "third", "--label group=b --volume data:/data")?;
        let names = |options: &str| -> anyhow::Result<String> {
            Ok(daemon.ok(format!("ps {options} --format '{{{{.Names}}}}'"))?.replace('\n', " "))
        };
        for (options, expected) in [
            ("", "third"),
            ("--all", "third second first"),
            ("--last 2", "third second"),
            ("--latest", "third"),
            ("--all --filter name=ir", "third first"),
            ("--all --filter name=^/?first$", "first"),
            ("--all --filter label=group", "third second first"),
            ("--all --filter label=group=a", "second first"),
            ("--all --filter label=group=a --filter label=x", "second"),
            ("--filter status=exited", "second"),
            ("--filter status=created", "first"),
            ("--all --filter exited=3", "second"),
            ("--all --filter ancestor=busybox", "third second first"),
            ("--all --filter before=second", "first"),
            ("--all --filter since=first", "third second"),
            ("--all --filter volume=data", "third"),
            ("--all --filter volume=/data", "third"),
            ("--all --filter network=bridge", "third second first"),
            ("--all --filter network=none", ""),
        ] {
            assert_eq!(names(options)?, expected, "{options}");
        }
        let said = daemon.fails("ps --filter status=nonsense")?;
        assert!(said.contains("nonsense"), "{said}");
        let said = daemon.fails("ps --filter nonsense=1")?;
        assert!(said.contains("nonsense"), "{said}");

        let list = daemon.get("/containers/json?all=1&size=1")?;
        let third = &list[0];
        assert_eq!(third["Names"][0], "/third");
        assert_eq!((&third["Image"], &third["State"]), (&"busybox".into(), &"running".into()));
        assert!(third["Status"].as_str().is_some_and(|s| s.starts_with("Up ")), "{third}");
        assert!(list[1]["Status"].as_str().is_some_and(|s| s.starts_with("Exited (3) ")), "{list}");
        assert_eq!(list[2]["Status"], "Created");
        assert!(third["SizeRootFs"].as_u64() > Some(500_000), "{third}");
        assert_eq!(third["Labels"]["group"], "b");
        assert_eq!(third["Mounts"][0]["Name"], "data");
        assert_eq!(third["HostConfig"]["NetworkMode"], "bridge");
        let command =
            daemon.ok("ps --all --no-trunc --filter name=second --format '{{.Command}}'")?;
        assert_eq!(command, "\"sh -c 'exit 3'\"");
        Ok(())
    })
}

#[test]
fn inspect_shows_what_was_asked_for_and_what_became_of_it() -> TestResult {
    with_busybox(|daemon| {
        let id = daemon
            .ok("run -d --name shown -e A=b -w /tmp --hostname h --label l=m --memory 32m \
             --cap-add NET_ADMIN --restart no --publish 8080:80 -v /data busybox sleep 60")?;
        let c = daemon.inspect("shown")?;
        assert_eq!(c["Id"].as_str(), Some(id.as_str()));
        assert_eq!((&c["Path"], &c["Args"][0]), (&"sleep".into(), &"60".into()));
        assert_eq!(
            (&c["Config"]["Image"], &c["Config"]["Hostname"]),
            (&"busybox".into(), &"h".into())
        );
        assert!(c["Image"].as_str().is_some_and(|i| i.starts_with("sha256:")));
        assert_eq!(
            c["HostConfig"]["CapAdd"][0].as_str().map(|s| s.trim_start_matches("CAP_")),
            Some("NET_ADMIN")
        );
        assert_eq!(c["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"], "8080");
        assert_eq!(c["HostConfig"]["LogConfig"]["Type"], "json-file");
        assert_eq!(c["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"], "8080");
        let endpoint = &c["NetworkSettings"]["Networks"]["bridge"];
        assert!(endpoint["IPAddress"].as_str().is_some_and(|a| a.contains('.')), "{endpoint}");
        assert_eq!(
            (&c["Mounts"][0]["Type"], &c["Mounts"][0]["RW"]),
            (&"volume".into(), &true.into())
        );
        assert_eq!(c["RestartCount"], 0);
        assert_eq!(c["Driver"], daemon.get("/info")?["Driver"]);
        assert!(c["Created"].as_str().is_some_and(|t| t.ends_with('Z')));
        let log = c["LogPath"].as_str().unwrap_or_default();
        assert!(std::path::Path::new(log).exists(), "{log}");
        let sized = daemon.get("/containers/shown/json?size=1")?;
        assert!(sized["SizeRootFs"].as_u64() > Some(500_000));
        daemon.ok("kill shown")?;
        Ok(())
    })
}
