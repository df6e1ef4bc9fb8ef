//! `docker run`: streams, codes, and what the process finds around it.

use gantry_test_harness::fixtures::Fixture;
use gantry_test_harness::{TestResult, daemon_test, wait_until};

use crate::support::{UNTIL_TOLD, check, sleeper, with_busybox};

#[test]
fn exit_codes_are_the_processes_own() -> TestResult {
    with_busybox(|daemon| {
        let cases = [
            ("its own", "sh -c 'exit 7'", 7, ""),
            ("not found", "no-such-program", 127, "executable file not found"),
            ("no such path", "/no/such/program", 127, "no such file or directory"),
            ("not executable", "/etc/passwd", 126, "permission denied"),
            ("a directory", "/etc", 126, ""),
        ];
        for (what, command, status, message) in cases {
            let output = daemon.docker(format!("run --rm busybox {command}"))?;
            assert_eq!(output.status, status, "{what}: {output}");
            assert!(output.stderr.contains(message), "{what}: {output}");
        }
        // A container that could not start is there to be looked at, unless it was to be removed.
        daemon.docker("run --name failed busybox no-such-program")?.failure()?;
        let state = &daemon.inspect("failed")?["State"];
        assert_eq!((&state["Status"], &state["ExitCode"]), (&"created".into(), &127.into()));
        assert_eq!(daemon.docker("run --rm nosuch:image true")?.status, 125);
        Ok(())
    })
}

#[test]
fn streams_stay_apart_and_input_ends() -> TestResult {
    with_busybox(|daemon| {
        let output = daemon.docker("run --rm busybox sh -c 'echo out; echo err >&2'")?;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));

        let big: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        let sum = daemon.docker_with_input("run --rm -i busybox md5sum", &big)?.success()?;
        let mut md5 = std::process::Command::new("md5sum");
        md5.env("LC_ALL", "C");
        let expected =
            gantry_test_harness::command::run(md5, &big, gantry_test_harness::command::DEADLINE)?;
        assert_eq!(sum, expected.success()?);

        let closed = daemon.docker_with_input("run --rm busybox cat", b"not for it")?;
        assert_eq!((closed.status, closed.stdout.as_str()), (0, ""));
        let lines = daemon.ok("run --rm busybox seq 1 100000")?;
        assert_eq!(lines.lines().count(), 100_000);
        assert_eq!(lines.lines().last(), Some("100000"));
        Ok(())
    })
}

#[test]
fn a_terminal_is_one() -> TestResult {
    with_busybox(|daemon| {
        let output = daemon.on_a_terminal("run --rm -it busybox sh -c 'tty; echo $TERM'", b"")?;
        assert!(output.stdout.contains("/dev/pts/0\r\nxterm"), "{output}");
        let output =
            daemon.on_a_terminal("run --rm -it busybox sh", b"echo $((40+2))\nexit 5\n")?;
        assert_eq!(output.status, 5, "{output}");
        assert!(output.stdout.contains("42"), "{output}");
        let plain = daemon.docker("run --rm busybox tty")?;
        assert_eq!((plain.status, plain.stdout.trim()), (1, "not a tty"));
        Ok(())
    })
}

#[test]
fn the_environment_is_the_images_with_ours_on_top() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        daemon.load(Fixture::Configured)?;
        let file = daemon.path("env");
        std::fs::write(&file, "FROM_FILE=yes\n# no\nCHANGED=file\n")?;
        let line = format!(
            "run --rm --env-file {} -e CHANGED=flag -e EMPTY= --entrypoint env configured",
            file.display()
        );
        let seen = daemon.ok(&line)?;
        for expected in ["FROM_IMAGE=yes", "FROM_FILE=yes", "CHANGED=flag", "EMPTY="] {
            assert!(seen.lines().any(|l| l == expected), "{expected} in {seen}");
        }
        let seen = daemon.ok(
            "run --rm --name env busybox sh -c 'echo $HOME; hostname; echo $HOSTNAME; echo $PATH'",
        )?;
        let lines: Vec<_> = seen.lines().collect();
        assert_eq!(lines[0], "/root");
        assert_eq!(lines[1].len(), 12, "{seen}");
        assert_eq!(lines[1], lines[2]);
        assert_eq!(lines[3], "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(())
    })
}

#[test]
fn an_images_configuration_is_inherited() -> TestResult {
    daemon_test(|daemon| {
        daemon.load(Fixture::Configured)?;
        let seen =
            daemon.ok("run --name inherits configured sh -c 'id -un; id -gn; pwd; echo $HOME'")?;
        assert!(seen.starts_with("entry sh -c"), "{seen}");
        let lines: Vec<_> = seen.lines().skip(1).collect();
        assert_eq!(lines, ["app", "staff", "/home/app", "/home/app"]);
        let container = daemon.inspect("inherits")?;
        let config = &container["Config"];
        assert_eq!(config["Labels"]["from"], "image");
        assert_eq!(config["StopSignal"], "SIGUSR1");
        assert_eq!(container["Mounts"][0]["Destination"], "/data");
        assert_eq!(container["Path"], "/bin/sh");

        let other =
            "run --rm --label changed=here --user 0 --workdir /tmp --entrypoint pwd configured";
        assert_eq!(daemon.ok(other)?, "/tmp");
        // Without its entry point the image's command goes too.
        let said = daemon.docker("run --rm --entrypoint '' configured")?.failure()?;
        assert!(said.contains("no command specified"), "{said}");
        Ok(())
    })
}

#[test]
fn users_and_groups_by_name_and_number() -> TestResult {
    with_busybox(|daemon| {
        let id = |options: &str| -> anyhow::Result<(String, String, Vec<String>)> {
            let script = "id -u; id -g; id -G";
            let seen = daemon.ok(format!("run --rm {options} busybox sh -c '{script}'"))?;
            let mut lines = seen.lines().map(str::to_owned);
            let (user, group) = (lines.next(), lines.next());
            let groups = lines.next().unwrap_or_default();
            let mut groups: Vec<_> = groups.split(' ').map(str::to_owned).collect();
            groups.sort_by_key(|g| g.parse::<u32>().unwrap_or(0));
            groups.dedup();
            Ok((user.unwrap_or_default(), group.unwrap_or_default(), groups))
        };
        let cases: [(&str, &str, &str, &[&str]); 8] = [
            ("", "0", "0", &["0"]),
            ("--user app", "1000", "1000", &["50", "1000"]),
            ("--user 1000", "1000", "1000", &["50", "1000"]),
            ("--user 1234:5678", "1234", "5678", &["5678"]),
            ("--user 4321", "4321", "0", &["0"]),
            ("--user app:extra", "1000", "1234", &["1234"]),
            ("--user app --group-add extra", "1000", "1000", &["50", "1000", "1234"]),
            ("--group-add 77 --group-add staff", "0", "0", &["0", "50", "77"]),
        ];
        for (options, user, group, groups) in cases {
            let seen = id(options)?;
            assert_eq!((seen.0.as_str(), seen.1.as_str()), (user, group), "{options}");
            assert_eq!(seen.2, groups, "{options}");
        }
        for options in ["--user nosuch", "--user app:nosuch", "--group-add nosuch"] {
            let said = daemon.fails(format!("run --rm {options} busybox true"))?;
            assert!(said.contains("nosuch"), "{options}: {said}");
        }
        Ok(())
    })
}

#[test]
fn directories_names_and_files_that_the_daemon_writes() -> TestResult {
    with_busybox(|daemon| {
        assert_eq!(daemon.ok("run --rm --workdir /new/one busybox pwd")?, "/new/one");
        let said = daemon.fails("run --rm --workdir relative busybox pwd")?;
        assert!(said.contains("needs to be an absolute path"), "{said}");

        let names = "hostname; cat /etc/hostname; cat /proc/sys/kernel/domainname; cat /etc/hosts";
        let seen = daemon.ok([
            "run",
            "--rm",
            "--hostname",
            "box",
            "--domainname",
            "test",
            "--add-host",
            "other:192.0.2.7",
            "busybox",
            "sh",
            "-c",
            names,
        ])?;
        assert!(seen.starts_with("box\nbox\ntest\n"), "{seen}");
        assert!(seen.contains("127.0.0.1\tlocalhost"), "{seen}");
        assert!(seen.contains("192.0.2.7\tother"), "{seen}");
        assert!(seen.lines().any(|l| l.contains("box.test")), "{seen}");
        let seen = daemon.ok([
            "run",
            "--rm",
            "--dns",
            "192.0.2.53",
            "--dns-search",
            "example.test",
            "busybox",
            "cat",
            "/etc/resolv.conf",
        ])?;
        assert!(seen.contains("nameserver 192.0.2.53"), "{seen}");
        assert!(seen.contains("search example.test"), "{seen}");
        Ok(())
    })
}

#[test]
fn detached_containers_go_on_and_remove_themselves_if_told() -> TestResult {
    with_busybox(|daemon| {
        let file = daemon.path("cid");
        let id = daemon.ok(format!(
            "run --detach --rm --name brief --cidfile {} busybox {UNTIL_TOLD}",
            file.display()
        ))?;
        assert_eq!((id.len(), std::fs::read_to_string(&file)?), (64, id.clone()));
        assert_eq!(daemon.inspect("brief")?["State"]["Running"], true);
        let said = daemon.fails("run --name brief busybox true")?;
        assert!(
            said.contains("Conflict. The container name \"/brief\" is already in use"),
            "{said}"
        );
        assert!(said.contains(&id), "{said}");
        daemon.ok("stop brief")?;
        wait_until("it removed itself", 5, || Ok(daemon.ok("ps --all --quiet")?.is_empty()))?;

        let id = daemon.ok("run --detach --label a=b --label c busybox true")?;
        let labels = &daemon.inspect(&id)?["Config"]["Labels"];
        assert_eq!((&labels["a"], &labels["c"]), (&"b".into(), &"".into()));
        // A name of the daemon's making, in two words.
        let name = daemon.inspect(&id)?["Name"].as_str().unwrap_or_default().to_owned();
        check(name.starts_with('/') && name.contains('_'), "name", name)
    })
}

#[test]
fn stopping_uses_the_containers_signal_and_patience() -> TestResult {
    with_busybox(|daemon| {
        let trap = "sh -c 'trap \"exit 42\" USR1; while :; do sleep 1 & wait $!; done'";
        daemon.ok(format!("run -d --name asks --stop-signal SIGUSR1 busybox {trap}"))?;
        daemon.ok("stop asks")?;
        assert_eq!(daemon.inspect("asks")?["State"]["ExitCode"], 42);

        daemon.ok("run -d --name deaf --stop-timeout 1 busybox \
             sh -c 'trap : TERM; while :; do sleep 1; done'")?;
        let start = std::time::Instant::now();
        daemon.ok("stop deaf")?;
        let took = start.elapsed().as_millis();
        assert!((900..5000).contains(&took), "{took} ms");
        assert_eq!(daemon.inspect("deaf")?["State"]["ExitCode"], 137);
        Ok(())
    })
}

#[test]
fn an_init_of_ours_reaps_and_passes_signals_on() -> TestResult {
    with_busybox(|daemon| {
        // The script's child is orphaned; init reaps it.
        daemon.ok(format!("run -d --init --name inits busybox {UNTIL_TOLD}"))?;
        let first = daemon.ok("exec inits cat /proc/1/comm")?;
        assert_ne!(first, "sh", "not the program itself");
        daemon.ok("exec inits sh -c '(sleep 0.1 &)'")?;
        wait_until("no zombie is left", 5, || {
            Ok(!daemon.ok("exec inits ps -o stat,comm")?.lines().any(|l| l.starts_with('Z')))
        })?;
        daemon.ok("stop inits")?;
        assert_eq!(daemon.inspect("inits")?["State"]["ExitCode"], 0);
        assert_eq!(daemon.docker("run --rm --init busybox sh -c 'exit 9'")?.status, 9);
        Ok(())
    })
}

#[test]
fn a_whole_distribution_runs() -> TestResult {
    daemon_test(|daemon| {
        gantry_test_harness::requires!("debootstrap");
        daemon.load(Fixture::Debian)?;
        let seen = daemon.ok("run --rm debian \
             bash -c '. /etc/os-release; echo $ID; dpkg --list | wc -l; perl -e \"print 6*7\"'")?;
        assert!(seen.starts_with("debian\n") && seen.ends_with("42"), "{seen}");
        daemon.ok(
            "run --name edits debian bash -c 'useradd --create-home someone && su someone -c id'",
        )?;
        Ok(())
    })
}

#[test]
fn many_start_at_once() -> TestResult {
    with_busybox(|daemon| {
        std::thread::scope(|scope| {
            let daemon = &*daemon;
            let starts: Vec<_> = (0..12)
                .map(|i| {
                    scope.spawn(move || {
                        daemon.ok(format!("run --rm --network none busybox echo {i}"))
                    })
                })
                .collect();
            for (i, start) in starts.into_iter().enumerate() {
                let said = start.join().map_err(|_| anyhow::anyhow!("panicked"))??;
                assert_eq!(said, i.to_string());
            }
            anyhow::Ok(())
        })?;
        sleeper(daemon, "after", "--network none")?;
        Ok(())
    })
}
