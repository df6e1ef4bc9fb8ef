//! What is left after refusals, departures and restarts; and what things cost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_sdk::kinds::network::{NetworkDriver, Protocol};
use gantry_sdk::{Ctx, ErrorKind};
use gantry_sys::netlink::{NetNs, Route};

use super::world::*;
use crate::settings::Config;

fn links() -> BTreeSet<String> {
    Route::open().unwrap().links().unwrap().into_iter().map(|l| l.name).collect()
}

fn elements(map: &str) -> usize {
    gantry_sys::nft::Nft::open().unwrap().elements("gantry", map).unwrap().len()
}

#[test]
fn a_taken_port_leaves_nothing_behind() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, one) = (Ctx::background(), network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let ports =
            [port(Protocol::Tcp, "0.0.0.0", 9090, 90), port(Protocol::Tcp, "0.0.0.0", 8080, 80)];
        let _c1 = Container::join(&driver, &one, 2, &ports[1..]).await.unwrap();
        let before = (links(), elements("pub4w"));
        let error = Container::join(&driver, &one, 3, &ports).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(error.chain(), "Bind for 0.0.0.0:8080 failed: port is already allocated");
        assert_eq!((links(), elements("pub4w")), before);
        assert!(Container::join(&driver, &one, 3, &ports[..1]).await.is_ok(), "9090 is free again");

        let _other = std::net::TcpListener::bind("127.0.0.1:7070").unwrap();
        let taken = [port(Protocol::Tcp, "0.0.0.0", 7070, 70)];
        let error = Container::join(&driver, &one, 4, &taken).await.err().unwrap();
        assert!(error.chain().contains("Address already in use"), "{}", error.chain());
    });
}

#[test]
fn a_failed_join_gives_back_links_and_ports() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, one) = (Ctx::background(), network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let before = links();
        // The same address twice: refused inside, after the links were made.
        let twice = vec!["10.1.0.9/24".parse().unwrap(), "10.1.0.9/24".parse().unwrap()];
        let ports = [port(Protocol::Tcp, "0.0.0.0", 8080, 80)];
        let error = Container::join_with(&driver, &one, twice, &ports).await.err().unwrap();
        assert!(error.chain().contains("cannot add address 10.1.0.9/24"), "{}", error.chain());
        assert_eq!(links(), before);
        assert_eq!(elements("pub4w"), 0);
        assert!(Container::join(&driver, &one, 2, &ports).await.is_ok());
    });
}

#[test]
fn a_join_that_nobody_waits_for_is_undone() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, one) = (Ctx::background(), network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let before = links();
        let ports = [port(Protocol::Tcp, "0.0.0.0", 8080, 80)];
        for patience in [0, 50, 200, 400, 800, 1200] {
            let spec = endpoint(vec!["10.1.0.2/24".parse().unwrap()], &ports);
            let netns = Arc::new(NetNs::new().unwrap().into_fd());
            let join = driver.join(&cx, &one, &spec, netns);
            let in_time = tokio::time::timeout(Duration::from_micros(patience), join).await;
            if let Ok(joined) = in_time {
                driver.leave(&cx, &one, &spec, &joined.unwrap()).await.unwrap();
            }
            let until = Instant::now() + Duration::from_secs(10);
            while links() != before || elements("pub4w") > 0 {
                assert!(Instant::now() < until, "something is left: {:?}", links());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // The port is given back last, an instant after everything else.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The port is given back last, an instant after everything else.
        let until = Instant::now() + Duration::from_secs(5);
        while let Err(error) = Container::join(&driver, &one, 2, &ports).await {
            assert!(Instant::now() < until, "{}", error.chain());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn links_go_with_their_namespace_or_are_swept() {
    on_a_host(|| async {
        let (driver, tasks) = driver(Config::default());
        let (cx, one) = (Ctx::background(), network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let before = links();
        let gone = Container::join(&driver, &one, 2, &[]).await.unwrap();
        let stays = Container::join(&driver, &one, 3, &[]).await.unwrap();
        assert_eq!(links().len(), before.len() + 2);
        let started = Instant::now();
        gone.leave(&driver, &one).await;
        stays.leave(&driver, &one).await;
        eprintln!("two departures in {:?}", started.elapsed());
        drop(gone);
        let until = Instant::now() + Duration::from_secs(10);
        while links() != before {
            assert!(Instant::now() < until, "links are left: {:?}", links());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let inside = stays.netns.run(|| Route::open()?.links()).unwrap();
        assert_eq!(inside.len(), 1, "the namespace itself lives on");
        driver.delete(&cx, &one).await.unwrap();
        driver.delete(&cx, &one).await.unwrap();
        assert!(!links().contains("br1"));
        assert_eq!(elements("bridges") + elements("masq4") + elements("hair6"), 0);
        tasks.shut_down(Duration::from_secs(5)).await;
    });
}

#[test]
fn a_new_daemon_takes_over_the_living_and_removes_the_dead() {
    on_a_host(|| async {
        let (old, old_tasks) = driver(Config::default());
        let (cx, client, one) = (Ctx::background(), client().await, network(1, &[]));
        old.create(&cx, &one).await.unwrap();
        let live =
            Container::join(&old, &one, 2, &[port(Protocol::Tcp, "0.0.0.0", 8080, 80)]).await;
        let dead =
            Container::join(&old, &one, 3, &[port(Protocol::Tcp, "0.0.0.0", 8081, 80)]).await;
        let (live, dead) = (live.unwrap(), dead.unwrap());
        serve_tcp(&live.netns, "[::]:80");
        // The old daemon is killed: its sockets close, everything in the kernel stays.
        old_tasks.shut_down(Duration::from_secs(5)).await;
        drop(old);
        assert_eq!(
            ask_tcp(&client, "192.0.2.1:8080", ip("::ffff:192.0.2.2")).await,
            ip("::ffff:192.0.2.2")
        );

        let (new, _tasks) = driver(Config::default());
        new.create(&cx, &one).await.unwrap();
        let living = [(live.spec.clone(), live.joined.clone())];
        new.recover(&cx, &one, &living).await.unwrap();
        assert_eq!(elements("pub4w"), 1);
        assert_eq!(
            ask_tcp(&client, "192.0.2.1:8080", ip("::ffff:192.0.2.2")).await,
            ip("::ffff:192.0.2.2")
        );
        assert_eq!(
            ask_tcp(&host(), "127.0.0.1:8080", ip("::ffff:10.1.0.1")).await,
            ip("::ffff:10.1.0.1")
        );
        let again = [port(Protocol::Tcp, "0.0.0.0", 8080, 80)];
        let error = Container::join(&new, &one, 4, &again).await.err().unwrap();
        assert!(error.chain().contains("port is already allocated"), "held again");

        let stale = dead.joined.host_interface.clone().unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while links().contains(&stale) {
            assert!(Instant::now() < until, "{stale} is left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        live.leave(&new, &one).await;
        assert_eq!(elements("pub4w"), 0);
    });
}

#[test]
fn rules_that_vanish_come_back_with_the_next_container() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, client, one) = (Ctx::background(), client().await, network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let ports = [port(Protocol::Tcp, "0.0.0.0", 8080, 80)];
        let c1 = Container::join(&driver, &one, 2, &ports).await.unwrap();
        serve_tcp(&c1.netns, "[::]:80");
        let flush = std::process::Command::new("nft").args(["flush", "ruleset"]).status().unwrap();
        assert!(flush.success());
        let ports = [port(Protocol::Tcp, "0.0.0.0", 8081, 80)];
        let c2 = Container::join(&driver, &one, 3, &ports).await.unwrap();
        assert_eq!(
            ask_tcp(&client, "192.0.2.1:8080", ip("::ffff:192.0.2.2")).await,
            ip("::ffff:192.0.2.2")
        );
        c2.leave(&driver, &one).await;
        assert!(std::process::Command::new("nft").args(["flush", "ruleset"]).status().is_ok());
        c1.leave(&driver, &one).await; // nothing to withdraw is no error
    });
}

#[test]
fn forwarding_is_turned_on_without_making_the_host_a_router() {
    on_a_host(|| async {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let policy = || {
            let list = ["list", "chain", "inet", "gantry", "passing"];
            let output = std::process::Command::new("nft").args(list).output().unwrap();
            String::from_utf8(output.stdout).unwrap().contains("policy drop")
        };
        let (cx, one) = (Ctx::background(), network(1, &[]));
        let (left_alone, _tasks) = driver(Config { ip_forward: false, ..Config::default() });
        left_alone.create(&cx, &one).await.unwrap();
        let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        assert_eq!(forwarding().trim(), "0");
        assert!(!policy());
        let (first, _tasks) = driver(Config::default());
        first.create(&cx, &one).await.unwrap();
        assert_eq!(forwarding().trim(), "1");
        assert!(policy(), "it was us");
        let (second, _tasks) = driver(Config::default());
        second.create(&cx, &one).await.unwrap();
        assert!(policy(), "and still is after a restart");
    });
}

#[test]
fn what_a_container_costs() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        let (cx, one) = (Ctx::background(), network(1, &[]));
        let started = Instant::now();
        driver.create(&cx, &one).await.unwrap();
        eprintln!("first network, rules loaded: {:?}", started.elapsed());
        let started = Instant::now();
        driver.create(&cx, &one).await.unwrap();
        eprintln!("the same again: {:?}", started.elapsed());

        let mut namespaces = Vec::new();
        let mut joins = Vec::new();
        let mut leaves = Vec::new();
        for n in 2..42 {
            let started = Instant::now();
            drop(NetNs::new().unwrap());
            namespaces.push(started.elapsed());
            let ports = [port(Protocol::Tcp, "0.0.0.0", 8000 + u16::from(n), 80)];
            let started = Instant::now();
            let container = Container::join(&driver, &one, n, &ports).await.unwrap();
            joins.push(started.elapsed());
            let started = Instant::now();
            container.leave(&driver, &one).await;
            leaves.push(started.elapsed());
        }
        for (what, mut times) in
            [("namespace", namespaces), ("namespace and join", joins), ("leave", leaves)]
        {
            times.sort();
            eprintln!("{what}: median {:?}, worst {:?}", times[times.len() / 2], times[39]);
        }
    });
}

#[test]
fn a_thousand_published_ports() {
    on_a_host(|| async {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let _ = rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum },
        );
        let (driver, _tasks) = driver(Config::default());
        let (cx, client, one) = (Ctx::background(), client().await, network(1, &[]));
        driver.create(&cx, &one).await.unwrap();
        let ports: Vec<_> = (10_000..11_000)
            .flat_map(|p| [port(Protocol::Tcp, "0.0.0.0", p, p), port(Protocol::Tcp, "::", p, p)])
            .collect();
        let started = Instant::now();
        let c1 = Container::join(&driver, &one, 2, &ports).await.unwrap();
        eprintln!("1000 ports, both families, published in {:?}", started.elapsed());
        assert_eq!((elements("pub4w"), elements("pub6w")), (1000, 1000));
        serve_tcp(&c1.netns, "[::]:10999");
        assert_eq!(
            ask_tcp(&client, "192.0.2.1:10999", ip("::ffff:192.0.2.2")).await,
            ip("::ffff:192.0.2.2")
        );
        let more = [port(Protocol::Tcp, "0.0.0.0", 8080, 80)];
        let started = Instant::now();
        let c2 = Container::join(&driver, &one, 3, &more).await.unwrap();
        eprintln!("one more container beside them in {:?}", started.elapsed());
        c2.leave(&driver, &one).await;
        let started = Instant::now();
        c1.leave(&driver, &one).await;
        eprintln!("all withdrawn in {:?}", started.elapsed());
        assert_eq!((elements("pub4w"), elements("pub6w")), (0, 0));
    });
}

#[test]
fn forgetting_udp_clients_is_cheap() {
    on_a_host(|| async {
        let (driver, _tasks) = driver(Config::default());
        driver.create(&Ctx::background(), &network(1, &[])).await.unwrap();
        let mut conntrack = gantry_sys::netlink::Conntrack::open().unwrap();
        let started = Instant::now();
        conntrack.forget_made_to(17, 53, false).unwrap();
        eprintln!("one walk over the connections: {:?}", started.elapsed());
        conntrack.forget_answered_by(17, ip("10.1.0.2").unwrap()).unwrap();
        conntrack.forget_answered_by(17, ip("fd01::2").unwrap()).unwrap();
    });
}
