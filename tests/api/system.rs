//! `_ping`, `version`, `info`, `system df`, `auth`, and what every answer has.

use anyhow::Context;
use gantry_test_harness::{TestResult, daemon_test};
use serde_json::json;

use crate::support::{check, sleeper, with_busybox};

#[test]
fn ping_answers_with_the_headers_that_clients_negotiate_by() -> TestResult {
    daemon_test(|daemon| {
        let ping = daemon.http("GET", "/_ping", b"")?;
        assert_eq!((ping.status, ping.text().as_str()), (200, "OK"));
        for (name, value) in [
            ("Ostype", "linux"),
            ("Docker-Experimental", "false"),
            ("Swarm", "inactive"),
            ("Cache-Control", "no-cache, no-store, must-revalidate"),
            ("Pragma", "no-cache"),
        ] {
            assert_eq!(ping.header(name), Some(value), "{name}");
        }
        let server = ping.header("Server").context("no Server")?;
        assert!(server.ends_with(" (linux)"), "{server}");
        let version = ping.header("Api-Version").context("no Api-Version")?;
        assert!(version.starts_with("1."), "{version}");

        let head = daemon.http("HEAD", "/_ping", b"")?;
        assert_eq!((head.status, head.header("Content-Length")), (200, Some("0")));
        assert_eq!(head.header("Api-Version"), Some(version));
        Ok(())
    })
}

#[test]
fn version_prefixes_are_honoured_within_the_window() -> TestResult {
    daemon_test(|daemon| {
        let newest = daemon.http("GET", "/_ping", b"")?;
        let newest = newest.header("Api-Version").context("no Api-Version")?.to_owned();
        let oldest =
            daemon.get("/version")?["MinAPIVersion"].as_str().context("no min")?.to_owned();
        for version in [newest.as_str(), oldest.as_str(), "1.41", "1.44"] {
            let answer = daemon.http("GET", &format!("/v{version}/version"), b"")?;
            assert_eq!(answer.status, 200, "{version}: {}", answer.text());
            assert!(answer.header("Server").is_some(), "{version}");
        }
        let cases = [
            (
                "1.99",
                format!(
                    "client version 1.99 is too new. Maximum supported API version is {newest}"
                ),
            ),
            (
                "1.12",
                format!(
                    "client version 1.12 is too old. Minimum supported API version is {oldest}, \
                     please upgrade your client to a newer version"
                ),
            ),
        ];
        for (version, message) in cases {
            let answer = daemon.http("GET", &format!("/v{version}/version"), b"")?;
            assert_eq!(answer.status, 400, "{version}");
            assert!(answer.text().contains(&message), "{version}: {}", answer.text());
        }
        Ok(())
    })
}

#[test]
fn unknown_paths_and_methods_are_not_found() -> TestResult {
    daemon_test(|daemon| {
        for (method, path) in [
            ("GET", "/"),
            ("GET", "/nope"),
            ("GET", "/v1.44/nope/nope"),
            ("DELETE", "/_ping"),
            ("PATCH", "/containers/json"),
            ("GET", "/containers"),
        ] {
            let answer = daemon.http(method, path, b"")?;
            assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
            assert_eq!(answer.json()?, json!({"message": "page not found"}), "{method} {path}");
        }
        Ok(())
    })
}

#[test]
fn version_and_info_are_true() -> TestResult {
    with_busybox(|daemon| {
        let version = daemon.ok("version --format '{{.Server.Version}} {{.Server.Os}}'")?;
        assert!(version.ends_with(" linux"), "{version}");
        let version = daemon.get("/version")?;
        assert_eq!(version["Components"].as_array().map(|c| !c.is_empty()), Some(true));
        assert!(version["KernelVersion"].as_str().is_some_and(|v| v.contains('.')));

        sleeper(daemon, "runs", "")?;
        daemon.ok("create --name waits busybox true")?;
        let info = daemon.get("/info")?;
        let counts = ["Containers", "ContainersRunning", "ContainersStopped", "Images"];
        assert_eq!(counts.map(|c| info[c].as_u64()), [2, 1, 1, 1].map(Some), "{info}");
        for key in ["ID", "Driver", "OperatingSystem", "Architecture", "DockerRootDir", "Name"] {
            check(info[key].as_str().is_some_and(|v| !v.is_empty()), key, &info[key])?;
        }
        let root = daemon.path("data").display().to_string();
        assert_eq!(info["DockerRootDir"].as_str(), Some(root.as_str()));
        assert!(info["NCPU"].as_u64() > Some(0) && info["MemTotal"].as_u64() > Some(1 << 20));
        assert!(info["Plugins"]["Volume"].as_array().is_some(), "{info}");

        let shown = daemon.ok("info")?;
        for line in ["Containers: 2", "Running: 1", "Storage Driver:", "Kernel Version:"] {
            assert!(shown.contains(line), "{line} in:\n{shown}");
        }
        Ok(())
    })
}

#[test]
fn disk_use_counts_what_there_is() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("volume create unused")?;
        daemon.ok("run --name wrote busybox dd if=/dev/zero of=/file bs=1k count=512")?;
        let used = daemon.get("/v1.44/system/df")?;
        let image = &used["Images"][0];
        assert_eq!(image["Containers"], 1, "{image}");
        assert!(image["Size"].as_u64() > Some(500_000), "{image}");
        let container = &used["Containers"][0];
        let written = container["SizeRw"].as_u64().unwrap_or_default();
        assert!((512 * 1024..1024 * 1024).contains(&written), "{container}");
        let volume = &used["Volumes"][0];
        assert_eq!(
            (&volume["Name"], &volume["UsageData"]["RefCount"]),
            (&json!("unused"), &json!(0))
        );
        assert!(used["LayersSize"].as_u64() > Some(500_000), "{used}");

        let table = daemon.ok("system df")?;
        for kind in ["Images", "Containers", "Local Volumes", "Build Cache"] {
            assert!(table.contains(kind), "{table}");
        }
        Ok(())
    })
}

#[test]
fn options_and_answers_to_the_kernels_own_routes() -> TestResult {
    daemon_test(|daemon| {
        assert_eq!(daemon.http("OPTIONS", "/containers/json", b"")?.status, 200);
        let plugins = daemon.http("GET", "/x/kernel/plugins", b"")?;
        assert_eq!(plugins.status, 200, "{}", plugins.text());
        let order = daemon.http("GET", "/x/kernel/order", b"")?;
        assert_eq!(order.status, 200, "{}", order.text());
        assert!(!order.text().to_lowercase().contains("failed"), "{}", order.text());
        Ok(())
    })
}
