//! The daemon is killed, at chosen and at random moments, and started again: what it says then is
//! true, and nothing is left over.

mod storage_swap;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_test_harness::{TestDaemon, TestResult, daemon_test, wait_until};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;

const UNTIL_TOLD: &str = "sh -c 'trap \"exit 0\" TERM; while :; do sleep 1 & wait $!; done'";

/// How many times the daemon is killed in [`killed_at_random_moments`].
const ROUNDS: usize = 50;

#[test]
fn what_runs_goes_on_and_is_found_again() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        daemon.ok("run -d --name counts busybox \
             sh -c 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done'")?;
        daemon.ok("run -d -i --name reads busybox sh -c 'read x; echo got $x; exit 3'")?;
        daemon.ok(format!("run -d --name web -p 8080:80 busybox {UNTIL_TOLD}"))?;
        let pid = |daemon: &TestDaemon, name: &str| -> Result<Value> {
            Ok(daemon.inspect(name)?["State"]["Pid"].clone())
        };
        let before = pid(daemon, "counts")?;
        daemon.kill9()?;
        daemon.start_again()?;
        assert_eq!(pid(daemon, "counts")?, before);
        let lines = |daemon: &TestDaemon| -> Result<usize> {
            Ok(daemon.ok("logs counts")?.lines().count())
        };
        let then = lines(daemon)?;
        wait_until("it still counts", 5, || Ok(lines(daemon)? > then + 3))?;
        let all = daemon.ok("logs counts")?;
        let numbers: Vec<u32> = all.lines().filter_map(|l| l.parse().ok()).collect();
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "no line was lost: {numbers:?}");
        // Everything that can be done to a running container still can.
        assert_eq!(daemon.ok("exec counts echo hi")?, "hi");
        let output = daemon.docker_with_input("attach reads", b"line\n")?;
        assert_eq!(output.status, 3, "{output}");
        assert_eq!(daemon.ok("logs reads")?, "got line");
        assert_eq!(daemon.ok("port web 80")?.lines().next(), Some("0.0.0.0:8080"));
        daemon.ok("stop web")?;
        assert_eq!(daemon.inspect("web")?["State"]["ExitCode"], 0);
        Ok(())
    })
}

#[test]
fn an_exit_without_a_daemon_is_known_afterwards() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        daemon.ok("run -d --name ends busybox sh -c 'sleep 0.5; echo last words; exit 42'")?;
        daemon.ok("run -d --rm --name vanishes busybox sh -c 'sleep 0.5'")?;
        daemon.kill9()?;
        std::thread::sleep(Duration::from_millis(1200)); // the containers' own time
        daemon.start_again()?;
        let state = daemon.inspect("ends")?["State"].clone();
        assert_eq!((&state["Status"], &state["ExitCode"]), (&"exited".into(), &42.into()));
        assert!(state["FinishedAt"].as_str() > state["StartedAt"].as_str(), "{state}");
        assert_eq!(daemon.ok("logs ends")?, "last words");
        assert_eq!(daemon.ok("wait ends")?, "42");
        wait_until("--rm is kept", 5, || {
            Ok(daemon.http("GET", "/containers/vanishes/json", b"")?.status == 404)
        })
    })
}

#[test]
fn what_was_acknowledged_is_there() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        daemon.ok("volume create --label a=b vol")?;
        daemon.ok("create --name made --label c=d -v vol:/v busybox true")?;
        daemon.ok("tag busybox tagged:1")?;
        daemon.kill9()?;
        daemon.start_again()?;
        assert_eq!(daemon.inspect("made")?["Config"]["Labels"]["c"], "d");
        assert_eq!(daemon.get("/volumes/vol")?["Labels"]["a"], "b");
        assert_eq!(daemon.ok("images --quiet tagged:1")?.len(), 12);
        daemon.ok("start --attach made")?;
        daemon.ok("rename made renamed")?;
        daemon.kill9()?;
        daemon.start_again()?;
        assert_eq!(daemon.inspect("renamed")?["State"]["Status"], "exited");
        daemon.ok("rm renamed")?;
        daemon.kill9()?;
        daemon.start_again()?;
        assert_eq!(daemon.http("GET", "/containers/renamed/json", b"")?.status, 404);
        Ok(())
    })
}

#[test]
fn a_machine_that_restarted_has_no_running_containers() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        daemon.ok(format!("run -d --name ran busybox {UNTIL_TOLD}"))?;
        daemon.kill9()?;
        // Everything ends, shims too, and what was in memory is gone.
        daemon.sandbox().try_sh("kill -9 -1")?;
        wait_until("all are dead", 5, || Ok(daemon.sandbox().processes()?.len() == 1))?;
        daemon.start_again()?;
        let state = daemon.inspect("ran")?["State"].clone();
        assert_eq!((&state["Running"], &state["Pid"]), (&false.into(), &0.into()), "{state}");
        daemon.ok("start ran")?;
        assert_eq!(daemon.ok("exec ran echo again")?, "again");
        Ok(())
    })
}

/// What a client does until the daemon is gone; every refusal is one more thing to be right about.
fn disturb(daemon: &TestDaemon, stop: &AtomicBool, worker: usize, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        let name = format!("w{worker}-{}", random.random_range(0..3_u32));
        let network = if random.random_bool(0.5) { "bridge" } else { "none" };
        let line = match random.random_range(0..7_u32) {
            0 | 1 => format!("run -d --name {name} --network {network} busybox {UNTIL_TOLD}"),
            2 => format!("run --rm --network {network} -v /data busybox true"),
            3 => format!("stop --time 2 {name}"),
            4 => format!("kill {name}"),
            5 => format!("rm --force --volumes {name}"),
            _ => format!("start {name}"),
        };
        daemon.docker(line).ok();
    }
}

/// After a restart: what is said to run runs, what is said not to does not, and all of it obeys.
fn tells_the_truth(daemon: &TestDaemon) -> TestResult {
    let list = daemon.get("/containers/json?all=1")?;
    let processes = daemon.sandbox().processes()?;
    let mut running = 0;
    for container in list.as_array().context("no list")? {
        let id = container["Id"].as_str().context("no Id")?;
        let state = daemon.inspect(id)?["State"].clone();
        let pid = state["Pid"].as_u64().context("no Pid")?;
        match state["Status"].as_str().context("no Status")? {
            "running" => {
                running += 1;
                let alive = processes
                    .iter()
                    .any(|(p, line)| u64::from(*p) == pid && !line.starts_with('['));
                ensure!(alive, "{id} is said to run as {pid}, which is not there");
                daemon.ok(format!("exec {id} true"))?;
            }
            "created" | "exited" => {
                ensure!(pid == 0, "{id} is over and has the pid {pid}");
                daemon.ok(format!("start {id}"))?;
                daemon.ok(format!("kill {id}"))?;
            }
            other => anyhow::bail!("{id} is {other}"),
        }
    }
    let shims = processes.iter().filter(|(_, line)| line.contains("gantry-shim")).count();
    ensure!(shims == running, "{shims} shims for {running} containers: {processes:?}");
    Ok(())
}

#[test]
fn killed_at_random_moments() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        let seed = std::env::var("GANTRY_TEST_SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(rand::random::<u64>);
        eprintln!("GANTRY_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for round in 0..ROUNDS {
            let stop = AtomicBool::new(false);
            let pid = i32::try_from(daemon.pid()?)?;
            let pause = Duration::from_millis(random.random_range(50..500));
            std::thread::scope(|scope| {
                for worker in 0..3 {
                    let (daemon, stop) = (&*daemon, &stop);
                    let seed = seed.wrapping_add((round * 10 + worker) as u64);
                    scope.spawn(move || disturb(daemon, stop, worker, seed));
                }
                std::thread::sleep(pause);
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                )
                .ok();
                stop.store(true, Ordering::Relaxed);
            });
            daemon.reap()?;
            daemon.start_again()?;
            // Removals that the kill interrupted end by themselves.
            let mut truth = Ok(());
            let settled = wait_until("the truth is told", 10, || {
                truth = tells_the_truth(daemon);
                Ok(truth.is_ok())
            });
            truth.with_context(|| format!("in round {round} with seed {seed}"))?;
            settled?;
        }
        Ok(())
    })
}
