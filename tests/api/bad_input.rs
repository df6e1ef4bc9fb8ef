//! Input that no client sends by mistake: the reference's status, a message, and no change.
//!
//! Where the reference answers 500 to what is plainly the client's mistake (a number that is none in a
//! query, a bind without a target), 400 is expected.

use anyhow::Result;
use gantry_test_harness::http::{self, Request};
use gantry_test_harness::{TestDaemon, TestResult};

use crate::support::{sleeper, with_busybox};

/// A request, the statuses it may get, and a part of the message.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [u16], &'a str);

/// Sends all of them, checks each answer, and that there is as much as before.
fn refuses(daemon: &TestDaemon, cases: &[Case<'_>]) -> TestResult {
    let before = what_there_is(daemon)?;
    let mut wrong = Vec::new();
    for (method, path, body, statuses, part) in cases {
        let answer = daemon.http(method, path, body.as_bytes())?;
        // `attach` has taken the connection over by then and answers in plain words.
        let message = answer.text().to_lowercase();
        let clear = !message.is_empty() && message.contains(&part.to_lowercase());
        if !statuses.contains(&answer.status) || !clear || message.contains("panic") {
            wrong.push(format!(
                "{method} {path} {body}: {} {}",
                answer.status,
                answer.text().trim()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(what_there_is(daemon)?, before, "something changed");
    Ok(())
}

fn what_there_is(daemon: &TestDaemon) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for line in [
        "ps --all --no-trunc --format '{{.ID}} {{.Names}} {{.State}}'",
        "images --no-trunc",
        "volume ls",
    ] {
        all.push(daemon.ok(line)?);
    }
    Ok(all)
}

#[test]
fn bodies_that_are_no_json_or_of_the_wrong_type() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "box", "")?;
        let mut cases: Vec<Case<'_>> = Vec::new();
        for path in ["/containers/create", "/containers/box/exec", "/volumes/create", "/auth"] {
            for body in ["{", "[]", "\"x\"", "{\"a\":}", "nul", "{\"Cmd\":\"\u{0}\"", "1"] {
                cases.push(("POST", path, body, &[400], ""));
            }
        }
        for body in [
            r#"{"Image":7}"#,
            r#"{"Image":"busybox","Env":"A=b"}"#,
            r#"{"Image":"busybox","HostConfig":[]}"#,
            r#"{"Image":"busybox","HostConfig":{"Memory":"much"}}"#,
            r#"{"Image":"busybox","HostConfig":{"Memory":1e300}}"#,
            r#"{"Image":"busybox","ExposedPorts":["80"]}"#,
            r#"{"Image":"busybox","Labels":{"a":1}}"#,
        ] {
            cases.push(("POST", "/containers/create", body, &[400], ""));
        }
        cases.push(("POST", "/volumes/create", r#"{"Name":7}"#, &[400], ""));
        cases.push(("POST", "/volumes/create", r#"{"DriverOpts":"x"}"#, &[400], ""));
        cases.push(("POST", "/containers/box/exec", r#"{"Cmd":{"a":"b"}}"#, &[400], ""));
        cases.push(("POST", "/auth", r#"{"username":7}"#, &[400], ""));
        refuses(daemon, &cases)
    })
}

#[test]
fn values_that_cannot_be() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "box", "")?;
        let create = "/containers/create";
        let cases: [Case<'_>; 18] = [
            ("POST", create, r#"{"Image":"nosuch:1"}"#, &[404], "No such image: nosuch:1"),
            ("POST", create, r#"{"Image":"UPPER:1"}"#, &[400], "reference"),
            ("POST", create, r#"{"Image":"busybox","Env":["=b"]}"#, &[400], "environment variable"),
            ("POST", create, r#"{"Image":"busybox","StopSignal":"NOPE"}"#, &[400], "nope"),
            (
                "POST",
                create,
                r#"{"Image":"busybox","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"x"}]}}}"#,
                &[400],
                "port",
            ),
            (
                "POST",
                create,
                r#"{"Image":"busybox","HostConfig":{"NetworkMode":"container:"}}"#,
                &[400, 404],
                "",
            ),
            (
                "POST",
                create,
                r#"{"Image":"busybox","HostConfig":{"RestartPolicy":{"Name":"often"}}}"#,
                &[400],
                "often",
            ),
            ("POST", create, r#"{"Image":"busybox","HostConfig":{"Binds":["/:"]}}"#, &[400], ""),
            (
                "POST",
                create,
                r#"{"Image":"busybox","HostConfig":{"Binds":["a:b:c:d:e"]}}"#,
                &[400],
                "",
            ),
            (
                "POST",
                create,
                r#"{"Image":"busybox","HostConfig":{"Runtime":"nosuch"}}"#,
                &[400],
                "nosuch",
            ),
            (
                "POST",
                create,
                r#"{"Image":"busybox","HostConfig":{"PidMode":"nonsense"}}"#,
                &[400],
                "nonsense",
            ),
            (
                "POST",
                "/containers/create?name=-bad",
                r#"{"Image":"busybox"}"#,
                &[400],
                "Invalid container name",
            ),
            (
                "POST",
                "/containers/create?name=a%2Fb",
                r#"{"Image":"busybox"}"#,
                &[400],
                "Invalid container name",
            ),
            (
                "POST",
                "/containers/create?platform=nonsense/x/y/z",
                r#"{"Image":"busybox"}"#,
                &[400],
                "",
            ),
            ("POST", "/containers/box/kill?signal=NOPE", "", &[400], "nope"),
            ("POST", "/containers/box/stop?t=soon", "", &[400], ""),
            (
                "POST",
                "/volumes/create",
                r#"{"Name":"../../etc"}"#,
                &[400],
                "includes invalid characters",
            ),
            ("POST", "/volumes/create", r#"{"Name":"x","Driver":"nosuch"}"#, &[400, 404], "nosuch"),
        ];
        refuses(daemon, &cases)
    })
}

#[test]
fn queries_that_mean_nothing() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "box", "")?;
        let cases: [Case<'_>; 13] = [
            ("GET", "/containers/json?filters=nonsense", "", &[400], ""),
            (
                "GET",
                "/containers/json?filters=%7B%22nonsense%22:%5B%22x%22%5D%7D",
                "",
                &[400],
                "nonsense",
            ),
            ("GET", "/containers/json?limit=many", "", &[400], ""),
            ("GET", "/images/json?filters=%5B%5D", "", &[400], ""),
            (
                "GET",
                "/images/json?filters=%7B%22nonsense%22:%5B%22x%22%5D%7D",
                "",
                &[400],
                "nonsense",
            ),
            ("GET", "/volumes?filters=%7B%22nonsense%22:%5B%22x%22%5D%7D", "", &[400], "nonsense"),
            ("GET", "/events?since=yesterday", "", &[400], ""),
            ("GET", "/events?filters=%7B", "", &[400], ""),
            ("GET", "/system/df?type=nonsense", "", &[400], "nonsense"),
            ("GET", "/containers/box/logs?stdout=1&tail=x&since=x", "", &[400], ""),
            (
                "POST",
                "/images/prune?filters=%7B%22nonsense%22:%5B%22x%22%5D%7D",
                "",
                &[400],
                "nonsense",
            ),
            (
                "POST",
                "/volumes/prune?filters=%7B%22nonsense%22:%5B%22x%22%5D%7D",
                "",
                &[400],
                "nonsense",
            ),
            ("POST", "/containers/box/attach?detachKeys=ctrl-ctrl&stream=1", "", &[400], ""),
        ];
        refuses(daemon, &cases)
    })
}

#[test]
fn names_that_nothing_has_and_paths_that_climb() -> TestResult {
    with_busybox(|daemon| {
        let mut cases: Vec<(String, String)> = Vec::new();
        for name in ["nosuch", "..%2F..%2Fetc%2Fpasswd", "%2E%2E", "%00", "a%0Ab", "%FF%FE", "*"] {
            for (method, template) in [
                ("GET", "/containers/NAME/json"),
                ("GET", "/containers/NAME/logs?stdout=1"),
                ("POST", "/containers/NAME/start"),
                ("POST", "/containers/NAME/stop"),
                ("POST", "/containers/NAME/kill"),
                ("POST", "/containers/NAME/restart"),
                ("POST", "/containers/NAME/wait"),
                ("POST", "/containers/NAME/resize?h=1&w=1"),
                ("POST", "/containers/NAME/rename?name=ok"),
                ("POST", "/containers/NAME/attach?stream=1"),
                ("DELETE", "/containers/NAME?force=1"),
                ("GET", "/exec/NAME/json"),
                ("POST", "/exec/NAME/resize?h=1&w=1"),
                ("GET", "/images/NAME/json"),
                ("GET", "/images/NAME/history"),
                ("POST", "/images/NAME/tag?repo=a&tag=b"),
                ("DELETE", "/images/NAME"),
                ("GET", "/volumes/NAME"),
                ("DELETE", "/volumes/NAME"),
                ("GET", "/networks/NAME"),
            ] {
                cases.push((method.to_owned(), template.replace("NAME", name)));
            }
        }
        let before = what_there_is(daemon)?;
        let mut wrong = Vec::new();
        for (method, path) in &cases {
            let answer = daemon.http(method, path, b"")?;
            // `attach` answers in plain words, as it has taken the connection over.
            if !matches!(answer.status, 400 | 404) || answer.text().is_empty() {
                wrong.push(format!("{method} {path}: {} {}", answer.status, answer.text().trim()));
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
        assert_eq!(what_there_is(daemon)?, before);
        Ok(())
    })
}

#[test]
fn requests_that_are_too_much() -> TestResult {
    with_busybox(|daemon| {
        let before = what_there_is(daemon)?;
        let long = "x".repeat(200_000);
        let get = |path: &str, more: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{more}\r\n")
        };
        let create =
            |more: &str| format!("POST /containers/create HTTP/1.1\r\nHost: d\r\n{more}\r\n{{}}");
        let cases = [
            ("a long path", get(&format!("/containers/{long}/json"), "")),
            ("a long header", get("/_ping", &format!("X-Y: {long}{long}{long}\r\n"))),
            ("many headers", get("/_ping", &"A: b\r\n".repeat(5000))),
            ("no request at all", "\x16\x03\x01\x02\0nonsense\r\n\r\n".to_owned()),
            ("a length that is none", create("Content-Length: many\r\n")),
            ("two lengths", create("Content-Length: 1\r\nContent-Length: 2\r\n")),
        ];
        for (what, bytes) in cases {
            // An answer, as long as it is no accident, or a closed connection.
            if let Ok(answer) = http::raw(&daemon.socket(), bytes.as_bytes())
                && !answer.is_empty()
            {
                let answer = http::parse(&answer, false)?;
                assert!(answer.status < 500, "{what}: {}", answer.status);
            }
            assert_eq!(daemon.http("GET", "/_ping", b"")?.status, 200, "after {what}");
        }
        // Deep and large bodies.
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let wide = format!("{{\"Image\":\"{}\"}}", "y".repeat(20_000_000));
        for (what, body) in [("deep", deep), ("wide", wide)] {
            let request = Request {
                method: "POST",
                path: "/containers/create",
                headers: &[("Content-Type", "application/json")],
                body: body.as_bytes(),
            };
            if let Ok(answer) = http::send(&daemon.socket(), &request) {
                assert!((400..500).contains(&answer.status), "{what}: {}", answer.status);
            }
            assert_eq!(daemon.http("GET", "/_ping", b"")?.status, 200, "after {what}");
        }
        assert_eq!(what_there_is(daemon)?, before);
        Ok(())
    })
}

#[test]
fn a_body_for_start_and_another_content_type_are_refused() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("create --name box busybox true")?;
        let answer = daemon.http("POST", "/containers/box/start", b"{\"HostConfig\":{}}")?;
        assert_eq!(answer.status, 400, "{}", answer.text());
        let plain = Request {
            method: "POST",
            path: "/containers/create",
            headers: &[("Content-Type", "text/plain")],
            body: br#"{"Image":"busybox"}"#,
        };
        let answer = daemon.request(&plain)?;
        assert_eq!(answer.status, 400, "{}", answer.text());
        // `attach` has taken the connection over by then and answers in plain words.
        let message = answer.text().to_lowercase();
        assert!(message.contains("content-type"), "{message}");
        assert_eq!(daemon.ok("ps --all --format '{{.State}}'")?, "created");
        Ok(())
    })
}

#[test]
fn slow_and_silent_clients_hold_nobody_up() -> TestResult {
    with_busybox(|daemon| {
        use std::io::Write;
        let mut held = Vec::new();
        for _ in 0..50 {
            let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket())?;
            stream.write_all(b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Le")?;
            held.push(stream);
        }
        let start = std::time::Instant::now();
        assert_eq!(daemon.http("GET", "/containers/json", b"")?.status, 200);
        assert!(start.elapsed().as_secs() < 2);
        Ok(())
    })
}
