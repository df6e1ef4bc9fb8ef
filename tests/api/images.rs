//! `images`, `inspect`, `history`, `tag`, `rmi`, `image prune`.

use gantry_test_harness::fixtures::Fixture;
use gantry_test_harness::{TestResult, daemon_test};
use serde_json::json;

use crate::support::{sleeper, strings, with_busybox};

#[test]
fn the_list_has_every_tag_and_filters_choose() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        daemon.load(Fixture::Configured)?;
        daemon.ok("tag busybox registry.test:5000/team/tool:v1")?;
        let names = |filter: &str| -> anyhow::Result<Vec<String>> {
            let format = "--format '{{.Repository}}:{{.Tag}}'";
            let shown = daemon.ok(format!("images {filter} {format}"))?;
            let mut names: Vec<_> = shown.lines().map(str::to_owned).collect();
            names.sort_unstable();
            Ok(names)
        };
        let all = ["busybox:latest", "configured:latest", "registry.test:5000/team/tool:v1"];
        assert_eq!(names("")?, all);
        assert_eq!(names("busybox")?, ["busybox:latest"]);
        assert_eq!(names("--filter reference='*/team/*'")?, [all[2]]);
        assert_eq!(names("--filter label=from=image")?, ["configured:latest"]);
        assert_eq!(names("--filter label=from=elsewhere")?, [""; 0]);
        assert_eq!(names("--filter dangling=true")?, [""; 0]);
        // Both images say they were made at the same moment, so neither is before the other.
        assert_eq!(names("--filter before=busybox")?, [""; 0]);
        Ok(())
    })
}

#[test]
fn inspect_shows_the_whole_configuration() -> TestResult {
    daemon_test(|daemon| {
        daemon.load(Fixture::Configured)?;
        let image = daemon.get("/images/configured/json")?;
        let config = &image["Config"];
        assert_eq!(config["User"], "app:staff");
        assert_eq!(config["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(config["Volumes"], json!({"/data": {}}));
        assert_eq!(config["WorkingDir"], "/home/app");
        assert_eq!(config["StopSignal"], "SIGUSR1");
        assert_eq!(config["Labels"], json!({"from": "image", "changed": "image"}));
        assert_eq!(strings(&config["Cmd"]), ["id"]);
        assert_eq!(strings(&image["RepoTags"]), ["configured:latest"]);
        assert_eq!((&image["Os"], &image["Author"]), (&json!("linux"), &json!("Gantry's tests")));
        assert!(image["Created"].as_str().is_some_and(|c| c.starts_with("2023-11-14T22:13:20")));
        assert_eq!(image["RootFS"]["Layers"].as_array().map(Vec::len), Some(2));
        assert!(image["Size"].as_u64() > Some(500_000));
        // By id, by part of an id, by name with and without tag.
        let id = image["Id"].as_str().unwrap_or_default();
        let short = &id["sha256:".len()..][..12];
        for name in [id, short, "configured:latest", "docker.io/library/configured"] {
            assert_eq!(daemon.get(&format!("/images/{name}/json"))?["Id"], id, "{name}");
        }
        let said = daemon.fails("image inspect nosuch:1")?;
        assert!(said.to_lowercase().contains("no such image: nosuch:1"), "{said}");
        Ok(())
    })
}

#[test]
fn history_tells_each_step_newest_first() -> TestResult {
    daemon_test(|daemon| {
        daemon.load(Fixture::Layered)?;
        let history = daemon.get("/images/layered/history")?;
        let steps: Vec<_> = history.as_array().into_iter().flatten().collect();
        let made_by: Vec<_> = steps.iter().map(|s| s["CreatedBy"].as_str().unwrap_or("")).collect();
        assert_eq!(
            made_by,
            ["the configuration", "the third layer", "the second layer", "busybox-static"]
        );
        assert_eq!(steps[0]["Size"], 0);
        assert!(steps[3]["Size"].as_u64() > Some(500_000));
        assert_eq!(strings(&steps[0]["Tags"]), ["layered:latest"]);
        assert!(daemon.ok("history layered")?.contains("the third layer"));
        Ok(())
    })
}

#[test]
fn tags_move_and_bad_ones_are_refused() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        daemon.load(Fixture::Configured)?;
        daemon.ok("tag busybox moving:1")?;
        daemon.ok("tag configured moving:1")?;
        let id = |name: &str| daemon.ok(format!("inspect --format '{{{{.Id}}}}' {name}"));
        assert_eq!(id("moving:1")?, id("configured")?);
        for (name, tag) in [("UPPER", "1"), ("a//b", "1"), ("ok", "bad/tag")] {
            let path = format!("/images/busybox/tag?repo={name}&tag={tag}");
            let answer = daemon.http("POST", &path, b"")?;
            assert_eq!(answer.status, 400, "{name}:{tag} {}", answer.text());
        }
        let answer = daemon.http("POST", "/images/nosuch/tag?repo=a&tag=b", b"")?;
        assert_eq!((answer.status, answer.message().contains("nosuch")), (404, true));
        Ok(())
    })
}

#[test]
fn removal_takes_the_name_first_and_the_image_last() -> TestResult {
    with_busybox(|daemon| {
        let id = daemon.ok("images --quiet --no-trunc busybox")?;
        daemon.ok("tag busybox second:1")?;
        // With two repositories, an id alone does not say which name to take.
        let said = daemon.fails(format!("rmi {id}"))?;
        assert!(said.contains("referenced in multiple repositories"), "{said}");
        let said = daemon.ok("rmi second:1")?;
        assert_eq!(said, "Untagged: second:1");
        let said = daemon.ok("rmi busybox")?;
        assert!(said.contains("Untagged: busybox:latest"), "{said}");
        assert!(said.contains(&format!("Deleted: {id}")), "{said}");
        let said = daemon.fails("rmi busybox")?;
        assert!(said.to_lowercase().contains("no such image: busybox"), "{said}");
        Ok(())
    })
}

#[test]
fn an_image_in_use_stays() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("create --name stopped busybox true")?;
        let said = daemon.fails("rmi busybox")?;
        assert!(said.contains("conflict") && said.contains("must force"), "{said}");
        sleeper(daemon, "runs", "")?;
        let id = daemon.ok("images --quiet busybox")?;
        let said = daemon.fails(format!("rmi --force {id}"))?;
        assert!(said.contains("cannot be forced"), "{said}");
        daemon.ok("rm --force runs")?;
        // The name goes, what the stopped container needs stays.
        daemon.ok("rmi --force busybox")?;
        assert_eq!(daemon.ok("start --attach stopped")?, "");
        Ok(())
    })
}

#[test]
fn prune_takes_what_has_no_name_and_with_all_what_is_not_used() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        daemon.load(Fixture::Configured)?;
        daemon.ok("tag busybox configured")?;
        assert_eq!(daemon.ok("images --quiet --filter dangling=true")?.lines().count(), 1);
        let kept = daemon.ok("image prune --force --filter label=no-such-label")?;
        assert!(kept.contains("Total reclaimed space: 0B"), "{kept}");
        let pruned = daemon.ok("image prune --force")?;
        assert!(pruned.to_lowercase().contains("deleted: sha256:"), "{pruned}");
        assert_eq!(daemon.ok("images --quiet --filter dangling=true")?, "");

        daemon.load(Fixture::Layered)?;
        daemon.ok("create --name uses layered true")?;
        daemon.ok("image prune --all --force")?;
        let left = daemon.ok("images --format '{{.Repository}}'")?;
        assert_eq!(left, "layered");
        Ok(())
    })
}
