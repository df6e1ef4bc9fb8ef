//! `commit`, `diff`, `export`, `save` and `df`: what becomes of what containers change.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context, Result, ensure};
use gantry_test_harness::fixtures::Fixture;
use gantry_test_harness::{
    Setup, TestDaemon, TestResult, daemon_test, daemon_test_with, wait_until,
};
use serde_json::Value;

use crate::support::{sleeper, strings, with_busybox};

/// A container's script that changes a little of everything.
const CHANGES: &str = "rm /etc/group; echo x >>/etc/passwd; mkdir /new; echo deep >/new/file; \
    chmod 700 /home/app; ln -s /no/where /new/link";

/// What `docker diff` says of [`CHANGES`].
const EXPECTED: &[&str] = &[
    "A /new",
    "A /new/file",
    "A /new/link",
    "C /etc",
    "C /etc/passwd",
    "C /home",
    "C /home/app",
    "D /etc/group",
];

fn differences(daemon: &TestDaemon, container: &str) -> Result<Vec<String>> {
    let said = daemon.ok(format!("diff {container}"))?;
    let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    Ok(lines)
}

#[test]
fn diff_tells_what_was_added_changed_and_deleted() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("create --name untouched busybox true")?;
        assert_eq!(daemon.ok("diff untouched")?, "");
        daemon.ok("start --attach untouched")?;
        assert_eq!(daemon.ok("diff untouched")?, "");

        sleeper(daemon, "runs", "")?;
        daemon.ok(["exec", "runs", "sh", "-c", CHANGES])?;
        assert_eq!(differences(daemon, "runs")?, EXPECTED);
        daemon.ok("stop --time 0 runs")?;
        assert_eq!(differences(daemon, "runs")?, EXPECTED);
        let answer = daemon.get("/containers/runs/changes")?;
        let kinds: BTreeMap<_, _> = answer
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| Some((c["Path"].as_str()?, c["Kind"].as_u64()?)))
            .collect();
        assert_eq!((kinds["/etc"], kinds["/new"], kinds["/etc/group"]), (0, 1, 2));
        let answer = daemon.http("GET", "/containers/nosuch/changes", b"")?;
        assert_eq!(answer.status, 404);
        Ok(())
    })
}

#[test]
fn a_running_container_becomes_an_image_that_runs() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "runs", "--env KEPT=yes --label of=container")?;
        daemon.ok(["exec", "runs", "sh", "-c", CHANGES])?;
        let id = daemon.ok([
            "commit",
            "--author",
            "ali <a@b.example>",
            "--message",
            "by hand",
            "--change",
            "ENV MORE=1",
            "--change",
            "CMD [\"sh\", \"-c\", \"cat /new/file; echo $KEPT $MORE\"]",
            "--change",
            "LABEL made=so",
            "--change",
            "WORKDIR /new",
            "--pause=true",
            "runs",
            "made/by:commit",
        ])?;
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(daemon.inspect("runs")?["State"]["Status"], "running");
        assert_eq!(daemon.ok("run --rm made/by:commit")?, "deep\nyes 1");
        let seen = daemon.ok("run --rm made/by:commit sh -c 'ls /etc/group; stat -c %a /home/app'");
        ensure!(seen?.ends_with("700"), "not the mode it had");
        let image = daemon.get("/images/made/by:commit/json")?;
        assert_eq!(image["Id"].as_str(), Some(id.as_str()));
        assert_eq!(
            (&image["Comment"], &image["Author"]),
            (&"by hand".into(), &"ali <a@b.example>".into())
        );
        assert_eq!(image["Config"]["WorkingDir"], "/new");
        assert_eq!(image["Config"]["Labels"]["made"], "so");
        assert_eq!(image["Config"]["Labels"]["of"], "container");
        assert_eq!(image["RootFS"]["Layers"].as_array().map(Vec::len), Some(2));
        let history = daemon.get("/images/made/by:commit/history")?;
        assert_eq!(history[0]["Comment"], "by hand");
        assert_eq!(strings(&history[0]["Tags"]), ["made/by:commit"]);
        assert!(history[0]["Size"].as_u64().is_some_and(|size| size > 0 && size < 4096));
        let until = daemon.sandbox().sh("date +%s")?.parse::<u64>()? + 1;
        let line = format!("events --since 1 --until {until} --filter event=commit");
        let events = daemon.ok(line)?;
        assert!(events.contains("commit"), "{events}");
        Ok(())
    })
}

#[test]
fn a_stopped_container_becomes_an_image_without_a_name() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok(["run", "--name", "ended", "busybox", "sh", "-c", CHANGES])?;
        let id = daemon.ok("commit ended")?;
        assert_eq!(daemon.ok(format!("run --rm {id} cat /new/file"))?, "deep");
        let dangling = daemon.ok("images --quiet --no-trunc --filter dangling=true")?;
        assert_eq!(dangling, id);
        let said = daemon.fails("commit nosuch x:1")?;
        assert!(said.contains("nosuch"), "{said}");
        let said = daemon.fails(["commit", "--change", "FROM x", "ended", "x:1"])?;
        assert!(said.to_lowercase().contains("from"), "{said}");
        let said = daemon.fails("commit ended UPPER:1")?;
        assert!(said.contains("lowercase") || said.contains("invalid"), "{said}");
        daemon.ok("rm ended")?;
        assert!(daemon.ok("image prune --force")?.contains(&id));
        Ok(())
    })
}

/// What a tar says of each path: kind, mode, owner, link target and content.
fn listing(tar: &[u8]) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let path = path.trim_start_matches("./").trim_matches('/').to_owned();
        let link = entry.link_name()?.map(|l| l.display().to_string()).unwrap_or_default();
        let header = entry.header();
        let (kind, mode) = (header.entry_type(), header.mode()? & 0o7777);
        let owner = (header.uid()?, header.gid()?);
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        let content = gantry_test_harness::fault_registry::digest(&content);
        all.insert(path, format!("{kind:?} {mode:o} {owner:?} {link} {content}"));
    }
    Ok(all)
}

#[test]
fn an_exported_tree_is_the_containers_and_is_imported_again() -> TestResult {
    daemon_test(|daemon| {
        daemon.load(Fixture::Layered)?;
        sleeper_of(daemon, "layered", "runs")?;
        daemon.ok(["exec", "runs", "sh", "-c", CHANGES])?;
        let file = daemon.path("exported.tar");
        daemon.ok(["export", "--output", &file.display().to_string(), "runs"])?;
        let first = std::fs::read(&file)?;
        let listed = listing(&first)?;
        assert!(!listed.contains_key("etc/group") && !listed.contains_key("data/deleted"));
        assert!(!listed.keys().any(|path| path.contains(".wh.")), "whiteouts in a tree");
        for (path, part) in [
            ("new/link", "Symlink 777 (0, 0) /no/where"),
            ("data/owned", "Regular 640 (1000, 1000)"),
            ("data/set-user-id", "Regular 4755"),
            ("home/app", "Directory 700 (1000, 1000)"),
        ] {
            let seen = listed.get(path).with_context(|| format!("no {path}"))?;
            assert!(seen.starts_with(part), "{path}: {seen}");
        }
        let id = daemon.docker_with_input("import - tree:1", &first)?.success()?;
        assert_eq!(daemon.ok("run --rm tree:1 cat /data/changed /new/file")?, "from layer 3\ndeep");
        daemon.ok("create --name again tree:1 true")?;
        daemon.ok(["export", "--output", &file.display().to_string(), "again"])?;
        let (mut before, mut after) = (listed, listing(&std::fs::read(&file)?)?);
        // What the daemon makes for every container.
        for path in ["dev", "dev/console", "dev/pts", "dev/shm", ".dockerenv", "proc", "sys"] {
            before.remove(path);
            after.remove(path);
        }
        for path in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", ""] {
            before.remove(path);
            after.remove(path);
        }
        let differs: Vec<_> =
            before.iter().filter(|(path, line)| after.get(*path) != Some(line)).collect();
        assert!(differs.is_empty(), "{differs:?}");
        assert_eq!(before.len(), after.len());
        assert!(id.starts_with("sha256:"));
        Ok(())
    })
}

fn sleeper_of(daemon: &TestDaemon, image: &str, name: &str) -> TestResult {
    daemon.ok(format!("run --detach --name {name} {image} {}", crate::support::UNTIL_TOLD))?;
    Ok(())
}

#[test]
fn images_go_to_another_daemon_by_save_and_load() -> TestResult {
    daemon_test(|here| {
        here.load(Fixture::Layered)?;
        here.load(Fixture::BusyboxZstd)?;
        here.ok("create --name one layered true")?;
        here.ok("commit one own:1")?;
        let file = here.path("saved.tar").display().to_string();
        here.ok(["save", "--output", &file, "layered", "busybox:zstd", "own:1"])?;
        let facts = |daemon: &TestDaemon, name: &str| -> Result<(Value, Value, Value)> {
            let image = daemon.get(&format!("/images/{name}/json"))?;
            Ok((
                image["Id"].clone(),
                image["RootFS"].clone(),
                image["Descriptor"]["digest"].clone(),
            ))
        };
        daemon_test(|there| {
            let said = there.ok(["load", "--input", &file])?;
            for name in ["layered:latest", "busybox:zstd", "own:1"] {
                assert!(said.contains(&format!("Loaded image: {name}")), "{said}");
                assert_eq!(facts(there, name)?, facts(here, name)?, "{name}");
            }
            assert_eq!(there.ok("run --rm own:1 cat data/changed")?, "from layer 3");
            // And out of there again, byte for byte the same blobs.
            let again = there.path("again.tar").display().to_string();
            there.ok(["save", "--output", &again, "own:1"])?;
            here.ok("rm one")?;
            let (_, _, digest) = facts(here, "own:1")?;
            here.ok("rmi own:1")?;
            here.ok(["load", "--input", &again])?;
            assert_eq!(facts(here, "own:1")?.2, digest);
            Ok(())
        })
    })
}

#[test]
fn prune_looks_at_labels_and_age() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("create --name one busybox true")?;
        for label in ["keep=yes", "keep=no"] {
            daemon.ok(["commit", "--change", &format!("LABEL {label}"), "one"])?;
        }
        let dangling = || -> Result<usize> {
            Ok(daemon.ok("images --quiet --filter dangling=true")?.lines().count())
        };
        assert_eq!(dangling()?, 2);
        daemon.ok("image prune --force --filter until=1h")?;
        assert_eq!(dangling()?, 2, "made just now");
        daemon.ok("image prune --force --filter label=keep=no")?;
        assert_eq!(dangling()?, 1);
        daemon.ok("image prune --force --filter label!=keep")?;
        assert_eq!(dangling()?, 1);
        daemon.ok("image prune --force")?;
        assert_eq!(dangling()?, 0);
        let answer =
            daemon.http("POST", "/images/prune?filters=%7B%22nosuch%22:%5B%22x%22%5D%7D", b"")?;
        assert_eq!(answer.status, 400, "{}", answer.text());
        Ok(())
    })
}

/// Bytes in use on the file system of the data root.
fn used(daemon: &TestDaemon) -> Result<u64> {
    let data = daemon.path("data");
    let line = format!("stat --file-system --format '%b %f %S' {}", data.display());
    let said = daemon.sandbox().sh(&line)?;
    let numbers: Vec<u64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    Ok((numbers[0] - numbers[1]) * numbers[2])
}

#[test]
fn df_says_what_removal_frees() -> TestResult {
    let setup = Setup { memory: Some("512m"), ..Setup::default() };
    daemon_test_with(setup, |daemon| {
        daemon.load(Fixture::Layered)?;
        daemon.ok("create --name one layered true")?;
        // 8 MiB that no compression makes less.
        daemon.ok("run --name big layered dd if=/dev/urandom of=/big bs=1M count=8")?;
        daemon.ok("commit big big:1")?;
        daemon.ok("rm big one")?;
        let answer = daemon.get("/system/df")?;
        let images: BTreeMap<String, (i64, i64)> = answer["Images"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|image| {
                let name = image["RepoTags"][0].as_str()?.to_owned();
                Some((name, (image["Size"].as_i64()?, image["SharedSize"].as_i64()?)))
            })
            .collect();
        let (size, shared) = *images.get("big:1").context("no big:1")?;
        let unique = size - shared;
        assert!(shared > 500_000 && unique > 8 << 20, "{images:?}");
        let total = answer["LayersSize"].as_i64().context("no LayersSize")?;

        let before = used(daemon)?;
        daemon.ok("rmi big:1")?;
        let daemon = &*daemon;
        let near = |expected: i64| {
            move || {
                let freed = i64::try_from(before - used(daemon)?.min(before))?;
                // Directories, and what the database grew.
                ensure!((freed - expected).abs() < 1 << 20, "freed {freed}, said {expected}");
                Ok(true)
            }
        };
        wait_until("what is its own is freed", 10, near(unique))?;
        daemon.ok("rmi layered")?;
        wait_until("everything is freed", 10, near(total))?;
        assert_eq!(daemon.get("/system/df")?["LayersSize"].as_i64().unwrap_or(0), 0);
        Ok(())
    })
}

#[test]
fn an_image_without_statements_has_none() -> TestResult {
    with_busybox(|daemon| {
        let answer = daemon.http("GET", "/images/nosuch/attestations", b"")?;
        assert_eq!(answer.status, 404, "{}", answer.text());
        let answer = daemon.http("GET", "/images/busybox/attestations", b"")?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        assert_eq!(answer.json()?.as_array().map(Vec::len), Some(0), "{}", answer.text());
        Ok(())
    })
}
