//! Who reaches whom, over which address, seen as whom.

use std::net::UdpSocket;
use std::sync::Arc;

use gantry_sdk::Ctx;
use gantry_sdk::kinds::network::{NetworkDriver, Protocol};

use gantry_sys::netlink::Error;

use super::world::*;
use crate::settings::Config;

#[test]
fn published_tcp_ports_are_reached_from_everywhere_and_others_are_not() {
    for filtered in ["0", "1"] {
        published_tcp(filtered);
    }
}

fn published_tcp(filtered: &'static str) {
    on_a_host(move || async move {
        set_bridge_filter(filtered);
        let (driver, _tasks) = driver(Config::default());
        let (cx, client, host) = (Ctx::background(), client().await, host());
        let (one, two) = (network(1, &[]), network(2, &[]));
        driver.create(&cx, &one).await.unwrap();
        driver.create(&cx, &two).await.unwrap();
        let ports = [
            port(Protocol::Tcp, "0.0.0.0", 8080, 80),
            port(Protocol::Tcp, "::", 8080, 80),
            port(Protocol::Tcp, HOST4, 8081, 80),
            port(Protocol::Tcp, "127.0.0.1", 8082, 80),
        ];
        let c1 = Container::join(&driver, &one, 2, &ports).await.unwrap();
        let c2 = Container::join(&driver, &one, 3, &[]).await.unwrap();
        let c3 = Container::join(&driver, &two, 2, &[]).await.unwrap();
        serve_tcp(&c1.netns, "[::]:80");
        serve_tcp(&client, "[::]:80");

        let (v4, v6) = ("10.1.0.2:80", "[fd01::2]:80");
        let client6 = "2001:db8::2";
        let cases = [
            ("client, source kept", &client, "192.0.2.1:8080", ip("::ffff:192.0.2.2")),
            ("client over IPv6", &client, "[2001:db8::1]:8080", ip(client6)),
            ("client, one address", &client, "192.0.2.1:8081", ip("::ffff:192.0.2.2")),
            ("one address is not another", &client, "[2001:db8::1]:8081", None),
            ("loopback is not for others", &client, "192.0.2.1:8082", None),
            ("host's own address", &host, "192.0.2.1:8080", ip("::ffff:192.0.2.1")),
            ("host's own IPv6 address", &host, "[2001:db8::1]:8080", ip(HOST6)),
            ("loopback by the proxy", &host, "127.0.0.1:8080", ip("::ffff:10.1.0.1")),
            ("IPv6 loopback by the proxy", &host, "[::1]:8080", ip("fd01::1")),
            ("loopback only", &host, "127.0.0.1:8082", ip("::ffff:10.1.0.1")),
            ("itself, by the host", &c1.netns, "192.0.2.1:8080", ip("::ffff:10.1.0.1")),
            ("itself over IPv6", &c1.netns, "[2001:db8::1]:8080", ip("fd01::1")),
            ("neighbour, by the host", &c2.netns, "192.0.2.1:8080", ip("::ffff:10.1.0.1")),
            ("neighbour, directly", &c2.netns, v4, ip("::ffff:10.1.0.3")),
            ("neighbour over IPv6", &c2.netns, v6, ip("fd01::3")),
            ("other bridge, by the host", &c3.netns, "192.0.2.1:8080", ip("::ffff:10.2.0.2")),
            ("other bridge, directly", &c3.netns, v4, None),
            ("other bridge over IPv6", &c3.netns, v6, None),
            ("routed past the publication", &client, v4, None),
            ("routed over IPv6", &client, v6, None),
            ("out, masqueraded", &c1.netns, "192.0.2.2:80", ip("::ffff:192.0.2.1")),
            ("out over IPv6", &c1.netns, "[2001:db8::2]:80", ip(HOST6)),
        ];
        for (what, from, to, expected) in cases {
            assert_eq!(ask_tcp(from, to, expected).await, expected, "{what}, filter {filtered}");
        }

        c1.leave(&driver, &one).await;
        assert_eq!(ask_tcp(&client, "192.0.2.1:8080", None).await, None, "withdrawn");
        assert_eq!(ask_tcp(&host, "127.0.0.1:8080", None).await, None, "and the proxy");
        let again = Container::join(&driver, &one, 4, &ports).await;
        assert!(again.is_ok(), "the ports are free at once: {:?}", again.err());
    });
}

#[test]
fn published_udp_ports_answer_from_where_they_were_asked() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, client, host, one) = (Ctx::background(), client().await, host(), network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let ports = [port(Protocol::Udp, "0.0.0.0", 5353, 53), port(Protocol::Udp, "::", 5353, 53)];
        let c1 = Container::join(&driver, &one, 2, &ports).await.unwrap();
        serve_udp(&c1.netns, "10.1.0.2:53");
        serve_udp(&c1.netns, "[fd01::2]:53");
        let cases = [
            ("client", &client, "192.0.2.1:5353", ip(CLIENT4)),
            ("client over IPv6", &client, "[2001:db8::1]:5353", ip("2001:db8::2")),
            ("host's own address", &host, "192.0.2.1:5353", ip(HOST4)),
            ("loopback by the proxy", &host, "127.0.0.1:5353", ip("10.1.0.1")),
            ("loopback again, another client", &host, "127.0.0.1:5353", ip("10.1.0.1")),
            ("IPv6 loopback", &host, "[::1]:5353", ip("fd01::1")),
            ("past the publication", &client, "10.1.0.2:53", None),
        ];
        for (what, from, to, expected) in cases {
            assert_eq!(ask_udp(from, to, expected).await, expected, "{what}");
        }
        c1.leave(&driver, &one).await;
        assert_eq!(ask_udp(&host, "127.0.0.1:5353", None).await, None, "withdrawn");
    });
}

#[test]
fn a_udp_client_that_never_pauses_follows_the_port() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, client, one) = (Ctx::background(), client().await, network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let socket = client
            .run(|| Ok::<_, Error>(UdpSocket::bind("0.0.0.0:0").unwrap()))
            .map(Arc::new)
            .unwrap();
        let ask = |expected| ask_on(&socket, "192.0.2.1:5353", expected);
        assert_eq!(ask(None).await, None, "nobody there; the kernel remembers that");
        let ports = [port(Protocol::Udp, "0.0.0.0", 5353, 53)];
        for n in 2..4 {
            let container = Container::join(&driver, &one, n, &ports).await.unwrap();
            serve_udp(&container.netns, &format!("10.1.0.{n}:53"));
            assert_eq!(ask(ip(CLIENT4)).await, ip(CLIENT4), "container {n}");
            container.leave(&driver, &one).await;
        }
    });
}

#[test]
fn an_ipv4_container_is_reached_over_ipv6_and_has_none_itself() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, client) = (Ctx::background(), client().await);
        let mut one = network(1, &[]);
        one.subnets.truncate(1);
        driver.create(&cx, &one).await.unwrap();
        let ports = [port(Protocol::Tcp, "0.0.0.0", 8080, 80), port(Protocol::Tcp, "::", 8080, 80)];
        let c1 = Container::join(&driver, &one, 2, &ports).await.unwrap();
        assert_eq!(c1.joined.ports.len(), 2);
        serve_tcp(&c1.netns, "0.0.0.0:80");
        assert_eq!(
            ask_tcp(&client, "[2001:db8::1]:8080", ip("10.1.0.1")).await,
            ip("10.1.0.1"),
            "by the proxy"
        );
        assert_eq!(
            ask_tcp(&client, "192.0.2.1:8080", ip(CLIENT4)).await,
            ip(CLIENT4),
            "by the firewall"
        );
        let addresses = c1.netns.run(|| gantry_sys::netlink::Route::open()?.addresses()).unwrap();
        assert!(
            addresses.iter().all(|a| a.address.is_ipv4() || a.address.is_loopback()),
            "{addresses:?}"
        );
    });
}

#[test]
fn without_icc_neighbours_meet_only_at_published_ports() {
    for filtered in ["0", "1"] {
        without_icc(filtered);
    }
}

fn without_icc(filtered: &'static str) {
    on_a_host(move || async move {
        set_bridge_filter(filtered);
        let (driver, _tasks) = driver(Config::default());
        let cx = Ctx::background();
        let one = network(1, &[("com.docker.network.bridge.enable_icc", "false")]);
        driver.create(&cx, &one).await.unwrap();
        let _client = client().await;
        let ports = [port(Protocol::Tcp, "0.0.0.0", 8080, 80)];
        let c1 = Container::join(&driver, &one, 2, &ports).await.unwrap();
        let c2 = Container::join(&driver, &one, 3, &[]).await.unwrap();
        serve_tcp(&c1.netns, "[::]:80");
        assert_eq!(ask_tcp(&c2.netns, "10.1.0.2:80", None).await, None);
        assert_eq!(ask_tcp(&c2.netns, "[fd01::2]:80", None).await, None);
        assert_eq!(
            ask_tcp(&c2.netns, "192.0.2.1:8080", ip("::ffff:10.1.0.1")).await,
            ip("::ffff:10.1.0.1")
        );
        assert_eq!(
            ask_tcp(&host(), "10.1.0.2:80", ip("::ffff:10.1.0.1")).await,
            ip("::ffff:10.1.0.1"),
            "the host may"
        );
    });
}

#[test]
fn an_internal_network_has_no_way_out() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, client) = (Ctx::background(), client().await);
        let mut one = network(1, &[]);
        one.internal = true;
        driver.create(&cx, &one).await.unwrap();
        let c1 = Container::join(&driver, &one, 2, &[]).await.unwrap();
        let c2 = Container::join(&driver, &one, 3, &[]).await.unwrap();
        serve_tcp(&client, "[::]:80");
        serve_tcp(&c2.netns, "[::]:80");
        assert_eq!(ask_tcp(&c1.netns, "192.0.2.2:80", None).await, None, "no route");
        // Even with a route of its own making.
        c1.netns
            .run(|| {
                let mut route = gantry_sys::netlink::Route::open()?;
                let index = route.link(&name("eth0"))?.unwrap().index;
                route.apply(&[gantry_sys::netlink::Request::AddRoute(
                    gantry_sys::netlink::Destination {
                        to: ip("0.0.0.0").unwrap(),
                        prefix: 0,
                        gateway: ip("10.1.0.1"),
                        index,
                    },
                )])
            })
            .unwrap();
        assert_eq!(ask_tcp(&c1.netns, "192.0.2.2:80", None).await, None, "no way");
        assert_eq!(
            ask_tcp(&c1.netns, "10.1.0.3:80", ip("::ffff:10.1.0.2")).await,
            ip("::ffff:10.1.0.2"),
            "neighbours"
        );
    });
}

#[test]
fn without_a_firewall_the_proxy_serves_everybody() {
    on_a_host(|| async {
        let config = Config { iptables: false, ip6tables: false, ..Config::default() };
        let (driver, _tasks) = driver(config);
        let (cx, client, one) = (Ctx::background(), client().await, network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let ports = [port(Protocol::Tcp, "0.0.0.0", 8080, 80)];
        let c1 = Container::join(&driver, &one, 2, &ports).await.unwrap();
        serve_tcp(&c1.netns, "[::]:80");
        assert_eq!(
            ask_tcp(&client, "192.0.2.1:8080", ip("::ffff:10.1.0.1")).await,
            ip("::ffff:10.1.0.1")
        );
        assert_eq!(
            ask_tcp(&client, "10.1.0.2:80", ip("::ffff:192.0.2.2")).await,
            ip("::ffff:192.0.2.2"),
            "no filter"
        );
        let listed = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        assert!(listed.stdout.is_empty(), "no rules");
    });
}
