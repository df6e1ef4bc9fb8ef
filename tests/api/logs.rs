//! `logs`: what the container said, when, and from which stream.

use gantry_test_harness::http::demultiplex;
use gantry_test_harness::{TestResult, wait_until};

use crate::support::with_busybox;

#[test]
fn both_streams_are_kept_and_told_apart() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run --name says busybox sh -c 'echo one; echo two >&2; printf three'")?;
        let output = daemon.docker("logs says")?;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("one\nthree", "two\n"));
        let raw = daemon.http("GET", "/containers/says/logs?stdout=1&stderr=1", b"")?;
        assert_eq!(raw.status, 200);
        assert_eq!(raw.header("Content-Type"), Some("application/vnd.docker.multiplexed-stream"));
        let mut frames = demultiplex(&raw.body)?;
        frames.sort();
        assert_eq!(
            frames,
            [(1, b"one\n".to_vec()), (1, b"three".to_vec()), (2, b"two\n".to_vec())]
        );
        let only = daemon.http("GET", "/containers/says/logs?stderr=1", b"")?;
        assert_eq!(demultiplex(&only.body)?, [(2, b"two\n".to_vec())]);
        let none = daemon.http("GET", "/containers/says/logs", b"")?;
        assert_eq!(none.status, 400, "{}", none.text());
        assert!(none.message().contains("must choose at least one stream"), "{}", none.message());
        Ok(())
    })
}

#[test]
fn the_tail_and_the_times_choose() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run --name counts busybox sh -c 'seq 1 5; sleep 1.2; seq 6 10'")?;
        assert_eq!(daemon.ok("logs --tail 2 counts")?, "9\n10");
        assert_eq!(daemon.ok("logs --tail 0 counts")?, "");
        assert_eq!(daemon.ok("logs --tail 100 counts")?.lines().count(), 10);
        let stamped = daemon.ok("logs --timestamps counts")?;
        let lines: Vec<_> = stamped.lines().filter_map(|l| l.split_once(' ')).collect();
        assert_eq!(lines.len(), 10, "{stamped}");
        assert!(lines.iter().all(|(time, _)| time.len() >= 20 && time.ends_with('Z')), "{stamped}");
        let sixth = lines[5].0;
        let since = daemon.ok(format!("logs --since {sixth} counts"))?;
        assert_eq!(since.lines().next(), Some("6"), "{since}");
        let until = daemon.ok(format!("logs --until {} counts", lines[4].0))?;
        assert_eq!(until.lines().last(), Some("5"), "{until}");
        Ok(())
    })
}

#[test]
fn following_ends_with_the_container() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok(
            "run -d --name talks busybox sh -c 'for i in 1 2 3 4; do echo $i; sleep 0.3; done'",
        )?;
        assert_eq!(daemon.ok("logs --follow talks")?, "1\n2\n3\n4");
        // A container that is over has nothing to follow.
        assert_eq!(daemon.ok("logs --follow --tail 1 talks")?, "4");
        Ok(())
    })
}

#[test]
fn details_show_the_chosen_labels_and_variables() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok(
            "run --name detailed --log-opt labels=a --log-opt env=E --label a=b --label c=d -e E=f \
             busybox echo line",
        )?;
        let line = daemon.ok("logs --details detailed")?;
        assert!(line.contains("a=b") && line.contains("E=f") && line.ends_with("line"), "{line}");
        assert!(!line.contains("c=d"), "{line}");
        Ok(())
    })
}

#[test]
fn files_are_rotated_and_read_across() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok(
            "run --name rotates --log-opt max-size=10k --log-opt max-file=3 busybox seq 1 2000",
        )?;
        let path = daemon.inspect("rotates")?["LogPath"].as_str().unwrap_or_default().to_owned();
        let total: u64 = ["", ".1", ".2"]
            .iter()
            .filter_map(|suffix| std::fs::metadata(format!("{path}{suffix}")).ok())
            .map(|m| m.len())
            .sum();
        assert!((10_000..40_000).contains(&total), "{total} bytes");
        assert!(!std::path::Path::new(&format!("{path}.3")).exists());
        let kept = daemon.ok("logs rotates")?;
        assert_eq!(kept.lines().last(), Some("2000"));
        assert!(kept.lines().count() > 100, "{}", kept.lines().count());
        // What is kept has no hole.
        let numbers: Vec<u32> = kept.lines().filter_map(|l| l.parse().ok()).collect();
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{numbers:?}");
        assert_eq!(daemon.ok("logs --tail 3 rotates")?, "1998\n1999\n2000");
        Ok(())
    })
}

#[test]
fn the_log_file_has_the_form_that_collectors_read() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run --name formed busybox sh -c 'echo \"a \\\"b\\\" <c>\"; printf end'")?;
        let path = daemon.inspect("formed")?["LogPath"].as_str().unwrap_or_default().to_owned();
        let text = std::fs::read_to_string(path)?;
        let lines: Vec<serde_json::Value> =
            text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(
            (&lines[0]["log"], &lines[0]["stream"]),
            (&"a \"b\" <c>\n".into(), &"stdout".into())
        );
        assert!(lines[0]["time"].as_str().is_some_and(|t| t.ends_with('Z')), "{text}");
        assert_eq!(lines[1]["log"], "end");
        Ok(())
    })
}

#[test]
fn long_lines_and_bytes_of_any_kind_survive() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run --name long busybox \
             sh -c 'head -c 100000 /dev/zero | tr \"\\0\" x; echo; echo end'")?;
        let lines = daemon.ok("logs long")?;
        let lengths: Vec<_> = lines.lines().map(str::len).collect();
        assert_eq!(lengths, [100_000, 3]);
        assert_eq!(daemon.ok("logs --tail 1 long")?, "end");
        Ok(())
    })
}

#[test]
fn a_driver_may_keep_nothing_and_a_wrong_one_is_refused() -> TestResult {
    with_busybox(|daemon| {
        assert_eq!(daemon.ok("run --name quiet --log-driver none busybox echo hi")?, "hi");
        let said = daemon.fails("logs quiet")?;
        assert!(said.contains("configured logging driver does not support reading"), "{said}");
        let said = daemon.fails("run --log-driver nosuch busybox true")?;
        assert!(said.contains("nosuch"), "{said}");
        let said = daemon.fails("create --log-opt nonsense=1 busybox true")?;
        assert!(said.contains("unknown log opt 'nonsense' for json-file log driver"), "{said}");
        Ok(())
    })
}

#[test]
fn a_container_never_waits_for_its_readers() -> TestResult {
    with_busybox(|daemon| {
        let path = "/containers/floods/logs?stdout=1&follow=1";
        daemon.ok("create --name floods busybox sh -c 'seq 1 200000; echo over'")?;
        daemon.ok("start floods")?;
        let request =
            gantry_test_harness::http::Request { method: "GET", path, headers: &[], body: b"" };
        // Opened and never read.
        let (_head, _stream) = gantry_test_harness::http::open(&daemon.socket(), &request, false)?;
        wait_until(
            "it is over",
            20,
            || Ok(daemon.inspect("floods")?["State"]["Running"] == false),
        )?;
        assert_eq!(daemon.ok("logs --tail 1 floods")?, "over");
        Ok(())
    })
}
