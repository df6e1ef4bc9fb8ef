//! `container prune`.

use gantry_test_harness::TestResult;

use crate::support::{sleeper, with_busybox};

#[test]
fn prune_takes_the_stopped_and_only_those() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "runs", "")?;
        daemon.ok("create --name labelled --label keep busybox true")?;
        daemon.ok("run --name wrote busybox dd if=/dev/zero of=/x bs=1k count=64")?;
        let said = daemon.ok("container prune --force --filter until=2000-01-01T00:00:00")?;
        assert!(said.contains("Total reclaimed space: 0B"), "{said}");
        let said = daemon.ok("container prune --force --filter label!=keep")?;
        assert!(said.contains("65.5"), "{said}");
        let left = daemon.ok("ps --all --format '{{.Names}}'")?;
        assert_eq!(left, "labelled\nruns");
        daemon.ok("container prune --force")?;
        assert_eq!(daemon.ok("ps --all --format '{{.Names}}'")?, "runs");
        let answer =
            daemon.http("POST", "/containers/prune?filters=%7B%22no%22:%5B%22x%22%5D%7D", b"")?;
        assert_eq!(answer.status, 400, "{}", answer.text());
        Ok(())
    })
}
