//! `attach`, hijacked connections, half-close, `resize`.

use std::io::{Read, Write};
use std::net::Shutdown;

use gantry_test_harness::http::{self, Request, demultiplex};
use gantry_test_harness::{TestResult, wait_until};

use crate::support::with_busybox;

const ALL: &str = "stream=1&stdin=1&stdout=1&stderr=1";

#[test]
fn a_hijacked_connection_is_a_pipe_both_ways() -> TestResult {
    with_busybox(|daemon| {
        for (upgrade, status, reason) in [(true, 101, "UPGRADED"), (false, 200, "OK")] {
            let id = daemon.ok("create --interactive busybox sh -c 'cat; echo over >&2'")?;
            let path = format!("/v1.44/containers/{id}/attach?{ALL}");
            let request = Request { method: "POST", path: &path, headers: &[], body: b"" };
            let (head, mut stream) = http::open(&daemon.socket(), &request, upgrade)?;
            assert_eq!((head.status, head.reason.as_str()), (status, reason));
            if upgrade {
                assert_eq!(head.header("Upgrade"), Some("tcp"));
                let kind = Some("application/vnd.docker.multiplexed-stream");
                assert_eq!(head.header("Content-Type"), kind);
            } else {
                let kind = Some("application/vnd.docker.raw-stream");
                assert_eq!(head.header("Content-Type"), kind);
            }
            daemon.ok(format!("start {id}"))?;
            stream.write_all(b"to and fro\n")?;
            // Our end of the pipe: the process sees the end of its input and we hear the rest.
            stream.shutdown(Shutdown::Write)?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            let frames = demultiplex(&all)?;
            assert!(frames.contains(&(1, b"to and fro\n".to_vec())), "{frames:?}");
            assert!(frames.contains(&(2, b"over\n".to_vec())), "{frames:?}");
        }
        Ok(())
    })
}

#[test]
fn the_command_line_attaches_to_what_runs() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run -d -i --name echoes busybox sh -c 'read line; echo got $line; exit 5'")?;
        let output = daemon.docker_with_input("attach echoes", b"hello\n")?;
        assert_eq!(output.status, 5, "{output}");
        assert_eq!(daemon.ok("logs echoes")?, "got hello");
        let said = daemon.fails("attach echoes")?;
        assert!(said.to_lowercase().contains("cannot attach to a stopped container"), "{said}");
        Ok(())
    })
}

#[test]
fn earlier_output_comes_first_when_asked_for() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run --name past busybox echo past")?;
        let path = "/containers/past/attach?logs=1&stdout=1";
        let request = Request { method: "POST", path, headers: &[], body: b"" };
        let (head, mut stream) = http::open(&daemon.socket(), &request, true)?;
        assert_eq!(head.status, 101);
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        assert_eq!(demultiplex(&all)?, [(1, b"past\n".to_vec())]);
        Ok(())
    })
}

#[test]
fn the_detach_keys_leave_the_container_running() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run -d -it --name stays busybox sh")?;
        let path = "/containers/stays/attach?stream=1&stdin=1&stdout=1";
        let request = Request { method: "POST", path, headers: &[], body: b"" };
        let (head, mut stream) = http::open(&daemon.socket(), &request, true)?;
        assert_eq!(head.header("Content-Type"), Some("application/vnd.docker.raw-stream"));
        stream.write_all(b"echo $((6*7))\n")?;
        let mut seen = String::new();
        while !seen.contains("42") {
            let mut part = [0; 256];
            let count = stream.read(&mut part)?;
            anyhow::ensure!(count > 0, "closed early: {seen}");
            seen += &String::from_utf8_lossy(&part[..count]);
        }
        // Control-P, Control-Q.
        stream.write_all(&[16, 17])?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest)?;
        assert_eq!(daemon.inspect("stays")?["State"]["Running"], true);
        daemon.ok("rm --force stays")?;
        Ok(())
    })
}

#[test]
fn a_client_that_vanishes_disturbs_nothing() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run -d -i --name alone busybox sh -c 'while :; do echo x; sleep 0.05; done'")?;
        for _ in 0..5 {
            let path = format!("/containers/alone/attach?{ALL}");
            let request = Request { method: "POST", path: &path, headers: &[], body: b"" };
            let (_, mut stream) = http::open(&daemon.socket(), &request, true)?;
            let mut part = [0; 8];
            stream.read_exact(&mut part)?;
        }
        assert_eq!(daemon.inspect("alone")?["State"]["Running"], true);
        daemon.ok("kill alone")?;
        Ok(())
    })
}

#[test]
fn a_terminal_has_the_size_it_is_given() -> TestResult {
    with_busybox(|daemon| {
        daemon
            .ok("run -d -t --name sized busybox sh -c 'while :; do stty size; sleep 0.1; done'")?;
        let resized = daemon.http("POST", "/containers/sized/resize?h=33&w=101", b"")?;
        assert_eq!(resized.status, 200, "{}", resized.text());
        wait_until("the size is seen", 5, || Ok(daemon.ok("logs sized")?.contains("33 101")))?;
        for query in ["h=x&w=1", "h=1", "", "h=-1&w=1", "h=4294967296&w=1"] {
            let answer = daemon.http("POST", &format!("/containers/sized/resize?{query}"), b"")?;
            assert_eq!(answer.status, 400, "{query}: {}", answer.text());
        }
        daemon.ok("kill sized")?;
        wait_until("it is over", 5, || Ok(daemon.inspect("sized")?["State"]["Running"] == false))?;
        let answer = daemon.http("POST", "/containers/sized/resize?h=1&w=1", b"")?;
        assert_eq!(answer.status, 409, "{}", answer.text());
        Ok(())
    })
}
