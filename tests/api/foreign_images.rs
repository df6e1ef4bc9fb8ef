//! Images that others' tools made: they run here, and what is pushed from here is what others see.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gantry_test_harness::fixtures::{self, Fixture};
use gantry_test_harness::{
    Registry, RegistrySetup, Setup, TestDaemon, TestResult, daemon_test, daemon_test_with, requires,
};
use serde_json::{Value, json};

/// Where the registry is, as seen by the daemon beside it.
const HERE: &str = "127.0.0.1:5000";
/// As seen by the other daemon.
const THERE: &str = "10.78.0.1:5000";

/// Runs skopeo in the daemon's namespaces.
fn skopeo(daemon: &TestDaemon, line: &str) -> Result<String> {
    daemon.sandbox().sh(&format!("skopeo --insecure-policy {line}"))
}

/// A test with an empty registry.
fn with_registry(body: impl FnOnce(&TestDaemon) -> TestResult) -> TestResult {
    requires!("docker-registry", "skopeo", "umoci");
    daemon_test(|daemon| {
        let registry =
            Registry::start(daemon.sandbox(), &daemon.path(""), &RegistrySetup::default())?;
        body(daemon)?;
        registry.stop(daemon.sandbox())
    })
}

/// Pulls `source` (as skopeo names it) by way of the registry, runs it, pushes it as another
/// repository, pulls that by digest on a second daemon, and compares the tree of a container there
/// with what umoci unpacks.
fn goes_round(daemon: &TestDaemon, source: &str, options: &str, says: &str) -> TestResult {
    let digest = comes_and_goes(daemon, source, options, says)?;
    // umoci wants an OCI layout.
    let layout = daemon.path("layout");
    let bundle = daemon.path("bundle");
    skopeo(
        daemon,
        &format!(
            "copy --src-tls-verify=false docker://{HERE}/own/copy:1 oci:{}:1 >&2",
            layout.display()
        ),
    )?;
    daemon.sandbox().sh(&format!(
        "umoci unpack --image {}:1 {} >&2",
        layout.display(),
        bundle.display()
    ))?;
    pulled_elsewhere(daemon, &digest, &bundle.join("rootfs"))
}

/// The first half of it: until it is in the registry again. Returns its digest.
fn comes_and_goes(daemon: &TestDaemon, source: &str, options: &str, says: &str) -> Result<String> {
    let name = format!("{HERE}/foreign/image:1");
    skopeo(
        daemon,
        &format!("copy {options} --dest-tls-verify=false {source} docker://{name} >&2"),
    )?;
    daemon.ok(format!("pull {name}"))?;
    let seen = daemon.ok(format!("run --rm {name} cat /etc/said"))?;
    ensure!(seen == says, "{seen:?}, not {says:?}");

    let copy = format!("{HERE}/own/copy:1");
    daemon.ok(format!("tag {name} {copy}"))?;
    daemon.ok(format!("push {copy}"))?;
    let raw =
        |name: &str| skopeo(daemon, &format!("inspect --raw --tls-verify=false docker://{name}"));
    ensure!(raw(&copy)? == raw(&name)?, "not the same manifest");
    let inspected = skopeo(daemon, &format!("inspect --tls-verify=false docker://{copy}"))?;
    let inspected: Value = serde_json::from_str(&inspected)?;
    let digest = inspected["Digest"].as_str().context("no digest")?.to_owned();
    let config = skopeo(daemon, &format!("inspect --config --tls-verify=false docker://{copy}"))?;
    let config: Value = serde_json::from_str(&config)?;
    let here = daemon.get(&format!("/images/{name}/json"))?;
    assert_eq!(config["rootfs"]["diff_ids"], here["RootFS"]["Layers"]);
    Ok(digest)
}

/// Pulls the copy by digest with another daemon and compares the tree.
fn pulled_elsewhere(daemon: &TestDaemon, digest: &str, rootfs: &Path) -> TestResult {
    let config = json!({"insecure-registries": [THERE]});
    daemon_test_with(Setup::config(config), |there| {
        daemon.sandbox().connect(
            ("here0", "10.78.0.1/24"),
            there.sandbox(),
            ("there0", "10.78.0.2/24"),
        )?;
        let name = format!("{THERE}/own/copy@{digest}");
        there.ok(format!("pull {name}"))?;
        there.ok(format!("create --name one {name} true"))?;
        let (tar, tree) = (there.path("tree.tar"), there.path("tree"));
        there.ok(["export", "--output", &tar.display().to_string(), "one"])?;
        std::fs::create_dir(&tree)?;
        there.sandbox().sh(&format!(
            "tar --numeric-owner --same-permissions -C {} -xf {}",
            tree.display(),
            tar.display()
        ))?;
        let (ours, theirs) = (lines(there, &tree)?, lines(there, rootfs)?);
        let only = |a: &[String], b: &[String]| -> Vec<String> {
            a.iter().filter(|line| !b.contains(line)).cloned().collect()
        };
        ensure!(
            ours == theirs,
            "only here: {:?}\nonly umoci's: {:?}",
            only(&ours, &theirs),
            only(&theirs, &ours)
        );
        there.sandbox().sh("ip link delete there0")?;
        Ok(())
    })
}

/// Paths with kinds, modes, owners, sizes, link targets and digests; without what an engine makes.
fn lines(daemon: &TestDaemon, tree: &Path) -> Result<Vec<String>> {
    let made = "^\\./(dev|proc|sys)(/|\t)|^\\./\\.dockerenv\t|\
        ^\\./etc/(hosts|hostname|resolv.conf|mtab)\t";
    let script = format!(
        "cd {}; {{ find . -mindepth 1 ! -type d -printf '%p\\t%y %m %U:%G %s %l\\n'; \
         find . -mindepth 1 -type d -printf '%p\\t%y %m %U:%G\\n'; \
         find . -type f -exec sha256sum {{}} + | sed 's/^\\([^ ]*\\)  \\(.*\\)/\\2\\t\\1/'; }} \
         | grep -Ev '{made}' | sort",
        tree.display()
    );
    Ok(daemon.sandbox().sh(&script)?.lines().map(str::to_owned).collect())
}

/// Lets `script` make a tree below `$TREE` that begins with a busybox.
fn tree(daemon: &TestDaemon, script: &str) -> Result<String> {
    let tree = daemon.path("made").display().to_string();
    daemon.sandbox().sh(&format!(
        "TREE={tree}; mkdir -p $TREE/bin $TREE/etc; cp $(command -v busybox) $TREE/bin/busybox; \
         for name in sh cat ls true; do ln -s busybox $TREE/bin/$name; done; \
         echo made >$TREE/etc/said; chmod 755 $TREE; {script}"
    ))?;
    Ok(tree)
}

/// Files with everything that a tar can say in several ways.
const DIFFICULT: &str = "cd $TREE; long=$(printf 'x%.0s' $(seq 90)); \
    mkdir -p $long/$long; echo deep >$long/$long/$long; ln -s /$long/$long/$long long-link; \
    truncate -s 3M sparse; printf middle | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none; \
    echo x >two; ln two names; chown 70000:80000 two; chmod 6751 two; touch 'sp ace' 'ümläut'; \
    mkfifo pipe; touch -d @1234567890.5 etc/said; mkdir sticky; chmod 1777 sticky";

#[test]
fn skopeo_as_schema_2_and_as_zstd() -> TestResult {
    with_registry(|daemon| {
        let archive = daemon.path("said.tar");
        daemon.load(Fixture::Layered)?;
        daemon.ok("run --name one layered sh -c 'echo made >/etc/said'")?;
        daemon.ok("commit one said:1")?;
        daemon.ok(["save", "--output", &archive.display().to_string(), "said:1"])?;
        daemon.ok("rm one")?;
        daemon.ok("rmi layered said:1")?;
        let source = format!("docker-archive:{}", archive.display());
        for options in [
            "--format v2s2",
            "--format oci",
            "--format oci --dest-compress --dest-compress-format zstd",
        ] {
            goes_round(daemon, &source, options, "made").with_context(|| options.to_owned())?;
            daemon.sandbox().sh(&format!("rm -rf {}*", daemon.path("layout").display()))?;
            daemon.sandbox().sh(&format!("rm -rf {}", daemon.path("bundle").display()))?;
        }
        Ok(())
    })
}

#[test]
fn umoci_layers_that_change_and_delete() -> TestResult {
    with_registry(|daemon| {
        let tree = tree(daemon, "echo gone >$TREE/etc/gone")?;
        let directory = daemon.path("umoci").display().to_string();
        daemon.sandbox().sh(&format!(
            "mkdir {directory}; cd {directory}; {{ umoci init --layout u; umoci new --image u:1; \
             umoci insert --image u:1 {tree} /; umoci config --image u:1 --config.cmd /bin/sh; \
             umoci unpack --image u:1 b; rm b/rootfs/etc/gone; echo again >b/rootfs/etc/said; \
             mkdir b/rootfs/etc/new; umoci repack --image u:1 b; }} >&2"
        ))?;
        goes_round(daemon, &format!("oci:{directory}/u:1"), "", "again")
    })
}

#[test]
fn buildah_from_scratch() -> TestResult {
    requires!("buildah");
    with_registry(|daemon| {
        let tree = tree(daemon, "")?;
        let directory = daemon.path("buildah").display().to_string();
        let policy = daemon.path("policy.json");
        std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        daemon.sandbox().sh(&format!(
            "b() {{ buildah --storage-driver vfs --root {directory}/root --runroot {directory}/run \"$@\"; }}; \
             c=$(b from scratch); b copy $c {tree} / >&2; b config --cmd /bin/sh --label a=b $c >&2; \
             b commit --signature-policy {} $c oci-archive:{directory}/image.tar:built:1 >&2",
            policy.display()
        ))?;
        goes_round(daemon, &format!("oci-archive:{directory}/image.tar:built:1"), "", "made")
    })
}

#[test]
fn layers_by_gnu_tar_and_bsdtar() -> TestResult {
    requires!("bsdtar", "tar");
    with_registry(|daemon| {
        let tree = tree(daemon, &format!("({DIFFICULT})"))?;
        for (at, program) in [
            "tar --format=gnu --sparse -cf",
            "tar --format=posix --sparse --xattrs --acls -cf",
            "tar --format=oldgnu -cf",
            "bsdtar --format=pax -cf",
            "bsdtar --format=gnutar -cf",
        ]
        .into_iter()
        .enumerate()
        {
            let file = daemon.path("layer.tar");
            daemon.sandbox().sh(&format!("cd {tree}; {program} {} .", file.display()))?;
            let image = fixtures::Image {
                layers: vec![(program.to_owned(), std::fs::read(&file)?)],
                config: json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}),
            };
            let archive = daemon.path(&format!("by-{at}.tar"));
            let kind = fixtures::ArchiveKind::Oci(fixtures::Compression::Gzip);
            std::fs::write(&archive, image.archive(kind, "tar:1")?)?;
            let source = format!("oci-archive:{}", archive.display());
            // umoci knows no sparse members of the GNU format: the tree itself is what is right.
            let round = if program.contains("gnu --sparse") {
                comes_and_goes(daemon, &source, "", "made")
                    .and_then(|digest| pulled_elsewhere(daemon, &digest, Path::new(&tree)))
            } else {
                goes_round(daemon, &source, "", "made")
            };
            round.with_context(|| program.to_owned())?;
            for left in ["layout", "bundle"] {
                daemon.sandbox().sh(&format!("rm -rf {}", daemon.path(left).display()))?;
            }
        }
        Ok(())
    })
}
