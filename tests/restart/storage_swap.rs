//! Storage instances come and go, become the default and cease to be: images and containers are the
//! same all the while.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_test_harness::command::{self, Output};
use gantry_test_harness::{Setup, TestDaemon, TestResult, daemon_test, daemon_test_with};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

const UNTIL_TOLD: &str = "sh -c 'trap \"exit 0\" TERM; while :; do sleep 1 & wait $!; done'";

/// Where everything goes, in this order, and back to the first. Those that this build or this host does
/// not have are left out, loudly.
const ROUND: [&str; 5] = ["overlay2", "vfs", ON_BTRFS, "erofs", "overlay2"];

/// The instance on a Btrfs of the test's own, in a file.
const ON_BTRFS: &str = "on-btrfs";

/// How many times the daemon is killed in [`killed_while_migrating`].
const KILLS: usize = 20;

/// How long a migration may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes files of every sort when it runs first; afterwards prints everything about them.
const MADE_ONCE: &str = r#"
if [ -e /made ]; then
    cd /work-here && find . /etc/passwd /etc/group /bin/busybox | sort | while read -r f; do
        stat -c '%n %F %a %u:%g %s %Y' "$f" | sed 's/ directory \(.*\) [0-9]* \([0-9]*\)$/ directory \1 \2/'
        [ -L "$f" ] && readlink "$f"
        [ -f "$f" ] && [ ! -L "$f" ] && md5sum < "$f"
    done | md5sum
else
    mkdir -p /work-here/deep/er && cd /work-here
    i=0; while [ $i -lt 60 ]; do head -c 100000 /dev/urandom > file$i; i=$((i+1)); done
    echo text > deep/er/text && ln deep/er/text hard && ln -s nowhere soft && mkfifo pipe
    chmod 6755 deep && chown 12:34 hard && touch -d @1000000000 deep/er
    echo changed >> /etc/passwd && rm -f /etc/group && mkdir /etc/group
    touch /made && sync
fi"#;

/// Runs `gantryd storage …` against the daemon.
fn storage(daemon: &TestDaemon, line: &str) -> Result<Output> {
    let mut arguments = daemon.arguments();
    arguments.push("storage".to_owned());
    arguments.extend(line.split_whitespace().map(str::to_owned));
    command::run(daemon.daemon_command(&arguments)?, b"", PATIENCE)
}

fn storage_ok(daemon: &TestDaemon, line: &str) -> Result<String> {
    storage(daemon, line)?.success()
}

fn instances(daemon: &TestDaemon) -> Result<Vec<Value>> {
    let text = storage_ok(daemon, "ls --size --json")?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

fn instance(daemon: &TestDaemon, name: &str) -> Result<Value> {
    let all = instances(daemon)?;
    all.iter().find(|i| i["name"] == name).cloned().with_context(|| format!("no {name}: {all:?}"))
}

/// Restarts the daemon with another configuration.
fn configure(daemon: &mut TestDaemon, config: &Value) -> TestResult {
    daemon.stop()?;
    std::fs::write(daemon.path("daemon.json"), config.to_string())?;
    daemon.start_again()
}

fn driver_of(daemon: &TestDaemon, container: &str) -> Result<String> {
    let driver = daemon.inspect(container)?["GraphDriver"]["Name"].clone();
    Ok(driver.as_str().context("no driver")?.to_owned())
}

/// What clients see, but for what a restart of a container changes.
fn seen(daemon: &TestDaemon) -> Result<(Vec<String>, Vec<String>)> {
    let images = daemon.ok("images --no-trunc --digests --quiet")?;
    let containers = daemon.ok("ps --all --no-trunc --format {{.ID}}/{{.Names}}/{{.Image}}")?;
    let lines = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    Ok((lines(images), lines(containers)))
}

/// Makes a container with changes of every sort, and says what they are.
fn make(daemon: &TestDaemon, name: &str, more: &str) -> Result<String> {
    let mut cli = daemon.cli();
    cli.args(["create", "--name", name]).args(more.split_whitespace());
    cli.args(["busybox", "sh", "-c", MADE_ONCE]);
    command::run(cli, b"", command::DEADLINE)?.success()?;
    daemon.ok(format!("start --attach {name}"))?;
    content(daemon, name)
}

/// Starts the container and returns what it says of its files.
fn content(daemon: &TestDaemon, name: &str) -> Result<String> {
    let text = daemon.ok(format!("start --attach {name}"))?;
    ensure!(text.len() > 30, "{name} says {text:?}");
    Ok(text)
}

/// The drivers of [`ROUND`] that there are.
fn round(daemon: &TestDaemon) -> Result<Vec<&'static str>> {
    let all = instances(daemon)?;
    let state = |name: &str| match all.iter().find(|i| i["name"] == name) {
        None => Some("this build does not have it".to_owned()),
        Some(found) => found["down"].as_str().map(str::to_owned),
    };
    Ok(ROUND
        .into_iter()
        .filter(|name| match state(name) {
            None => true,
            Some(why) => {
                eprintln!("SKIPPED in the round: {name}: {why}");
                false
            }
        })
        .collect())
}

/// Makes a Btrfs where that is possible; returns the configuration of an instance on it.
fn with_btrfs(daemon: &mut TestDaemon) -> Result<Value> {
    let (image, place) = (daemon.path("btrfs.img"), daemon.path("btrfs"));
    let (image, shown) = (image.display(), place.display());
    let made = daemon.sandbox().try_sh(&format!(
        "truncate -s 1G {image} && mkfs.btrfs -q {image} && mkdir {shown} && \
         mount -o loop,commit=1 {image} {shown}"
    ))?;
    if made.status != 0 {
        eprintln!("SKIPPED: no Btrfs: {made}");
        return Ok(json!({}));
    }
    let config = json!({ "kernel-plugins": { "storage.btrfs": { "config": {
        "instances": { ON_BTRFS: { "root": place.join("layers") } }
    } } } });
    configure(daemon, &config)?;
    Ok(config)
}

#[test]
fn everything_goes_round_the_drivers_and_nothing_is_missing() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        let made = make(daemon, "made", "")?;
        let rests = make(daemon, "rests", "")?;
        daemon.ok(format!("run -d --name runs busybox {UNTIL_TOLD}"))?;
        daemon.ok("exec runs sh -c 'echo data > /data'")?;
        let before = seen(daemon)?;
        let pid = daemon.inspect("runs")?["State"]["Pid"].clone();
        let base = with_btrfs(daemon)?;
        let round = round(daemon)?;
        for pair in round.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let mut config = base.clone();
            config["storage-driver"] = json!(to);
            configure(daemon, &config)?;
            assert_eq!(seen(daemon)?, before, "with {to} as the default");
            assert_eq!(daemon.get("/info")?["Driver"], to);
            let rows = daemon.get("/info")?["DriverStatus"].to_string();
            assert!(rows.contains(&format!("[\"Also available\",\"{from}\"]")), "{rows}");
            // Nothing has moved by itself.
            for name in ["made", "rests"] {
                assert_eq!(driver_of(daemon, name)?, from, "{name}");
            }
            assert_eq!(daemon.inspect("runs")?["State"]["Pid"], pid, "it did not notice");
            assert_eq!(daemon.ok("exec runs cat /data")?, "data");
            assert_eq!(daemon.ok("run --rm busybox echo new")?, "new");

            let planned = storage_ok(daemon, &format!("migrate --to {to} --dry-run"))?;
            assert!(planned.contains("container made: would be done"), "{planned}");
            assert_eq!(driver_of(daemon, "made")?, from);
            let told = storage_ok(daemon, &format!("migrate --to {to} --deep"))?;
            let runs = if driver_of(daemon, "runs")? == to { "already there" } else { "skipped" };
            for line in ["made: done", "rests: done", &format!("runs: {runs}")] {
                assert!(told.contains(&format!("container {line}")), "{line} in {told}");
            }
            assert_eq!(seen(daemon)?, before, "migrated to {to}");
            for name in ["made", "rests"] {
                assert_eq!(driver_of(daemon, name)?, to);
            }
            assert_eq!(content(daemon, "made")?, made, "on {to}");
            storage_ok(daemon, &format!("verify {to} --deep"))?;
            // One was started and one was not.
            gantry_test_harness::wait_until("the old layer is gone", 10, || {
                Ok(instance(daemon, from)?["kept"] == 1)
            })?;
            let refused = storage(daemon, &format!("drop {from}"))?.failure()?;
            assert!(refused.contains("the old layer of container"), "{refused}");
        }
        assert_eq!(content(daemon, "rests")?, rests, "after the whole round");
        gantry_test_harness::wait_until("nothing is kept any more", 10, || {
            Ok(instances(daemon)?.iter().all(|i| i["kept"] == 0))
        })?;
        daemon.ok("stop --time 2 runs")?;
        let to = if round.contains(&"vfs") { "vfs" } else { round[0] };
        storage_ok(daemon, &format!("migrate --to {to} --containers runs --purge"))?;
        daemon.ok("start runs")?;
        assert_eq!(daemon.ok("exec runs cat /data")?, "data");
        assert_eq!(instance(daemon, "overlay2")?["kept"], 0, "purged");
        if round.contains(&ON_BTRFS) {
            storage_ok(daemon, &format!("drop {ON_BTRFS}"))?;
        }
        configure(daemon, &json!({}))?;
        let place = daemon.path("btrfs");
        daemon.sandbox().try_sh(&format!("umount {}", place.display()))?;
        Ok(())
    })
}

#[test]
fn a_container_has_the_instance_that_it_asks_for() -> TestResult {
    let config = json!({ "kernel-plugins": { "layers": { "config": {
        "allow-image-label": true,
        "rules": [{ "image": "ruled:*", "driver": "vfs" }],
    } } } });
    daemon_test_with(Setup::config(config), |daemon| {
        daemon.load_busybox()?;
        daemon.ok("tag busybox ruled:1")?;
        let driver = |line: &str| -> Result<String> {
            let id = daemon.ok(format!("create {line} true"))?;
            driver_of(daemon, &id)
        };
        assert_eq!(driver("busybox")?, "overlay2");
        assert_eq!(driver("--storage-opt gantry.driver=vfs busybox")?, "vfs");
        assert_eq!(driver("ruled:1")?, "vfs");
        assert_eq!(driver("--storage-opt gantry.driver=overlay2 ruled:1")?, "overlay2");
        let refused = daemon.fails("create --storage-opt gantry.driver=nope busybox")?;
        assert!(refused.contains("no storage instance is named \"nope\""), "{refused}");
        assert_eq!(daemon.ok("run --rm --storage-opt gantry.driver=vfs busybox echo hi")?, "hi");

        labelled(daemon)?;
        assert_eq!(driver("labelled")?, "vfs");
        assert_eq!(driver("--storage-opt gantry.driver=overlay2 labelled")?, "overlay2");
        Ok(())
    })
}

/// An image with nothing but a label, from an archive with nothing in it.
fn labelled(daemon: &TestDaemon) -> TestResult {
    let empty = vec![0_u8; 1024];
    let line = ["import", "--change", "LABEL io.gantry.storage.driver=vfs", "-", "labelled"];
    daemon.docker_with_input(line, &empty)?.success().map(drop)
}

#[test]
fn a_missing_instance_is_named_where_it_is_needed_and_nowhere_else() -> TestResult {
    daemon_test(|daemon| {
        let extra = json!({ "kernel-plugins": { "storage.vfs": { "config": {
            "instances": { "extra": { "root": daemon.path("extra") } }
        } } } });
        configure(daemon, &extra)?;
        daemon.load_busybox()?;
        let made = make(daemon, "there", "--storage-opt gantry.driver=extra")?;
        daemon.ok("create --name here busybox echo hi")?;
        let before = seen(daemon)?;

        configure(daemon, &json!({}))?;
        assert_eq!(seen(daemon)?, before);
        assert_eq!(driver_of(daemon, "there")?, "extra");
        let refused = daemon.fails("start there")?;
        assert!(refused.contains("storage instance extra is not configured"), "{refused}");
        assert_eq!(daemon.ok("start --attach here")?, "hi");
        let listed = instance(daemon, "extra")?;
        assert_eq!(
            (&listed["down"], &listed["containers"]),
            (&json!("it is not configured"), &json!(1))
        );

        // A root that cannot be one: the instance is known and down.
        let broken = json!({ "kernel-plugins": { "storage.vfs": { "config": {
            "instances": { "extra": { "root": daemon.path("daemon.json") } }
        } } } });
        configure(daemon, &broken)?;
        assert_eq!(seen(daemon)?, before);
        let refused = daemon.fails("start there")?;
        assert!(refused.contains("extra is not available"), "{refused}");

        configure(daemon, &extra)?;
        assert_eq!(content(daemon, "there")?, made);
        // Back to where the next test's leak check does not look.
        storage_ok(daemon, "migrate --to overlay2 --containers there --purge")?;
        assert_eq!(content(daemon, "there")?, made);
        storage_ok(daemon, "drop extra").map(drop)
    })
}

#[test]
fn the_command_tells_what_is_wrong() -> TestResult {
    daemon_test(|daemon| {
        let cases = [
            ("migrate --to nope", "no storage instance is named \"nope\""),
            ("migrate --to vfs --containers none-such", "No such container: none-such"),
            ("migrate --to vfs --rate fast", "invalid rate \"fast\""),
            ("verify nope", "no storage instance is named \"nope\""),
            ("frobnicate", "unrecognized subcommand"),
        ];
        for (line, part) in cases {
            let output = storage(daemon, line)?;
            assert_eq!(output.status, 1, "{output}");
            assert!(output.stderr.contains(part), "{part} in {output}");
        }
        assert!(storage_ok(daemon, "--help")?.contains("migrate"));
        let table = storage_ok(daemon, "ls")?;
        assert!(table.lines().next().is_some_and(|l| l.starts_with("INSTANCE")), "{table}");
        assert!(table.contains("overlay2 *"), "{table}");
        daemon.stop()?;
        let output = storage(daemon, "ls")?;
        assert!(
            output.status == 1 && output.stderr.contains("cannot reach the daemon"),
            "{output}"
        );
        daemon.start_again()
    })
}

#[test]
fn a_container_that_is_being_moved_is_neither_started_nor_removed() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        let made = make(daemon, "made", "")?;
        let body = json!({
            "to": "vfs", "images": "none", "containers": ["made"], "rate": 1_000_000,
        })
        .to_string();
        let mut client = std::os::unix::net::UnixStream::connect(daemon.socket())?;
        let head = "POST /x/layers/migrate HTTP/1.1\r\nHost: d\r\nContent-Type: application/json";
        write!(client, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        gantry_test_harness::wait_until("it is held", 20, || {
            // Not before the copying has begun: a start then would end the migration of it.
            Ok(daemon.path("data/storage/vfs/r").read_dir()?.count() > 1)
        })?;
        std::thread::sleep(Duration::from_millis(300)); // from the layer to the copying
        for line in ["start made", "rm --force made"] {
            let refused = daemon.fails(line)?;
            assert!(refused.contains("being moved to another storage instance"), "{refused}");
        }
        // The client goes away: the old layer is in charge at once.
        drop(client);
        gantry_test_harness::wait_until("it can be started again", 20, || {
            Ok(daemon.http("POST", "/containers/made/start", b"")?.status == 204)
        })?;
        daemon.ok("wait made")?;
        assert_eq!(content(daemon, "made")?, made);
        assert_eq!(driver_of(daemon, "made")?, "overlay2");
        assert_eq!(instance(daemon, "vfs")?["containers"], 0);
        Ok(())
    })
}

/// Begins a command and lets it run.
fn begin(daemon: &TestDaemon, line: &str) -> Result<std::process::Child> {
    let mut arguments = daemon.arguments();
    arguments.push("storage".to_owned());
    arguments.extend(line.split_whitespace().map(str::to_owned));
    let mut command = daemon.daemon_command(&arguments)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.spawn()?)
}

#[test]
fn killed_while_migrating() -> TestResult {
    daemon_test(|daemon| {
        daemon.load_busybox()?;
        let first = make(daemon, "first", "")?;
        let second = make(daemon, "second", "")?;
        let seed = std::env::var("GANTRY_TEST_SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(rand::random::<u64>);
        eprintln!("GANTRY_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let started = Instant::now();
        storage_ok(daemon, "migrate --to vfs --rate 20MB/s")?;
        let whole = u64::try_from(started.elapsed().as_millis())?;
        let (mut at, mut to) = ("vfs", "overlay2");
        let mut interrupted = 0;
        for kill in 0..KILLS {
            let told = format!("kill {kill} on the way from {at} to {to}, seed {seed}");
            let mut client = begin(daemon, &format!("migrate --to {to} --rate 20MB/s"))?;
            std::thread::sleep(Duration::from_millis(random.random_range(0..whole)));
            daemon.kill9()?;
            client.wait()?;
            daemon.start_again()?;
            let both = [driver_of(daemon, "first")?, driver_of(daemon, "second")?];
            ensure!(both.iter().all(|d| d == at || d == to), "{told}: {both:?}");
            interrupted += usize::from(both.iter().any(|driver| driver == at));
            if random.random_bool(0.5) {
                ensure!(content(daemon, "first")? == first, "{told}: first");
            }
            // What was begun is finished, by the same command.
            storage_ok(daemon, &format!("migrate --to {to}")).context(told.clone())?;
            for (name, content_before) in [("first", &first), ("second", &second)] {
                ensure!(driver_of(daemon, name)? == to, "{told}: {name}");
                ensure!(content(daemon, name)? == *content_before, "{told}: {name}");
            }
            gantry_test_harness::wait_until("old layers are gone", 10, || {
                Ok(instances(daemon)?.iter().all(|i| i["kept"] == 0))
            })
            .context(told.clone())?;
            storage_ok(daemon, &format!("drop {at}")).context(told.clone())?;
            let left = daemon.path("data/storage").join(at);
            gantry_test_harness::wait_until("the instance is empty", 10, || {
                let count =
                    |name: &str| -> Result<usize> { Ok(left.join(name).read_dir()?.count()) };
                // The layer below a chain of none may be there.
                Ok(count("l")? <= 1 && count("r")? <= 1)
            })
            .with_context(|| format!("{told}: {left:?}"))?;
            std::mem::swap(&mut at, &mut to);
        }
        eprintln!("{interrupted} of {KILLS} kills left something unmoved");
        Ok(())
    })
}
