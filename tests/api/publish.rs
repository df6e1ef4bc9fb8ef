//! `-p`: a container's port, reached from another machine, from the host and from other containers.

use std::net::UdpSocket;

use anyhow::{Context, Result};
use gantry_test_harness::sandbox::in_network;
use gantry_test_harness::{Sandbox, TestDaemon, TestResult, wait_until};

use crate::support::{sleeper, with_busybox};

/// Answers every connection to `port` with `answer`.
fn server(daemon: &TestDaemon, name: &str, options: &str, port: u16, answer: &str) -> TestResult {
    daemon.ok(format!(
        "run -d --name {name} {options} busybox \
         sh -c 'while :; do nc -l -p {port} -e echo {answer}; done'"
    ))?;
    Ok(())
}

/// Another machine, `192.0.2.2`, that sees this one as `192.0.2.1`.
fn another_machine(daemon: &TestDaemon) -> Result<Sandbox> {
    let world = Sandbox::start()?;
    daemon.sandbox().connect(("world0", "192.0.2.1/24"), &world, ("eth0", "192.0.2.2/24"))?;
    Ok(world)
}

/// Asks from `place` until there is an answer: servers take a moment between connections.
fn ask(place: &Sandbox, address: &str, port: u16) -> Result<String> {
    let mut answer = String::new();
    wait_until(&format!("{address}:{port} answers"), 10, || {
        answer = place.try_sh(&format!("busybox nc -w 2 {address} {port} </dev/null"))?.stdout;
        Ok(!answer.is_empty())
    })?;
    Ok(answer.trim().to_owned())
}

#[test]
fn a_port_is_reached_from_everywhere() -> TestResult {
    with_busybox(|daemon| {
        let world = another_machine(daemon)?;
        server(daemon, "web", "-p 8080:80", 80, "web")?;
        assert_eq!(ask(&world, "192.0.2.1", 8080)?, "web", "from another machine");
        assert_eq!(
            ask(daemon.sandbox(), "192.0.2.1", 8080)?,
            "web",
            "from the host by its address"
        );
        assert_eq!(ask(daemon.sandbox(), "127.0.0.1", 8080)?, "web", "from the host by loopback");
        let inside =
            "busybox sh -c 'while ! nc -w 2 192.0.2.1 8080 </dev/null; do sleep 0.1; done'";
        assert_eq!(daemon.ok(format!("run --rm {inside}"))?, "web", "from another container");
        assert_eq!(daemon.ok("port web")?.lines().next(), Some("80/tcp -> 0.0.0.0:8080"));
        assert_eq!(daemon.ok("port web 80")?.lines().next(), Some("0.0.0.0:8080"));
        let shown = daemon.ok("ps --format '{{.Ports}}'")?;
        assert!(shown.contains("0.0.0.0:8080->80/tcp"), "{shown}");

        daemon.ok("rm --force web")?;
        let refused = world.try_sh("busybox nc -w 2 192.0.2.1 8080 </dev/null")?;
        assert_ne!(refused.status, 0, "the port is closed with its container");
        server(daemon, "next", "-p 8080:81", 81, "next")?;
        assert_eq!(ask(&world, "192.0.2.1", 8080)?, "next", "and can be used again");
        drop(world);
        daemon.ok("rm --force next")?;
        daemon.sandbox().sh("ip link delete world0 2>/dev/null || true")?;
        Ok(())
    })
}

#[test]
fn what_is_not_published_is_not_reached() -> TestResult {
    with_busybox(|daemon| {
        let world = another_machine(daemon)?;
        server(daemon, "hidden", "--expose 80", 80, "hidden")?;
        let address =
            daemon.inspect("hidden")?["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
                .as_str()
                .context("no address")?
                .to_owned();
        assert_eq!(ask(daemon.sandbox(), &address, 80)?, "hidden", "the host may");
        // A neighbour that adds a route to the containers' network gets nothing.
        world.sh("ip route add 172.16.0.0/12 via 192.0.2.1")?;
        let refused = world.try_sh(&format!("busybox nc -w 2 {address} 80 </dev/null"))?;
        assert_ne!(refused.status, 0, "{refused}");
        drop(world);
        daemon.sandbox().sh("ip link delete world0 2>/dev/null || true")?;
        Ok(())
    })
}

#[test]
fn addresses_ranges_and_protocols_are_respected() -> TestResult {
    with_busybox(|daemon| {
        let world = another_machine(daemon)?;
        server(daemon, "local", "-p 127.0.0.1:9000:80", 80, "local")?;
        assert_eq!(ask(daemon.sandbox(), "127.0.0.1", 9000)?, "local");
        let refused = world.try_sh("busybox nc -w 2 192.0.2.1 9000 </dev/null")?;
        assert_ne!(refused.status, 0, "bound to loopback");
        server(daemon, "bound", "-p 192.0.2.1:9001:80", 80, "bound")?;
        assert_eq!(ask(&world, "192.0.2.1", 9001)?, "bound");

        server(daemon, "chosen", "--publish-all --expose 80 -p 9100-9102:81-83", 80, "chosen")?;
        let ports = &daemon.inspect("chosen")?["NetworkSettings"]["Ports"];
        for (inner, outer) in [("81/tcp", "9100"), ("82/tcp", "9101"), ("83/tcp", "9102")] {
            assert_eq!(ports[inner][0]["HostPort"], outer, "{ports}");
        }
        let chosen = ports["80/tcp"][0]["HostPort"].as_str().context("none chosen")?.to_owned();
        assert_eq!(ask(&world, "192.0.2.1", chosen.parse()?)?, "chosen");

        // busybox speaks no UDP, so the test's own threads do, inside the two namespaces.
        sleeper(daemon, "udp", "-p 9200:53/udp")?;
        let pid = daemon.inspect("udp")?["State"]["Pid"].as_u64().context("no pid")?;
        let server = in_network(&daemon.sandbox().process_file(pid, "ns/net"), || {
            Ok(UdpSocket::bind("0.0.0.0:53")?)
        })?;
        let client = in_network(&world.process_file(1, "ns/net"), || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect("192.0.2.1:9200")?;
            Ok(socket)
        })?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        }
        client.send(b"ping")?;
        let mut datagram = [0; 16];
        let (size, from) = server.recv_from(&mut datagram)?;
        assert_eq!(
            (&datagram[..size], from.ip().to_string().as_str()),
            (&b"ping"[..], "192.0.2.2")
        );
        server.send_to(b"pong", from)?;
        let size = client.recv(&mut datagram)?;
        assert_eq!(&datagram[..size], b"pong");
        drop((server, client));
        daemon.ok("rm --force local bound chosen udp")?;
        drop(world);
        daemon.sandbox().sh("ip link delete world0 2>/dev/null || true")?;
        Ok(())
    })
}

#[test]
fn a_port_has_one_owner() -> TestResult {
    with_busybox(|daemon| {
        server(daemon, "first", "-p 8080:80", 80, "first")?;
        let said = daemon.fails("run --name second -p 8080:80 busybox true")?;
        assert!(said.contains("port is already allocated"), "{said}");
        // The failure took nothing along.
        assert_eq!(ask(daemon.sandbox(), "127.0.0.1", 8080)?, "first");
        daemon.ok("rm --force first")?;
        daemon.ok("start --attach second")?;
        let said = daemon.fails("run --rm -p 70000:80 busybox true")?;
        assert!(said.contains("70000"), "{said}");
        Ok(())
    })
}

#[test]
fn the_source_address_of_a_client_is_kept() -> TestResult {
    with_busybox(|daemon| {
        let world = another_machine(daemon)?;
        daemon.ok("run -d --name peer -p 8080:80 busybox \
             sh -c 'while :; do nc -l -p 80 -e netstat -tn; done'")?;
        let seen = ask(&world, "192.0.2.1", 8080)?;
        assert!(seen.contains("192.0.2.2:"), "{seen}");
        daemon.ok("rm --force peer")?;
        drop(world);
        daemon.sandbox().sh("ip link delete world0 2>/dev/null || true")?;
        Ok(())
    })
}
