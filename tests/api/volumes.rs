//! Volumes, binds, and what `--mount` says.

use gantry_test_harness::fixtures::Fixture;
use gantry_test_harness::{TestResult, daemon_test, wait_until};
use serde_json::json;

use crate::support::{sleeper, with_busybox};

#[test]
fn a_volume_has_a_life() -> TestResult {
    daemon_test(|daemon| {
        assert_eq!(daemon.ok("volume create --label a=b data")?, "data");
        assert_eq!(daemon.ok("volume create data")?, "data", "twice is not an error");
        let volume = daemon.get("/volumes/data")?;
        assert_eq!((&volume["Driver"], &volume["Scope"]), (&"local".into(), &"local".into()));
        assert_eq!(volume["Labels"], json!({"a": "b"}));
        let place = volume["Mountpoint"].as_str().unwrap_or_default().to_owned();
        assert!(std::path::Path::new(&place).is_dir(), "{place}");
        let anonymous = daemon.ok("volume create")?;
        assert_eq!(anonymous.len(), 64, "{anonymous}");

        let names = |filter: &str| -> anyhow::Result<String> {
            Ok(daemon
                .ok(format!("volume ls {filter} --format '{{{{.Name}}}}'"))?
                .replace('\n', " "))
        };
        assert_eq!(names("--filter name=dat")?, "data");
        assert_eq!(names("--filter label=a")?, "data");
        assert_eq!(names("--filter label=a=c")?, "");
        assert_eq!(
            names("--filter driver=local --filter dangling=true --filter label=a=b")?,
            "data"
        );
        assert_eq!(names("--filter dangling=false")?, "");

        assert_eq!(daemon.ok("volume rm data")?, "data");
        assert!(!std::path::Path::new(&place).exists());
        let said = daemon.fails("volume inspect data")?;
        assert!(said.to_lowercase().contains("no such volume"), "{said}");
        let said = daemon.fails("volume create --driver nosuch x")?;
        assert!(said.contains("nosuch"), "{said}");
        Ok(())
    })
}

#[test]
fn a_named_volume_outlives_its_containers_and_an_anonymous_one_does_not() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run --rm -v kept:/data busybox sh -c 'echo hello > /data/file'")?;
        assert_eq!(daemon.ok("run --rm -v kept:/other busybox cat /other/file")?, "hello");
        daemon.ok("run --rm -v /data busybox touch /data/x")?;
        assert_eq!(daemon.ok("volume ls --quiet")?, "kept", "--rm takes the anonymous one along");

        daemon.ok("run --name first -v /data busybox true")?;
        assert_eq!(daemon.ok("volume ls --quiet")?.lines().count(), 2);
        daemon.ok("rm --volumes first")?;
        daemon.ok("run --name second -v kept:/data busybox true")?;
        let said = daemon.fails("volume rm kept")?;
        assert!(said.contains("volume is in use"), "{said}");
        daemon.ok("rm --volumes second")?;
        assert_eq!(daemon.ok("volume ls --quiet")?, "kept");

        sleeper(daemon, "from", "-v kept:/data")?;
        assert_eq!(daemon.ok("run --rm --volumes-from from busybox cat /data/file")?, "hello");
        let said = daemon.fails("run --rm --volumes-from from:ro busybox touch /data/x")?;
        assert!(said.contains("Read-only file system"), "{said}");
        Ok(())
    })
}

#[test]
fn an_empty_volume_gets_what_the_image_has_there() -> TestResult {
    daemon_test(|daemon| {
        daemon.load(Fixture::Configured)?;
        let look = "--entrypoint cat configured /data/seed";
        assert_eq!(daemon.ok(format!("run --rm -v seeded:/data {look}"))?, "from the image");
        let owner = daemon.ok(
            "run --rm -v seeded:/data --entrypoint stat configured -c '%u:%g %a' /data /data/seed",
        )?;
        assert_eq!(owner, "1000:1000 750\n1000:1000 600");
        // Only an empty one, and not when told not to.
        daemon.ok("run --rm --user 0 -v seeded:/data --entrypoint sh configured \
             -c 'echo changed > /data/seed'")?;
        assert_eq!(daemon.ok(format!("run --rm -v seeded:/data {look}"))?, "changed");
        let said = daemon.fails(format!("run --rm --user 0 -v bare:/data:nocopy {look}"))?;
        assert!(said.contains("No such file"), "{said}");
        Ok(())
    })
}

#[test]
fn directories_and_files_of_the_host_are_bound() -> TestResult {
    with_busybox(|daemon| {
        let directory = daemon.path("shared");
        std::fs::create_dir(&directory)?;
        std::fs::write(directory.join("file"), "host\n")?;
        let d = directory.display();
        assert_eq!(daemon.ok(format!("run --rm -v {d}:/x busybox cat /x/file"))?, "host");
        daemon.ok(format!("run --rm -v {d}:/x busybox sh -c 'echo inside > /x/file'"))?;
        assert_eq!(std::fs::read_to_string(directory.join("file"))?, "inside\n");
        let said = daemon.fails(format!("run --rm -v {d}:/x:ro busybox touch /x/y"))?;
        assert!(said.contains("Read-only file system"), "{said}");
        assert_eq!(
            daemon.ok(format!("run --rm -v {d}/file:/etc/motd busybox cat /etc/motd"))?,
            "inside"
        );

        // `-v` makes what is missing, `--mount` says that it is.
        daemon.ok(format!("run --rm -v {d}/new/one:/x busybox true"))?;
        assert!(directory.join("new/one").is_dir());
        let said =
            daemon.fails(format!("run --rm --mount type=bind,src={d}/none,dst=/x busybox true"))?;
        assert!(said.contains("bind source path does not exist"), "{said}");
        assert!(!directory.join("none").exists());
        let said = daemon.fails("run --rm -v relative/path:/x busybox true")?;
        assert!(said.contains("relative/path"), "{said}");
        let said = daemon.fails(format!("run --rm -v {d}:/x -v {d}/new:/x busybox true"))?;
        assert!(said.contains("Duplicate mount point: /x"), "{said}");
        let said = daemon.fails(format!("run --rm -v {d}:/ busybox true"))?;
        assert!(said.contains("destination can't be '/'"), "{said}");
        Ok(())
    })
}

#[test]
fn mounts_made_later_travel_as_told() -> TestResult {
    with_busybox(|daemon| {
        let place = daemon.path("shared").display().to_string();
        daemon.sandbox().sh(&format!(
            "mkdir -p {place}/sub; mount --bind {place} {place}; mount --make-shared {place}"
        ))?;
        sleeper(daemon, "private", &format!("-v {place}:/x"))?;
        sleeper(daemon, "slave", &format!("-v {place}:/x:rslave"))?;
        sleeper(daemon, "shared", &format!("-v {place}:/x:rshared --privileged"))?;
        daemon.sandbox().sh(&format!("mount -t tmpfs none {place}/sub; touch {place}/sub/file"))?;
        let sees = |name: &str| daemon.ok(format!("exec {name} ls /x/sub"));
        assert_eq!([sees("private")?, sees("slave")?, sees("shared")?], ["", "file", "file"]);
        daemon.ok("exec shared umount /x/sub")?;
        assert_eq!(daemon.sandbox().sh(&format!("ls {place}/sub"))?, "");
        daemon.ok("rm --force private slave shared")?;
        daemon.sandbox().sh(&format!("umount {place}"))?;
        let own = daemon.path("plain").display().to_string();
        std::fs::create_dir(&own)?;
        let said = daemon.fails(format!("run --rm -v {own}:/x:rshared busybox true"))?;
        assert!(said.contains("not a shared mount"), "{said}");
        Ok(())
    })
}

#[test]
fn the_long_form_says_everything() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("run --rm -v tree:/t busybox \
             sh -c 'mkdir -p /t/a/b; echo deep > /t/a/b/file; ln -s /etc /t/out'")?;
        let run = |mount: &serde_json::Value, command: &str| -> anyhow::Result<_> {
            let body = json!({
                "Image": "busybox", "Cmd": ["sh", "-c", command], "HostConfig": {"Mounts": [mount]},
            });
            let answer =
                daemon.http("POST", "/v1.45/containers/create", body.to_string().as_bytes())?;
            if answer.status != 201 {
                return Ok((125, answer.message()));
            }
            let id = answer.json()?["Id"].as_str().unwrap_or_default().to_owned();
            let output = daemon.docker(format!("start --attach {id}"))?;
            daemon.ok(format!("rm {id}"))?;
            Ok((output.status, format!("{}{}", output.stdout, output.stderr)))
        };
        let sub = |path: &str| json!({"Type": "volume", "Source": "tree", "Target": "/x", "VolumeOptions": {"Subpath": path}});
        assert_eq!(run(&sub("a/b"), "cat /x/file")?, (0, "deep\n".to_owned()));
        for outside in ["../..", "/etc", "out", "a/../../.."] {
            let (status, said) = run(&sub(outside), "ls /x")?;
            assert_ne!(status, 0, "{outside}: {said}");
        }
        let (status, said) = run(&sub("nosuch"), "true")?;
        assert_ne!(status, 0, "{said}");

        let tmpfs = json!({
            "Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 0o700},
        });
        let (status, said) = run(&tmpfs, "stat -c %a /x; df -k /x | tail -1")?;
        assert!(status == 0 && said.starts_with("700\n") && said.contains(" 64 "), "{said}");
        let read_only =
            json!({"Type": "volume", "Source": "tree", "Target": "/x", "ReadOnly": true});
        assert_ne!(run(&read_only, "touch /x/y")?.0, 0);
        let labelled = json!({
            "Type": "volume", "Source": "labelled", "Target": "/x",
            "VolumeOptions": {"Labels": {"by": "mount"}},
        });
        assert_eq!(run(&labelled, "true")?.0, 0);
        assert_eq!(daemon.get("/volumes/labelled")?["Labels"]["by"], "mount");
        let (status, said) = run(&json!({"Type": "nonsense", "Target": "/x"}), "true")?;
        assert_eq!((status, said.contains("nonsense")), (125, true), "{said}");
        let (status, said) = run(&json!({"Type": "volume", "Target": "relative"}), "true")?;
        assert_eq!((status, said.contains("mount path must be absolute")), (125, true), "{said}");
        Ok(())
    })
}

#[test]
fn the_local_driver_mounts_what_its_options_say() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok(
            "volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=128k,uid=1000 memory",
        )?;
        let seen =
            daemon.ok("run --rm -v memory:/x busybox sh -c 'df -k /x | tail -1; stat -c %u /x'")?;
        assert!(seen.contains(" 128 ") && seen.ends_with("\n1000"), "{seen}");
        let directory = daemon.path("bound");
        std::fs::create_dir(&directory)?;
        std::fs::write(directory.join("file"), "bound\n")?;
        daemon.ok(format!(
            "volume create --opt type=none --opt o=bind --opt device={} bound",
            directory.display()
        ))?;
        assert_eq!(daemon.ok("run --rm -v bound:/x busybox cat /x/file")?, "bound");
        // Two users at once: mounted once, and gone after the second.
        sleeper(daemon, "one", "-v memory:/x")?;
        sleeper(daemon, "two", "-v memory:/x")?;
        daemon.ok("exec one touch /x/shared")?;
        assert_eq!(daemon.ok("exec two ls /x")?, "shared");
        daemon.ok("rm --force one")?;
        assert_eq!(daemon.ok("exec two ls /x")?, "shared");
        daemon.ok("rm --force two")?;
        for options in ["--opt nonsense=1", "--opt type=tmpfs"] {
            let said = daemon.docker(format!("volume create {options} refused"))?.failure()?;
            assert!(!said.is_empty());
        }
        assert_eq!(daemon.http("GET", "/volumes/refused", b"")?.status, 404);
        Ok(())
    })
}

#[test]
fn prune_takes_the_anonymous_and_with_all_the_unused() -> TestResult {
    with_busybox(|daemon| {
        daemon.ok("volume create named")?;
        daemon.ok("volume create --label keep labelled")?;
        let anonymous = daemon.ok("volume create")?;
        daemon.ok("run --name uses -v used:/x busybox sh -c 'echo 12345 > /x/f'")?;
        let pruned = daemon.http("POST", "/v1.44/volumes/prune", b"")?.json()?;
        assert_eq!(pruned["VolumesDeleted"], json!([anonymous]));
        let filters = "%7B%22all%22:%5B%22true%22%5D,%22label!%22:%5B%22keep%22%5D%7D";
        let pruned =
            daemon.http("POST", &format!("/v1.44/volumes/prune?filters={filters}"), b"")?.json()?;
        assert_eq!(pruned["VolumesDeleted"], json!(["named"]));
        daemon.ok("rm uses")?;
        let old = daemon.http("POST", "/v1.41/volumes/prune", b"")?.json()?;
        let mut deleted = crate::support::strings(&old["VolumesDeleted"]);
        deleted.sort_unstable();
        assert_eq!(deleted, ["labelled", "used"], "before 1.42 all that is unused went");
        assert_eq!(old["SpaceReclaimed"], 6);
        Ok(())
    })
}

#[test]
fn two_containers_see_one_volume() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "writes", "-v both:/x")?;
        sleeper(daemon, "reads", "-v both:/y:ro")?;
        daemon.ok("exec writes sh -c 'echo now > /x/file'")?;
        wait_until("it is seen", 2, || {
            Ok(daemon.docker("exec reads cat /y/file")?.stdout == "now\n")
        })
    })
}
