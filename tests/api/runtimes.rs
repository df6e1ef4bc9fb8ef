//! Other OCI runtimes by `runtimes` and `--runtime`: the same container, whoever starts it.

use gantry_test_harness::{Setup, TestDaemon, TestResult, daemon_test_with};
use serde_json::json;

fn with_runtimes(body: impl FnOnce(&mut TestDaemon) -> TestResult) -> TestResult {
    let runtimes = json!({"real-runc": {"path": "runc"}, "crun": {"path": "crun"}});
    daemon_test_with(Setup::config(json!({ "runtimes": runtimes })), |daemon| {
        daemon.load_busybox()?;
        body(daemon)
    })
}

#[test]
fn programs_with_runcs_command_line_start_containers_too() -> TestResult {
    with_runtimes(|daemon| {
        for runtime in ["runc", "real-runc", "crun"] {
            let output = daemon.docker(format!(
                "run --rm --runtime {runtime} --user 1000 --network none busybox \
                 sh -c 'id -u; echo err >&2; exit 4'"
            ))?;
            assert_eq!(output.status, 4, "{runtime}: {output:?}");
            assert_eq!(output.stdout.trim(), "1000", "{runtime}");

            daemon.ok(format!("run --detach --name box --runtime {runtime} busybox sleep 600"))?;
            assert_eq!(daemon.ok("exec box echo inside")?, "inside", "{runtime}");
            assert_eq!(daemon.inspect("box")?["HostConfig"]["Runtime"], runtime);
            daemon.ok("stop --time 0 box")?;
            daemon.ok("start box")?;
            daemon.ok("rm --force box")?;
        }
        Ok(())
    })
}

#[test]
fn an_unknown_runtime_is_refused_by_name() -> TestResult {
    with_runtimes(|daemon| {
        let said = daemon.fails("run --rm --runtime nosuch busybox true")?;
        assert!(said.contains("unknown or invalid runtime name: nosuch"), "{said}");
        assert_eq!(daemon.ok("ps --all --quiet")?, "");
        Ok(())
    })
}
