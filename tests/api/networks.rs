//! `--network none|host|bridge|container:`, addresses, names, `network ls` and `inspect`.

use anyhow::Context;
use gantry_test_harness::{Sandbox, TestDaemon, TestResult, wait_until};

use crate::support::{sleeper, strings, with_busybox};

/// The first address of a container on the default bridge.
fn address(daemon: &TestDaemon, name: &str) -> anyhow::Result<String> {
    let container = daemon.inspect(name)?;
    let address = container["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].as_str();
    Ok(address.context("no address")?.to_owned())
}

#[test]
fn none_has_only_itself() -> TestResult {
    with_busybox(|daemon| {
        let links = daemon
            .ok("run --rm --network none busybox sh -c 'ls /sys/class/net; ip -o -4 address'")?;
        let mut lines = links.lines();
        assert_eq!(lines.next(), Some("lo"));
        assert!(lines.next().is_some_and(|l| l.contains("127.0.0.1/8")), "{links}");
        assert_eq!(lines.next(), None);
        Ok(())
    })
}

#[test]
fn host_is_the_daemons_own() -> TestResult {
    with_busybox(|daemon| {
        let inside = daemon.ok("run --rm --network host busybox readlink /proc/self/ns/net")?;
        assert_eq!(inside, daemon.sandbox().sh("readlink /proc/self/ns/net")?);
        let name = daemon.ok("run --rm --network host busybox hostname")?;
        assert_eq!(name, daemon.sandbox().sh("uname -n")?);
        Ok(())
    })
}

#[test]
fn another_containers_network_can_be_joined() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "first", "--hostname named")?;
        let own = daemon.ok("exec first sh -c 'readlink /proc/self/ns/net; hostname'")?;
        let joined = daemon.ok("run --rm --network container:first busybox \
             sh -c 'readlink /proc/self/ns/net; hostname'")?;
        assert_eq!(joined, own);
        let said = daemon.fails("run --rm --network container:nosuch busybox true")?;
        assert!(said.contains("nosuch"), "{said}");
        daemon.ok("create --name stopped busybox true")?;
        let said = daemon.fails("run --rm --network container:stopped busybox true")?;
        assert!(said.contains("non running container"), "{said}");
        let said = daemon.fails("run --rm --network container:first -p 80:80 busybox true")?;
        assert!(said.to_lowercase().contains("conflicting options"), "{said}");
        let said = daemon.fails("run --rm --network nosuch busybox true")?;
        assert!(said.contains("network nosuch not found"), "{said}");
        Ok(())
    })
}

#[test]
fn the_bridge_gives_addresses_that_reach_each_other() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "one", "")?;
        sleeper(daemon, "two", "")?;
        let (one, two) = (address(daemon, "one")?, address(daemon, "two")?);
        assert_ne!(one, two);
        let bridge = daemon.get("/networks/bridge")?;
        let gateway =
            bridge["IPAM"]["Config"][0]["Gateway"].as_str().context("no gateway")?.to_owned();
        daemon.ok(format!("exec one ping -c 1 -W 2 {two}"))?;
        daemon.ok(format!("exec two ping -c 1 -W 2 {gateway}"))?;
        daemon.sandbox().sh(&format!("ping -c 1 -W 2 {one} || busybox ping -c 1 -W 2 {one}"))?;
        let route = daemon.ok("exec one ip route")?;
        assert!(route.contains(&format!("default via {gateway} dev eth0")), "{route}");
        let link = daemon.ok("exec one ip -o link show eth0")?;
        assert!(link.contains("UP"), "{link}");
        let connected = bridge["Containers"].as_object().context("no Containers")?;
        assert_eq!(connected.len(), 2, "{bridge}");
        let hosts = daemon.ok("exec one cat /etc/hosts")?;
        assert!(hosts.lines().any(|l| l.starts_with(&one)), "{hosts}");
        Ok(())
    })
}

#[test]
fn an_address_is_free_again_after_its_container() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "one", "")?;
        let first = address(daemon, "one")?;
        daemon.ok("rm --force one")?;
        // The link goes with the container's namespace, which the kernel does in its own time.
        wait_until("its link is gone", 3, || {
            Ok(daemon.sandbox().sh("ip -o link | grep -c veth || true")? == "0")
        })?;
        for _ in 0..5 {
            daemon.ok("run --rm busybox true")?;
        }
        sleeper(daemon, "again", "")?;
        sleeper(daemon, "more", "")?;
        assert_ne!(address(daemon, "again")?, address(daemon, "more")?);
        // A stopped container has no address; a started one has one again.
        daemon.ok("stop again")?;
        assert_eq!(address(daemon, "again")?, "");
        daemon.ok("start again")?;
        assert!(!address(daemon, "again")?.is_empty());
        assert!(first.contains('.'));
        Ok(())
    })
}

#[test]
fn the_world_outside_sees_the_hosts_address() -> TestResult {
    with_busybox(|daemon| {
        let world = Sandbox::start()?;
        daemon.sandbox().connect(("world0", "192.0.2.1/24"), &world, ("eth0", "192.0.2.2/24"))?;
        let serve = "while :; do busybox nc -l -p 7 -e busybox netstat -tn; done";
        let mut server = world.command("sh").args(["-c", serve]).spawn()?;
        let listening = wait_until("the server listens", 5, || {
            Ok(world.sh("busybox netstat -ltn")?.contains(":7 "))
        });
        let seen = daemon.ok("run --rm busybox nc -w 3 192.0.2.2 7");
        server.kill()?;
        server.wait()?;
        listening?;
        let seen = seen?;
        assert!(seen.contains("192.0.2.1:"), "masqueraded: {seen}");
        assert!(!seen.contains("172.17."), "{seen}");
        drop(world);
        daemon.sandbox().sh("ip link delete world0 2>/dev/null || true")?;
        Ok(())
    })
}

#[test]
fn the_three_networks_are_listed() -> TestResult {
    with_busybox(|daemon| {
        let names = daemon.ok("network ls --format '{{.Name}} {{.Driver}} {{.Scope}}'")?;
        let mut names: Vec<_> = names.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["bridge bridge local", "host host local", "none null local"]);
        let bridge = daemon.get("/networks/bridge")?;
        assert_eq!(bridge["Id"].as_str().map(str::len), Some(64));
        let config = &bridge["IPAM"]["Config"][0];
        assert!(config["Subnet"].as_str().is_some_and(|s| s.contains('/')), "{bridge}");
        let by_id = format!("/networks/{}", bridge["Id"].as_str().unwrap_or_default());
        assert_eq!(daemon.get(&by_id)?["Name"], "bridge");
        assert_eq!(daemon.http("GET", "/networks/nosuch", b"")?.status, 404);
        assert!(strings(&bridge["Containers"]).is_empty());
        Ok(())
    })
}
